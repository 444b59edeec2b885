/**
 * One task as a waterfall: a row for each attempt, from the wait before it over the inbox of its agent to its outcome.
 *
 * The record keeps when a task was submitted, and for each attempt when it was queued, for which reason it waited at
 * last, and when it was assigned, started and ended. While the page is open it shows each reason in turn.
 */

import { fill, h, setText } from "../dom.js";
import { feed } from "../feed.js";
import { duration, time } from "../format.js";
import { link } from "../router.js";
import { kindOf, reasonText, stateOf, WAITING } from "./task_states.js";
import { placedView } from "./task_why.js";

/** Characters of a traceback that are shown; its end says most. A record keeps short messages only. */
const MOST_TEXT = 2_000;
/** Pixels of a label of the axis: a later one would leave the panel. */
const LABEL = 60;
/** How an attempt ended -> the state that has its shape. */
const OUTCOMES = {
  completed: "completed",
  cancelled: "cancelled",
  expired: "expired",
  released: "queued",
  recalled: "queued",
};
const PARTS = { later: "not queued", wait: "waited", waits: "waits", inbox: "in the inbox", run: "ran" };

const ms = (text) => (text ? Date.parse(text) : null);

/**
 * A reason for which the task waits, and when it began, as it was seen while the page was open.
 *
 * @typedef {{at: number, reason: string}} Seen
 */

/**
 * A row of the waterfall.
 *
 * @typedef {Object} Row
 * @property {number} number of the attempt; 0: the task waits.
 * @property {string | null} agent
 * @property {string} how it ended; empty: it has not.
 * @property {string} code
 * @property {string} message
 * @property {any} detail
 * @property {any} placement why it went to its agent.
 * @property {Array<{part: string, kind: string, from: number, to: number | null, label: string}>} parts `to` null: now.
 */

/**
 * Return the rows of a task.
 *
 * @param {Object} task as GET /tasks/{id} returns it.
 * @param {Seen[]} seen
 * @returns {Row[]}
 */
export function rowsOf(task, seen) {
  const rows = [];
  let from = ms(task.submitted_at);
  for (const one of task.attempts) {
    rows.push(attemptRow(one, waits(from, ms(one.assigned_at), seen, one)));
    from = ms(one.ended_at);
  }
  const { attempt, agent_id, queued_at, run_at, placement } = task;
  const current = { attempt, agent_id, queued_at, placement, how: "", code: "", message: "", ended_at: null };
  if (task.assigned_at && ms(task.assigned_at) >= from) {
    const isOver = task.state === "completed";
    rows.push(
      attemptRow(
        {
          ...current,
          assigned_at: task.assigned_at,
          started_at: task.started_at,
          how: isOver ? "completed" : "",
          ended_at: isOver ? task.finished_at : null,
        },
        waits(from, ms(task.assigned_at), seen, current),
      ),
    );
  } else if (WAITING.includes(task.state) || ms(task.finished_at) > from) {
    const end = ms(task.finished_at);
    const parts = waits(from, end, seen, { queued_at: end ? queued_at : (run_at ?? queued_at) });
    rows.push({ ...current, number: 0, agent: null, how: end ? task.state : "", parts });
  }
  const last = rows.at(-1);
  if (last && task.error && task.state === "failed") {
    last.detail ??= task.error.detail;
    last.code ||= task.error.code;
    last.message = task.error.message || last.message; // that of an attempt is shortened
  }
  return rows;
}

function attemptRow(one, parts) {
  const assigned = ms(one.assigned_at);
  const started = ms(one.started_at);
  const ended = ms(one.ended_at);
  const { attempt: number, agent_id: agent, how, code, message, detail, placement } = one;
  const row = { number, agent, how, code, message, detail, placement, parts };
  parts.push({ part: "inbox", kind: "inbox", from: assigned, to: started ?? ended, label: PARTS.inbox });
  if (started)
    parts.push({
      part: "run",
      kind: one.how && one.how !== "completed" ? "broke" : "run",
      from: started,
      to: ended,
      label: PARTS.run,
    });
  return row;
}

/** Return the parts of a wait: until it was due, then by reason as far as they are known. */
function waits(from, to, reasons, { queued_at, placement }) {
  const parts = [];
  let at = from;
  const due = ms(queued_at);
  if (due > from && (to === null || due <= to)) {
    parts.push({ part: "later", kind: "later", from, to: due, label: PARTS.later });
    at = due;
  }
  if (to !== null && to <= at) return parts;
  const known = reasons.filter((one) => one.at >= at && (to === null || one.at < to) && one.reason !== "scheduled");
  const before = reasons.findLast((one) => one.at < at && one.reason !== "scheduled" && one.at >= from);
  if (to === null && !before && known[0] === reasons[0]) known[0] = { ...known[0], at }; // as the page was opened
  const verb = to === null ? PARTS.waits : PARTS.wait;
  const kept = known.length ? null : (placement?.waiting_reason ?? null);
  const bounds = [{ at, reason: before?.reason ?? kept }, ...known];
  bounds.forEach((one, index) => {
    const end = bounds[index + 1]?.at ?? to;
    if (end !== null && end <= one.at) return; // it holds for no time
    const kind = one.reason ? kindOf(one.reason) : "other";
    parts.push({
      part: "wait",
      kind,
      from: one.at,
      to: end,
      label: one.reason ? `${verb}: ${reasonText(one.reason)}` : verb,
    });
  });
  return parts;
}

