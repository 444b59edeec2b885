/**
 * Actions on all tasks that match a query: count them, ask, then change them request by request.
 *
 * Each request is bounded, and names where the next one continues. So an operation can be stopped, and continued
 * after a failure.
 */

import { post } from "../api.js";
import { showDialog } from "../dialog.js";
import { fill, h, setText } from "../dom.js";
import { count, number } from "../format.js";
import { toast } from "../toast.js";
import { PRIORITIES } from "./task_states.js";

/** Tasks that one request counts, and that one request changes: few enough to show progress. */
const COUNTED = 10_000;
const CHANGED = 500;

/** Action -> what the button says, which tasks it can change, and what it does to them. */
export const ACTIONS = {
  cancel: {
    label: "Cancel",
    done: "cancelled",
    none: "All tasks that match have ended.",
    text: "Tasks that wait are cancelled. Agents that run one are asked to stop.",
    isDangerous: true,
  },
  retry: {
    label: "Retry",
    done: "queued again",
    none: "No task that matches has failed.",
    text: "Failed tasks are replayed: they are queued again under their ids, with fresh attempts.",
  },
  prioritize: {
    label: "Prioritize",
    done: "changed",
    none: "No task that matches waits in another priority.",
    text: "Tasks that wait move to their place in the other priority.",
  },
};

/**
 * Count the tasks that match, ask for a confirmation, and do it.
 *
 * @param {keyof typeof ACTIONS} action
 * @param {string} q
 */
export function openBulk(action, q) {
  new Bulk(action, q);
}

class Bulk {
  constructor(action, q) {
    this.action = action;
    this.words = ACTIONS[action];
    this.q = q;
    this.isOver = false;
    this.turn = 0;
    this.total = { matched: 0, done: 0, stopping: 0, unanswered: 0, skipped: {} };
    this.body = h("div", { class: "bulk" });
    this.say = h("p", { role: "status", class: "bulk-status" });
    this.choice = action === "prioritize" && this.makeChoice();
    const content = h("div", { class: "bulk" }, this.choice, this.body);
    this.dialog = showDialog(`${this.words.label} all that match`, [content], {
      class: "confirm",
      closed: () => {
        this.isOver = true;
      },
    });
    this.count();
  }

  /** Return the choice of a priority. It comes before the count: tasks that have the priority are not counted. */
  makeChoice() {
    const onchange = () => {
      this.priority = select.value;
      this.count();
    };
    const select = h(
      "select",
      { onchange },
      PRIORITIES.map((name) => h("option", null, name)),
    );
    this.priority = select.value = "high";
    return h("label", { class: "field" }, "New priority", select);
  }

  async count() {
    const turn = ++this.turn;
    const isOld = () => this.isOver || turn !== this.turn;
    const stop = h("button", { type: "button", class: "secondary", onclick: () => this.dialog.close() }, "Close");
    fill(this.body, queryView(this.q), this.say, h("footer", null, stop));
    this.total.matched = 0;
    let cursor = null;
    try {
      do {
        setText(this.say, `Counting … ${number(this.total.matched)}`);
        const found = await this.send({ dry_run: true, limit: COUNTED, cursor });
        if (isOld()) return;
        this.total.matched += found.matched;
        this.query = found.query;
        cursor = found.next;
      } while (cursor);
    } catch (error) {
      if (!isOld()) fill(this.say, h("span", { class: "failure" }, error.message));
      return;
    }
    if (this.total.matched) this.ask();
    else fill(this.say, `${this.words.none} There is nothing to do.`);
  }

  ask() {
    const { matched } = this.total;
    const reason = this.action === "cancel" && h("input", { type: "text", maxlength: "200" });
    const submit = (event) => {
      event.preventDefault();
      this.reason = reason ? reason.value.trim() : undefined;
      this.run(null);
    };
    const action = h("button", { class: this.words.isDangerous ? "danger" : "primary" });
    setText(action, `${this.words.label} ${count(matched, "task")}`);
    setText(this.say, "");
    fill(
      this.body,
      queryView(this.query),
      h(
        "form",
        { onsubmit: submit },
        h(
          "p",
          { class: "bulk-count" },
          h("strong", null, number(matched)),
          ` ${matched === 1 ? "task" : "tasks"} to ${this.words.label.toLowerCase()}`,
        ),
        h("p", { class: "muted" }, this.words.text, " Tasks that begin to match meanwhile are changed too."),
        reason && h("label", { class: "field" }, "Reason (optional, the agents and the audit log get it)", reason),
        h(
          "footer",
          null,
          h(
            "button",
            { type: "button", class: "secondary", onclick: () => this.dialog.close() },
            "Keep them as they are",
          ),
          action,
        ),
      ),
    );
    if (!this.choice) (reason || action).focus();
  }

