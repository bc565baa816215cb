// This file holds a conversation: a tree of messages, in which a path from the first to `leaf` is shown. Whoever edits
// a message or asks again begins a branch, and nothing that was said is lost.

const ROLES = ["user", "assistant"];
const LONGEST_NAME = 60;
// What a message may have besides: fields and their types.
const OPTIONAL = {
  reasoning: "string",
  model: "string",
  ended: "string",
  error: "string",
  promptTokens: "number",
  cachedTokens: "number",
  tokens: "number",
  waitSeconds: "number",
  seconds: "number",
};

export class Conversation {
  constructor({ id = newId(), title = "", changed = Date.now(), settings = {}, messages = [], leaf = null } = {}) {
    Object.assign(this, { id, title, changed, settings, messages, leaf });
  }

  /**
   * What can be read of a conversation that was kept or exported; null if nothing can.
   *
   * `isWhole` tells whether that is all of it.
   */
  static read(value) {
    if (!isObject(value) || !Array.isArray(value.messages)) return null;
    let isWhole = true;
    const messages = [];
    const known = new Set([null]);
    for (const given of value.messages) {
      const message = readMessage(given, messages.at(-1), known);
      if (message) {
        messages.push(message);
        known.add(message.id);
      }
      isWhole &&= Boolean(message) && message.parent === given.parent;
    }
    if (!messages.length) return null;
    const conversation = new Conversation({
      id: typeof value.id === "string" && value.id ? value.id : newId(),
      title: typeof value.title === "string" ? value.title : "",
      changed: Number.isFinite(value.changed) ? value.changed : Date.now(),
      settings: readTexts(value.settings),
      messages,
    });
    // To the end: what comes after the last message that is shown could not be reached.
    conversation.show(conversation.find(value.leaf) ?? messages.at(-1));
    return { conversation, isWhole };
  }

  /** What it is called: its title, or how it begins. */
  get name() {
    const first = this.messages[0]?.content.trim().split("\n")[0] ?? "";
    return this.title || first.slice(0, LONGEST_NAME) || "New conversation";
  }

  /** The messages that are shown, from the first to the last. */
  get path() {
    return this.pathTo(this.find(this.leaf));
  }

  /** The messages from the first to this one. */
  pathTo(message) {
    const found = [];
    for (let one = message; one; one = this.find(one.parent)) found.push(one);
    return found.reverse();
  }

  find(id) {
    return this.messages.find((message) => message.id === id) ?? null;
  }

  /** The messages that stand at the place of one, itself among them. */
  versions({ parent }) {
    return this.messages.filter((message) => message.parent === parent);
  }

  /** Add a message after one, or after null at the beginning, and show it. */
  add(parent, fields) {
    const message = { id: newId(), parent: parent?.id ?? null, ...fields };
    this.messages.push(message);
    this.leaf = message.id;
    this.touch();
    return message;
  }

  /** Show a message, with what came after it last. */
  show(message) {
    for (let next = message; next; next = this.#newest(next)) this.leaf = next.id;
  }

  /** Remove a message and all that came after it, and show another version of it, if there is one. */
  remove(message) {
    const versions = this.versions(message);
    const place = versions.indexOf(message);
    const other = versions[place - 1] ?? versions[place + 1];
    const gone = new Set([message.id]);
    for (const { id, parent } of this.messages) if (gone.has(parent)) gone.add(id);
    this.messages = this.messages.filter(({ id }) => !gone.has(id));
    if (other) this.show(other);
    else this.leaf = message.parent;
    this.touch();
  }

  /** Take over what another tab has added to its copy, but for the message that is being written here. */
  adopt(other, written) {
    for (const message of other.messages) {
      const own = this.find(message.id);
      if (own && own !== written && !isLonger(own, message)) Object.assign(own, message);
      else if (!own && (message.parent === null || this.find(message.parent))) this.messages.push(message);
    }
    this.show(this.find(this.leaf));
  }

  /** Take from an older copy what another tab has kept less of, as it knew no better; whether there was any. */
  restore(older) {
    const cut = this.messages.filter((message) => isLonger(older.find(message.id), message));
    for (const message of cut) Object.assign(message, older.find(message.id));
    return cut.length > 0;
  }

  touch() {
    this.changed = Date.now();
  }

  #newest(message) {
    return this.messages.findLast((other) => other.parent === message.id);
  }
}

/** Whether a message is there, and goes on where another copy of it ends: messages only grow. */
function isLonger(message, copy) {
  return message !== null && message.content.length > copy.content.length && message.content.startsWith(copy.content);
}

/** A message after the one that was read before it; null if it is none. */
function readMessage(given, before, known) {
  if (!isObject(given) || !ROLES.includes(given.role) || typeof given.content !== "string") return null;
  // After a message that cannot be read, those that followed it follow the one before.
  const parent = known.has(given.parent) ? given.parent : (before?.id ?? null);
  const id = typeof given.id === "string" && !known.has(given.id) ? given.id : newId();
  const message = { id, parent, role: given.role, content: given.content };
  for (const [name, type] of Object.entries(OPTIONAL)) {
    if (typeof given[name] === type) message[name] = given[name];
  }
  return message;
}

/** The texts of an object, by their names. */
export function readTexts(value) {
  const texts = Object.entries(isObject(value) ? value : {}).filter(([, text]) => typeof text === "string");
  return Object.fromEntries(texts);
}

function isObject(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** Not `randomUUID`, which browsers give to pages over https or from this machine only. */
export function newId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(8)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
