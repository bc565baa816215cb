// This file holds the choice of how the model runs here, and the way from the page to the worker that runs it.
//
// A candidate is a device, a form of the weights and a number of threads. Each runs in a worker of its own; one that does
// not compute what the golden record says is refused, and the fastest of the others stays.

const DATA = "model.onnx.data";
const FORMS = {
  // Constants are widened once, when the graph is loaded, and not in every step.
  float32: { graph: "model.float32.onnx", options: { disable_quant_qdq: "1" } },
  "2-bit": { graph: "model.2-bit.onnx", options: {} },
};
const RUNTIMES = {
  wasm: { script: "ort.wasm.bundle.min.mjs", wasm: "ort-wasm-simd-threaded.wasm" },
  webgpu: { script: "ort.jspi.bundle.min.mjs", wasm: "ort-wasm-simd-threaded.jspi.wasm" },
};
const RUNTIME_FOLDER = "runtime/onnxruntime-web/";

const GIB = 2 ** 30;
// A tab is given at most this; browsers that do not say how much the machine has are taken to have 4 GiB.
const LARGEST_HEAP = 3.5 * GIB;
const USUAL_MEMORY = 4;
// While a graph is loaded, what it is made from, its constants and their packed form are there.
const COPIES = 3;
const MOST_THREADS = 8;
// A candidate beside one that works may take this long until it is tried.
const PATIENCE_MS = 20000;

/** The model as it was chosen to run here. */
export class Engine {
  /**
   * @param folder Where the files are.
   * @param details What `page.json` says.
   * @param wanted The only "device", "weights" and "threads" to try; all where it says nothing.
   * @param onStage Called with a sentence for each thing that begins.
   */
  static async open(folder, details, wanted, onStage) {
    const { candidates, refused } = await possible(details, wanted);
    const budget = memory();
    let best;
    for (const candidate of candidates) {
      const files = await fetchAll(folder, candidate);
      onStage(`Trying ${candidate.name}`);
      if (best && best.need + candidate.need > budget) best.remote.close();
      try {
        await start(folder, details, candidate, files, best ? PATIENCE_MS : undefined);
      } catch (error) {
        refused.push([candidate.name, error.message]);
        continue;
      }
      const slower = best?.stepMs <= candidate.stepMs ? candidate : best;
      if (slower) {
        slower.remote.close();
        refused.push([slower.name, `slower: ${speed(slower.stepMs)}`]);
      }
      if (slower !== candidate) best = candidate;
    }
    if (!best) {
      const reasons = refused.map(([name, reason]) => `${name}: ${reason}`).join("; ");
      throw new Error(`this browser cannot run the model (${reasons}): try another one, such as the newest Chromium`);
    }
    if (best.remote.closed) {
      onStage(`Loading ${best.name} again`);
      await start(folder, details, best, await fetchAll(folder, best));
    }
    return new Engine(best, refused, folder.manifest.config.context_length);
  }

  constructor(chosen, refused, contextLength) {
    this.chosen = chosen;
    this.refused = refused;
    this.contextLength = contextLength;
  }

  /** The choice in one sentence. */
  get summary() {
    return `${this.chosen.name}: ${speed(this.chosen.stepMs)} when it was tried`;
  }

  /** Scores after each token of a new sequence, as a Blob of float32 numbers. */
  logits(ids) {
    this.#fits(ids);
    return this.chosen.remote.call("logits", { ids });
  }

  /** Write on after `ids`, and call `onToken` with each token; see `generate` of worker.js, which a signal ends. */
  async generate(ids, { maxTokens, temperature, topP, seed, ends, onToken, signal }) {
    this.#fits(ids);
    const { remote } = this.chosen;
    const room = this.contextLength - ids.length;
    const stop = () => remote.call("stop");
    signal?.addEventListener("abort", stop);
    const options = { ids, maxTokens: Math.min(maxTokens, room), temperature, topP, seed, ends };
    let result;
    try {
      result = await remote.call("generate", options, onToken);
    } finally {
      signal?.removeEventListener("abort", stop);
    }
    return result.reason === "length" && room < maxTokens ? { ...result, reason: "context" } : result;
  }

  #fits(ids) {
    if (ids.length === 0) throw new Error("the prompt has no tokens: type something");
    if (ids.length > this.contextLength) {
      throw new Error(`the prompt has ${ids.length} tokens, and the model sees ${this.contextLength}: shorten it`);
    }
  }
}

/** Tokens per second, as text. */
export function speed(stepMs) {
  const rate = 1000 / stepMs;
  return `${rate.toFixed(rate < 10 ? 1 : 0)} tokens/s`;
}

