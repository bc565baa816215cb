// This file holds the list of the conversations, each of which can be shown, renamed and deleted.

import { button, make } from "./dom.js";

export class ListView {
  #place;
  #actions;
  #shown = "";

  /** `actions` has the functions show(id), rename(id, title) and remove(id). */
  constructor(place, actions) {
    this.#place = place;
    this.#actions = actions;
  }

  show(conversations, current) {
    const shown = JSON.stringify(conversations.map(({ id, name }) => [id, name, id === current.id]));
    if (shown === this.#shown) return;
    this.#shown = shown;
    const focused = this.#place.contains(document.activeElement) && document.activeElement.closest("li").dataset.id;
    this.#place.replaceChildren(...conversations.map((conversation) => this.#item(conversation, current)));
    [...this.#place.children].find((item) => item.dataset.id === focused)?.querySelector(".name").focus();
  }

  // An id, because the conversation may have been read anew when the button is pressed.
  #item({ id, name }, current) {
    const open = button(name, () => this.#actions.show(id), { className: "name" });
    if (id === current.id) open.setAttribute("aria-current", "true");
    const rename = button("✎", () => this.#rename(item, id, name), { label: `Rename ${name}` });
    const remove = button("×", () => this.#actions.remove(id), { label: `Delete ${name}` });
    const item = make("li", {}, open, rename, remove);
    item.dataset.id = id;
    return item;
  }

  #rename(item, id, name) {
    const field = make("input", { type: "text", value: name, "aria-label": "Name of the conversation" });
    let isOver = false;
    const end = (title) => {
      // What removes the field takes its focus, too.
      if (isOver) return;
      isOver = true;
      this.#shown = "";
      this.#actions.rename(id, title);
    };
    field.addEventListener("keydown", (event) => {
      if (event.key === "Enter") end(field.value.trim());
      if (event.key === "Escape") {
        event.stopPropagation();
        end(name);
      }
    });
    field.addEventListener("blur", () => end(field.value.trim()));
    item.replaceChildren(field);
    field.select();
  }
}
