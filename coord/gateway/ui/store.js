/**
 * What all pages share: the agents as they are now, how many tasks wait, and how many ended in the last minutes.
 *
 * The records are read once, and kept up to date by events. They are read again after a gap and after a new connection,
 * and every `SYNC_MS`, so that no difference stays.
 */

import { get } from "./api.js";
import { feed } from "./feed.js";

/**
 * An agent as GET /agents returns it; `load`, `status` and `health_score` follow the events.
 *
 * @typedef {Object} Agent
 * @property {string} agent_id
 * @property {string} agent_type
 * @property {string} status
 * @property {string[]} capabilities
 * @property {string[]} tags
 * @property {Object<string, string>} labels
 * @property {{region?: string, zone?: string} | null} location
 * @property {number} capacity
 * @property {number} load
 * @property {number} health_score
 * @property {boolean} deaf
 */

const TASK_EVENTS = [
  "queued",
  "scheduled",
  "assigned",
  "started",
  "completed",
  "failed",
  "retried",
  "released",
  "recalled",
  "cancelled",
  "expired",
  "replayed",
  "refused",
].map((name) => `task.${name}`);
/** Events after which an agent does not hold the task any more. */
const ENDS = new Set(
  ["completed", "failed", "retried", "released", "recalled", "cancelled", "expired"].map((name) => `task.${name}`),
);
/** Events of agents after which more of its record has changed than its status and health. */
const READ_AGAIN = new Set([
  "agent.registered",
  "agent.changed",
  "agent.returned",
  "agent.deaf",
  "agent.hears",
  "agent.ejected",
  "agent.readmitted",
]);
const LEFT = new Set(["agent.deregistered", "agent.forgotten"]);

/** Milliseconds between two reads of everything; before changed agents are read; between two reads of the queues. */
const SYNC_MS = 30_000;
const DIRTY_MS = 400;
const QUEUES_MS = 2_000;
/** More changed agents than this are read with all others. */
const MOST_SINGLE = 8;
/** More agents than this are not read again without a reason. */
const MOST_SYNCED = 5_000;
/** Seconds for which the rates go back. */
const SECONDS = 120;

class Store {
  constructor() {
    /** @type {Map<string, Agent>} */
    this.agents = new Map();
    /** Whether the agents have been read. */
    this.isLoaded = false;
    /** The last failure to read; null: none. */
    this.error = null;
    /** Priority -> tasks that wait for an agent; null: not read yet. @type {Object<string, number> | null} */
    this.queues = null;
    this.held = new Map(); // task -> agent, for tasks that were placed while this page was open
    this.rates = new Map(); // type of an event -> its number in each of the last seconds
    this.syncedAt = 0;
    this.changed = new Set();
    this.listeners = new Set();
    this.dirty = new Set();
    this.frame = 0;
    this.turn = 0;
    this.isReset = false;
    this.areQueuesOld = true;
    this.syncing = null;
    /** Changes by events while all agents are read, to be made to what is read; null: they are not read now. */
    this.missed = null;
  }

  /** The number of tasks that wait for an agent. */
  get waiting() {
    return this.queues === null ? 0 : Object.values(this.queues).reduce((sum, size) => sum + size, 0);
  }

  /**
   * Call a function after changes, at most once for each frame of the screen.
   *
   * @param {(change: {ids: Set<string>, isReset: boolean}) => void} listener `ids` are the changed agents; after a
   *   reset any may have changed, come or gone.
   * @returns {() => void} ends the subscription.
   */
  subscribe(listener) {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }

  /**
   * Return how many events of a type there were in a second, as a mean of the last whole seconds.
   *
   * @param {string} type `task.completed`
   * @param {number} seconds
   */
  rate(type, seconds = 10) {
    const counts = this.rates.get(type);
    if (!counts) return 0;
    const now = Math.floor(feed.now() / 1_000);
    let sum = 0;
    for (let at = now - seconds; at < now; at++) sum += counts.at.get(at) ?? 0;
    return sum / Math.max(1, Math.min(seconds, now - this.countedFrom));
  }

  /** Return the events of a type in each of the last seconds, the oldest first, as `[seconds since 1970, number]`. */
  series(type, seconds = SECONDS) {
    const counts = this.rates.get(type)?.at;
    const now = Math.floor(feed.now() / 1_000);
    return Array.from({ length: seconds }, (_, at) => [now - seconds + at, counts?.get(now - seconds + at) ?? 0]);
  }

  /** Follow the cell, until `stop`. */
  start() {
    this.countedFrom = Math.floor(feed.now() / 1_000);
    this.ends = [
      feed.subscribe(["agent", ...TASK_EVENTS], (batch) => this.apply(batch)),
      feed.onGap(() => this.sync()),
    ];
    const timers = [
      setInterval(() => {
        if (!document.hidden && this.agents.size <= MOST_SYNCED) this.sync();
      }, SYNC_MS),
      setInterval(() => this.readDirty(), DIRTY_MS),
      setInterval(() => {
        if (!document.hidden && this.areQueuesOld) this.readQueues();
      }, QUEUES_MS),
    ];
    this.ends.push(() => timers.forEach(clearInterval));
    return Promise.all([this.sync(), this.readQueues()]);
  }

