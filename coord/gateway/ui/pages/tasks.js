/**
 * The Tasks page: throughput and latency, why tasks wait, the queues, and a list of the tasks that match a query.
 *
 * `#/tasks?q=type:ocr+state:failed`: the address is the saved view.
 */

import { get } from "../api.js";
import { chart } from "../chart.js";
import { emptyState, fill, h, setText } from "../dom.js";
import { feed } from "../feed.js";
import { count, duration, number, rate, short } from "../format.js";
import { fieldsOf, queryBar, wordAt } from "../querybar.js";
import { go } from "../router.js";
import { session } from "../session.js";
import { setPageKeys } from "../shortcuts.js";
import { store } from "../store.js";
import { EVENTS, hrefOfQuery, isParked, kindOf, PRIORITIES, quoted, reasonText, STATES } from "./task_states.js";
import { ACTIONS, openBulk } from "./tasks_bulk.js";
import { Latency } from "./tasks_latency.js";
import { TaskList } from "./tasks_list.js";

export const title = "Tasks";

/** Milliseconds between two updates of the charts; between two reads of the numbers while events arrive, or not. */
const CHARTS_MS = 1_000;
const READ_MS = 3_000;
const IDLE_MS = 15_000;
/** Pools that are read, and those that are shown first. */
const POOLS = 100;
const FIRST_POOLS = 6;
const SERIES = [
  { type: "task.queued", label: "Queued", color: "busy", dash: [4, 3] },
  { type: "task.completed", label: "Completed", color: "accent", fill: true },
  { type: "task.failed", label: "Failed", color: "bad", dash: [2, 2] },
];
const LATENCIES = [
  { label: "Wait p50", color: "busy" },
  { label: "Wait p95", color: "busy", dash: [4, 3] },
  { label: "Run p50", color: "hold" },
  { label: "Run p95", color: "hold", dash: [4, 3] },
];

/** Return a duration of the log, which counts whole ms. */
const latencyText = (ms) => (ms === null || ms === undefined ? "–" : ms < 1 ? "0" : duration(ms));

/** @type {TasksPage | null} */
let page = null;

export function mount(root, where) {
  page = new TasksPage(root, where);
}

export function unmount() {
  page?.end();
  page = null;
}

export function update(where) {
  page?.update(where);
}

class TasksPage {
  constructor(root, where) {
    this.isOver = false;
    this.isOld = true;
    this.readAt = 0;
    this.latency = new Latency();
    this.charts = [];
    this.actions = h("div", { class: "tasks-actions", role: "group", "aria-label": "All tasks that match" });
    this.list = new TaskList({
      failed: (error) => this.showError(error),
      empty: () => this.emptyView(),
      actions: this.actions,
    });
    this.build(root, where.query.get("q") ?? "");
    this.ends = [
      feed.subscribe(EVENTS, (batch) => {
        this.isOld = true;
        this.latency.apply(batch);
      }),
      feed.onGap(() => this.read()),
      store.subscribe(() => this.drawQueues()),
      session.onChange(() => this.drawActions()),
    ];
    const timer = setInterval(() => this.tick(), CHARTS_MS);
    this.ends.push(() => clearInterval(timer));
    setPageKeys([{ key: "n", label: "Show newer tasks", run: () => this.list.newer.size && this.list.reload() }]);
    this.show(where.query.get("q") ?? "");
    this.drawQueues();
    this.addCharts();
    this.read();
  }

  end() {
    this.isOver = true;
    for (const end of this.ends) end();
    this.list.end();
    for (const one of this.charts) one.destroy();
  }

