// This file holds the page: what a person does becomes messages and answers, which are shown and kept.

import { Answer, chatRequest } from "./answer.js";
import { chosenModel, connect, hasSeveralModels } from "./connection.js";
import { Conversation, readTexts } from "./conversation.js";
import { element, make } from "./dom.js";
import { drafts } from "./drafts.js";
import { askForKey } from "./key_dialog.js";
import { Library } from "./library.js";
import { ListView } from "./list_view.js";
import { LogView } from "./log_view.js";
import { isSendKey } from "./message_view.js";
import { announce, notify, tellStatus } from "./notices.js";
import { Panel } from "./panels.js";
import { ServerError } from "./server.js";
import { readSettings, SettingsForm } from "./settings.js";
import { kept, parsed, passing } from "./storage.js";

const SAVE_MS = 2000;
// What is kept besides conversations.
const [CURRENT, MODEL, SETTINGS, PROBABILITIES] = ["current", "model", "settings", "probabilities"];

const library = new Library(kept);
// Those that are being written, by the ids of their conversations.
const answers = new Map();
// Tokens of messages with their probabilities, which are too many to be kept.
const tokens = new WeakMap();
let conversation;

const prompt = element("prompt");
const probabilities = element("probabilities");
const log = new LogView(element("log"), { edit, regenerate, retry, remove: removeMessage, step });
const list = new ListView(element("list"), { show: openKept, rename, remove: removeConversation });
const settings = new SettingsForm(element("settings"), changeSettings);
const listPanel = new Panel("list", { isAlwaysWide: true });
const settingsPanel = new Panel("settings", { isAlwaysWide: false });

/** Show a conversation, and what was written and not sent. */
function open(wanted) {
  conversation = wanted;
  keep(passing, CURRENT, conversation.id);
  prompt.value = drafts.read(conversation.id);
  settings.texts = conversation.settings;
  show();
  log.scrollToEnd();
  listPanel.close();
}

function openKept(id) {
  open(library.find(id));
}

function begin() {
  if (conversation.messages.length) open(blank());
  listPanel.close();
  prompt.focus();
}

function blank(id) {
  return new Conversation({ ...(id && { id }), settings: readTexts(parsed(kept.read(SETTINGS))) });
}

function show() {
  const answer = answers.get(conversation.id);
  const focused = document.activeElement;
  log.show(conversation, answer, shownTokens);
  list.show(library.all, conversation);
  element("title").textContent = conversation.name;
  document.title = `${conversation.name} – nanochat`;
  element("stop").hidden = !answer;
  element("send").hidden = Boolean(answer);
  // Whoever uses no pointer would begin at the top again.
  const now = document.activeElement;
  const isLost = now === document.body ? focused !== now : !now.checkVisibility() || now.disabled;
  if (isLost) element(answer ? "stop" : "send").focus();
}

function shownTokens(message) {
  return probabilities.checked ? tokens.get(message) : undefined;
}

/** Send what was written. */
function send() {
  const text = prompt.value;
  if (!text.trim() || !mayAsk()) return;
  prompt.value = "";
  drafts.write(conversation.id, "");
  ask(conversation.find(conversation.leaf), text);
}

function edit(message, text) {
  if (!text.trim() || !mayAsk()) return false;
  ask(conversation.find(message.parent), text);
  return true;
}

function regenerate(message) {
  if (mayAsk()) answerTo(conversation.find(message.parent));
}

/** Have an answer written after an error; what came before the error stays as a version of its own. */
function retry(message) {
  if (message.content) regenerate(message);
  else if (mayAsk()) write(conversation, message);
}

function ask(parent, text) {
  answerTo(conversation.add(parent, { role: "user", content: text }));
}

function answerTo(question) {
  const model = hasSeveralModels() ? { model: chosenModel() } : {};
  write(conversation, conversation.add(question, { role: "assistant", content: "", ...model }));
}

/** Have an answer of a conversation written, which may be out of sight before it is over. */
async function write(where, message) {
  const answer = new Answer(message, () => grow(where, answer));
  const saving = setInterval(() => saveIfThere(where), SAVE_MS);
  tokens.delete(message);
  answers.set(where.id, answer);
  save(where);
  show();
  log.scrollToEnd();
  tellStatus("");
  try {
    await writeWithKey(answer, request(where, message));
  } catch (error) {
    message.error = error.message;
    // A server that ends or begins is soon there again.
    if (error.isPassing) connect(chosenModel());
    else if (!(error instanceof ServerError)) throw error;
  } finally {
    clearInterval(saving);
    answers.delete(where.id);
    where.touch();
    saveIfThere(where);
    show();
    const view = log.find(message);
    if (view && !message.error) announce(`Answer: ${view.words}`);
  }
}

async function writeWithKey(answer, wanted) {
  try {
    await answer.write(wanted);
  } catch (error) {
    if (!error.needsKey || !(await askForKey(error.message))) throw error;
    await writeWithKey(answer, wanted);
  }
}

function request(where, message) {
  return chatRequest(where.pathTo(where.find(message.parent)), {
    model: chosenModel(),
    system: where.settings.system,
    fields: readSettings(where.settings).fields,
    probabilities: probabilities.checked,
  });
}