/** What can be tried here, and why the rest cannot. */
async function possible(details, wanted) {
  const cores = Math.min(navigator.hardwareConcurrency || 1, MOST_THREADS);
  const threads = globalThis.crossOriginIsolated ? cores : 1;
  const gpu = await gpuObstacle(wanted.device === "webgpu");
  const budget = memory();
  const candidates = [];
  const refused = [];
  const add = (device, weights, count, obstacle) => {
    const place = device === "webgpu" ? "WebGPU" : `WASM, ${count} thread${count > 1 ? "s" : ""}`;
    const need = COPIES * (weights === "float32" ? details.float32_bytes : details.packed_bytes);
    const candidate = { device, weights, threads: count, need, name: `${weights} weights, ${place}` };
    if (Object.entries(wanted).some(([key, value]) => String(candidate[key]) !== value)) return;
    const tight = need > budget && `needs ${gigabytes(need)} of the ${gigabytes(budget)} that a page may use here`;
    const reason = obstacle || tight;
    if (reason) refused.push([candidate.name, reason]);
    else candidates.push(candidate);
  };
  const counts = new Set([threads, 1]);
  for (const count of counts) add("wasm", "float32", count);
  const fits = candidates.length > 0 && "WASM has no fast product with them, and float32 fits";
  for (const count of counts) add("wasm", "2-bit", count, fits);
  if (threads < cores) refused.push([`${cores} threads`, "browsers give them to cross-origin isolated pages only"]);
  for (const weights of ["2-bit", "float32"]) add("webgpu", weights, 1, gpu);
  if (!candidates.length && !refused.length) {
    throw new Error(`no way to run the model is called ${JSON.stringify(wanted)}: take the part after "?" off the address`);
  }
  return { candidates, refused };
}

/** Why there is no WebGPU here; undefined if there is. */
async function gpuObstacle(insist) {
  if (!navigator.gpu) return "this browser has none, or the page comes from another machine without https";
  if (!("Suspending" in WebAssembly)) return "this browser's WASM cannot wait for it (no JSPI)";
  const adapter = await navigator.gpu.requestAdapter();
  if (!adapter) return "this machine has no adapter for it";
  if (adapter.info?.isFallbackAdapter && !insist) return "it is done in software here";
  return undefined;
}

/** Bytes that a page may use. */
function memory() {
  return Math.min(LARGEST_HEAP, ((navigator.deviceMemory ?? USUAL_MEMORY) * GIB) / 2);
}

/** The files that a candidate is loaded from. */
function fetchAll(folder, { device, weights }) {
  const names = [RUNTIME_FOLDER + RUNTIMES[device].wasm, FORMS[weights].graph, DATA];
  return Promise.all(names.map((name) => folder.blob(name)));
}

/** Load a candidate in a worker, which tries it. */
async function start(folder, details, candidate, [wasm, graph, data], patienceMs) {
  const { device, weights, threads } = candidate;
  const { tokens, logits } = folder.manifest.golden;
  const remote = new Remote(new Worker(new URL("worker.js", import.meta.url), { type: "module" }));
  const late = patienceMs && setTimeout(() => remote.close(`not tried within ${patienceMs / 1000} s`), patienceMs);
  try {
    candidate.stepMs = await remote.call("open", {
      runtime: new URL(RUNTIME_FOLDER + RUNTIMES[device].script, import.meta.url).href,
      wasm,
      device,
      threads,
      graph,
      data,
      dataName: DATA,
      options: FORMS[weights].options,
      tokens,
      logits,
      alone: details.alone,
      leastEqual: details.least_equal,
    });
    candidate.remote = remote;
  } catch (error) {
    remote.close();
    throw error;
  } finally {
    clearTimeout(late);
  }
}

/** Calls of the methods of a worker. */
class Remote {
  #worker;
  #calls = new Map();
  #number = 0;

  constructor(worker) {
    this.#worker = worker;
    this.closed = "";
    worker.onmessage = ({ data: { number, token, value, error } }) => {
      const { resolve, reject, onToken } = this.#calls.get(number);
      if (token !== undefined) return onToken(token);
      this.#calls.delete(number);
      return error === undefined ? resolve(value) : reject(new Error(error));
    };
    worker.onerror = (event) => this.close(event.message || "a script of the page is missing: copy the folder again");
  }

  call(method, args, onToken) {
    return new Promise((resolve, reject) => {
      if (this.closed) throw new Error(this.closed);
      this.#number += 1;
      this.#calls.set(this.#number, { resolve, reject, onToken });
      this.#worker.postMessage({ number: this.#number, method, args });
    });
  }

  close(reason = "it was closed") {
    this.closed = reason;
    this.#worker.terminate();
    for (const { reject } of this.#calls.values()) reject(new Error(reason));
    this.#calls.clear();
  }
}

function gigabytes(bytes) {
  return `${(bytes / GIB).toFixed(1)} GiB`;
}
