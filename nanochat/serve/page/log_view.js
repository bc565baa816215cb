// This file holds a conversation as it is shown: the messages of its path, of which only the one that grows is redrawn.

import { make } from "./dom.js";
import { MessageView } from "./message_view.js";

// So near the end, a person follows the text.
const NEAR_END_PIXELS = 48;

export class LogView {
  #place;
  #actions;
  #views = [];
  #empty = make("p", { className: "empty", textContent: "Write a message to begin." });

  constructor(place, actions) {
    this.#place = place;
    this.#actions = actions;
  }

  /**
   * Show the path of a conversation.
   *
   * @param answer The one that is being written in it, or undefined.
   * @param tokensOf The tokens of a message with their probabilities, where they shall be shown.
   */
  show(conversation, answer, tokensOf) {
    const { path } = conversation;
    let same = 0;
    while (same < path.length && this.#views[same]?.message === path[same]) same++;
    for (const view of this.#views.splice(same)) view.node.remove();
    for (const message of path.slice(same)) {
      const view = new MessageView(message, this.#actions);
      this.#views.push(view);
      this.#place.append(view.node);
    }
    for (const view of this.#views) {
      const versions = conversation.versions(view.message);
      view.show({
        isBusy: Boolean(answer),
        isWritten: answer?.message === view.message,
        place: versions.indexOf(view.message),
        versions: versions.length,
        tokens: tokensOf(view.message),
      });
    }
    if (path.length) this.#empty.remove();
    else this.#place.append(this.#empty);
  }

  /** Show that a message has grown. */
  grow(message, tokens) {
    const view = this.find(message);
    if (!view) return;
    const isFollowed = this.#isAtEnd;
    view.schedule({ tokens }, () => isFollowed && this.scrollToEnd());
  }

  find(message) {
    return this.#views.find((view) => view.message === message);
  }

  scrollToEnd() {
    this.#place.scrollTop = this.#place.scrollHeight;
  }

  get #isAtEnd() {
    const { scrollHeight, scrollTop, clientHeight } = this.#place;
    return scrollHeight - scrollTop - clientHeight < NEAR_END_PIXELS;
  }
}
