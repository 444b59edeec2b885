/** Keeps what a page shows up to date, while its tab is visible. */

import { feed } from "../feed.js";
import { session } from "../session.js";

/** Milliseconds between two reads while events arrive, and without events. */
const READ_MS = 1_000;
const IDLE_MS = 5_000;

/** Call a function at once and then each `ms`, while the tab is visible and the last call has ended; returns an end. */
export function repeat(work, ms = READ_MS) {
  let isBusy = false;
  const run = async () => {
    if (isBusy || document.hidden) return;
    isBusy = true;
    try {
      await work();
    } finally {
      isBusy = false;
    }
  };
  const timer = setInterval(run, ms);
  document.addEventListener("visibilitychange", run);
  run();
  return () => {
    clearInterval(timer);
    document.removeEventListener("visibilitychange", run);
  };
}

/**
 * Read at once, at most once a second after events, and now and then without events; returns an end.
 *
 * @param {string[]} types of events.
 * @param {() => Promise<void>} read
 * @param {Object} [options]
 * @param {(batch: import("../feed.js").FeedEvent[]) => boolean} [options.wants] true for events that need a read.
 * @param {() => void} [options.draw] called each second without a read: ages have changed.
 */
export function follow(types, read, { wants = () => true, draw = () => {} } = {}) {
  let isOld = true;
  let readAt = 0;
  const expire = () => {
    isOld = true;
  };
  const ends = [
    feed.subscribe(types, (batch) => wants(batch) && expire()),
    feed.onGap(expire),
    session.onChange(expire),
    repeat(() => {
      if (!isOld && Date.now() - readAt < IDLE_MS) return draw();
      isOld = false;
      readAt = Date.now();
      return read();
    }),
  ];
  return () => {
    for (const end of ends) end();
  };
}