  build(root, q) {
    this.bar = queryBar({
      label: "Find tasks",
      placeholder: "Find tasks: an id or type, state:failed, age:>1h",
      value: q,
      fields: fieldsOf("tasks"),
      submitted: (text) => (text === this.q ? this.list.reload() : go("tasks", [], { q: text })),
      typed: () => this.drawActions(),
    });
    this.states = h("div", { class: "states", role: "group", "aria-label": "Tasks by state" });
    this.throughput = h("div", { class: "plot" });
    this.latencies = h("div", { class: "plot" });
    this.rateText = h("span", { class: "muted" });
    this.latencyText = h("span", { class: "muted" });
    this.waitingText = h("span", { class: "muted" });
    this.stack = h("div", { class: "stack", "aria-hidden": "true" });
    this.reasons = h("ul", { class: "reasons" });
    this.queues = new Map(PRIORITIES.map((name) => [name, { size: h("b", { class: "number" }, "–"), fill: h("i") }]));
    this.poolsText = h("span", { class: "muted" });
    this.pools = h("div");
    const panel = (name, heading, text, ...content) =>
      h("section", { class: `panel ${name}` }, h("header", null, h("h2", null, heading), text), content);
    root.append(
      h(
        "div",
        { class: "tasks" },
        h("div", { class: "tasks-top" }, h("h1", null, "Tasks"), this.states),
        h(
          "div",
          { class: "overview" },
          panel("plot-panel", "Throughput", this.rateText, this.throughput),
          panel("plot-panel", "Latency", this.latencyText, this.latencies),
          panel("waiting", "Waiting", this.waitingText, this.stack, this.reasons),
        ),
        h(
          "div",
          { class: "tasks-main" },
          h("div", { class: "tasks-found" }, this.bar.element, this.list.element),
          h(
            "div",
            { class: "tasks-side" },
            panel(
              "by-priority",
              "Queues",
              null,
              h(
                "ul",
                null,
                [...this.queues].map(([name, lane]) =>
                  h(
                    "li",
                    null,
                    h("a", { href: hrefOfQuery(`state:queued priority:${name}`) }, name),
                    h("span", { class: "meter", "aria-hidden": "true" }, lane.fill),
                    lane.size,
                  ),
                ),
              ),
            ),
            panel("pools", "Pools", this.poolsText, this.pools),
          ),
        ),
      ),
    );
  }

  // The query.

  update({ query }) {
    const q = query.get("q") ?? "";
    if (q === this.q) return;
    this.bar.value = q;
    this.show(q);
  }

  show(q) {
    this.q = q;
    this.bar.showError("");
    this.isWrong = false;
    this.list.show(q);
    this.drawActions();
    this.drawStates();
  }

  /** Show why the query is wrong, where, and the nearest one that is right. */
  showError(error) {
    this.isWrong = error !== null;
    this.drawActions();
    const where = /position (\d+): (.*)/s.exec(error?.message ?? "");
    if (!where) {
      this.bar.showError(error ? error.message : "");
      return;
    }
    const at = Number(where[1]) - 1;
    const { q } = this;
    const end = q.slice(at).search(/[\s,]|$/) + at || q.length;
    const near = /did you mean ([^\s?]+)\?/.exec(where[2])?.[1];
    const repair = () => {
      const { start } = wordAt(q, at);
      const stop = q.slice(at).search(/\s|$/) + at;
      const minus = q[start] === "-" ? "-" : "";
      this.bar.value = `${q.slice(0, start)}${minus}${near}${q.slice(stop)}`;
      go("tasks", [], { q: this.bar.value });
    };
    this.bar.showError(
      h(
        "span",
        { class: "query-problem" },
        h("code", null, q.slice(0, at), h("mark", null, q.slice(at, end) || " "), q.slice(end)),
        h("span", null, `Position ${where[1]}: ${where[2]}`),
        near && h("button", { type: "button", class: "secondary", onclick: repair }, `Use ${near}`),
      ),
    );
  }

  emptyView() {
    if (!this.q) {
      return emptyState(
        "No task yet",
        "A client submits tasks, and agents that can do them get them. Submit one, and it appears here.",
        'coord tasks submit greet \'{"name": "Ada"}\'',
      );
    }
    const all = h("button", { type: "button", class: "secondary", onclick: () => go("tasks") }, "Show all tasks");
    return emptyState("No task matches", [
      "A task that begins to match appears here. Records of ended tasks are removed after a while.",
      h("br"),
      all,
    ]);
  }

