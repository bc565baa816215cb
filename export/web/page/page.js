// This file holds the page: it loads the model, and writes what the model says below what a person types.

import { Engine, speed } from "./engine.js";
import { Folder } from "./files.js";
import { Text } from "./text.js";

// A module of one function whose body is the SIMD instruction i8x16.splat.
const SIMD = [0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 8, 1, 6, 0, 65, 0, 253, 15, 11];
const ISOLATION_MS = 5000;
const RELOADED = "nanochat-reloaded";
const ENDS = {
  end: "the model ended the text",
  length: "that is the most tokens allowed",
  context: "the model's context is full",
  stopped: "stopped",
  text: "the text to stop at came",
};

const element = (id) => document.getElementById(id);
let engine;
let text;
let ends;
let stopping;
let messages = [];

/** What scripts may use; `ready` comes to the choice in one sentence. */
window.nanochat = {
  ready: start(),
  encode: (string) => text.encode(string),
  chat: (turns) => text.chat(turns),
  decode,
  logits,
  greedy,
  choice: () => ({ ...engine.chosen, remote: undefined, refused: engine.refused }),
};

async function start() {
  try {
    await load();
    element("loading").hidden = true;
    element("work").hidden = false;
    element("prompt").focus();
    return engine.summary;
  } catch (error) {
    fail(error);
    throw error;
  }
}

async function load() {
  if (!globalThis.WebAssembly || !WebAssembly.validate(new Uint8Array(SIMD))) {
    throw new Error("this browser has no WebAssembly with SIMD: use a newer one");
  }
  const unkept = await isolate();
  const folder = await Folder.open((arrived, expected) => {
    element("progress").value = arrived / expected;
    stage(`Loading: ${megabytes(arrived)} of ${megabytes(expected)} MB`);
  });
  const { name, licence } = folder.manifest;
  document.title = name;
  element("name").textContent = name;
  const [details, json, config, generation] = await Promise.all(
    ["page.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"].map((file) =>
      folder.json(file),
    ),
  );
  text = new Text(json, config);
  element("summary").textContent = details.summary;
  element("summary").hidden = !details.summary;
  element("prompt").value = details.example;
  if (!details.chats) element("chat").textContent = "Chat (it was not trained to)";
  ends = [generation.eos_token_id ?? []].flat();
  const wanted = Object.fromEntries(
    [...new URLSearchParams(location.search)].filter(([key]) => ["device", "weights", "threads"].includes(key)),
  );
  engine = await Engine.open(folder, details, wanted, stage);
  const most = element("max-tokens");
  most.max = engine.contextLength;
  most.value = Math.min(most.value, engine.contextLength);
  element("info").textContent = `${engine.summary}. ${details.runtime}. Licence of the model: ${licence}.`;
  const notes = [...engine.refused.map(([what, why]) => `${what}: ${why}`), ...unkept];
  if (!folder.checked) notes.push("Hashes of the files were not checked: browsers do that only over https or from this machine");
  element("reasons").replaceChildren(...notes.map((note) => create("li", note)));
}

/** Let the service worker isolate this page, which gives it threads, and keep it for when there is no server. */
async function isolate() {
  if (!navigator.serviceWorker) {
    return ["Not kept for use without a server: browsers do that only over https or from this machine"];
  }
  try {
    await navigator.serviceWorker.register("service_worker.js");
    await Promise.race([navigator.serviceWorker.ready, wait(ISOLATION_MS)]);
  } catch (error) {
    return [`Not kept for use without a server: ${error.message}`];
  }
  if (globalThis.crossOriginIsolated) sessionStorage.removeItem(RELOADED);
  else if (!sessionStorage.getItem(RELOADED)) {
    sessionStorage.setItem(RELOADED, "once");
    location.reload();
    await new Promise(() => undefined);
  }
  return [];
}

element("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  element("error").hidden = true;
  busy(true);
  try {
    await (element("mode").value === "chat" ? answer : extend)(element("prompt").value);
  } catch (error) {
    fail(error);
  } finally {
    busy(false);
  }
});

