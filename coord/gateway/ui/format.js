/** Numbers and times as text. */

const NUMBER = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const SHORT = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

/** `12,345`. */
export const number = (value) => NUMBER.format(value);

/** `950`, `12.3K`: for tight places. */
export const short = (value) => (value < 10_000 ? NUMBER.format(value) : SHORT.format(value));

/** `0` to `1` as `87 %`. */
export const percent = (share) => `${Math.round(share * 100)} %`;

/** Tasks per second: `0`, `0.4`, `12`, `1.2K`. */
export const rate = (value) => (value === 0 ? "0" : value < 10 ? value.toFixed(1) : short(value));

/**
 * Return a duration: `0.8 ms`, `340 ms`, `4.2 s`, `3 min 20 s`, `2 h 5 min`, `3 d 4 h`.
 *
 * @param {number} ms
 */
export function duration(ms) {
  if (ms < 1) return `${ms.toFixed(1)} ms`;
  if (ms < 1_000) return `${Math.round(ms)} ms`;
  if (ms < 10_000) return `${(ms / 1_000).toFixed(1)} s`;
  const seconds = Math.round(ms / 1_000);
  const steps = [
    [86_400, "d"],
    [3_600, "h"],
    [60, "min"],
    [1, "s"],
  ];
  const at = steps.findIndex(([size]) => seconds >= size);
  const [size, unit] = steps[at];
  const rest = at + 1 < steps.length ? Math.floor((seconds % size) / steps[at + 1][0]) : 0;
  return `${Math.floor(seconds / size)} ${unit}${rest ? ` ${rest} ${steps[at + 1][1]}` : ""}`;
}

/** Return how long ago a time was, in ms since 1970 or ISO 8601: `4 s ago`; `never` for null. */
export function ago(time, now = Date.now()) {
  if (time === null || time === undefined) return "never";
  const ms = now - (typeof time === "number" ? time : Date.parse(time));
  return ms < 1_000 ? "just now" : `${duration(ms)} ago`;
}

const CLOCK = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const DATE = new Intl.DateTimeFormat("en-GB", {
  day: "numeric",
  month: "short",
  hour: "2-digit",
  minute: "2-digit",
  second: "2-digit",
});

/** Return a local time: `14:03:22`, with the day if it is not of the last 24 h. */
export function time(value) {
  if (value === null || value === undefined) return "–";
  const at = typeof value === "number" ? value : Date.parse(value);
  return (Math.abs(Date.now() - at) < 86_400_000 ? CLOCK : DATE).format(at);
}

/** Return a count with its noun: `1 task`, `3 tasks`. */
export const count = (value, noun, plural = `${noun}s`) => `${number(value)} ${value === 1 ? noun : plural}`;
