// This file holds one chart: a line for each run, or for each place of a list in each run, and what a pointer reads.

const HEIGHT = 230;
const MARGIN = { left: 52, right: 14, top: 12, bottom: 26 };
// Up to so many points are marked, for a line alone would not tell where they are.
const MOST_DOTS = 40;
// Pixels that a pointer moves at least to choose a part of the axis.
const LEAST_DRAG = 8;
let numCharts = 0;

class Chart {
  /** Of one key of the logs; `view` is what all charts share, and is told what a pointer wants. */
  constructor(key, runs, view) {
    this.key = key;
    this.view = view;
    this.clip = `plot-${numCharts++}`;
    this.lines = runs.flatMap((run, index) =>
      Object.entries(run.series[key] ?? {}).map(([place, points], number, all) => {
        return { run, index, place, points, isAlone: all.length === 1, strength: 1 - (0.75 * number) / all.length };
      }),
    );
    this.svg = draw("svg", { class: "plot", tabindex: 0, role: "img", "aria-label": `${key} of each run` });
    this.reading = make("div", { className: "reading", hidden: true });
    const title = make("button", { type: "button", title: "wider or narrower" }, key);
    const most = Math.max(0, ...runs.map((run) => Object.keys(run.series[key] ?? {}).length));
    const hint = make("span", { className: "faint", title: "the first is the strongest" });
    if (most > 1) hint.textContent = `${counted(most)} places`;
    this.element = make("figure", {}, make("figcaption", {}, title, hint), this.svg, this.reading);
    this.element.dataset.key = key;
    title.addEventListener("click", () => {
      this.element.classList.toggle("wide");
      this.draw();
    });
    this.listen();
  }

  /** Draw everything anew. */
  draw() {
    this.width = Math.max(200, this.element.clientWidth);
    this.right = this.width - MARGIN.right;
    this.bottom = HEIGHT - MARGIN.bottom;
    this.shown = this.view.lines(this);
    this.scale();
    this.svg.setAttribute("viewBox", `0 0 ${this.width} ${HEIGHT}`);
    this.cursor = draw("g");
    const inside = draw("g", { "clip-path": `url(#${this.clip})` });
    for (const line of this.shown) inside.append(...this.paths(line));
    this.svg.replaceChildren(this.frame(), ...this.axes(), inside, ...this.marks(), this.cursor);
    if (!this.shown.length) {
      this.svg.append(this.words(this.width / 2, HEIGHT / 2, "middle", "nothing to show"));
    }
  }

  /** Place x and y on the chart. */
  scale() {
    const [first, last] = this.view.range();
    const ys = this.shown.flatMap(({ xs, ys, sxs, sys }) => [
      ...ys.filter((_, i) => xs[i] >= first && xs[i] <= last),
      ...(sys ?? []).filter((_, i) => sxs[i] >= first && sxs[i] <= last),
    ]);
    const positive = ys.filter((y) => y > 0);
    this.isLog = this.view.log && positive.length > 0;
    const used = this.isLog ? positive : ys;
    let low = used.reduce((a, b) => Math.min(a, b), Infinity);
    let high = used.reduce((a, b) => Math.max(a, b), -Infinity);
    if (low > high) [low, high] = [0, 1];
    if (this.isLog) {
      const more = Math.max((high / low) ** 0.05, 1.001);
      [this.low, this.high] = [low / more, high * more];
    } else {
      const more = (high - low) * 0.05 || Math.abs(high) * 0.05 || 1;
      // A scale of what is never below zero does not show less.
      [this.low, this.high] = [low >= 0 ? Math.max(0, low - more) : low - more, high + more];
    }
    const bend = this.isLog ? Math.log : (y) => y;
    const [from, to] = [bend(this.low), bend(this.high)];
    this.x = (x) => MARGIN.left + ((x - first) / (last - first || 1)) * (this.right - MARGIN.left);
    this.y = (y) => this.bottom - ((bend(y) - from) / (to - from)) * (this.bottom - MARGIN.top);
    this.unplace = (pixel) => first + ((pixel - MARGIN.left) / (this.right - MARGIN.left)) * (last - first);
  }

