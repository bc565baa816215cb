// This file holds the panels beside the conversation, which cover it where the window is narrow.

import { element } from "./dom.js";

const NARROW = window.matchMedia("(max-width: 60rem)");

const panels = [];

export class Panel {
  #panel;
  #toggle;
  #isAlwaysWide;

  /** The panel of a name, and the button that opens and closes it; a wide window may show it always. */
  constructor(name, { isAlwaysWide }) {
    this.#panel = element(`${name}-panel`);
    this.#toggle = element(`show-${name}`);
    this.#isAlwaysWide = isAlwaysWide;
    this.#toggle.addEventListener("click", () => this.set(!this.isOpen));
    this.#panel.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || !NARROW.matches) return;
      event.stopPropagation();
      this.set(false);
    });
    NARROW.addEventListener("change", () => this.set(false));
    panels.push(this);
    this.set(false);
  }

  get isOpen() {
    return this.#toggle.getAttribute("aria-expanded") === "true";
  }

  set(isOpen) {
    const wasOpen = this.isOpen;
    const covers = isOpen && NARROW.matches;
    if (covers) panels.filter((other) => other !== this).forEach((other) => other.close());
    this.#toggle.setAttribute("aria-expanded", String(isOpen));
    this.#panel.hidden = !isOpen && (NARROW.matches || !this.#isAlwaysWide);
    this.#toggle.hidden = this.#isAlwaysWide && !NARROW.matches;
    // What is covered cannot be used.
    element("main").inert = covers;
    if (covers) this.#panel.querySelector("button, input, textarea").focus();
    else if (wasOpen && !isOpen && this.#panel.contains(document.activeElement)) this.#toggle.focus();
  }

  /** Uncover the conversation. */
  close() {
    if (NARROW.matches && this.isOpen) this.set(false);
  }
}
