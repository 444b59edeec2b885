/** How long tasks wait and run, from the events of the last seconds. */

import { feed } from "../feed.js";

/** Most tasks that are followed at a time; seconds of a quantile, and of the whole series. */
const MOST = 20_000;
const WINDOW = 10;
const SECONDS = 120;

const BEGIN = new Set(["task.queued", "task.replayed"]);
const END = new Set(["task.completed", "task.failed", "task.retried"]);

/** Return a quantile of numbers; null without any. */
export function quantile(sorted, share) {
  return sorted.length ? sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))] : null;
}

export class Latency {
  constructor() {
    this.queued = new Map(); // task -> when it was queued, and below when its agent got it
    this.placed = new Map();
    this.waits = new Map(); // second -> durations in ms
    this.runs = new Map();
    /** Seconds since 1970; p50 and p95 of the wait, p50 and p95 of the run. */
    const now = Math.floor(feed.now() / 1_000);
    this.series = Array.from({ length: 5 }, (_, at) =>
      Array.from({ length: SECONDS }, (_value, second) => (at ? null : now - SECONDS + second)),
    );
  }

  /** @param {import("../feed.js").FeedEvent[]} batch */
  apply(batch) {
    for (const { type, at, data } of batch) {
      const id = data.task_id;
      if (BEGIN.has(type)) note(this.queued, id, at);
      else if (type === "task.assigned") {
        measure(this.waits, this.queued, id, at);
        note(this.placed, id, at);
      } else if (END.has(type)) measure(this.runs, this.placed, id, at);
      else if (type === "task.cancelled" || type === "task.expired" || type === "task.released") {
        this.queued.delete(id);
        this.placed.delete(id);
      }
    }
  }

  /** Add the current second to the series; once a second. */
  tick() {
    const now = Math.floor(feed.now() / 1_000);
    const { series } = this;
    if (series[0].at(-1) >= now) return;
    const waits = recent(this.waits, now);
    const runs = recent(this.runs, now);
    const values = [now, quantile(waits, 0.5), quantile(waits, 0.95), quantile(runs, 0.5), quantile(runs, 0.95)];
    values.forEach((value, at) => {
      series[at].push(value);
      if (series[at].length > SECONDS) series[at].shift();
    });
  }
}

function note(map, id, at) {
  map.set(id, at);
  if (map.size > MOST) map.delete(map.keys().next().value);
}

function measure(samples, begins, id, at) {
  const begin = begins.get(id);
  if (begin === undefined) return;
  begins.delete(id);
  const second = Math.floor(at / 1_000);
  if (!samples.has(second)) samples.set(second, []);
  samples.get(second).push(at - begin);
}

function recent(samples, now) {
  const found = [];
  for (const [second, values] of samples) {
    if (second <= now - WINDOW) samples.delete(second);
    else found.push(...values);
  }
  return found.sort((a, b) => a - b);
}
