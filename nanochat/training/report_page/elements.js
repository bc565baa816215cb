// This file holds the making of elements: what a log says becomes text, never HTML.

/** A new element of HTML with these properties, or attributes where it has no such property, and these contents. */
function make(tag, properties = {}, ...contents) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...contents);
  return made;
}

/** A new element of SVG with these attributes and contents. */
function draw(tag, attributes = {}, ...contents) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...contents);
  return made;
}

/** A piece of the line that a run is drawn with. */
function swatch(index) {
  const line = draw("line", { x1: 1, x2: 21, y1: 5, y2: 5, class: `line ${look(index)}` });
  return draw("svg", { class: "swatch", width: 22, height: 10, "aria-hidden": "true" }, line);
}

const NUM_COLORS = 6;
const NUM_DASHES = 4;

/** Classes of a run's colour and, when the colours are used up, its dashes. */
function look(index) {
  return `color${index % NUM_COLORS} dash${Math.floor(index / NUM_COLORS) % NUM_DASHES}`;
}
