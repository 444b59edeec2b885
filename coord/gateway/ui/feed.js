/**
 * The feed of events: one connection for all pages, which connects again by itself and continues where it ended.
 *
 * It reads GET /events as a stream of `fetch`, because `EventSource` cannot send a credential in a header. Events
 * arrive in batches. A gap (the log was trimmed, or this page was too slow) means that records have to be read again.
 */

import { ApiError, credentials, read, urlOf } from "./api.js";

/** @typedef {{type: string, at: number, data: Object<string, string>}} FeedEvent `type` is without `coord.`. */

/**
 * States: `off` before the first connection and while the tab is hidden, `live`, `lost` while there is no connection,
 * `behind` while it catches up.
 */
export const STATES = { off: "off", live: "live", lost: "lost", behind: "behind" };

/** Milliseconds: first and longest wait before it connects again; silence that means a dead connection. */
const WAIT_MS = [500, 10_000];
const SILENCE_MS = 40_000;
/** It has caught up when an event is younger than this, when no data comes for so long, or at last after this. */
const YOUNG_MS = 2_000;
const QUIET_MS = 250;
const BEHIND_MS = 10_000;
/** A hidden tab gives its connection back: browsers open only six to a host. */
const HIDDEN_MS = 60_000;
/** After longer without data it does not read all that it has missed. */
const FORGOTTEN_MS = 300_000;
/** Milliseconds of work before the browser gets its turn. */
const SLICE_MS = 12;

class Feed {
  constructor() {
    this.state = STATES.off;
    /** Milliseconds by which the gateway's clock is ahead of the browser's. */
    this.clockOffset = 0;
    this.position = "";
    /** When data came last, in ms since 1970. */
    this.dataAt = 0;
    this.listeners = new Map(); // function -> types that it wants
    this.stateListeners = new Set();
    this.gapListeners = new Set();
    this.abort = null;
    this.wake = null;
    this.hiding = 0;
    this.isHidden = false;
    this.isRunning = false;
    this.wasLost = false;
    this.isAdapting = false;
    this.types = "";
    this.turn = 0;
    document.addEventListener("visibilitychange", () => this.hide());
  }

  /**
   * Subscribe to events.
   *
   * @param {string[]} types types or their first words: `task.assigned`, `agent`.
   * @param {(batch: FeedEvent[]) => void} listener gets the events that it wants, in order.
   * @returns {() => void} ends the subscription.
   */
  subscribe(types, listener) {
    this.listeners.set(listener, types);
    this.adapt();
    return () => {
      this.listeners.delete(listener);
      this.adapt();
    };
  }

  /** Call a function with each new state; returns a function that ends that. */
  onState(listener) {
    this.stateListeners.add(listener);
    return () => this.stateListeners.delete(listener);
  }

  /** Call a function when events were lost, and after each new connection: read the records again. */
  onGap(listener) {
    this.gapListeners.add(listener);
    return () => this.gapListeners.delete(listener);
  }

  /** The time at the gateway, in ms since 1970. */
  now() {
    return Date.now() + this.clockOffset;
  }

  /** Connect, and stay connected until `stop`. */
  start() {
    if (this.isRunning) return;
    this.isRunning = true;
    this.run(++this.turn);
  }

  stop() {
    this.isRunning = false;
    this.wasLost = false;
    this.position = "";
    this.abort?.abort();
    this.wake?.();
    this.set(STATES.off);
  }

  /** Connect now, without the rest of the wait. */
  retry() {
    this.wake?.();
  }

  /** Disconnect when the tab has been hidden for a while, and connect when it is shown. */
  hide() {
    clearTimeout(this.hiding);
    if (document.hidden) {
      this.hiding = setTimeout(() => {
        this.isHidden = true;
        this.abort?.abort();
        this.wake?.();
      }, HIDDEN_MS);
    } else if (this.isHidden) {
      this.isHidden = false;
      this.wake?.();
    }
  }

