// This file holds a message as it is shown: what it says, what can be done with it, and how it came about.

import { figures } from "./answer.js";
import { copyButton } from "./clipboard.js";
import { button, make } from "./dom.js";
import { drafts } from "./drafts.js";
import { MarkdownView } from "./markdown.js";
import { TokenView } from "./tokens.js";

/**
 * A message of a conversation.
 *
 * `actions` has a function for each thing that can be done: edit(message, text), which returns whether it was,
 * regenerate, retry, remove, and step(message, by) to another version of it.
 */
export class MessageView {
  #actions;
  #isScheduled = false;
  #isThinking = false;
  #parts;
  #markdown = null;
  #reasoning;
  #tokens = null;
  #state = { isBusy: false, isWritten: false, place: 0, versions: 1, tokens: null };

  constructor(message, actions) {
    this.message = message;
    this.#actions = actions;
    const isQuestion = message.role === "user";
    const who = isQuestion ? "You" : "Answer";
    this.node = make("article", { className: `message ${message.role}`, "aria-label": who });
    this.#parts = {
      title: make("h3", { className: "who", textContent: who }),
      reasoning: this.#makeReasoning(),
      content: make("div", { className: "content" }),
      error: this.#makeError(),
      versions: this.#makeVersions(),
      figures: make("span", { className: "figures" }),
    };
    const { title, reasoning, content, error, versions, figures } = this.#parts;
    const buttons = make("div", { className: "actions" }, versions, ...this.#makeButtons(isQuestion), figures);
    this.node.append(title, ...(isQuestion ? [content] : [reasoning, content, error]), buttons);
  }

  /** Show the message as it is now; `state` says whether it is being written, and which version of how many it is. */
  show(state = {}) {
    Object.assign(this.#state, state);
    const { message } = this;
    const { isBusy, isWritten, place, versions, tokens } = this.#state;
    this.node.setAttribute("aria-busy", String(isWritten));
    this.#showContent(tokens);
    this.#parts.reasoning.hidden = !message.reasoning;
    if (message.reasoning) this.#reasoning.show(message.reasoning);
    // Thoughts can be followed until the answer begins; from then on, a person opens them or not.
    const isThinking = isWritten && !message.content;
    if (isThinking !== this.#isThinking) this.#parts.reasoning.open = isThinking;
    this.#isThinking = isThinking;
    this.#showError(isWritten);
    this.#showVersions(isBusy, place, versions);
    for (const one of this.node.querySelectorAll(".waits")) one.disabled = isBusy;
    this.#parts.figures.textContent = isWritten ? "" : figures(message);
  }

  /** Show the message before the next picture, however often that is asked for, and call a function then. */
  schedule(state, then) {
    Object.assign(this.#state, state);
    if (this.#isScheduled) return;
    this.#isScheduled = true;
    requestAnimationFrame(() => {
      this.#isScheduled = false;
      this.show();
      then();
    });
  }

  /** Put the focus on the way to another version, in the same direction if there is one. */
  focusVersions(by) {
    const [previous, next] = this.#parts.versions.querySelectorAll("button");
    const [wanted, other] = by < 0 ? [previous, next] : [next, previous];
    (wanted.disabled ? other : wanted).focus();
  }

  /** What it says, as it is read aloud. */
  get words() {
    return this.#parts.content.textContent;
  }

  #showContent(tokens) {
    const { content } = this.#parts;
    if (this.message.role === "user") {
      content.textContent = this.message.content;
      return;
    }
    if (tokens) {
      if (!this.#tokens) {
        this.#clearContent("tokens");
        this.#tokens = new TokenView(this.#parts.content);
      }
      this.#tokens.show(tokens);
      return;
    }
    if (!this.#markdown) {
      this.#clearContent("markdown");
      this.#markdown = new MarkdownView(this.#parts.content);
    }
    this.#markdown.show(this.message.content);
  }

  #showError(isWritten) {
    const { ended, error } = this.message;
    // As it is where the page was closed, or another tab has the answer written.
    const isUnfinished = !isWritten && !ended;
    const words = error ?? (isUnfinished ? "This answer is not finished." : "");
    this.#parts.error.hidden = !words;
    this.#parts.error.firstChild.textContent = words;
  }

  #showVersions(isBusy, place, count) {
    const [previous, next] = this.#parts.versions.querySelectorAll("button");
    this.#parts.versions.hidden = count < 2;
    this.#parts.versions.querySelector("span").textContent = `${place + 1}/${count}`;
    previous.disabled = isBusy || place === 0;
    next.disabled = isBusy || place === count - 1;
  }

  #clearContent(kind) {
    const content = make("div", { className: `content ${kind}` });
    this.#parts.content.replaceWith(content);
    this.#parts.content = content;
    this.#markdown = this.#tokens = null;
  }

  #makeReasoning() {
    const place = make("div", { className: "markdown" });
    this.#reasoning = new MarkdownView(place);
    const title = "Reasoning";
    const summary = make("summary", { textContent: title });
    return make("details", { className: "reasoning", "aria-label": title }, summary, place);
  }

  #makeError() {
    const retry = button("Retry", () => this.#actions.retry(this.message), { className: "waits" });
    return make("div", { className: "error", role: "alert", hidden: true }, make("p"), retry);
  }

  #makeVersions() {
    const step = (text, by, label) => button(text, () => this.#actions.step(this.message, by), { label });
    return make(
      "span",
      { className: "versions", role: "group", "aria-label": "Versions", hidden: true },
      step("‹", -1, "Previous version"),
      make("span"),
      step("›", 1, "Next version"),
    );
  }

  #makeButtons(isQuestion) {
    const { regenerate, remove } = this.#actions;
    const waits = { className: "waits" };
    const again = isQuestion
      ? button("Edit", () => this.#edit(), waits)
      : button("Regenerate", () => regenerate(this.message), waits);
    return [copyButton(() => this.message.content), again, button("Delete", () => remove(this.message), waits)];
  }

  #edit() {
    const { content } = this.#parts;
    if (content.hidden) return;
    const name = `edit.${this.message.id}`;
    const area = make("textarea", { value: drafts.read(name), rows: 3, "aria-label": "Edited message" });
    area.value ||= this.message.content;
    area.addEventListener("input", () => drafts.write(name, area.value));
    const close = () => {
      drafts.write(name, "");
      editor.remove();
      content.hidden = false;
    };
    const send = () => {
      if (this.#actions.edit(this.message, area.value)) close();
    };
    area.addEventListener("keydown", (event) => {
      if (event.key === "Escape") {
        // It shall not stop an answer, too.
        event.stopPropagation();
        close();
        this.node.querySelector(".waits").focus();
      }
      if (isSendKey(event)) {
        event.preventDefault();
        send();
      }
    });
    const buttons = [button("Send edited", send, { className: "main" }), button("Cancel", close)];
    const editor = make("div", { className: "editor" }, area, ...buttons);
    content.hidden = true;
    content.after(editor);
    area.focus();
  }
}

/** Whether a key sends what was written: Enter, but not the one that ends the choice of a character. */
export function isSendKey(event) {
  return event.key === "Enter" && !event.shiftKey && !event.isComposing;
}
