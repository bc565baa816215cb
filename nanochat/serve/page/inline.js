// This file holds Markdown within a line: code, links, bold, italic and struck text become elements, the rest is text.
//
// Reference: CommonMark 0.31.2, section 6. HTML and entities are text, images are links, and marks that are nested too
// deeply are text, too: so a text of any kind takes time in proportion to its length.

import { make } from "./dom.js";

const MOST_OPEN = 32;
const LONGEST_RUN = 3;
const PROTOCOLS = ["http:", "https:", "mailto:"];

const PLAIN = /[^\\`![<*_~hH]+/y;
const ESCAPED = /\\([!-/:-@[-`{-~\n])/y;
const AUTOLINK = /<((?:https?:\/\/|mailto:)[^\s<>]{1,2000})>/iy;
const BARE_ADDRESS = /https?:\/\/[^\s<>"`]{1,2000}/iy;
const MARKS = /\*+|_+|~+/y;
// An address, which may stand in angle brackets or hold a pair of parentheses, and perhaps a title.
const BRACKETED = /<([^<>\n]{0,2000})>/;
const PLAIN_ADDRESS = /((?:[^\s()\\]|\\.|\([^\s()\\]{0,500}\)){0,2000})/;
const TITLE = /(?:\s+(?:"[^"]{0,500}"|'[^']{0,500}'))?/;
const DESTINATION = new RegExp(`\\(\\s*(?:${BRACKETED.source}|${PLAIN_ADDRESS.source})${TITLE.source}\\s*\\)`, "y");
const SPACE = /\s/;
const PUNCTUATION = /[\p{P}\p{S}]/u;
const MARKED = { "*": ["em", "strong"], _: ["em", "strong"], "~": ["del", "del"] };

/** Append what a text says to an element. */
export function appendInline(place, text) {
  new Line(place, text, { mayLink: true }).read();
}

class Line {
  #place;
  #text;
  #at = 0;
  #plain = "";
  #mayLink;
  #spans;
  #brackets;
  // Marks that may begin something, the outermost first: each stands in the page as text until its end is found.
  #open = [];

  constructor(place, text, { mayLink }) {
    this.#place = place;
    this.#text = text;
    this.#mayLink = mayLink;
    this.#spans = codeSpans(text);
    this.#brackets = matchingBrackets(text, this.#spans);
  }

  read() {
    while (this.#at < this.#text.length) {
      const plain = this.#match(PLAIN);
      if (plain) this.#plain += plain[0];
      else if (!this.#readSpecial()) this.#plain += this.#text[this.#at++];
    }
    this.#flush();
  }

  #readSpecial() {
    switch (this.#text[this.#at]) {
      case "\\":
        return this.#readEscape();
      case "`":
        return this.#readCode();
      case "!":
      case "[":
        return this.#readLink();
      case "<":
        return this.#mayLink && this.#readAutolink();
      case "h":
      case "H":
        return this.#mayLink && this.#readBareAddress();
      default:
        return this.#readMarks();
    }
  }

  #readEscape() {
    const escaped = this.#match(ESCAPED);
    if (escaped) this.#plain += escaped[1];
    return Boolean(escaped);
  }

  #readCode() {
    const span = this.#spans.get(this.#at);
    if (span) {
      this.#add(make("code", { textContent: span.content }));
      this.#at = span.end;
    } else {
      // The whole run: a part of it would begin other code.
      this.#plain += this.#match(/`+/y)[0];
    }
    return true;
  }

  #readLink() {
    const isImage = this.#text[this.#at] === "!";
    const opening = this.#at + (isImage ? 1 : 0);
    const closing = this.#brackets.get(opening);
    if (!this.#mayLink || closing === undefined) return false;
    DESTINATION.lastIndex = closing + 1;
    const destination = DESTINATION.exec(this.#text);
    const address = destination && safeAddress(destination[1] ?? destination[2]);
    if (!address) return false;
    const label = this.#text.slice(opening + 1, closing);
    const link = anchor(address);
    new Line(link, label || address, { mayLink: false }).read();
    this.#add(link);
    this.#at = DESTINATION.lastIndex;
    return true;
  }

  #readAutolink() {
    const before = this.#at;
    const found = this.#match(AUTOLINK);
    const address = found && safeAddress(found[1]);
    if (!address) {
      this.#at = before;
      return false;
    }
    this.#add(anchor(address, found[1]));
    return true;
  }

  #readBareAddress() {
    if (/\w/.test(this.#text[this.#at - 1] ?? "")) return false;
    BARE_ADDRESS.lastIndex = this.#at;
    const found = withoutPunctuation(BARE_ADDRESS.exec(this.#text)?.[0] ?? "");
    const address = found && safeAddress(found);
    if (!address) return false;
    this.#add(anchor(address, found));
    this.#at += found.length;
    return true;
  }

  #readMarks() {
    const start = this.#at;
    const run = this.#match(MARKS)[0];
    const isStrike = run[0] === "~";
    if (run.length > LONGEST_RUN || (isStrike && run.length !== 2)) {
      this.#plain += run;
      return true;
    }
    const { mayOpen, mayClose } = flanks(this.#text, start, this.#at);
    this.#flush();
    let left = run.length;
    if (mayClose) left = this.#close(run[0], left, mayOpen);
    if (!left) return true;
    const node = document.createTextNode(run[0].repeat(left));
    this.#place.append(node);
    if (mayOpen) {
      if (this.#open.length === MOST_OPEN) this.#open.shift();
      this.#open.push({ mark: run[0], node, mayClose });
    }
    return true;
  }

  /** End what marks before this run have begun; the number of its marks that ended nothing. */
  #close(mark, count, mayOpen) {
    for (let left = count; ; ) {
      const place = this.#open.findLastIndex((open) => open.mark === mark && agree(open, left, mayOpen));
      if (place < 0 || !left) return left;
      const { node } = this.#open[place];
      const used = Math.min(2, left, node.length);
      const marked = document.createElement(MARKED[mark][used - 1]);
      while (node.nextSibling) marked.append(node.nextSibling);
      this.#place.append(marked);
      node.data = node.data.slice(used);
      left -= used;
      // Marks between the two began nothing.
      this.#open.length = place + (node.length ? 1 : 0);
      if (!node.length) node.remove();
    }
  }

  #match(pattern) {
    pattern.lastIndex = this.#at;
    const found = pattern.exec(this.#text);
    if (found) this.#at = pattern.lastIndex;
    return found;
  }

  #add(node) {
    this.#flush();
    this.#place.append(node);
  }

  #flush() {
    if (this.#plain) this.#place.append(this.#plain);
    this.#plain = "";
  }
}

/** Where code begins: what it holds, and where it ends. */
function codeSpans(text) {
  const runs = [...text.matchAll(/(\\*)(`+)/g)].map((found) => ({
    start: found.index + found[1].length,
    length: found[2].length,
    isEscaped: found[1].length % 2 === 1,
  }));
  const spans = new Map();
  for (let first = 0; first < runs.length; first++) {
    const { start, length, isEscaped } = runs[first];
    if (isEscaped) continue;
    let last = first + 1;
    while (last < runs.length && runs[last].length !== length) last++;
    if (last === runs.length) continue;
    const content = text.slice(start + length, runs[last].start).replaceAll("\n", " ");
    // Spaces that keep backticks of the code from those around it.
    const isPadded = content.startsWith(" ") && content.endsWith(" ") && content.trim();
    spans.set(start, { content: isPadded ? content.slice(1, -1) : content, end: runs[last].start + length });
    first = last;
  }
  return spans;
}

/** The bracket that closes each one, by where that stands. */
function matchingBrackets(text, spans) {
  const found = new Map();
  const open = [];
  for (let at = 0; at < text.length; at++) {
    const character = text[at];
    if (character === "\\") at++;
    else if (character === "`" && spans.has(at)) at = spans.get(at).end - 1;
    else if (character === "[") open.push(at);
    else if (character === "]" && open.length) found.set(open.pop(), at);
  }
  return found;
}

/** Whether marks may begin or end something, which the characters around them tell. */
function flanks(text, start, end) {
  const [before, after] = [text[start - 1] ?? " ", text[end] ?? " "];
  const [isAfterSpace, isBeforeSpace] = [SPACE.test(before), SPACE.test(after)];
  const [isAfterPunctuation, isBeforePunctuation] = [PUNCTUATION.test(before), PUNCTUATION.test(after)];
  const isLeft = !isBeforeSpace && (!isBeforePunctuation || isAfterSpace || isAfterPunctuation);
  const isRight = !isAfterSpace && (!isAfterPunctuation || isBeforeSpace || isBeforePunctuation);
  if (text[start] !== "_") return { mayOpen: isLeft, mayClose: isRight };
  // Within words, underscores are letters.
  return {
    mayOpen: isLeft && (!isRight || isAfterPunctuation),
    mayClose: isRight && (!isLeft || isBeforePunctuation),
  };
}

/** The rule of three: `**a*b**` is bold, and the single mark is text. */
function agree(open, count, mayOpen) {
  const sum = open.node.length + count;
  if (open.mark === "~" || !(open.mayClose || mayOpen)) return true;
  return sum % 3 !== 0 || (open.node.length % 3 === 0 && count % 3 === 0);
}

/** An address as it may be followed, or null. */
function safeAddress(given) {
  // The parser takes out what hides a protocol, such as tabs.
  const url = URL.canParse(given) ? new URL(given) : null;
  return url && PROTOCOLS.includes(url.protocol) ? url.href : null;
}

function anchor(address, text = "") {
  return make("a", { href: address, target: "_blank", rel: "noopener noreferrer", textContent: text });
}

/** An address without the punctuation of the sentence in which it stands. */
function withoutPunctuation(address) {
  const after = address.includes("(") ? /[.,:;!?'*_~\]]/ : /[.,:;!?'*_~\])]/;
  let end = address.length;
  while (end && after.test(address[end - 1])) end--;
  return address.slice(0, end);
}