/** Write on after a text. */
async function extend(prompt) {
  messages = [];
  const [begun, written] = [create("span", prompt, "prompt"), create("span", "")];
  const paragraph = create("p", "");
  paragraph.append(begun, written);
  element("log").replaceChildren(paragraph);
  await write([text.special.bos, ...text.encode(prompt)], written);
}

/** Answer a message, and what was said before it. */
async function answer(message) {
  if (!messages.length) element("log").replaceChildren();
  const turns = [...messages, { role: "user", content: message }];
  const reply = create("p", "");
  element("log").append(create("p", message, "prompt"), reply);
  const content = await write(text.chat(turns), reply);
  messages = [...turns, { role: "assistant", content }];
  element("prompt").value = "";
}

element("stop").addEventListener("click", () => stopping.abort());
element("clear").addEventListener("click", () => {
  messages = [];
  element("log").replaceChildren();
  element("speed").textContent = "";
  element("error").hidden = true;
});
element("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) element("form").requestSubmit();
});

/** Write the model's text into a place of the page, and return it. */
async function write(ids, place) {
  stopping = new AbortController();
  const decoder = text.decoder();
  const log = element("log");
  const stopAt = element("stop-at").value;
  let count = 0;
  let begin;
  let written = "";
  let ended = false;
  const show = (piece) => {
    if (ended) return;
    const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
    written += piece;
    const end = stopAt ? written.indexOf(stopAt) : -1;
    if (end < 0) place.append(piece);
    else {
      place.textContent = written.slice(0, end);
      ended = true;
      stopping.abort();
    }
    if (atEnd) log.scrollTop = log.scrollHeight;
  };
  const result = await engine.generate(ids, {
    maxTokens: element("max-tokens").valueAsNumber,
    temperature: element("temperature").valueAsNumber,
    topP: element("top-p").valueAsNumber,
    seed: element("seed").valueAsNumber,
    ends,
    signal: stopping.signal,
    onToken: (token) => {
      begin ??= performance.now();
      show(decoder(token));
      count += 1;
      if (count > 1) element("speed").textContent = rate(count, performance.now() - begin);
    },
  });
  show(decoder());
  const prompt = `prompt of ${ids.length} tokens in ${(result.promptMs / 1000).toFixed(2)} s`;
  const done = result.count ? `${rate(result.count, result.tokensMs)}; ` : "";
  element("speed").textContent = `${done}${prompt}; ${ENDS[ended ? "text" : result.reason]}`;
  return place.textContent;
}

function decode(tokens) {
  const decoder = text.decoder();
  return tokens.map((token) => decoder(token)).join("") + decoder();
}

/** Scores after each of `ids`, as the Base64 of float32 numbers. */
async function logits(ids) {
  const blob = await engine.logits(ids);
  const reader = new FileReader();
  return new Promise((resolve) => {
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.readAsDataURL(blob);
  });
}

/** The most probable tokens after `ids`, none of which ends the text, and how long they took. */
async function greedy(ids, maxTokens) {
  const tokens = [];
  const onToken = (token) => tokens.push(token);
  const result = await engine.generate(ids, { maxTokens, temperature: 0, topP: 1, seed: 0, ends: [], onToken });
  return { ...result, tokens };
}

function busy(is) {
  element("generate").disabled = is;
  element("clear").disabled = is;
  element("stop").disabled = !is;
  element("log").setAttribute("aria-busy", String(is));
}

function stage(sentence) {
  element("status").textContent = sentence;
}

function fail(error) {
  element("loading").hidden = true;
  element("error").hidden = false;
  element("error").textContent = `That did not work: ${error.message}`;
}

function rate(tokens, ms) {
  return `${tokens} tokens, ${speed(ms / tokens)}`;
}

function megabytes(bytes) {
  return (bytes / 1e6).toFixed(1);
}

function create(tag, content, className = "") {
  const made = document.createElement(tag);
  made.textContent = content;
  made.className = className;
  return made;
}

function wait(ms) {
  return new Promise((resolve) => setTimeout(resolve, ms));
}