  /** Wait until `wake` is called, at most for some ms; Infinity: without a limit. */
  async sleep(ms) {
    await new Promise((resolve) => {
      const timer = ms === Infinity ? 0 : setTimeout(resolve, ms);
      this.wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
    this.wake = null;
  }

  /** Connect with other types if a page wants more than the connection brings. */
  adapt() {
    const wanted = this.wanted();
    if (wanted === this.types || !this.isRunning || this.abort === null) return;
    this.isAdapting = true;
    this.abort.abort();
  }

  wanted() {
    const all = new Set([...this.listeners.values()].flat());
    return [...all]
      .filter((type) => ![...all].some((other) => type.startsWith(`${other}.`)))
      .sort()
      .join(",");
  }

  set(state) {
    if (state === this.state) return;
    this.state = state;
    for (const listener of this.stateListeners) listener(state);
  }

  async run(turn) {
    const isOver = () => !this.isRunning || this.turn !== turn;
    let wait = WAIT_MS[0];
    while (!isOver()) {
      this.isAdapting = false;
      try {
        await this.connect(() => {
          wait = WAIT_MS[0];
        });
      } catch (error) {
        if (error instanceof ApiError && !isOver()) {
          if (error.status === 401) return this.stop();
          if (error.status === 422) this.position = ""; // of another cell, or of an older version
        }
      }
      if (isOver()) return;
      if (this.isAdapting) continue;
      this.wasLost = true;
      if (!this.isHidden) {
        this.set(STATES.lost);
        await this.sleep(wait * (0.75 + Math.random() / 2));
        wait = Math.min(wait * 2, WAIT_MS[1]);
      }
      if (this.isHidden) {
        this.set(STATES.off);
        while (this.isHidden && !isOver()) await this.sleep(Infinity);
      }
    }
  }

  /** Read one connection until it ends. */
  async connect(connected) {
    const abort = new AbortController();
    this.abort = abort;
    this.types = this.wanted();
    if (this.position && Date.now() - this.dataAt > FORGOTTEN_MS) {
      this.position = "";
      this.wasLost = true; // pages read their records again
    }
    const headers = { Accept: "text/event-stream", ...credentials() };
    if (this.position) headers["Last-Event-ID"] = this.position;
    let silence = 0;
    const alive = () => {
      clearTimeout(silence);
      silence = setTimeout(() => abort.abort(), SILENCE_MS);
    };
    let quiet = 0;
    alive();
    try {
      const url = urlOf("/events", { type: this.types });
      const response = await fetch(url, { headers, signal: abort.signal, cache: "no-store", credentials: "omit" });
      if (!response.ok) await read(response);
      const date = Date.parse(response.headers.get("date") ?? "");
      if (Number.isFinite(date)) this.clockOffset = Math.abs(date - Date.now()) < 2_000 ? 0 : date - Date.now();
      connected();
      const caughtUp = () => {
        this.set(STATES.live);
        if (this.wasLost) this.gap("connected");
        this.wasLost = false;
      };
      if (this.wasLost) this.set(STATES.behind);
      else caughtUp();
      const latest = Date.now() + BEHIND_MS;
      const parser = new Parser();
      for await (const text of chunks(response.body)) {
        if (abort.signal.aborted) return;
        alive();
        this.dataAt = Date.now();
        clearTimeout(quiet);
        if (this.state !== STATES.live) quiet = setTimeout(caughtUp, QUIET_MS);
        const at = await this.handle(parser, text);
        if (this.state !== STATES.live && (at > this.now() - YOUNG_MS || Date.now() > latest)) caughtUp();
      }
    } finally {
      clearTimeout(silence);
      clearTimeout(quiet);
      if (this.abort === abort) this.abort = null;
    }
  }

  /** Deliver the events of a text; return the time of the last one. */
  async handle(parser, text) {
    let batch = [];
    let last = 0;
    let began = performance.now();
    for (const { id, data } of parser.push(text)) {
      if (data) {
        const event = JSON.parse(data);
        const type = event.type.slice("coord.".length);
        if (type === "gap") this.gap(event.data.reason);
        else batch.push({ type, at: (last = Date.parse(event.time)), data: event.data });
      }
      if (id) this.position = id;
      if (performance.now() - began > SLICE_MS) {
        this.deliver(batch);
        batch = [];
        await new Promise((resolve) => setTimeout(resolve));
        began = performance.now();
      }
    }
    this.deliver(batch);
    return last;
  }

  deliver(batch) {
    if (!batch.length) return;
    for (const [listener, types] of this.listeners) {
      const wanted = batch.filter(({ type }) => types.some((one) => type === one || type.startsWith(`${one}.`)));
      if (wanted.length) listener(wanted);
    }
  }

  gap(reason) {
    for (const listener of this.gapListeners) listener(reason);
  }
}

async function* chunks(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  try {
    while (true) {
      const { done, value } = await reader.read();
      if (done) return;
      yield value;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** Takes server-sent events apart. A comment of the gateway repeats the position as an `id:` of its own. */
class Parser {
  rest = "";

  *push(text) {
    const blocks = (this.rest + text).split("\n\n");
    this.rest = blocks.pop();
    for (const block of blocks) {
      const found = { id: "", data: "" };
      for (const line of block.split("\n")) {
        if (line.startsWith("data: ")) found.data += line.slice(6);
        else if (line.startsWith("id: ")) found.id = line.slice(4);
      }
      yield found;
    }
  }
}

/** The feed of the page. */
export const feed = new Feed();
