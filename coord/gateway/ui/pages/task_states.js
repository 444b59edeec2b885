/** What tasks are: their states, the events that change them, and the reasons for which they wait. */

import { h } from "../dom.js";
import { ago, duration } from "../format.js";
import { hrefOf } from "../router.js";

export const STATES = [
  "scheduled",
  "queued",
  "assigned",
  "running",
  "completed",
  "failed",
  "cancelled",
  "expired",
  "refused",
];
/** States from which a task can be cancelled, and those in which it waits. */
export const OPEN = ["scheduled", "queued", "assigned", "running"];
export const WAITING = ["scheduled", "queued"];
export const PRIORITIES = ["urgent", "critical", "high", "normal", "low"];

/** Event -> state of its task afterwards. */
const AFTER = {
  "task.queued": "queued",
  "task.scheduled": "scheduled",
  "task.refused": "refused",
  "task.assigned": "assigned",
  "task.started": "running",
  "task.completed": "completed",
  "task.failed": "failed",
  "task.retried": "scheduled",
  "task.released": "scheduled",
  "task.recalled": "scheduled",
  "task.cancelled": "cancelled",
  "task.expired": "expired",
  "task.replayed": "queued",
};
/** Events that change what a list shows of a task. */
export const EVENTS = [...Object.keys(AFTER), "task.prioritized"];

/**
 * A task, as far as a list shows it. Times are ms since 1970, or null.
 *
 * @typedef {Object} TaskRow
 * @property {string} id
 * @property {string} type
 * @property {string} state
 * @property {string} priority
 * @property {string | null} agent
 * @property {number} attempt
 * @property {string} code of its error.
 * @property {number} submitted
 * @property {number | null} due when it may run.
 * @property {number | null} since when it came into its state.
 */

const ms = (text) => (text ? Date.parse(text) : null);

/** Return what a list shows of a task, which is as GET /tasks returns it. */
export function rowOf(task) {
  return {
    id: task.task_id,
    type: task.task_type,
    state: task.state,
    priority: task.priority,
    agent: task.agent_id,
    attempt: task.attempt,
    code: task.error?.code ?? "",
    submitted: ms(task.submitted_at),
    due: ms(task.run_at),
    since: ms(task.finished_at ?? task.started_at ?? task.assigned_at),
  };
}

/**
 * Apply an event to a row.
 *
 * @param {TaskRow} row
 * @param {import("../feed.js").FeedEvent} event
 * @returns {boolean} whether the row has changed; an event from before the row was read changes nothing.
 */
export function applyEvent(row, { type, at, data }) {
  if (at < (row.since ?? row.submitted)) return false;
  if (type === "task.prioritized") {
    row.priority = data.priority;
    return true;
  }
  const state = AFTER[type];
  if (!state || (state === row.state && !data.attempt)) return false;
  row.state = state;
  row.since = at;
  if (data.agent_id) row.agent = data.agent_id;
  if (WAITING.includes(state)) row.agent = null;
  if (data.attempt) row.attempt = Number(data.attempt);
  row.code = state === "failed" ? (data.code ?? "") : "";
  row.due = state === "scheduled" && data.run_at ? Number(data.run_at) : null;
  return true;
}

/** Return a state as its shape, colour and name. */
export function stateOf(state, more = "") {
  return h(
    "span",
    { class: "state", "data-status": state },
    h("i", { class: "shape", "aria-hidden": "true" }),
    h("span", null, state, more && h("span", { class: "muted" }, ` ${more}`)),
  );
}

/** Return what a row says about its time: `waits 3 min`, `runs 4.2 s`, `12 s ago`. */
export function whenOf(row, now) {
  const age = (at) => duration(Math.max(0, now - at));
  if (row.state === "scheduled" && row.due > now) return `in ${age(2 * now - row.due)}`;
  const since = row.since ?? row.submitted;
  if (WAITING.includes(row.state)) return `waits ${age(since)}`;
  if (row.state === "running") return `runs ${age(since)}`;
  return row.state === "assigned" ? `sent ${ago(since, now)}` : ago(since, now);
}

// Reasons.

const LABELS = {
  scheduled: "its time has not come",
  all_full: "all agents are full",
  all_stale: "all agents are stale",
  all_unhealthy: "all agents are unhealthy",
  all_draining: "all agents are draining",
  all_busy_status: "no agent takes tasks",
  no_agent_type: "no agent of the type",
  no_version: "no version that can decode it",
  no_handler: "no agent handles the type",
  ejected: "agents are ejected",
  uncounted: "not counted yet",
};

/** Return a reason in words. */
export const reasonText = (reason) => LABELS[reason] ?? reason.replaceAll("_", " ");

/** Return the kind of a reason, which decides its colour: `lacks`, `away`, `full`, `next`, `later` or `other`. */
export function kindOf(reason) {
  if (reason === "scheduled") return "later";
  if (reason === "next_in_line") return "next";
  if (reason === "all_full") return "full";
  if (/^(no_|named_)/.test(reason)) return "lacks";
  return /^(all_|ejected)/.test(reason) ? "away" : "other";
}

/** Return whether tasks with this reason wait for a change of the fleet. */
export const isParked = (reason) => !["scheduled", "ejected", "all_full", "next_in_line"].includes(reason);

/** Return the address of the tasks that match a query. */
export const hrefOfQuery = (q) => hrefOf("tasks", [], { q });

/** Return a value as it stands in a query. */
export const quoted = (text) => (/^[^\s",*<>=-][^\s",*]*$/.test(text) ? text : `"${text.replace(/["\\]/g, "\\$&")}"`);
