// Asks the server at an address with OpenAI's client, and prints what came.
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.argv[2], apiKey: "none", maxRetries: 0 });
const model = "nanochat-tiny";
const text = "fn main() {";
const chat = { model, messages: [{ role: "user", content: text }], max_tokens: 12, temperature: 0 };
const response = { model, input: text, max_output_tokens: 12, temperature: 0 };

const whole = await client.chat.completions.create(chat);
let streamed = "";
for await (const chunk of await client.chat.completions.create({ ...chat, stream: true })) {
  streamed += chunk.choices[0]?.delta?.content ?? "";
}
const final = await client.chat.completions.stream(chat).finalChatCompletion();
const completion = await client.completions.create({ model, prompt: text, max_tokens: 12, temperature: 0 });
const responded = await client.responses.create(response);
let events = "";
for await (const event of await client.responses.create({ ...response, stream: true })) {
  if (event.type === "response.output_text.delta") events += event.delta;
}
const embedded = await client.embeddings.create({ model, input: text });
const error = await client.chat.completions.create({ ...chat, model: "other" }).catch((error) => error);
const left = await client.completions.create({ model, prompt: text, max_tokens: 900, stream: true });
for await (const chunk of left) if (chunk) left.controller.abort();

console.log(JSON.stringify({
  chats: [
    whole.choices[0].message.content, streamed, final.choices[0].message.content, responded.output_text, events,
  ],
  tokens: whole.usage.completion_tokens,
  completion: completion.choices[0].text,
  embedding: embedded.data[0].embedding,
  error: [error.constructor.name, error.code],
}));