const NICE = [
  1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 15e3, 3e4, 6e4, 12e4, 3e5, 6e5, 18e5, 36e5, 72e5, 216e5,
  432e5, 864e5,
];

export class Waterfall {
  constructor() {
    this.axis = h("div", { class: "axis", "aria-hidden": "true" });
    this.list = h("ol", { class: "attempts" });
    this.element = h("div", { class: "waterfall" }, this.axis, this.list);
    this.bars = [];
  }

  /** Show a task. Text that is selected stays while only times change. */
  show(task, seen) {
    const rows = rowsOf(task, seen);
    this.begin = ms(task.submitted_at);
    this.end = ms(task.finished_at);
    const drawn = JSON.stringify(rows);
    if (drawn !== this.drawn) {
      this.drawn = drawn;
      this.bars = [];
      fill(
        this.list,
        rows.map((row) => this.rowView(row, task)),
      );
    }
    this.draw();
  }

  rowView(row, task) {
    const isLast = row.how === "" || row.how === "completed";
    const state = isLast ? task.state : (OUTCOMES[row.how] ?? "failed");
    const track = h("div", { class: "track", "aria-hidden": "true" });
    const text = h("dl", { class: "parts" });
    for (const part of row.parts) {
      const bar = h("i", { "data-kind": part.kind, title: part.label });
      const value = h("dd");
      track.append(bar);
      text.append(
        h(
          "div",
          { "data-kind": part.kind },
          h("dt", null, h("i", { class: "swatch", "aria-hidden": "true" }), part.label),
          value,
        ),
      );
      this.bars.push({ part, bar, value });
    }
    if (row.how) {
      const mark = h("span", { class: "settle", "data-status": state }, h("i", { class: "shape" }));
      track.append(mark);
      this.bars.push({ part: { from: row.parts.at(-1)?.to ?? this.end, to: null, isMark: true }, bar: mark });
    }
    const last = row.parts.at(-1);
    return h(
      "li",
      { class: "attempt" },
      h(
        "div",
        { class: "attempt-name" },
        h("strong", null, row.number ? `Attempt ${row.number}` : "Waiting"),
        row.agent && link(row.agent, "fleet", [row.agent]),
        stateOf(state, isLast || row.how === state ? "" : row.how.replaceAll("_", " ")),
        row.how && last?.to && h("span", { class: "muted" }, time(last.to)),
      ),
      h("div", null, track, text, errorView(row), row.how && row.how !== "completed" && choiceView(row)),
    );
  }

  /** Place the bars: the time from the submission until now, or the end. */
  draw() {
    if (!this.begin) return;
    const now = feed.now();
    const end = Math.max(this.end ?? now, this.begin + 1);
    const span = end - this.begin;
    const share = (at) => `${Math.min(100, Math.max(0, ((at - this.begin) / span) * 100))}%`;
    for (const { part, bar, value } of this.bars) {
      bar.style.left = share(part.from);
      if (part.isMark) continue;
      const to = part.to === null ? end : Math.min(part.to, end);
      bar.style.width = share(this.begin + Math.max(0, to - part.from));
      const isRest = part.to !== null && part.to > now && !this.end;
      setText(value, isRest ? `${duration(part.to - now)} left` : duration(Math.max(0, to - part.from)));
    }
    const step = NICE.find((size) => span / size <= 6) ?? Math.ceil(span / 6 / 864e5) * 864e5;
    const ticks = [];
    const last = span * (1 - LABEL / Math.max(LABEL, this.axis.clientWidth));
    for (let at = 0; at <= last; at += step) ticks.push(at);
    const drawn = JSON.stringify([ticks.length, step]);
    if (drawn !== this.drawnAxis) {
      this.drawnAxis = drawn;
      fill(
        this.axis,
        ticks.map((at) => h("span", null, at === 0 ? "submitted" : duration(at))),
      );
    }
    [...this.axis.children].forEach((tick, at) => {
      tick.style.left = share(this.begin + ticks[at]);
    });
  }
}

/** Return why an attempt that is over went to its agent; the page shows it of the last one. */
function choiceView({ agent, placement }) {
  if (!placement) return null;
  const { strategy, eligible = null, waiting_reason } = placement;
  const placed = { agent_id: agent, strategy, eligible, waiting_reason, decision: placement };
  return h("details", null, h("summary", null, `Why ${agent}`), h("div", { class: "why" }, placedView(placed, true)));
}

function errorView({ code, message, detail }) {
  if (!code && !message) return null;
  const traceback = detail?.traceback; // other details may be secret
  const end = (text) => (text.length > MOST_TEXT ? `… (cut)\n${text.slice(-MOST_TEXT)}` : text);
  return h(
    "div",
    { class: "attempt-error" },
    code && h("code", null, code),
    message && h("pre", { tabindex: "0" }, message),
    typeof traceback === "string" &&
      h("details", null, h("summary", null, "Traceback"), h("pre", { tabindex: "0" }, end(traceback))),
  );
}
