// This file holds how numbers are written.

const ABSENT = "\u2013";
const PLAIN = new Intl.NumberFormat("en", { maximumSignificantDigits: 5 });
const WHOLE = new Intl.NumberFormat("en");
const SHORT = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 4 });

/** A measured number, in few characters. */
function written(value) {
  if (typeof value !== "number") return ABSENT;
  const size = Math.abs(value);
  if (size !== 0 && size < 1e-3) return value.toExponential(2).replace(/\.?0+e/, "e");
  return size < 1e5 ? PLAIN.format(value) : SHORT.format(value);
}

/** A measured number with its decimals, to be compared with those above and below it. */
function fixed(value, digits) {
  return typeof value === "number" ? value.toFixed(digits) : ABSENT;
}

/** A count, exactly. */
function counted(value) {
  return typeof value === "number" ? WHOLE.format(value) : ABSENT;
}

/** Seconds, in two units at most. */
function lasting(seconds) {
  if (typeof seconds !== "number") return ABSENT;
  if (seconds < 60) return `${PLAIN.format(Number(seconds.toFixed(1)))} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h ${minutes % 60} min` : `${Math.floor(hours / 24)} d ${hours % 24} h`;
}
