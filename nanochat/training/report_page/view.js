// This file holds what all charts share: the runs, and their steps.

class View {
  constructor(runs) {
    this.runs = runs;
    this.charts = [];
    this.wait = 0;
  }

  /** First and last x that are shown. */
  range() {
    return this.whole;
  }

  /** Lines of a chart as they are shown. */
  lines(chart) {
    return chart.lines.map((line) => ({ ...line, xs: line.points.x, ys: line.points.y }));
  }

  /** What happened to the runs. */
  events() {
    return this.runs.flatMap((run, index) =>
      run.events.map(([step, kind, text]) => {
        return { index, x: step, text: `${run.name}, step ${counted(step)}: ${kind}. ${text}` };
      }),
    );
  }

  /** Draw all charts, once, when there is time. */
  draw() {
    cancelAnimationFrame(this.wait);
    this.wait = requestAnimationFrame(() => this.drawNow());
  }

  drawNow() {
    const ends = this.charts.flatMap((chart) => chart.lines.flatMap(({ points: { x } }) => [x[0], x.at(-1)]));
    this.whole = ends.length ? [Math.min(...ends), Math.max(...ends)] : [0, 1];
    // Where nothing was trained yet is nothing to compare.
    if (this.whole[0] === this.whole[1]) this.whole[1] += 1;
    for (const chart of this.charts) chart.draw();
  }
}