  drawActions() {
    const refusal = session.refusal("operator");
    const isTyping = this.bar.value !== this.q;
    const why = refusal
      ? `Not allowed: ${refusal}.`
      : this.q === ""
        ? "To change all that match, type a query first."
        : this.isWrong
          ? "Correct the query first."
          : isTyping && "Press Enter to search first.";
    const drawn = JSON.stringify([why, this.q]);
    if (drawn === this.drawnActions) return;
    this.drawnActions = drawn;
    fill(
      this.actions,
      Object.entries(ACTIONS).map(([name, { label }]) =>
        h(
          "button",
          {
            type: "button",
            class: "secondary",
            disabled: Boolean(why),
            "aria-describedby": why && "bulk-why",
            onclick: () => openBulk(name, this.q),
          },
          `${label} all …`,
        ),
      ),
      why && h("p", { class: "muted", id: "bulk-why" }, why),
    );
  }

  // Numbers.

  tick() {
    if (document.hidden) return;
    this.latency.tick();
    this.drawCharts();
    const age = performance.now() - this.readAt;
    if (age > (this.isOld ? READ_MS : IDLE_MS) && !this.isReading) this.read();
  }

  async read() {
    this.isOld = false;
    this.isReading = true;
    const [stats, pools] = await Promise.allSettled([get("/stats"), get("/pools", { limit: POOLS })]);
    this.isReading = false;
    this.readAt = performance.now();
    if (this.isOver) return;
    if (stats.status === "fulfilled") {
      this.stats = stats.value;
      this.drawStates();
    }
    if (pools.status === "fulfilled") this.drawPools(pools.value);
  }

  drawStates() {
    if (!this.stats) return;
    const { totals } = this.stats;
    const drawn = JSON.stringify([totals, this.q]);
    if (drawn === this.drawnStates) return;
    this.drawnStates = drawn;
    fill(
      this.states,
      STATES.filter((name) => totals[name]).map((name) => {
        const wanted = `state:${name}`;
        const isOn = this.q === wanted;
        const element = h("a", {
          class: "chip state",
          href: hrefOfQuery(isOn ? "" : wanted),
          "data-status": name,
          "data-name": name,
          "aria-current": isOn && "true",
        });
        return fill(element, h("i", { class: "shape", "aria-hidden": "true" }), `${short(totals[name])} ${name}`);
      }),
    );
  }

  drawPools({ pools, unlisted, waiting }) {
    this.drawWaiting(waiting);
    const parked = pools.filter(({ reason }) => reason && isParked(reason));
    const parkedTasks = parked.reduce((sum, { length }) => sum + length, 0);
    setText(this.poolsText, parked.length ? `${count(parkedTasks, "task")} parked` : "");
    const drawn = JSON.stringify(pools.map(({ head_age: age, ...rest }) => [rest, age && Math.floor(age / 5)]));
    if (drawn === this.drawnPools) return;
    this.drawnPools = drawn;
    const shown = this.areAllPools ? pools : pools.slice(0, FIRST_POOLS);
    const rest = pools.length - shown.length;
    const more = () => {
      this.areAllPools = true;
      this.drawnPools = "";
      this.drawPools({ pools, unlisted, waiting });
      this.pools.querySelectorAll("a")[FIRST_POOLS]?.focus();
    };
    fill(
      this.pools,
      pools.length === 0
        ? h("p", { class: "muted" }, "No task waits for an agent.")
        : h(
            "ul",
            null,
            shown.map((pool) => this.poolView(pool)),
          ),
      rest > 0 && h("button", { type: "button", class: "quiet", onclick: more }, `Show ${number(rest)} more`),
      rest <= 0 && unlisted > 0 && h("p", { class: "muted" }, `and ${count(unlisted, "pool")} more`),
    );
  }