  /** Forget everything. */
  stop() {
    for (const end of this.ends ?? []) end();
    this.ends = [];
    this.turn++;
    this.syncing = null;
    this.missed = null;
    this.agents.clear();
    this.held.clear();
    this.rates.clear();
    this.isLoaded = false;
    this.error = null;
    this.queues = null;
  }

  /** Read all agents again. Requests for it at the same time share one. */
  sync() {
    this.areQueuesOld = true;
    if (this.syncing === null) {
      const reading = this.readAll(this.turn).finally(() => {
        if (this.syncing === reading) this.syncing = null;
      });
      this.syncing = reading;
    }
    return this.syncing;
  }

  async readAll(turn) {
    const found = new Map();
    let cursor = null;
    let at = 0;
    this.missed = [];
    try {
      do {
        const page = await get("/agents", { limit: 1_000, cursor });
        if (turn !== this.turn) return;
        at ||= Date.parse(page.timestamp);
        for (const agent of page.agents) found.set(agent.agent_id, agent);
        cursor = page.next;
      } while (cursor);
    } catch (error) {
      if (turn !== this.turn) return;
      this.missed = null;
      this.error = error;
      this.notify(null);
      return;
    }
    const { missed } = this;
    this.missed = null;
    this.agents = found;
    this.syncedAt = at;
    this.isLoaded = true;
    this.error = null;
    this.dirty.clear();
    for (const change of missed) change();
    this.notify(null);
  }

  async readQueues() {
    this.areQueuesOld = false;
    const turn = this.turn;
    try {
      const { queue_sizes: sizes } = await get("/tasks/queues");
      if (turn !== this.turn) return;
      this.queues = sizes;
      this.notify();
    } catch {
      this.areQueuesOld = true; // the next turn tries again
    }
  }

  async readDirty() {
    if (!this.dirty.size || this.syncing) return;
    if (this.dirty.size > MOST_SINGLE) {
      if (feed.now() - this.syncedAt > 3_000) await this.sync();
      return;
    }
    const ids = [...this.dirty];
    this.dirty.clear();
    await Promise.all(ids.map((id) => this.readAgent(id).catch(() => {})));
  }

  /** Read one agent again, and return it; null: it is not registered. */
  async readAgent(id) {
    const { turn } = this;
    try {
      const { agent } = await get(`/agents/${encodeURIComponent(id)}`);
      if (turn !== this.turn) return agent;
      if (agent.status === "inactive") this.agents.delete(id);
      else this.agents.set(id, agent);
      this.notify(id);
      return agent;
    } catch (error) {
      if (error.status !== 404) throw error;
      if (turn !== this.turn) return null;
      this.agents.delete(id);
      this.notify(id);
      return null;
    }
  }

  /** @param {import("./feed.js").FeedEvent[]} batch */
  apply(batch) {
    for (const event of batch) {
      this.countEvent(event);
      if (event.type.startsWith("agent.")) this.applyAgent(event);
      else this.applyTask(event);
    }
  }

  countEvent({ type, at }) {
    if (!this.rates.has(type)) this.rates.set(type, { at: new Map() });
    const counts = this.rates.get(type).at;
    const second = Math.floor(at / 1_000);
    counts.set(second, (counts.get(second) ?? 0) + 1);
    if (counts.size > SECONDS + 10) counts.delete(counts.keys().next().value);
  }

  applyAgent({ type, at, data }) {
    this.missed?.push(() => this.applyAgent({ type, at, data }));
    const id = data.agent_id;
    if (!id || at < this.syncedAt) return;
    if (LEFT.has(type)) {
      this.agents.delete(id);
    } else {
      const agent = this.agents.get(id);
      if (agent && data.status) agent.status = data.status;
      if (agent && data.health_score) agent.health_score = Number(data.health_score);
      if (!agent || READ_AGAIN.has(type)) this.dirty.add(id);
    }
    this.notify(id);
  }

  applyTask({ type, at, data }) {
    if (type !== "task.started") this.areQueuesOld = true;
    const id = data.task_id;
    if (type === "task.assigned") {
      this.held.set(id, data.agent_id);
      if (this.held.size > 50_000) this.held.delete(this.held.keys().next().value);
      this.addLoad(data.agent_id, 1, at);
    } else if (ENDS.has(type)) {
      const agent = data.agent_id || this.held.get(id);
      this.held.delete(id);
      if (agent) this.addLoad(agent, -1, at);
    }
  }

  addLoad(id, change, at) {
    this.missed?.push(() => this.addLoad(id, change, at));
    const agent = this.agents.get(id);
    if (!agent || at < this.syncedAt) return;
    agent.load = Math.max(0, agent.load + change);
    this.notify(id);
  }

  /** Tell the listeners with the next frame; null: everything may have changed. */
  notify(id) {
    if (id === null) this.isReset = true;
    else if (id !== undefined) this.changed.add(id);
    if (this.frame) return;
    const run = () => {
      this.frame = 0;
      const change = { ids: this.changed, isReset: this.isReset };
      this.changed = new Set();
      this.isReset = false;
      for (const listener of this.listeners) listener(change);
    };
    // A hidden tab gets no frames.
    this.frame = document.hidden ? setTimeout(run, 500) : requestAnimationFrame(run);
  }
}

/** The store of the page. */
export const store = new Store();