function grow(where, answer) {
  if (answer.tokens.length) tokens.set(answer.message, answer.tokens);
  if (where === conversation) log.grow(answer.message, shownTokens(answer.message));
}

/** Show the version of a message that is so many further on. */
function step(message, by) {
  const versions = conversation.versions(message);
  const other = versions[versions.indexOf(message) + by];
  conversation.show(other);
  save(conversation);
  show();
  log.find(other).focusVersions(by);
}

function removeMessage(message) {
  const before = JSON.stringify(conversation);
  conversation.remove(message);
  if (conversation.messages.length) save(conversation);
  else library.remove(conversation);
  show();
  notify("The message and what followed it are deleted.", () => restore(before));
}

function removeConversation(id) {
  const removed = library.find(id);
  const before = JSON.stringify(removed);
  answers.get(id)?.stop();
  library.remove(removed);
  if (id === conversation.id) open(library.all[0] ?? blank());
  else show();
  notify(`“${removed.name}” is deleted.`, () => restore(before));
}

function restore(text) {
  const restored = Conversation.read(JSON.parse(text)).conversation;
  save(restored);
  open(restored);
}

function rename(id, title) {
  const renamed = library.find(id);
  if (title !== renamed.name) renamed.title = title;
  save(renamed);
  show();
}

function save(changed) {
  try {
    library.save(changed);
  } catch (error) {
    notify(`What is new in this conversation is lost when the page is closed: ${error.message}.`);
  }
}

/** Not after it was deleted while an answer was written. */
function saveIfThere(changed) {
  if (library.find(changed.id) === changed) save(changed);
}

/** Keep what is being written. */
function saveAnswers() {
  for (const one of library.all) if (answers.has(one.id)) save(one);
}

function keep(shelf, name, text) {
  try {
    shelf.write(name, text);
  } catch (error) {
    notify(`A choice is lost when the page is closed: ${error.message}.`);
  }
}

function changeSettings(texts) {
  conversation.settings = texts;
  keep(kept, SETTINGS, JSON.stringify(texts));
  save(conversation);
}

/** Whether nothing is being written here and the settings can be sent; if not, what is wrong with them is shown. */
function mayAsk() {
  if (answers.has(conversation.id)) return false;
  const wrong = settings.check();
  if (!wrong) return true;
  settingsPanel.set(true);
  wrong.focus();
  return false;
}

function exportAll() {
  const address = URL.createObjectURL(new Blob([library.export()], { type: "application/json" }));
  make("a", { href: address, download: "conversations.json" }).click();
  setTimeout(() => URL.revokeObjectURL(address), SAVE_MS);
}

async function importFrom(file) {
  try {
    const { count, damaged } = library.import(await file.text());
    const damage = damaged ? `; ${damaged} of the file are damaged, and come as far as they can be read` : "";
    notify(`Conversations imported: ${count}${damage}.`);
  } catch (error) {
    notify(`Not imported: ${error.message}.`);
  }
  show();
}

/** Another tab has changed something. */
function follow(name) {
  const id = library.idOf(name);
  if (id === null) return;
  const known = library.find(id);
  const mine = answers.has(id) ? known : null;
  const theirs = library.refresh(name);
  if (mine) {
    if (theirs) mine.adopt(theirs, answers.get(id).message);
    library.put(mine);
  } else if (theirs && id === conversation.id) conversation = theirs;
  // Another tab that writes an answer saves all of the conversation, perhaps before it has heard of the end of ours.
  if (!mine && theirs && known && theirs.restore(known)) save(theirs);
  show();
}

function stop() {
  answers.get(conversation.id)?.stop();
}

element("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
prompt.addEventListener("input", () => drafts.write(conversation.id, prompt.value));
prompt.addEventListener("keydown", (event) => {
  if (!isSendKey(event)) return;
  event.preventDefault();
  send();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !element("key-dialog").open && answers.has(conversation.id)) stop();
});
element("settings").addEventListener("submit", (event) => event.preventDefault());
element("stop").addEventListener("click", stop);
element("new").addEventListener("click", begin);
element("export").addEventListener("click", exportAll);
element("import").addEventListener("click", () => element("import-file").click());
element("import-file").addEventListener("change", async ({ target }) => {
  if (target.files.length) await importFrom(target.files[0]);
  target.value = "";
});
element("model").addEventListener("change", () => keep(kept, MODEL, chosenModel()));
element("change-key").addEventListener("click", async () => {
  if (await askForKey("The key that is sent with each request.")) connect(kept.read(MODEL));
});
probabilities.addEventListener("change", () => {
  keep(kept, PROBABILITIES, probabilities.checked ? "on" : "");
  show();
});
kept.onChange(follow);
window.addEventListener("pagehide", saveAnswers);

probabilities.checked = kept.read(PROBABILITIES) === "on";
const current = passing.read(CURRENT);
open(library.find(current) ?? blank(current));
const { damage } = library;
if (damage) notify(`Conversations that are damaged, and left as they are: ${damage}. Export tells what is in them.`);
if (!kept.isKept) notify("This browser keeps nothing for this page: export conversations before it is closed.");
connect(kept.read(MODEL));
prompt.focus();
