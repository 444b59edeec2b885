/** The System page: what is wrong, the processes, the streams, the server, the strategy, and who changed what. */

import { get } from "../api.js";
import { commandLine, fill, h, setText } from "../dom.js";
import { ago, count, duration, number, percent, rate, time } from "../format.js";
import { repeat } from "./follow.js";
import { LiveTable, state } from "./live_table.js";
import { Audit } from "./system_audit.js";
import { Strategy } from "./system_strategy.js";

export const title = "System";

/** Without a sign of life for this long, a process is shown as silent. */
const SILENT_MS = 15_000;
/** Readings of the throughput in a line. */
const READINGS = 60;
const LEVELS = { error: "error", warning: "busy", ok: "active" };
/** Commands in an advice. */
const COMMAND = /`([^`]+)`/g;
/** Shares of maxmemory at which a cell begins to save memory (coord/models/cell.py). */
const MARKS = [
  [0.75, "results of ended tasks are dropped"],
  [0.85, "submissions are refused"],
  [0.92, "no task is placed"],
];
const DURABLE = { aof: "append-only file", rdb: "snapshots", none: "none: a restart loses everything" };

let page = null;

export function mount(root) {
  page = new SystemPage(root);
}

export function unmount() {
  page?.end();
  page = null;
}

class SystemPage {
  constructor(root) {
    this.isOver = false;
    this.rates = new Map();
    this.drawn = {};
    this.level = h("span", { class: "level" });
    this.readAt = h("span", { class: "muted" });
    this.problem = h("p", { class: "failure", role: "alert" });
    this.findings = h("ul", { class: "findings", "aria-label": "Findings" });
    this.passed = h("details", { class: "passed" });
    this.ledger = h("div", { class: "ledger", role: "status" });
    this.check = h(
      "button",
      { type: "button", class: "secondary", onclick: () => this.checkLedger() },
      "Check the ledger",
    );
    this.processes = new LiveTable("Processes", this.processColumns(), ({ name }) => name);
    this.streams = new LiveTable("Streams", streamColumns(), ({ stream }) => stream, false);
    this.server = h("div", { class: "body" });
    this.totals = { processes: h("span", { class: "muted" }), streams: h("span", { class: "muted" }) };
    this.strategy = new Strategy();
    this.audit = new Audit();
    const panel = (heading, aside, ...content) =>
      h("section", { class: "panel" }, h("header", null, h("h2", null, heading), aside), content);
    root.append(
      h(
        "div",
        { class: "system" },
        h("div", { class: "system-top" }, h("h1", null, "System"), this.level, this.readAt, this.check),
        this.problem,
        this.ledger,
        this.findings,
        this.passed,
        h(
          "div",
          { class: "system-main" },
          h(
            "div",
            null,
            panel("Processes", this.totals.processes, this.processes.element),
            panel("Streams", this.totals.streams, this.streams.element),
          ),
          h("div", null, panel("Redis", null, this.server), this.strategy.element),
        ),
        this.audit.element,
      ),
    );
    this.stop = repeat(() => this.read());
  }

  end() {
    this.isOver = true;
    this.stop();
    this.strategy.end();
    this.audit.end();
  }

  async read() {
    let found;
    try {
      found = await get("/system");
    } catch (error) {
      if (!this.isOver) fill(this.problem, `The state could not be read: ${error.message}`);
      return;
    }
    if (this.isOver) return;
    fill(this.problem);
    this.now = Date.parse(found.timestamp);
    setText(this.readAt, `as of ${time(this.now)}`);
    this.drawFindings(found.findings);
    this.drawProcesses(found.processes);
    this.drawStreams(found.streams);
    this.drawServer(found.server);
  }

  /** Draw a part if its content has changed: text that is selected stays. */
  drawChanged(name, content, draw) {
    const text = JSON.stringify(content);
    if (this.drawn[name] === text) return;
    this.drawn[name] = text;
    draw();
  }

  // Findings and the ledger.

  drawFindings(findings) {
    const weight = Object.keys(LEVELS);
    const firing = findings
      .filter(({ level }) => level !== "ok")
      .sort((a, b) => weight.indexOf(a.level) - weight.indexOf(b.level));
    const fine = findings.filter(({ level }) => level === "ok");
    const worst = firing[0]?.level ?? "ok";
    this.drawChanged("level", [worst, firing.length], () =>
      fill(this.level, state(LEVELS[worst], firing.length ? count(firing.length, "finding") : "All checks pass")),
    );
    this.drawChanged("findings", firing, () => fill(this.findings, firing.map(finding)));
    this.drawChanged("passed", fine, () =>
      fill(
        this.passed,
        h("summary", null, `${count(fine.length, "check")} passed`),
        h(
          "ul",
          null,
          fine.map(({ code, message }) => h("li", null, h("strong", null, code), " ", message)),
        ),
      ),
    );
  }

  async checkLedger() {
    this.check.disabled = true;
    setText(this.check, "Checking …");
    try {
      const { findings, timestamp } = await get("/system", { ledger: 1 });
      if (this.isOver) return;
      const found = findings.filter(({ code }) => code.startsWith("ledger"));
      const wrong = found.filter(({ level }) => level !== "ok");
      const at = h("span", { class: "muted" }, `checked at ${time(timestamp)}`);
      if (wrong.length) fill(this.ledger, h("ul", { class: "findings" }, wrong.map(finding)), at);
      else if (found.length) fill(this.ledger, state("active", "The ledger is consistent"), at);
      else fill(this.ledger, state("busy", "The ledger was not checked: see the finding “permissions”"), at);
    } catch (error) {
      fill(this.ledger, h("p", { class: "failure" }, `The ledger was not checked: ${error.message}`));
    } finally {
      this.check.disabled = false;
      setText(this.check, "Check the ledger");
    }
  }

  // Processes and streams.

  processColumns() {
    const status = (row) => (this.now - row.heartbeat_at > SILENT_MS ? "silent" : "running");
    return [
      {
        label: "Process",
        class: "first",
        text: (row) => `${row.name} ${status(row)}`,
        node: (row) => [
          state(status(row) === "running" ? "active" : "error", h("strong", null, row.name)),
          status(row) === "silent" && h("span", { class: "failure" }, " silent"),
        ],
      },
      { label: "Host", text: (row) => `${row.host}:${row.pid}` },
      {
        label: "Per second",
        class: "number",
        text: (row) => `${rate(row.per_s)} ${(this.rates.get(row.name) ?? []).join()}`,
        node: (row) => [line(this.rates.get(row.name) ?? []), rate(row.per_s)],
      },
      { label: "Lag", class: "number", text: (row) => (row.lag_ms ? duration(row.lag_ms) : "0 ms") },
      { label: "Handled", class: "number", text: (row) => number(row.handled) },
      {
        label: "Last sign",
        class: "number",
        text: (row) => ago(row.heartbeat_at, this.now),
      },
      { label: "Up", class: "number", text: (row) => duration(this.now - row.started_at) },
      { label: "Version", text: (row) => row.version },
    ];
  }

  drawProcesses(processes) {
    for (const { name, per_s: value } of processes) {
      this.rates.set(name, [...(this.rates.get(name) ?? []), value].slice(-READINGS));
    }
    setText(this.totals.processes, processes.length);
    this.processes.set(processes);
  }

  drawStreams(streams) {
    const waiting = streams.reduce((sum, { length }) => sum + (length ?? 0), 0);
    setText(this.totals.streams, waiting ? `${count(waiting, "entry", "entries")} to handle` : "nothing to handle");
    this.streams.set(streams);
  }

  // The server.

  drawServer(server) {
    this.drawChanged("server", server, () => fill(this.server, serverContent(server)));
  }
}

function finding({ level, code, message, advice }) {
  return h(
    "li",
    { class: "panel", "data-status": LEVELS[level], "data-code": code },
    state(LEVELS[level], h("strong", null, `${level[0].toUpperCase()}${level.slice(1)}: ${message}`)),
    advice && h("p", { class: "muted" }, withCommands(advice)),
  );
}

/** Return an advice in which each command can be copied. */
function withCommands(advice) {
  const parts = [];
  let at = 0;
  for (const found of advice.matchAll(COMMAND)) {
    parts.push(advice.slice(at, found.index), commandLine(found[1], true));
    at = found.index + found[0].length;
  }
  return [...parts, advice.slice(at)];
}

/** Return a small line of the last values. */
function line(values) {
  const SVG = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(SVG, "svg");
  const path = document.createElementNS(SVG, "polyline");
  const most = Math.max(1, ...values);
  svg.setAttribute("class", "spark");
  svg.setAttribute("viewBox", `0 0 ${READINGS} 16`);
  svg.setAttribute("aria-hidden", "true");
  const start = READINGS - values.length;
  path.setAttribute("points", values.map((value, at) => `${start + at},${15 - (value / most) * 14}`).join(" "));
  svg.append(path);
  return svg;
}

function streamColumns() {
  const amount = (label, name, shown = number) => ({
    label,
    class: "number",
    text: (row) => (row[name] === null ? "–" : shown(row[name])),
    node: (row) => h("span", { class: row[name] ? null : "muted" }, row[name] === null ? "–" : shown(row[name])),
  });
  return [
    { label: "Stream", class: "first mono", text: (row) => row.stream },
    { label: "Group", class: "extra", text: (row) => row.group },
    amount("Length", "length"),
    amount("Lag", "lag"),
    amount("Pending", "pending"),
    amount("Oldest", "oldest_ms", (ms) => (ms ? duration(ms) : "–")),
  ];
}

/** `3.8 MiB`. */
function bytes(value) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const at = value < 1 ? 0 : Math.min(units.length - 1, Math.floor(Math.log2(value) / 10));
  return `${(value / 1024 ** at).toFixed(at ? 1 : 0)} ${units[at]}`;
}

function serverContent(server) {
  if (server === null) return h("p", { class: "muted" }, "The user of the gateway may not read INFO of the server.");
  const { used_memory: used, maxmemory: most } = server;
  const share = most ? used / most : 0;
  const passed = MARKS.filter(([mark]) => share > mark).at(-1);
  const rows = [
    ["Durability", DURABLE[server.persistence]],
    ["Last save", server.last_save_ok ? "succeeded" : h("span", { class: "failure" }, "failed: see the server's log")],
    ["Replicas", server.role === "master" ? number(server.replicas) : `this is a replica (${server.role})`],
    ["Eviction", server.maxmemory_policy],
    ["Connections", `${number(server.clients)} of ${number(server.maxclients)}`],
    ["Commands", `${rate(server.commands_per_s)} a second`],
    ["Server", `${server.product} ${server.version}, up ${duration(server.uptime_s * 1_000)}`],
  ];
  return [
    h(
      "p",
      { class: "memory-text" },
      h("strong", null, bytes(used)),
      most ? ` of ${bytes(most)}, ${percent(share)}` : " in use; no limit is set (maxmemory)",
    ),
    most > 0 &&
      h(
        "div",
        { class: "meter memory", "data-status": passed ? "error" : "active" },
        h("i", { style: `width:${Math.min(1, share) * 100}%` }),
        MARKS.map(([mark, text]) => h("b", { style: `left:${mark * 100}%`, title: `${percent(mark)}: ${text}` })),
      ),
    most > 0 && h("p", { class: passed ? "failure" : "muted" }, passed ? `Now ${passed[1]}.` : marksText()),
    h(
      "dl",
      { class: "facts" },
      rows.map(([name, value]) => [h("dt", null, name), h("dd", null, value)]),
    ),
  ];
}

const marksText = () => MARKS.map(([mark, text]) => `Above ${percent(mark)} ${text}`).join(". ") + ".";
