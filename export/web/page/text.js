// This file holds text to tokens and back: byte-level BPE, by the library that stands beside the page.

import { Tokenizer } from "./runtime/tokenizers/tokenizers.min.mjs";

/** The tokenizer of ``tokenizer.json``. */
export class Text {
  constructor(json, config) {
    // Text is data: without these, the name of a special token in it is spelled in ordinary pieces.
    const specials = json.added_tokens;
    this.library = new Tokenizer({ ...json, added_tokens: [] }, config);
    this.special = Object.fromEntries(specials.map(({ content, id }) => [content.slice(2, -2), id]));
    this.bytes = new Map();
    const byte = byteAlphabet();
    const names = new Set(specials.map(({ content }) => content));
    for (const [piece, id] of Object.entries(json.model.vocab)) {
      if (!names.has(piece)) this.bytes.set(id, Uint8Array.from(piece, (letter) => byte.get(letter)));
    }
  }

  encode(text) {
    return text ? this.library.encode(text, { add_special_tokens: false }).ids : [];
  }

  /** Tokens of a conversation, ready for the answer; the same as `nanochat.text.chat.render`. */
  chat(messages) {
    const { bos, end, assistant } = this.special;
    const turns = messages.flatMap(({ role, content }) => [
      this.special[role],
      ...this.encode(content),
      end,
    ]);
    return [bos, ...turns, assistant];
  }

  /** A function from tokens, one after the other, to the text that is certain by then; no token gives the rest. */
  decoder() {
    const utf8 = new TextDecoder("utf-8", { ignoreBOM: true });
    return (token) =>
      token === undefined
        ? utf8.decode()
        : utf8.decode(this.bytes.get(token) ?? new Uint8Array(), { stream: true });
  }
}

/** The byte of each character of GPT-2's alphabet: itself if Latin-1 prints it, else the next from U+0100. */
function byteAlphabet() {
  const bytes = new Map();
  let other = 0x100;
  for (let byte = 0; byte < 256; byte++) {
    const printable =
      (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
    bytes.set(String.fromCharCode(printable ? byte : other++), byte);
  }
  return bytes;
}
