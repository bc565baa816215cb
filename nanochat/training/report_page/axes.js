// This file holds what charts calculate: ticks of an axis, smoothed lines, and places on a line.

/** Round numbers from low to high, about as many as asked. */
function ticks(low, high, number) {
  const rough = (high - low) / number;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((factor) => factor * power >= rough * 0.999) * power;
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) {
    found.push(Number((i * step).toPrecision(12)));
  }
  return found;
}

/** Ticks of a logarithmic axis: round numbers of a short one, powers of ten of a long one. */
function logTicks(low, high, number) {
  const decades = Math.log10(high / low);
  if (decades < 0.7) return ticks(low, high, number);
  const factors = decades < 2.5 ? [1, 2, 5] : [1];
  const stride = Math.max(1, Math.ceil(decades / (number + 2)));
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power += stride) {
    for (const factor of factors) {
      const tick = Number((factor * 10 ** power).toPrecision(3));
      if (tick >= low && tick <= high) found.push(tick);
    }
  }
  return found;
}

/** Mean of the values around each, of which one counts for less by a factor of e for each window of its distance. */
function smooth(xs, ys, window) {
  const sums = new Array(xs.length).fill(0);
  const weights = new Array(xs.length).fill(0);
  for (const order of [1, -1]) {
    let sum = 0;
    let weight = 0;
    for (let i = order > 0 ? 0 : xs.length - 1; i in xs; i += order) {
      const fade = i - order in xs ? Math.exp(-Math.abs(xs[i] - xs[i - order]) / window) : 0;
      sum *= fade;
      weight *= fade;
      // What stands before it, and then behind it, and once itself.
      sums[i] += sum + (order > 0 ? ys[i] : 0);
      weights[i] += weight + (order > 0 ? 1 : 0);
      sum += ys[i];
      weight += 1;
    }
  }
  return sums.map((sum, i) => sum / weights[i]);
}

/** Index of the number nearest to x among some that grow. */
function nearest(xs, x) {
  let low = 0;
  let high = xs.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (xs[middle] < x) low = middle + 1;
    else high = middle;
  }
  return low > 0 && x - xs[low - 1] < xs[low] - x ? low - 1 : low;
}

/** Value at x of the broken line through points; beyond them, of its first and last piece. */
function between(xs, ys, x) {
  if (xs.length < 2) return xs.length ? (ys[0] * x) / (xs[0] || 1) : x;
  let end = 1;
  while (end < xs.length - 1 && xs[end] < x) end++;
  return ys[end - 1] + ((ys[end] - ys[end - 1]) * (x - xs[end - 1])) / (xs[end] - xs[end - 1]);
}
