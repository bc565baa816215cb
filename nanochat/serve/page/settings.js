// This file holds the settings of an answer: their names, how a text becomes the value that a request has, and the form
// in which they are written. An empty one is left out of the request, so that the server's default holds; which values
// may be is the server's to say, too.

import { make } from "./dom.js";

/** What can be set; `read` gives the fields of a request, or throws an Error in words. */
const SETTINGS = [
  // It becomes a message.
  area("system", "System prompt", "", { rows: 4, read: () => ({}) }),
  number("temperature", "Temperature", "0 always takes the most probable token"),
  number("top_p", "Top-p", "Only the most probable tokens of this total probability"),
  integer("top_k", "Top-k", "Only so many of the most probable tokens"),
  number("min_p", "Min-p", "Only tokens with this share of the highest probability"),
  integer("max_tokens", "Most tokens", "Where an answer ends at the latest"),
  integer("seed", "Seed", "The same seed gives the same answer"),
  number("presence_penalty", "Presence penalty", "Against tokens that have come"),
  number("frequency_penalty", "Frequency penalty", "The same for each time that they came"),
  number("repetition_penalty", "Repetition penalty", "The same as a factor, of the prompt's tokens too"),
  area("stop", "Stop strings", "One a line; \\n is a line end, \\\\ a backslash", { rows: 2, read: readStops }),
  area("schema", "JSON schema", "Of the answer", { rows: 3, read: readSchema, isCode: true }),
];

/** The fields of a request that these texts ask for, and what is wrong with texts, by their names. */
export function readSettings(texts) {
  const fields = {};
  const problems = new Map();
  for (const { name, read } of SETTINGS) {
    try {
      if (texts[name]) Object.assign(fields, read(texts[name]));
    } catch (error) {
      problems.set(name, error.message);
    }
  }
  return { fields, problems };
}

function area(name, label, hint, how) {
  return { name, label, hint, ...how };
}

function number(name, label, hint) {
  const read = (text) => (text.trim() ? { [name]: readNumber(text) } : {});
  return { name, label, hint, mode: "decimal", read };
}

function integer(name, label, hint) {
  const read = (text) => {
    if (!text.trim()) return {};
    const value = readNumber(text);
    if (!Number.isSafeInteger(value)) throw new Error(`${text.trim()} is no whole number: write one such as 40`);
    return { [name]: value };
  };
  return { name, label, hint, mode: "numeric", read };
}

function readNumber(text) {
  const value = Number(text);
  if (!Number.isFinite(value)) throw new Error(`${text.trim()} is no number: write one such as 0.7`);
  return value;
}

function readStops(text) {
  const lines = text.split("\n").filter((line) => line);
  return { stop: lines.map((line) => line.replace(/\\([n\\])/g, (_, mark) => (mark === "n" ? "\n" : "\\"))) };
}

function readSchema(text) {
  if (!text.trim()) return {};
  let schema;
  try {
    schema = JSON.parse(text);
  } catch (error) {
    throw new Error(`this is no JSON: ${error.message}`, { cause: error });
  }
  return { response_format: { type: "json_schema", json_schema: { name: "answer", schema } } };
}

/** The form of the settings, in a place of the page; `onChange` is called with the texts that are not empty. */
export class SettingsForm {
  #fields = new Map();

  constructor(place, onChange) {
    for (const setting of SETTINGS) {
      const { field, box } = this.#make(setting);
      this.#fields.set(setting.name, field);
      field.addEventListener("input", () => {
        this.check();
        onChange(this.texts);
      });
      place.append(box);
    }
  }

  get texts() {
    const all = [...this.#fields].map(([name, { value }]) => [name, value]);
    return Object.fromEntries(all.filter(([, text]) => text));
  }

  set texts(texts) {
    for (const [name, field] of this.#fields) field.value = texts[name] ?? "";
    this.check();
  }

  /** Say beside each field what is wrong with it; the first such field, or undefined. */
  check() {
    const { problems } = readSettings(this.texts);
    for (const [name, field] of this.#fields) {
      const words = problems.get(name) ?? "";
      field.setAttribute("aria-invalid", String(Boolean(words)));
      document.getElementById(`${field.id}-problem`).textContent = words;
    }
    return this.#fields.get(problems.keys().next().value);
  }

  #make({ name, label, hint, rows, mode, isCode }) {
    const id = `setting-${name}`;
    const field = rows ? make("textarea", { rows }) : make("input", { type: "text", inputMode: mode });
    field.autocomplete = "off";
    field.id = id;
    field.spellcheck = name === "system";
    field.classList.toggle("code-field", Boolean(isCode));
    field.setAttribute("aria-describedby", `${id}-hint ${id}-problem`);
    const box = make("div", { className: "setting" }, make("label", { htmlFor: id, textContent: label }), field);
    box.append(make("p", { id: `${id}-hint`, className: "hint", textContent: hint }));
    box.append(make("p", { id: `${id}-problem`, className: "problem" }));
    return { field, box };
  }
}
