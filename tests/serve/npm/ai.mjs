// Asks the server at an address with Vercel's AI SDK, and prints what came.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { embed, generateObject, generateText, jsonSchema, streamText } from "ai";

const provider = createOpenAICompatible({
  name: "nanochat", baseURL: process.argv[2], apiKey: "none", includeUsage: true, supportsStructuredOutputs: true,
});
const text = "fn main() {";
const asked = {
  model: provider("nanochat-tiny"), prompt: text, maxOutputTokens: 12, temperature: 0, maxRetries: 0,
};
const schema = jsonSchema({
  type: "object", properties: { kind: { enum: ["cat", "dog"] } }, required: ["kind"], additionalProperties: false,
});

const whole = await generateText(asked);
const stream = streamText(asked);
let streamed = "";
for await (const part of stream.textStream) streamed += part;
const embedded = await embed({ model: provider.textEmbeddingModel("nanochat-tiny"), value: text });
const { object } = await generateObject({ ...asked, maxOutputTokens: 60, schema });
const error = await generateText({ ...asked, model: provider("other") }).catch((error) => error);

console.log(JSON.stringify({
  chats: [whole.text, streamed],
  tokens: (await stream.usage).outputTokens,
  embedding: embedded.embedding,
  object,
  error: [error.name, error.statusCode],
}));
