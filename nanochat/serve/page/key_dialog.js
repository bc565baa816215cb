// This file holds the dialog in which a person gives the key that a server wants.

import { element } from "./dom.js";
import { key } from "./server.js";

let asking = null;

/** Ask for the key, and use what is given; whether one was. Whoever asks meanwhile gets the same answer. */
export function askForKey(reason) {
  asking ??= ask(reason).finally(() => (asking = null));
  return asking;
}

function ask(reason) {
  const [dialog, form, field] = ["key-dialog", "key-form", "key"].map(element);
  const remember = element("remember-key");
  element("key-reason").textContent = reason;
  field.value = "";
  remember.checked = key.isRemembered;
  element("forget-key").hidden = !key.value;
  return new Promise((resolve) => {
    const answer = (value) => {
      // A header holds no other characters.
      if (value && !/^[!-~]+$/.test(value)) {
        element("key-reason").textContent = "A key has no spaces, and letters without accents only.";
        return;
      }
      if (value !== null) key.use(value, { remember: remember.checked });
      dialog.onclose = null;
      dialog.close();
      resolve(Boolean(value));
    };
    form.onsubmit = (event) => {
      event.preventDefault();
      if (field.value.trim()) answer(field.value.trim());
    };
    element("forget-key").onclick = () => answer("");
    element("cancel-key").onclick = () => answer(null);
    dialog.onclose = () => resolve(false);
    dialog.showModal();
    field.focus();
  });
}
