// This file holds the page: its parts, its switches, and the legend.

const data = JSON.parse(document.getElementById("data").textContent);
const element = (id) => document.getElementById(id);
// Of the axis, when the slider is at its end.
const MOST_SMOOTHING = 0.2;

const view = new View(data.runs);

element("made").textContent = data.made;
if (data.runs.length < 4) document.title = `${data.runs.map((run) => run.name).join(", ")}: training`;
showRuns(data.runs);
showSettings(data.runs, data.settings);
showEvents(data.runs);
showSamples(data.runs);

for (const [title, keys] of data.charts) {
  const charts = keys.map((key) => new Chart(key, data.runs, view));
  view.charts.push(...charts);
  const grid = make("div", { className: "grid-of-charts" }, ...charts.map((chart) => chart.element));
  element("charts").append(make("section", {}, make("h2", {}, title), grid));
}
if (!view.charts.length) {
  element("charts").append(make("p", { className: "faint" }, "The logs hold no numbers yet."));
}

data.runs.forEach((run, index) => {
  const properties = { type: "button", title: "show or hide", ariaPressed: "true" };
  const entry = make("button", properties, swatch(index), run.name);
  entry.addEventListener("click", () => {
    if (!view.hidden.delete(run)) view.hidden.add(run);
    entry.ariaPressed = String(!view.hidden.has(run));
    view.draw();
  });
  element("legend").append(entry);
});

for (const choice of document.getElementsByName("axis")) {
  choice.disabled = choice.value === "tokens" && !data.runs.some((run) => run.tokens_at);
  choice.addEventListener("change", () => {
    view.axis = choice.value;
    view.zoom();
  });
}
element("smoothing").addEventListener("input", ({ target }) => {
  // Finer where it begins.
  view.smoothing = MOST_SMOOTHING * (target.value / target.max) ** 2;
  const percent = Number((100 * view.smoothing).toPrecision(2));
  element("smoothed").textContent = percent ? `${written(percent)} %` : "off";
  view.draw();
});
element("log").addEventListener("change", ({ target }) => {
  view.log = target.checked;
  view.draw();
});
element("whole").addEventListener("click", () => view.zoom());
element("controls").addEventListener("submit", (event) => event.preventDefault());
// Browsers remember where switches stood.
element("controls").reset();

new ResizeObserver(() => view.draw()).observe(element("charts"));