  frame() {
    // With room for the first and the last dot.
    const box = { x: MARGIN.left - 3, y: 0, width: this.right - MARGIN.left + 6, height: this.bottom + 3 };
    return draw("clipPath", { id: this.clip }, draw("rect", box));
  }

  axes() {
    const parts = [];
    const rows = this.isLog ? logTicks(this.low, this.high, 6) : ticks(this.low, this.high, 6);
    for (const tick of rows) {
      const y = this.y(tick).toFixed(1);
      parts.push(draw("line", { class: "grid", x1: MARGIN.left, x2: this.right, y1: y, y2: y }));
      parts.push(this.words(MARGIN.left - 6, Number(y) + 4, "end", written(tick)));
    }
    const [first, last] = this.view.range();
    const columns = ticks(first, last, Math.max(2, Math.floor(this.width / 70)));
    for (const tick of columns.filter((each) => each >= first && each <= last)) {
      parts.push(this.words(this.x(tick), HEIGHT - 8, "middle", SHORT.format(tick)));
    }
    parts.push(draw("line", { class: "axis", x1: MARGIN.left, x2: this.right, y1: this.bottom, y2: this.bottom }));
    return parts;
  }

  words(x, y, anchor, text) {
    return draw("text", { x: x.toFixed(1), y: y.toFixed(1), "text-anchor": anchor }, text);
  }

  /** The line of a run; behind one that is smoothed, its raw numbers. */
  paths({ index, xs, ys, sxs, sys, strength, isAlone }) {
    const style = { class: `line ${look(index)}`, "stroke-opacity": strength.toFixed(2) };
    const found = [];
    if (sys) found.push(draw("path", { ...style, class: `${style.class} raw`, d: this.path(xs, ys) }));
    found.push(draw("path", { ...style, d: sys ? this.path(sxs, sys) : this.path(xs, ys) }));
    if (!sys && xs.length <= MOST_DOTS && isAlone) {
      for (let i = 0; i < xs.length; i++) {
        if (this.fits(ys[i])) found.push(this.dot(index, xs[i], ys[i], 2.2));
      }
    }
    return found;
  }

  fits(y) {
    return !this.isLog || y > 0;
  }

  path(xs, ys) {
    let text = "";
    let pen = "M";
    for (let i = 0; i < xs.length; i++) {
      if (this.fits(ys[i])) {
        text += `${pen}${this.x(xs[i]).toFixed(1)} ${this.y(ys[i]).toFixed(1)}`;
        pen = "L";
      } else pen = "M";
    }
    return text;
  }

  dot(index, x, y, r) {
    return draw("circle", { class: `dot ${look(index)}`, cx: this.x(x).toFixed(1), cy: this.y(y).toFixed(1), r });
  }

  /** Where something happened to a run. */
  marks() {
    const [first, last] = this.view.range();
    return this.view.events().flatMap(({ index, x, text }) => {
      if (x < first || x > last) return [];
      const at = this.x(x).toFixed(1);
      const shape = draw("path", { d: `M${at} ${MARGIN.top}l-4.5 -8h9z` }, draw("title", {}, text));
      const line = draw("line", { x1: at, x2: at, y1: MARGIN.top, y2: this.bottom });
      return [draw("g", { class: `mark ${look(index)}` }, line, shape)];
    });
  }

