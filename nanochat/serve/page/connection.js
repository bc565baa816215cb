// This file holds the connection to the server: which models it has, and whether it answers.

import { element, make } from "./dom.js";
import { askForKey } from "./key_dialog.js";
import { tellStatus } from "./notices.js";
import { modelNames } from "./server.js";

const ASK_AGAIN_MS = 2000;

let isConnecting = false;

/** The name of the chosen model; empty if none is known. */
export function chosenModel() {
  return element("model").value;
}

/** Whether there is a choice. */
export function hasSeveralModels() {
  return element("model").length > 1;
}

/** Ask the server for its models until it answers, and say meanwhile why it does not; `preferred` is then chosen. */
export async function connect(preferred) {
  if (isConnecting) return;
  isConnecting = true;
  try {
    for (let tries = 1; ; tries++) {
      try {
        showModels(await modelNames(), preferred);
        tellStatus(tries > 1 ? "The server answers." : "");
        return;
      } catch (error) {
        tellStatus(error.message);
        if (!error.needsKey) await new Promise((resolve) => setTimeout(resolve, ASK_AGAIN_MS));
        // Without a key, asking again is of no use.
        else if (!(await askForKey(error.message))) return;
      }
    }
  } finally {
    isConnecting = false;
  }
}

function showModels(names, preferred) {
  const wanted = chosenModel() || preferred;
  const options = names.map((name) => make("option", { textContent: name, selected: name === wanted }));
  element("model").replaceChildren(...options);
}
