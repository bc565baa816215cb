// This file holds the server as the page asks it: with a key if it needs one, and errors in words.

import { events } from "./events.js";
import { kept, passing } from "./storage.js";

const KEY = "key";
const NEEDS_KEY = 401;

/** What went wrong, as a person is told; `status` is that of HTTP, or 0 where there was no answer. */
export class ServerError extends Error {
  constructor(message, { status = 0, code = null } = {}) {
    super(message);
    this.status = status;
    this.code = code;
  }

  get needsKey() {
    return this.status === NEEDS_KEY;
  }

  /** Whether the server cannot answer now, but may soon. */
  get isPassing() {
    return this.status === 0 || this.code === "not_ready" || this.code === "shutting_down";
  }
}

/** The key that is sent. */
export const key = {
  get value() {
    return passing.read(KEY) ?? kept.read(KEY) ?? "";
  },

  get isRemembered() {
    return kept.read(KEY) !== null;
  },

  /** Use a key until the tab is closed, or for longer if it shall be remembered; an empty one is forgotten. */
  use(value, { remember }) {
    passing.remove(KEY);
    kept.remove(KEY);
    if (value) (remember ? kept : passing).write(KEY, value);
  },
};

/** The names of the models. */
export async function modelNames() {
  const response = await ask("v1/models", {});
  const { data } = await response.json();
  return data.map(({ id }) => id);
}

/** The chunks of an answer, as they arrive; `signal` ends it. */
export async function* chatChunks(request, signal) {
  const response = await ask("v1/chat/completions", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(request),
    signal,
  });
  try {
    for await (const data of events(response.body)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new ServerError(chunk.error.message, { status: response.status, code: chunk.error.code });
      yield chunk;
    }
  } catch (error) {
    if (error instanceof ServerError || signal.aborted) throw error;
  }
  throw new ServerError("The answer broke off: the server has ended, or the connection was lost.");
}

async function ask(path, options) {
  const headers = { ...options.headers };
  if (key.value) headers.authorization = `Bearer ${key.value}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new ServerError("The server does not answer: it has ended, or cannot be reached.");
  }
  if (response.ok) return response;
  const { status } = response;
  const { message, code } = (await response.json().catch(() => ({}))).error ?? {};
  throw new ServerError(message ?? `The server answers with status ${status}.`, { status, code });
}