  /** Change the tasks, from a cursor on. */
  async run(cursor) {
    const { total } = this;
    if (this.choice) this.choice.hidden = true;
    const meter = h("progress", { max: total.matched, "aria-label": "Progress" });
    let isStopped = false;
    const stop = h("button", { type: "button", class: "secondary", onclick: () => (isStopped = true) }, "Stop");
    fill(this.body, queryView(this.query), meter, this.say, h("footer", null, stop));
    stop.focus();
    let at = cursor;
    try {
      do {
        meter.value = processed(total);
        setText(this.say, `${number(processed(total))} of ${number(total.matched)} …`);
        const found = await this.send({ limit: CHANGED, cursor: at, operation: this.operation, reason: this.reason });
        this.operation = found.operation;
        total.done += found.done;
        total.stopping += found.stopping;
        total.unanswered += found.unanswered;
        for (const [code, size] of Object.entries(found.skipped))
          total.skipped[code] = (total.skipped[code] ?? 0) + size;
        at = found.next;
      } while (at && !isStopped && !this.isOver);
      if (this.isOver) toast(this.result(at));
      else this.showResult(at, null);
    } catch (error) {
      if (this.isOver) toast(`${this.result(at)} ${error.message}`, "bad");
      else this.showResult(at, error);
    }
  }

  /** Return what was done, as text: where it goes on is not null if it was stopped. */
  result(cursor) {
    const { done, stopping, unanswered } = this.total;
    const asked = stopping > 0 ? `, ${number(stopping)} asked to stop` : "";
    return [
      `${count(done - stopping, "task")} ${this.words.done}${asked}.`,
      cursor !== null && "Stopped before the end.",
      unanswered > 0 && `${count(unanswered, "task")} will be, as soon as a distributor works.`,
    ]
      .filter(Boolean)
      .join(" ");
  }

  showResult(cursor, error) {
    const { skipped } = this.total;
    const isWhole = cursor === null && error === null;
    const goOn =
      !isWhole && h("button", { type: "button", class: "primary", onclick: () => this.run(cursor) }, "Continue");
    const close = h("button", { type: "button", class: "secondary", onclick: () => this.dialog.close() }, "Close");
    fill(this.say, this.result(error ? null : cursor));
    const rows = Object.entries(skipped).map(([code, size]) => [
      h("dt", null, number(size)),
      h("dd", null, SKIPPED[code] ?? code),
    ]);
    fill(
      this.body,
      queryView(this.query),
      this.say,
      rows.length > 0 && [h("h3", null, "Not changed"), h("dl", { class: "facts skipped" }, rows)],
      error && h("p", { class: "failure", role: "alert" }, error.message),
      this.operation && h("p", { class: "muted" }, "Operation ", h("code", null, this.operation), " in the audit log"),
      h("footer", null, close, goOn),
    );
    (goOn || close).focus();
  }

  send(more) {
    return post("/tasks/bulk", { action: this.action, q: this.q, priority: this.priority, ...more });
  }
}

/** Code -> why a task was not changed. */
const SKIPPED = {
  task_not_found: "were removed meanwhile",
  task_finished: "had ended already",
  task_not_dead: "had not failed any more",
  task_not_waiting: "did not wait any more",
  task_expired: "their deadline has passed",
  unchanged: "were so already",
  failed_later: "failed after the operation had begun",
};

const processed = ({ done, unanswered, skipped }) =>
  done + unanswered + Object.values(skipped).reduce((sum, size) => sum + size, 0);

const queryView = (q) => h("p", { class: "bulk-query" }, h("span", { class: "hidden" }, "Query: "), h("code", null, q));
