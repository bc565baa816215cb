// This file holds Markdown as elements: blocks of lines, which are made anew only where a text that grows has changed.
//
// Reference: CommonMark 0.31.2, section 4 and 5, and GitHub's tables. HTML is text; there is no code by indentation,
// because models that write code without fences mean the spaces, and line ends stay line ends for the same reason.

import { copyButton } from "./clipboard.js";
import { make } from "./dom.js";
import { appendInline } from "./inline.js";

const DEEPEST = 12;
const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([^`]*)$/;
const FENCE_END = /^ {0,3}(`+|~+)\s*$/;
const HEADING = /^ {0,3}(#{1,6})(?:\s+(.*))?$/;
const RULE = /^ {0,3}([-*_])[ \t]*(?:\1[ \t]*){2,}$/;
const QUOTE = /^ {0,3}>/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])(?:([ \t]+)|$)/;
const DIVIDER = /^\s*:?-+:?\s*$/;
const UNESCAPED_BAR = /(?<!\\)\|/;

/** A text in an element, which may grow. */
export class MarkdownView {
  #place;
  // As shown: each block's lines, kind and element.
  #shown = [];

  constructor(place) {
    this.#place = place;
  }

  /** Show a text; blocks that are as before keep their elements. */
  show(text) {
    const blocks = splitBlocks(text.replaceAll("\r\n", "\n").split("\n"));
    const known = this.#shown;
    let same = 0;
    while (same < blocks.length && blocks[same].source === known[same]?.source) same++;
    if (grows(known[same], blocks[same])) {
      const { node } = known[same];
      extendCode(node, blocks[same].content);
      known[same] = { ...blocks[same], node };
      same++;
    }
    for (const { node } of known.splice(same)) node.remove();
    for (const block of blocks.slice(same)) {
      const node = render(block, 0);
      this.#place.append(node);
      known.push({ ...block, node });
    }
  }
}

function grows(shown, block) {
  return (
    shown?.kind === "code" &&
    block?.kind === "code" &&
    shown.language === block.language &&
    block.content.startsWith(shown.content)
  );
}

/** The blocks of some lines; `source` is equal where a block would look the same. */
function splitBlocks(lines) {
  const blocks = [];
  for (let at = 0; at < lines.length; ) {
    if (!lines[at].trim()) {
      at++;
      continue;
    }
    const reader = READERS.find(([, begins]) => begins(lines, at));
    const block = reader[0](lines, at);
    blocks.push({ ...block, source: lines.slice(at, block.end).join("\n") });
    at = block.end;
  }
  return blocks;
}

const READERS = [
  [readCode, (lines, at) => FENCE.test(lines[at])],
  [readHeading, (lines, at) => HEADING.test(lines[at])],
  [readRule, (lines, at) => RULE.test(lines[at])],
  [readQuote, (lines, at) => QUOTE.test(lines[at])],
  [readList, (lines, at) => ITEM.test(lines[at])],
  [readTable, beginsTable],
  [readParagraph, () => true],
];

function readCode(lines, at) {
  const [, fence, words] = FENCE.exec(lines[at]);
  const indent = lines[at].search(/\S/);
  let end = at + 1;
  while (end < lines.length && !FENCE_END.exec(lines[end])?.[1].startsWith(fence)) end++;
  const content = lines.slice(at + 1, end).map((line) => dedent(line, indent));
  return {
    kind: "code",
    language: words.trim().split(/\s/)[0],
    content: content.join("\n"),
    end: Math.min(end + 1, lines.length),
  };
}

