// This file holds what the page tells a person besides the conversation, on the screen and aloud.

import { button, element, make } from "./dom.js";

const LONGEST_ANNOUNCED = 2000;

/** Show a sentence until the next one; `undo`, if given, is what a button of that name does. */
export function notify(sentence, undo = null) {
  const place = element("notice");
  const dismiss = button("×", () => place.replaceChildren(), { label: "Dismiss" });
  place.replaceChildren(make("span", { textContent: sentence }), dismiss);
  if (!undo) return;
  const back = button("Undo", () => {
    place.replaceChildren();
    undo();
  });
  dismiss.before(back);
  // What was deleted had the focus.
  back.focus();
}

/** Have a text read aloud, where somebody listens. */
export function announce(text) {
  element("announcer").replaceChildren(make("p", { textContent: text.slice(0, LONGEST_ANNOUNCED) }));
}

/** Say how the server is; an empty text is as it should be. */
export function tellStatus(sentence) {
  const status = element("status");
  // The same again would be read aloud again.
  if (status.textContent !== sentence) status.textContent = sentence;
}
