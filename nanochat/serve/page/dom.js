// This file holds the making of elements: their contents are text or other elements, never HTML.

/** The element of the page that has this id. */
export const element = (id) => document.getElementById(id);

/** A new element with these properties, or attributes where it has no such property, and these contents. */
export function make(tag, properties = {}, ...contents) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...contents);
  return made;
}

/** A new button that does something; `label` is what screen readers say where the text alone does not tell. */
export function button(text, onclick, { label = "", className = "" } = {}) {
  const made = make("button", { type: "button", textContent: text, onclick, className });
  if (label) made.setAttribute("aria-label", label);
  return made;
}
