// This file holds tokens coloured by their probability, with those that could have stood there, too.

import { element, make } from "./dom.js";

// From which probabilities on a token has the next colour.
const LEVELS = [0.02, 0.1, 0.3, 0.7];
const STEPS = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 };
const ALTERNATIVES = "alternatives";
const GAP_PIXELS = 4;

// The token whose alternatives are shown.
let told = null;
for (const name of ["resize", "scroll"]) window.addEventListener(name, stand, { capture: true, passive: true });

/** The tokens of an answer, which may become more. One of them is reached by Tab, the others by arrow keys. */
export class TokenView {
  #place;
  #decoder = new TextDecoder();
  #count = 0;
  #tokens;

  constructor(place) {
    this.#place = place;
    place.setAttribute("role", "listbox");
    place.setAttribute("aria-label", "Tokens with their probabilities; arrow keys go from one to the next");
    place.addEventListener("keydown", (event) => this.#move(event));
    for (const name of ["focusin", "mouseover"]) place.addEventListener(name, ({ target }) => this.#tell(target));
    for (const name of ["focusout", "mouseleave"]) place.addEventListener(name, hide);
  }

  show(tokens) {
    this.#tokens = tokens;
    const added = tokens.slice(this.#count).map((token) => this.#make(token));
    if (!this.#count && added.length) added[0].tabIndex = 0;
    this.#count = tokens.length;
    this.#place.append(...added);
  }

  #make({ token, bytes, logprob }) {
    const probability = Math.exp(logprob);
    const level = LEVELS.filter((least) => probability >= least).length;
    // Tokens may hold parts of characters, which the last of them shows.
    const text = bytes ? this.#decoder.decode(new Uint8Array(bytes), { stream: true }) : token;
    return make("span", {
      className: `token level${level}`,
      role: "option",
      tabIndex: -1,
      textContent: text || hex(bytes),
      "aria-label": `${visible(text || hex(bytes))}, ${percent(logprob)}`,
    });
  }

  #move(event) {
    const all = [...this.#place.children];
    const at = all.indexOf(event.target);
    const next = { Home: 0, End: all.length - 1 }[event.key] ?? at + (STEPS[event.key] ?? NaN);
    if (!all[next]) return;
    event.preventDefault();
    event.target.tabIndex = -1;
    all[next].tabIndex = 0;
    all[next].focus();
  }

  #tell(target) {
    const token = this.#tokens[[...this.#place.children].indexOf(target)];
    if (!token) return;
    const box = element(ALTERNATIVES);
    const rows = token.top_logprobs.map((other) =>
      make(
        "tr",
        { className: other.token === token.token ? "chosen" : "" },
        make("td", { textContent: visible(other.token) }),
        make("td", { textContent: percent(other.logprob) }),
      ),
    );
    const title = `${visible(token.token)}: ${percent(token.logprob)}`;
    box.replaceChildren(make("table", {}, make("caption", { textContent: title }), make("tbody", {}, ...rows)));
    hide();
    told = target;
    told.setAttribute("aria-describedby", ALTERNATIVES);
    box.hidden = false;
    stand();
  }
}

/** Put the alternatives below their token, or above where there is no room. */
function stand() {
  if (!told) return;
  const box = element(ALTERNATIVES);
  const { left, top, bottom } = told.getBoundingClientRect();
  const below = bottom + GAP_PIXELS;
  const fits = below + box.offsetHeight <= window.innerHeight;
  box.style.left = `${Math.max(0, Math.min(left, document.documentElement.clientWidth - box.offsetWidth))}px`;
  box.style.top = `${fits ? below : Math.max(0, top - box.offsetHeight - GAP_PIXELS)}px`;
}

function hide() {
  element(ALTERNATIVES).hidden = true;
  told?.removeAttribute("aria-describedby");
  told = null;
}

function percent(logprob) {
  return `${(100 * Math.exp(logprob)).toFixed(1)} %`;
}

/** A text with what cannot be seen written out. */
function visible(text) {
  const written = text.replaceAll("\n", "\\n").replaceAll("\r", "\\r").replaceAll("\t", "\\t");
  return written.trim() ? written : "␣".repeat(written.length);
}

function hex(bytes) {
  return (bytes ?? []).map((byte) => `<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`).join("");
}
