// This file holds what the browser keeps for this page: texts by their names.

// Several servers may stand behind one host, each at a path of its own.
const PREFIX = `nanochat${new URL(".", location.href).pathname}`;

/** Texts of `localStorage`, or of `sessionStorage`, which ends with the tab. */
export class Shelf {
  #storage;

  constructor(kind) {
    try {
      this.#storage = window[kind];
    } catch {
      // The person wants nothing to be kept.
      this.#storage = new Forgetful();
    }
  }

  /** Whether anything outlives the page. */
  get isKept() {
    return !(this.#storage instanceof Forgetful);
  }

  read(name) {
    return this.#storage.getItem(PREFIX + name);
  }

  /** Keep a text; an Error says in words why it cannot be. */
  write(name, text) {
    try {
      this.#storage.setItem(PREFIX + name, text);
    } catch {
      throw new Error("the browser's storage for this page is full: export conversations, and delete some");
    }
  }

  remove(name) {
    this.#storage.removeItem(PREFIX + name);
  }

  /** The names that begin so. */
  names(start) {
    const all = Array.from({ length: this.#storage.length }, (_, index) => this.#storage.key(index));
    return all.filter((name) => name.startsWith(PREFIX + start)).map((name) => name.slice(PREFIX.length));
  }

  /** Call a function with the name of each text that another tab changes. */
  onChange(function_) {
    window.addEventListener("storage", (event) => {
      if (event.key?.startsWith(PREFIX)) function_(event.key.slice(PREFIX.length));
    });
  }
}

/** A storage that lasts as long as the page. */
class Forgetful {
  #texts = new Map();

  get length() {
    return this.#texts.size;
  }

  key(index) {
    return [...this.#texts.keys()][index];
  }

  getItem(name) {
    return this.#texts.get(name) ?? null;
  }

  setItem(name, text) {
    this.#texts.set(name, text);
  }

  removeItem(name) {
    this.#texts.delete(name);
  }
}

/** What a text says in JSON, or null if it is none. */
export function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

export const kept = new Shelf("localStorage");
export const passing = new Shelf("sessionStorage");
