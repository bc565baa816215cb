// This file holds a model at work: one session of ONNX Runtime, and the sequence that it has seen.

/** A graph as the exporter writes it: tokens and what it remembers go in, scores and what it remembers come out. */
export class Model {
  /** Load a graph. `device` is "wasm" or "webgpu"; `wasm`, `graph` and `data` are Blobs. */
  static async open({ runtime, wasm, device, threads, graph, data, dataName, options }) {
    const ort = await import(runtime);
    ort.env.logLevel = "error";
    ort.env.wasm.numThreads = threads;
    ort.env.wasm.wasmBinary = await wasm.arrayBuffer();
    const session = await ort.InferenceSession.create(await bytes(graph), {
      executionProviders: [device],
      // What the model remembers stays where it is computed; a runtime without WebGPU hands over copies.
      ...(device === "webgpu" && { preferredOutputLocation: "gpu-buffer" }),
      externalData: [{ path: dataName, data: await bytes(data) }],
      extra: { session: options },
    });
    ort.env.wasm.wasmBinary = undefined;
    return new Model(ort.Tensor, session);
  }

  constructor(tensor, session) {
    this.tensor = tensor;
    this.session = session;
    this.past = {};
    this.reset();
  }

  /** Begin a new sequence. */
  reset() {
    this.length = 0;
    this.#remember({});
    for (const { name, shape } of this.session.inputMetadata) {
      if (!name.startsWith("past")) continue;
      const sizes = shape.map((size) => (typeof size === "number" ? size : size.startsWith("batch") ? 1 : 0));
      const zeros = new Float32Array(sizes.reduce((product, size) => product * size, 1));
      this.past[name] = new this.tensor("float32", zeros, sizes);
    }
  }

  /** Continue the sequence, and return the scores after each of `ids`, one row after the other. */
  async feed(ids) {
    this.length += ids.length;
    const results = await this.session.run({
      input_ids: this.#integers(ids),
      attention_mask: this.#integers(new Array(this.length).fill(1)),
      ...this.past,
    });
    const present = (name) => results["present" + name.slice(name.indexOf("."))];
    this.#remember(Object.fromEntries(Object.keys(this.past).map((name) => [name, present(name)])));
    const logits = await results.logits.getData();
    results.logits.dispose();
    return logits;
  }

  #remember(past) {
    for (const tensor of Object.values(this.past)) tensor.dispose();
    this.past = past;
  }

  #integers(numbers) {
    return new this.tensor("int64", BigInt64Array.from(numbers, BigInt), [1, numbers.length]);
  }
}

async function bytes(blob) {
  return new Uint8Array(await blob.arrayBuffer());
}
