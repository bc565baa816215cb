// This file holds the page: its parts.

const data = JSON.parse(document.getElementById("data").textContent);
const element = (id) => document.getElementById(id);

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

new ResizeObserver(() => view.draw()).observe(element("charts"));