  listen() {
    let begin = null;
    const place = (event) => this.unplace(event.clientX - this.svg.getBoundingClientRect().left);
    this.svg.addEventListener("pointermove", (event) => {
      this.view.point(this, place(event), begin);
    });
    this.svg.addEventListener("pointerleave", () => this.view.point(null));
    this.svg.addEventListener("pointerdown", (event) => {
      if (event.pointerType !== "mouse" || event.button) return;
      begin = place(event);
      this.svg.setPointerCapture(event.pointerId);
    });
    this.svg.addEventListener("pointerup", (event) => {
      const end = place(event);
      if (begin !== null && Math.abs(this.x(end) - this.x(begin)) > LEAST_DRAG) this.view.zoom(begin, end);
      begin = null;
    });
    this.svg.addEventListener("pointercancel", () => (begin = null));
    this.svg.addEventListener("dblclick", () => this.view.zoom());
    this.svg.addEventListener("blur", () => this.view.point(null));
    this.svg.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -0.02, ArrowRight: 0.02 }[event.key];
      if (event.key === "Escape") this.view.point(null);
      if (!by) return;
      event.preventDefault();
      const [first, last] = this.view.range();
      this.view.point(this, (this.view.at ?? (first + last) / 2) + by * (last - first));
    });
  }

  /** Show where the pointer is, and on the chart that it is on what each run has there. */
  point(x, isHere, begin = null) {
    this.cursor.replaceChildren();
    this.reading.hidden = true;
    const [first, last] = this.view.range();
    if (x === null || x < first || x > last) return;
    const at = this.x(x);
    if (begin !== null && isHere) {
      const [from, to] = [this.x(begin), at].sort((a, b) => a - b);
      const box = { class: "chosen", x: from, width: to - from, y: MARGIN.top, height: this.bottom - MARGIN.top };
      this.cursor.append(draw("rect", box));
    }
    this.cursor.append(draw("line", { class: "cursor", x1: at, x2: at, y1: MARGIN.top, y2: this.bottom }));
    if (!isHere) return;
    const rows = this.read(x, last - first);
    if (!rows.length) return;
    const where = this.view.axis === "steps" ? `step ${counted(Math.round(x))}` : `${written(x)} tokens`;
    const head = make("tr", {}, make("th", { colSpan: 4 }, where));
    this.reading.replaceChildren(make("table", {}, head, ...rows));
    this.reading.hidden = false;
    // Beside the pointer, where there is more room, and within the window.
    const size = this.reading.offsetWidth;
    const edge = this.element.getBoundingClientRect().left;
    const left = at < this.width / 2 ? at + 14 : at - 14 - size;
    const most = document.documentElement.clientWidth - size - edge - 4;
    this.reading.style.left = `${Math.max(4 - edge, Math.min(most, left))}px`;
  }

  /** A row for each run that has numbers near x. */
  read(x, width) {
    const found = new Map();
    for (const line of this.shown) {
      const { xs, ys, sxs, sys } = line;
      const near = width * 0.02;
      if (x < xs[0] - near || x > xs.at(-1) + near) continue;
      const i = nearest(xs, x);
      const value = sys ? sys[nearest(sxs, x)] : ys[i];
      if (this.fits(value) && line.isAlone) {
        this.cursor.append(this.dot(line.index, sys ? x : xs[i], value, 3.5));
      }
      found.set(line.run, [...(found.get(line.run) ?? []), { ...line, value, raw: ys[i] }]);
    }
    return [...found].map(([run, places]) => {
      const name = [make("td", {}, swatch(places[0].index)), make("td", { className: "name" }, run.name)];
      if (places.length === 1) {
        const [{ value, raw, sys }] = places;
        const behind = make("td", { className: "number faint" }, sys ? written(raw) : "");
        return make("tr", {}, ...name, make("td", { className: "number" }, written(value)), behind);
      }
      const sorted = places.sort((a, b) => a.value - b.value);
      const told = ({ place, value }) => `${written(value)} (${place})`;
      const text = `${told(sorted[0])} to ${told(sorted.at(-1))}`;
      return make("tr", {}, ...name, make("td", { className: "number", colSpan: 2 }, text));
    });
  }
}
