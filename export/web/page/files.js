// This file holds the fetching of the folder's files: with progress, and compared with the manifest that lists them.

const MANIFEST = "nanochat.json";

/** The files of the folder that this page stands in. */
export class Folder {
  /** Read the manifest; `onProgress` is called with the bytes that have arrived of all files asked for. */
  static async open(onProgress) {
    const manifest = await (await get(MANIFEST)).json().catch(() => {
      throw new Error(`${MANIFEST} is damaged: copy the folder again`);
    });
    return new Folder(manifest, onProgress);
  }

  constructor(manifest, onProgress) {
    this.manifest = manifest;
    this.onProgress = onProgress;
    this.arrived = 0;
    this.expected = 0;
    this.blobs = new Map();
    // Only pages from https or from this machine may hash.
    this.checked = Boolean(globalThis.crypto?.subtle);
  }

  /** A file as a Blob, fetched once; it is a whole and undamaged one, or an Error says what to do. */
  blob(name) {
    if (!this.blobs.has(name)) this.blobs.set(name, this.#fetch(name));
    return this.blobs.get(name);
  }

  async json(name) {
    return JSON.parse(await (await this.blob(name)).text());
  }

  async #fetch(name) {
    const record = this.manifest.files[name];
    if (!record) throw new Error(`${MANIFEST} does not list ${name}: export the model again`);
    this.expected += record.bytes;
    const reader = (await get(name)).body.getReader();
    const chunks = [];
    let size = 0;
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      chunks.push(part.value);
      size += part.value.length;
      this.arrived += part.value.length;
      this.onProgress(this.arrived, this.expected);
    }
    const blob = new Blob(chunks);
    if (size !== record.bytes || (this.checked && (await sha256(blob)) !== record.sha256)) {
      throw new Error(
        `${name} is damaged: ${size} bytes that are not the ${record.bytes} of ${MANIFEST}; copy the folder again`,
      );
    }
    return blob;
  }
}

async function get(name) {
  let response;
  try {
    response = await fetch(name);
  } catch {
    throw new Error(`${name} cannot be fetched: the server of this page does not answer; start it again`);
  }
  if (!response.ok) {
    throw new Error(`${name} cannot be fetched (status ${response.status}): copy the folder again`);
  }
  return response;
}

async function sha256(blob) {
  const digest = await crypto.subtle.digest("SHA-256", await blob.arrayBuffer());
  return Array.from(new Uint8Array(digest), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