  poolView(pool) {
    const { capabilities = [], tags = [], services = [], labels = {}, agent_id: agent } = pool.requirements;
    const needs = [
      ...capabilities,
      ...services,
      ...tags.map((one) => `#${one}`),
      ...Object.entries(labels).map(([name, value]) => `${name}=${value}`),
      ...(agent ? [`agent ${agent}`] : []),
    ];
    return h(
      "li",
      { "data-kind": kindOf(pool.reason ?? "uncounted") },
      h(
        "div",
        null,
        h(
          "a",
          { href: hrefOfQuery(`pool:${quoted(pool.pool)} state:queued`), title: `Pool ${pool.pool}` },
          pool.task_type || pool.pool,
        ),
        h("b", { class: "number" }, short(pool.length)),
      ),
      needs.length > 0 &&
        h(
          "div",
          { class: "chips" },
          needs.map((one) => h("span", { class: "chip" }, one)),
        ),
      h(
        "div",
        { class: "muted" },
        h("span", null, h("i", { class: "swatch", "aria-hidden": "true" }), reasonText(pool.reason ?? "uncounted")),
        h("span", null, pool.head_age === null ? "" : duration(pool.head_age * 1_000)),
      ),
    );
  }

  drawWaiting(waiting) {
    const all = Object.entries({ ...waiting?.reasons, uncounted: Math.max(0, waiting?.uncounted ?? 0) });
    const found = all.filter(([, size]) => size > 0).sort((a, b) => isParked(b[0]) - isParked(a[0]) || b[1] - a[1]);
    setText(this.waitingText, waiting ? count(waiting.total, "task") : "");
    const drawn = JSON.stringify(found);
    if (drawn === this.drawnReasons) return;
    this.drawnReasons = drawn;
    fill(
      this.stack,
      found.map(([name, size]) => h("i", { "data-kind": kindOf(name), style: `flex-grow:${size}` })),
    );
    fill(
      this.reasons,
      found.map(([name, size]) =>
        h(
          "li",
          { "data-kind": kindOf(name) },
          h("i", { class: "swatch", "aria-hidden": "true" }),
          name === "uncounted"
            ? h("span", null, reasonText(name))
            : h("a", { href: hrefOfQuery(`reason:${name}`) }, reasonText(name)),
          h("b", { class: "number" }, short(size)),
        ),
      ),
      found.length === 0 && h("li", { class: "muted" }, "No task waits."),
    );
  }

  drawQueues() {
    if (!store.queues) return;
    const most = Math.max(1, ...Object.values(store.queues));
    for (const [name, { size, fill: bar }] of this.queues) {
      const value = store.queues[name] ?? 0;
      setText(size, short(value));
      const width = `${(value / most) * 100}%`;
      if (bar.style.width !== width) bar.style.width = width;
    }
  }

  // Charts.

  async addCharts() {
    try {
      const both = await Promise.all([
        chart(this.throughput, {
          label: "Tasks per second",
          height: 118,
          series: SERIES,
          format: rate,
          data: this.rates(),
        }),
        chart(this.latencies, {
          label: "Time to wait and to run",
          height: 118,
          series: LATENCIES,
          format: latencyText,
          empty: "No task has been placed or has ended since the page was opened",
          data: this.latency.series,
        }),
      ]);
      this.charts = both;
      if (this.isOver) for (const one of both) one.destroy();
    } catch (error) {
      if (!this.isOver) fill(this.throughput, h("p", { class: "failure" }, error.message));
    }
  }

  rates() {
    const lists = SERIES.map(({ type }) => store.series(type));
    const seen = (second, value) => (second < store.countedFrom ? null : value);
    return [
      lists[0].map(([second]) => second),
      ...lists.map((list) => list.map(([second, value]) => seen(second, value))),
    ];
  }

  drawCharts() {
    const [throughput, latencies] = this.charts;
    throughput?.set(this.rates());
    latencies?.set(this.latency.series);
    setText(this.rateText, `${rate(store.rate("task.completed"))} completed/s`);
    const wait = this.latency.series[2].at(-1);
    const run = this.latency.series[4].at(-1);
    const all = this.stats?.latency;
    if (wait === null && run === null && all?.wait.count) {
      setText(
        this.latencyText,
        `all time p95: wait ${latencyText(all.wait.p95_ms)}, run ${latencyText(all.run.p95_ms)}`,
      );
    } else {
      setText(this.latencyText, `p95: wait ${latencyText(wait)}, run ${latencyText(run)}`);
    }
  }
}