function readHeading(lines, at) {
  const [, marks, text = ""] = HEADING.exec(lines[at]);
  return { kind: "heading", level: marks.length, text: text.trim().replace(/(?:^|\s)#+$/, ""), end: at + 1 };
}

function readRule(_, at) {
  return { kind: "rule", end: at + 1 };
}

function readQuote(lines, at) {
  let end = at;
  while (end < lines.length && QUOTE.test(lines[end])) end++;
  return { kind: "quote", lines: lines.slice(at, end).map((line) => line.replace(/^ {0,3}> ?/, "")), end };
}

function readList(lines, at) {
  const mark = ITEM.exec(lines[at])[2];
  const items = [];
  let [start, width] = [0, 0];
  let end = at;
  for (; end < lines.length; end++) {
    const line = lines[end];
    const item = ITEM.exec(line);
    if (!line.trim()) items.at(-1).push("");
    else if (end > at && indentation(line) >= start + 2) items.at(-1).push(dedent(line, width));
    else if (item && !RULE.test(line) && item[2].at(-1) === mark.at(-1)) {
      start = indentation(line);
      width = start + item[2].length + Math.min(item[3]?.length ?? 1, 4);
      items.push([line.slice(item[0].length)]);
    } else if (lines[end - 1].trim() && !interrupts(lines, end)) items.at(-1).push(line);
    else break;
  }
  while (!lines[end - 1].trim()) end--;
  return { kind: "list", first: /\d/.test(mark) ? parseInt(mark, 10) : null, items, end };
}

function beginsTable(lines, at) {
  if (!lines[at].includes("|") || !lines[at + 1]?.includes("-")) return false;
  const divider = cells(lines[at + 1]);
  return divider.length === cells(lines[at]).length && divider.every((cell) => DIVIDER.test(cell));
}

function readTable(lines, at) {
  let end = at + 2;
  while (end < lines.length && lines[end].includes("|")) end++;
  const sides = cells(lines[at + 1]).map((cell) => {
    const isRight = cell.trim().endsWith(":");
    if (cell.trim().startsWith(":")) return isRight ? "centre" : "";
    return isRight ? "right" : "";
  });
  return { kind: "table", head: cells(lines[at]), sides, rows: lines.slice(at + 2, end).map(cells), end };
}

function readParagraph(lines, at) {
  let end = at + 1;
  while (end < lines.length && lines[end].trim() && !interrupts(lines, end)) end++;
  return { kind: "paragraph", text: lines.slice(at, end).join("\n"), end };
}

/** Whether a line begins another block than the paragraph before it. */
function interrupts(lines, at) {
  const line = lines[at];
  const item = ITEM.exec(line);
  return (
    [FENCE, HEADING, RULE, QUOTE].some((pattern) => pattern.test(line)) ||
    Boolean(item && line.length > item[0].length && (/\D$/.test(item[2][0]) || parseInt(item[2], 10) === 1)) ||
    beginsTable(lines, at)
  );
}

function cells(line) {
  const found = line.trim().split(UNESCAPED_BAR);
  if (found.length > 1 && !found[0].trim()) found.shift();
  if (found.length > 1 && !found.at(-1).trim()) found.pop();
  return found.map((cell) => cell.trim().replaceAll("\\|", "|"));
}

function indentation(line) {
  let width = 0;
  for (const character of line) {
    if (character === " ") width++;
    else if (character === "\t") width += 4;
    else break;
  }
  return width;
}

function dedent(line, most) {
  let [at, width] = [0, 0];
  while (width < most && (line[at] === " " || line[at] === "\t")) width += line[at++] === "\t" ? 4 : 1;
  return line.slice(at);
}

function render(block, depth) {
  switch (block.kind) {
    case "code":
      return codeBlock(block.language, block.content);
    case "heading": {
      // Those of the page come before.
      const heading = make(`h${Math.min(block.level + 2, 6)}`, { className: `level${block.level}` });
      appendInline(heading, block.text);
      return heading;
    }
    case "rule":
      return make("hr");
    case "quote":
      return appendBlocks(make("blockquote"), block.lines, depth + 1);
    case "list": {
      const list = block.first === null ? make("ul") : make("ol", { start: block.first });
      list.append(...block.items.map((lines) => appendBlocks(make("li"), lines, depth + 1)));
      return list;
    }
    case "table":
      return table(block);
    default:
      return paragraph(block.text);
  }
}

function appendBlocks(place, lines, depth) {
  if (depth >= DEEPEST) place.append(paragraph(lines.join("\n")));
  else place.append(...splitBlocks(lines).map((block) => render(block, depth)));
  return place;
}

function paragraph(text) {
  const made = make("p");
  appendInline(made, text);
  return made;
}

function codeBlock(language, content) {
  const code = make("code");
  code.append(content);
  const head = make("div", { className: "code-head" }, make("span", { textContent: language || "code" }));
  head.append(copyButton(() => code.textContent, { label: "Copy code" }));
  // Whatever scrolls can be reached by keyboard.
  const lines = make("pre", { tabIndex: 0, role: "group", "aria-label": `Code ${language}`.trim() }, code);
  return make("div", { className: "code" }, head, lines);
}

function extendCode(block, content) {
  const text = block.querySelector("code").firstChild;
  text.appendData(content.slice(text.length));
}

function table({ head, sides, rows }) {
  const row = (tag, texts) =>
    make(
      "tr",
      {},
      ...sides.map((side, column) => {
        const cell = make(tag, { className: side });
        if (tag === "th") cell.scope = "col";
        appendInline(cell, texts[column] ?? "");
        return cell;
      }),
    );
  const made = make("table", {}, make("thead", {}, row("th", head)));
  made.append(make("tbody", {}, ...rows.map((texts) => row("td", texts))));
  return make("div", { className: "table", tabIndex: 0, role: "group", "aria-label": "Table" }, made);
}
