// This file holds all conversations: as the browser keeps them, and as a file that can be taken elsewhere.

import { Conversation, newId } from "./conversation.js";
import { parsed } from "./storage.js";

const RECORD = "conversation.";
// What a record was before a part of it that could not be read was left out.
const DAMAGED = "damaged.";
const FORMAT = "nanochat-conversations";

export class Library {
  #shelf;
  #conversations = new Map();
  // Records as they were, of conversations of which a part could be read.
  #originals = new Map();
  // Names of records of which nothing could be read: they stay where they are.
  #unreadable = [];

  constructor(shelf) {
    this.#shelf = shelf;
    for (const name of shelf.names(RECORD)) this.refresh(name);
  }

  /** The conversations, the one that changed last first. */
  get all() {
    return [...this.#conversations.values()].sort((a, b) => b.changed - a.changed);
  }

  /** How many records are damaged. */
  get damage() {
    return this.#unreadable.length + this.#originals.size;
  }

  find(id) {
    return this.#conversations.get(id) ?? null;
  }

  /** The id of the conversation that a record is of, or null. */
  idOf(name) {
    return name.startsWith(RECORD) ? name.slice(RECORD.length) : null;
  }

  /** Read a record, perhaps again; the conversation, or null. */
  refresh(name) {
    const id = this.idOf(name);
    const text = this.#shelf.read(name);
    this.#conversations.delete(id);
    if (text === null) return null;
    const found = Conversation.read(parsed(text));
    if (!found) {
      this.#unreadable.push(name);
      return null;
    }
    found.conversation.id = id;
    if (!found.isWhole) this.#originals.set(id, text);
    this.#conversations.set(id, found.conversation);
    return found.conversation;
  }

  /** Keep a conversation; an Error says why it cannot be, and it is here until the page is closed. */
  save(conversation) {
    if (!conversation.messages.length) return;
    this.put(conversation);
    const original = this.#originals.get(conversation.id);
    if (original !== undefined) this.#shelf.write(DAMAGED + conversation.id, original);
    this.#originals.delete(conversation.id);
    this.#shelf.write(RECORD + conversation.id, JSON.stringify(conversation));
  }

  /** Have this conversation in place of one that was read anew; it is kept when it is saved. */
  put(conversation) {
    this.#conversations.set(conversation.id, conversation);
  }

  remove(conversation) {
    this.#conversations.delete(conversation.id);
    this.#shelf.remove(RECORD + conversation.id);
  }

  /** All conversations as text, with what could not be read as it was. */
  export() {
    const damaged = [...this.#unreadable, ...this.#shelf.names(DAMAGED)].map((name) => this.#shelf.read(name));
    damaged.push(...this.#originals.values());
    return JSON.stringify({ format: FORMAT, version: 1, conversations: this.all, damaged }, null, 1);
  }

  /** Add the conversations of such a text; how many there were, and how many of them are damaged. */
  import(text) {
    const content = parsed(text);
    if (content?.format !== FORMAT || !Array.isArray(content.conversations)) {
      throw new Error("this file holds no conversations that this page has exported: choose another one");
    }
    let [count, damaged] = [0, 0];
    for (const value of content.conversations) {
      const found = Conversation.read(value);
      damaged += found?.isWhole ? 0 : 1;
      if (!found) continue;
      count++;
      const own = this.find(found.conversation.id);
      if (own && JSON.stringify(own) === JSON.stringify(found.conversation)) continue;
      if (own) found.conversation.id = newId();
      this.save(found.conversation);
    }
    return { count, damaged };
  }
}
