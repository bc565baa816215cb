// This file holds an answer that is being written: what the server sends becomes the fields of a message.

import { chatChunks } from "./server.js";

const TOP_LOGPROBS = 5;
// What a message has before it is written.
const BEFORE = ["id", "parent", "role", "content", "model"];
const LEAST_SECONDS = 0.05;

/** What is asked of the server, for the answer to the last of some messages. */
export function chatRequest(path, { model, system, fields, probabilities }) {
  // Of an answer that failed before its first token, there is nothing to tell.
  const said = path.filter(({ role, content, error }) => role === "user" || content || !error);
  const messages = said.map(({ role, content }) => ({ role, content }));
  if (system?.trim()) messages.unshift({ role: "system", content: system });
  return {
    ...(model && { model }),
    messages,
    ...fields,
    ...(probabilities && { logprobs: true, top_logprobs: TOP_LOGPROBS }),
    stream: true,
    stream_options: { include_usage: true },
  };
}

export class Answer {
  #stopping = new AbortController();
  #onChange;

  /** `onChange` is called whenever the message, or its tokens with their probabilities, are more than before. */
  constructor(message, onChange) {
    // Nothing of an earlier try stays.
    for (const name of Object.keys(message)) if (!BEFORE.includes(name)) delete message[name];
    this.message = message;
    this.tokens = [];
    this.#onChange = onChange;
  }

  stop() {
    this.#stopping.abort();
  }

  /** Fill the message to the end, or until it is stopped; throws what the server says is wrong. */
  async write(request) {
    const { message } = this;
    const asked = performance.now();
    let begun = null;
    try {
      for await (const chunk of chatChunks(request, this.#stopping.signal)) {
        const now = performance.now();
        if (this.#take(chunk)) {
          begun ??= now;
          message.waitSeconds = (begun - asked) / 1000;
          message.seconds = (now - begun) / 1000;
        }
        this.#onChange();
      }
    } catch (error) {
      if (!this.#stopping.signal.aborted) throw error;
      message.ended = "stopped";
    }
  }

  /** Add what a chunk says to the message; whether it has text. */
  #take({ choices, usage }) {
    const { message } = this;
    if (usage) {
      message.promptTokens = usage.prompt_tokens;
      message.tokens = usage.completion_tokens;
      message.cachedTokens = usage.prompt_tokens_details?.cached_tokens ?? 0;
    }
    const { delta, logprobs, finish_reason: ended } = choices[0] ?? {};
    if (ended) message.ended = ended;
    if (delta?.reasoning_content) message.reasoning = (message.reasoning ?? "") + delta.reasoning_content;
    if (delta?.content) message.content += delta.content;
    // Those of thoughts alone are not shown.
    if (logprobs?.content && (delta.content || !delta.reasoning_content)) this.tokens.push(...logprobs.content);
    return Boolean(delta?.content || delta?.reasoning_content);
  }
}

/** Numbers of an answer, in words. */
export function figures({ model, tokens, seconds, waitSeconds, promptTokens, cachedTokens, ended }) {
  const parts = model ? [model] : [];
  if (tokens !== undefined) parts.push(tokens === 1 ? "1 token" : `${tokens} tokens`);
  // The first token's time is the prompt's; of a shorter time, most is that of the network.
  if (tokens > 1 && seconds >= LEAST_SECONDS) parts.push(`${rounded((tokens - 1) / seconds)} tokens/s`);
  if (waitSeconds !== undefined) parts.push(`first after ${waitSeconds.toFixed(2)} s`);
  if (promptTokens !== undefined) parts.push(`${cachedTokens} of the prompt's ${promptTokens} cached`);
  if (ended === "length") parts.push("ended by the limit of tokens");
  if (ended === "stopped") parts.push("stopped");
  return parts.join(", ");
}

function rounded(rate) {
  return rate < 10 ? rate.toFixed(1) : Math.round(rate).toLocaleString("en");
}
