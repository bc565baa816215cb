// This file holds copying: to the clipboard, with a button that says so.

import { button } from "./dom.js";

const SAID_MS = 1500;

/** A button that copies what `text` returns. */
export function copyButton(text, { label = "Copy" } = {}) {
  const made = button("Copy", async () => {
    made.textContent = (await copy(text())) ? "Copied" : "Not copied";
    setTimeout(() => (made.textContent = "Copy"), SAID_MS);
  });
  if (label !== "Copy") made.title = label;
  return made;
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Browsers have a clipboard for pages over https or from this machine only; this is the older way.
    return copySelected(text);
  }
}

function copySelected(text) {
  const focused = document.activeElement;
  const area = document.createElement("textarea");
  area.value = text;
  area.className = "visually-hidden";
  document.body.append(area);
  area.select();
  const isCopied = document.execCommand("copy");
  area.remove();
  focused?.focus();
  return isCopied;
}
