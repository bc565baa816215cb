// This file holds what a worker does for the page: it opens a model, tries it, and writes text with it.

import { Model } from "./model.js";
import { sampler } from "./sampling.js";

// Up to this, no rounding has flipped; a flipped one changes a token's scores by up to the tolerance.
const EQUAL = 1e-4;
const TOLERANCE = 3e-2;
// Single tokens are tried for this long; browsers make code faster while it runs.
const TRIAL_MS = 600;
const FEWEST_TRIALS = 2;

const CHUNK_TOKENS = 64;
// A person who stops a text waits no longer than this for the chunk that is at work.
const CHUNK_MS = 300;

let model;
let chunk = CHUNK_TOKENS;
let stopped = false;

const methods = {
  /**
   * Load a model, and refuse it if it does not compute what the golden record says.
   *
   * @param tokens, logits Those of the golden record.
   * @param alone Scores after each of `tokens` as a sequence of its own; `leastEqual` of them must come out the same.
   * @returns Milliseconds of a step of one token.
   */
  async open({ tokens, logits, alone, leastEqual, ...files }) {
    model = await Model.open(files);
    const error = await compare(tokens, logits);
    if (!(error <= TOLERANCE)) throw new Error(`it computes something else, by ${error.toExponential(1)}`);
    const times = [];
    let equal = 0;
    const end = performance.now() + TRIAL_MS;
    while (times.length < FEWEST_TRIALS || performance.now() < end) {
      const i = times.length % tokens.length;
      const begin = performance.now();
      equal += (await compare([tokens[i]], [alone[i]])) <= EQUAL;
      times.push(performance.now() - begin);
    }
    if (equal < leastEqual * times.length) {
      throw new Error(`it computes something else: ${equal} of ${times.length} tokens are equal`);
    }
    const stepMs = median(times.slice(times.length >> 1));
    chunk = Math.max(1, Math.min(CHUNK_TOKENS, Math.floor(CHUNK_MS / stepMs)));
    return stepMs;
  },

  /** Scores after each token of a new sequence, one row after the other. */
  async logits({ ids }) {
    model.reset();
    const parts = [];
    for (const part of chunks(ids)) parts.push(await model.feed(part));
    return new Blob(parts);
  },

  /**
   * Write on after `ids`, and tell each token as it is chosen.
   *
   * @param ends Tokens that end the text; they are not told.
   * @returns Why the text ended, the number of its tokens, and the milliseconds that prompt and tokens took.
   */
  async generate({ ids, maxTokens, temperature, topP, seed, ends }, tell) {
    stopped = false;
    const choose = sampler(temperature, seed, topP);
    const begin = performance.now();
    model.reset();
    let logits;
    for (const part of chunks(ids)) {
      if (!stopped) logits = await model.feed(part);
      await messages();
    }
    logits = logits?.subarray(logits.length - logits.length / (ids.length % chunk || chunk));
    const first = performance.now();
    const result = (reason, count) => ({
      reason,
      count,
      promptMs: first - begin,
      tokensMs: performance.now() - first,
    });
    for (let count = 0; ; count++) {
      if (stopped) return result("stopped", count);
      if (count === maxTokens) return result("length", count);
      const token = choose(logits);
      if (ends.includes(token)) return result("end", count);
      tell(token);
      if (count + 1 < maxTokens) logits = await model.feed([token]);
      await messages();
    }
  },

  /** End the text that is being written. */
  stop() {
    stopped = true;
  },
};

onmessage = async ({ data: { number, method, args } }) => {
  try {
    const value = await methods[method](args, (token) => postMessage({ number, token }));
    postMessage({ number, value });
  } catch (error) {
    // The runtime throws addresses of its own memory, too, which tell a person nothing.
    const reason = error instanceof Error ? error.message : "the runtime stopped, probably for lack of memory";
    postMessage({ number, error: reason });
  }
};

function* chunks(ids) {
  for (let i = 0; i < ids.length; i += chunk) yield ids.slice(i, i + chunk);
}

/** Let messages in that have come meanwhile. */
function messages() {
  return new Promise((resolve) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => {
      port1.close();
      resolve();
    };
    port2.postMessage(undefined);
  });
}

/** Largest RMS error of some tokens' scores, relative to what is expected of some of the vocabulary for each. */
async function compare(tokens, expected) {
  model.reset();
  const half = tokens.length >> 1;
  let worst = 0;
  // The second half one by one, so that what the model remembers is tried, too.
  for (let begin = 0; begin < tokens.length; begin += begin < half ? half : 1) {
    const part = begin < half ? tokens.slice(0, half) : [tokens[begin]];
    const logits = await model.feed(part);
    const size = logits.length / part.length;
    for (const row of part.keys()) {
      const error = distance(logits.subarray(row * size, (row + 1) * size), expected[begin + row]);
      // A number that is not finite is no small error.
      worst = Number.isFinite(error) ? Math.max(worst, error) : Infinity;
    }
  }
  return worst;
}

/** RMS of the differences of a token's scores from samples of them, relative to the samples. */
function distance(logits, samples) {
  const place = (i) => Math.floor((i * (logits.length - 1)) / (samples.length - 1));
  return rms(samples.map((score, i) => logits[place(i)] - score)) / (rms(samples) || 1);
}

function rms(values) {
  return Math.sqrt(values.reduce((sum, value) => sum + value * value, 0) / values.length);
}

function median(values) {
  return values.sort((a, b) => a - b)[values.length >> 1];
}
