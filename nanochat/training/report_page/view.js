// This file holds what all charts share: which runs are shown, on which axis, and where the pointer is.

class View {
  constructor(runs) {
    this.runs = runs;
    this.hidden = new Set();
    this.axis = "steps";
    this.log = false;
    this.smoothing = 0;
    this.part = null;
    this.charts = [];
    this.at = null;
    this.wait = 0;
  }

  /** Where a run's step is on the axis; nowhere, if its log does not count tokens. */
  place(run, step) {
    if (this.axis === "steps") return step;
    return run.tokens_at ? between(...run.tokens_at, step) : NaN;
  }

  /** First and last x that are shown. */
  range() {
    return this.part ?? this.whole;
  }

  /** Lines of a chart as they are shown: raw, and perhaps smoothed. */
  lines(chart) {
    const window = this.smoothing * (this.whole[1] - this.whole[0]);
    return chart.lines
      .filter(({ run }) => !this.hidden.has(run) && (this.axis === "steps" || run.tokens_at))
      .map((line) => {
        const place = (step) => this.place(line.run, step);
        const { x, y, mean_x, mean_y } = line.points;
        const shown = { ...line, xs: x.map(place), ys: y };
        if (!window || x.length < 3) return shown;
        // The mean of extremes is none of the numbers between them.
        const sxs = mean_x ? mean_x.map(place) : shown.xs;
        return { ...shown, sxs, sys: smooth(sxs, mean_y ?? y, window) };
      });
  }

  /** What happened to the runs that are shown. */
  events() {
    return this.runs.flatMap((run, index) =>
      this.hidden.has(run)
        ? []
        : run.events.map(([step, kind, text]) => {
            return { index, x: this.place(run, step), text: `${run.name}, step ${counted(step)}: ${kind}. ${text}` };
          }),
    );
  }

  /** Draw all charts, once, when there is time. */
  draw() {
    cancelAnimationFrame(this.wait);
    this.wait = requestAnimationFrame(() => this.drawNow());
  }

  drawNow() {
    const ends = this.charts.flatMap((chart) =>
      chart.lines
        .filter(({ run }) => !this.hidden.has(run))
        .flatMap(({ run, points: { x } }) => [this.place(run, x[0]), this.place(run, x.at(-1))])
        .filter(Number.isFinite),
    );
    this.whole = ends.length ? [Math.min(...ends), Math.max(...ends)] : [0, 1];
    // Where nothing was trained yet is nothing to compare.
    if (this.whole[0] === this.whole[1]) this.whole[1] += 1;
    for (const chart of this.charts) chart.draw();
    document.getElementById("whole").hidden = this.part === null;
  }

  /** Show on all charts where the pointer is, and what is there on one of them. */
  point(chart, x = null, begin = null) {
    this.at = chart ? x : null;
    for (const each of this.charts) each.point(this.at, each === chart, begin);
  }

  /** Show a part of the axis, or all of it. */
  zoom(from = null, to = null) {
    const [first, last] = this.range();
    this.part = from === null ? null : [Math.max(first, Math.min(from, to)), Math.min(last, Math.max(from, to))];
    this.point(null);
    this.draw();
  }
}
