// This file holds the page: its parts.

const data = JSON.parse(document.getElementById("data").textContent);
const element = (id) => document.getElementById(id);

element("made").textContent = data.made;
if (data.runs.length < 4) document.title = `${data.runs.map((run) => run.name).join(", ")}: training`;
showRuns(data.runs);
showSettings(data.runs, data.settings);
showEvents(data.runs);
showSamples(data.runs);
