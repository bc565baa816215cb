// This file holds texts that were written and not sent: they are there again after the page is loaded anew.

import { passing } from "./storage.js";

const START = "draft.";

export const drafts = {
  read(name) {
    return passing.read(START + name) ?? "";
  },

  write(name, text) {
    if (!text) {
      passing.remove(START + name);
      return;
    }
    try {
      passing.write(START + name, text);
    } catch {
      // It stays in its field, where it can be seen.
    }
  },
};
