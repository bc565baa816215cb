// This file holds the tables: of the runs, of their settings and of what happened to them, and their samples of text.

// Rows that do not push the charts off the screen.
const MOST_OPEN = 12;

/** A section's heading and contents. */
function fill(id, title, ...contents) {
  document.getElementById(id).append(make("h2", {}, title), ...contents);
}

/** A table that scrolls by itself where there is no room. */
function table(head, rows) {
  const cells = (row, tag) =>
    row.map((cell) => (cell instanceof Element ? cell : make(tag, tag === "th" ? { scope: "col" } : {}, cell)));
  const body = rows.map((row) => make("tr", {}, ...cells(row, "td")));
  const whole = make(
    "table",
    {},
    make("thead", {}, make("tr", {}, ...cells(head, "th"))),
    make("tbody", {}, ...body),
  );
  return make("div", { className: "table", tabIndex: 0 }, whole);
}

/** What is shown on demand. */
function folded(title, open, content) {
  return make("details", { open }, make("summary", {}, title), content);
}

function number(text, { best = false, title = "" } = {}) {
  return make("td", { className: best ? "number best" : "number", title }, text);
}

/** A run's name behind its colour. */
function nameOf(run, index) {
  return make("td", { className: "name", title: run.log }, swatch(index), run.name);
}

function showRuns(runs) {
  const least = Math.min(...runs.map((run) => run.best ?? Infinity));
  const rows = runs.map((run, index) => {
    const isBest = runs.length > 1 && run.best === least;
    const asked = run.steps === null ? counted(run.step) : `${counted(run.step ?? 0)} of ${counted(run.steps)}`;
    const { device, processor, threads, torch } = run.machine;
    const where = [
      device && device !== "cpu" ? device : processor,
      threads && `${threads} thread${threads === 1 ? "" : "s"}`,
      torch && `torch ${torch}`,
    ];
    return [
      nameOf(run, index),
      number(written(run.parameters), { title: counted(run.parameters) }),
      number(asked),
      number(written(run.tokens), { title: counted(run.tokens) }),
      number(fixed(run.held_out_bits_per_byte, 4)),
      number(fixed(run.best, 4), { best: isBest, title: run.best === null ? "" : `at step ${counted(run.best_step)}` }),
      number(fixed(run.loss, 4)),
      number(counted(run.tokens_per_second && Math.round(run.tokens_per_second))),
      number(lasting(run.seconds_in_steps)),
      where.filter(Boolean).join(", ") || ABSENT,
    ];
  });
  const numbers = ["parameters", "steps", "tokens", "held out, bits/byte", "best", "loss", "tokens/s", "time in steps"];
  const notes = runs
    .filter((run) => run.num_unreadable_lines)
    .map((run) => `${run.name}: lines of the log that cannot be read: ${counted(run.num_unreadable_lines)}`)
    .map((text) => make("p", { className: "faint" }, text));
  const title = runs.length === 1 ? "The run" : `${runs.length} runs`;
  fill("runs", title, table(["run", ...numbers, "machine"], rows), ...notes);
}

function showSettings(runs, settings) {
  const rows = (some) =>
    some.map(([name, values]) => [
      make("th", { scope: "row" }, name),
      ...values.map((value) => make("td", { className: value === null ? "faint" : "" }, value ?? ABSENT)),
    ]);
  const headOf = (run, index) => make("th", { scope: "col", className: "name" }, swatch(index), run.name);
  const heads = () => ["", ...runs.map(headOf)];
  const differing = settings.filter(([, values]) => values.some((value) => value !== values[0]));
  if (differing.length) {
    const title = `Settings and facts of the machine: ${counted(differing.length)}`;
    fill("differences", "What differs", folded(title, differing.length <= MOST_OPEN, table(heads(), rows(differing))));
  }
  if (settings.length) {
    const title = `All ${counted(settings.length)} settings and facts of the machine`;
    fill("settings", "Settings", folded(title, false, table(heads(), rows(settings))));
  }
}

function showEvents(runs) {
  const rows = runs.flatMap((run, index) => {
    const found = run.events.map(([step, kind, text]) => [nameOf(run, index), number(counted(step)), kind, text]);
    const more = run.num_events - run.events.length;
    if (more) found.push([nameOf(run, index), number(""), "", `and ${counted(more)} later ones`]);
    return found;
  });
  if (rows.length) fill("events", "Events", table(["run", "step", "what", "because"], rows));
}

function showSamples(runs) {
  const found = runs.flatMap((run, index) => {
    if (!run.sample) return [];
    const [step, text] = run.sample;
    const title = make("h3", { className: "name" }, swatch(index), `${run.name}, step ${counted(step)}`);
    return [make("article", {}, title, make("pre", { tabIndex: 0 }, text))];
  });
  if (found.length) fill("samples", "Last sample of text", make("div", { className: "samples" }, ...found));
}
