/** The page of one task: `#/task/ID`. It shows times, errors and decisions, never payload and result. */

import { get, post } from "../api.js";
import { confirm } from "../dialog.js";
import { emptyState, fill, h, rescueFocus, setText } from "../dom.js";
import { feed } from "../feed.js";
import { ago, duration, number, time } from "../format.js";
import { link } from "../router.js";
import { session } from "../session.js";
import { attempt } from "../toast.js";
import { hrefOfQuery, OPEN, quoted, stateOf, WAITING } from "./task_states.js";
import { Waterfall } from "./task_waterfall.js";
import { whyTitle, whyView } from "./task_why.js";

export const title = "Task";

/** Milliseconds: before the record is read after an event, and between two reads while the task waits or runs. */
const READ_MS = 250;
const WAIT_MS = 3_000;
const CLOCK_MS = 500;
const MESSAGES = 20;

/** @type {TaskPage | null} */
let page = null;

export function mount(root, where) {
  page = new TaskPage(root, where.path[0] ?? "");
}

export function unmount() {
  page?.end();
  page = null;
}

export function update(where) {
  const { root } = page;
  unmount();
  fill(root);
  mount(root, where);
}

/** Return the size of a value as JSON. */
function sizeOf(value) {
  if (value === null || value === undefined) return "none";
  const bytes = new Blob([JSON.stringify(value)]).size;
  return bytes < 1_024 ? `${bytes} bytes` : `${number(bytes / 1_024)} KiB`;
}

class TaskPage {
  constructor(root, id) {
    this.root = root;
    this.id = id;
    this.isOver = false;
    /** @type {Array<import("./task_waterfall.js").Seen>} */
    this.seen = [];
    this.drawn = {};
    this.waterfall = new Waterfall();
    this.body = h("div", { class: "task-page" }, h("p", { class: "muted", role: "status" }, "Reading the task …"));
    root.append(this.body);
    document.title = `${id} · coord`;
    this.ends = [
      feed.subscribe(["task"], (batch) => {
        if (batch.some(({ data }) => data.task_id === id)) this.readSoon();
      }),
      feed.onGap(() => this.read()),
      session.onChange(() => this.task && this.drawActions()),
    ];
    const clock = setInterval(() => this.tick(), CLOCK_MS);
    this.ends.push(() => clearInterval(clock));
    this.read();
  }

  end() {
    this.isOver = true;
    clearTimeout(this.timer);
    for (const end of this.ends) end();
  }

  readSoon() {
    if (this.timer) return;
    this.timer = setTimeout(() => this.read(), READ_MS);
  }

  async read() {
    clearTimeout(this.timer);
    this.timer = 0;
    this.readAt = performance.now();
    const path = `/tasks/${encodeURIComponent(this.id)}`;
    const turn = (this.turn = (this.turn ?? 0) + 1);
    try {
      const [{ task }, why] = await Promise.all([get(path), get(`${path}/explain`)]);
      if (this.isOver || turn !== this.turn) return;
      this.show(task, why);
    } catch (error) {
      if (this.isOver || turn !== this.turn) return;
      this.showFailure(error);
    }
    if (!this.hasMessages) this.readMessages();
  }

  tick() {
    if (document.hidden || !this.task) return;
    if (!this.task.finished_at) this.waterfall.draw();
    for (const element of this.body.querySelectorAll("[data-time]"))
      setText(element, ago(element.dataset.time, feed.now()));
    if (OPEN.includes(this.task.state) && performance.now() - this.readAt > WAIT_MS) this.read();
  }

  showFailure(error) {
    if (error.status !== 404) {
      if (!this.task)
        fill(
          this.body,
          h(
            "div",
            { class: "empty" },
            h("h2", null, "The task was not read"),
            h("p", { role: "alert" }, error.message),
          ),
        );
      return;
    }
    this.task = null;
    this.drawn = {};
    fill(
      this.body,
      emptyState(
        `There is no task “${this.id}”`,
        [
          "It was not submitted to this cell, or it has ended and its record was removed. ",
          h("a", { href: hrefOfQuery(`id:${quoted(this.id)}*`) }, "Find similar ids"),
        ],
        // The id is of the URL: one with other characters could be more than an id in a shell.
        /^[\w.:@-]+$/.test(this.id) ? `coord tasks list 'id:${this.id}*'` : null,
      ),
    );
  }

  show(task, why) {
    const isFirst = !this.task;
    this.task = task;
    this.why = why;
    this.note(task, why);
    if (isFirst) this.build();
    this.part("head", [task.state, task.error?.code], () =>
      fill(this.state, stateOf(task.state, task.error?.code ?? "")),
    );
    setText(this.summary, `${why.summary.charAt(0).toUpperCase()}${why.summary.slice(1)}.`);
    this.drawActions();
    this.waterfall.show(task, this.seen);
    const { estimate, ...waiting } = why.waiting ?? {};
    this.part("why", [waiting, estimate && Math.floor(Date.parse(estimate.at) / 5_000), why.placed], () => {
      setText(this.whyTitle, whyTitle(why));
      fill(this.whyBox, whyView(why) ?? h("p", { class: "muted" }, "It was not placed, and it does not wait."));
    });
    this.part("facts", [{ ...task, attempts: 0, placement: 0 }], () => this.drawFacts());
  }

  /** Keep each reason for which the task waits: the record has the last one only. */
  note(task, why) {
    const reason = WAITING.includes(task.state) && why.waiting?.reason;
    if (reason && this.seen.at(-1)?.reason !== reason) this.seen.push({ at: feed.now(), reason });
  }

  part(name, content, draw) {
    const text = JSON.stringify(content);
    if (this.drawn[name] === text) return;
    this.drawn[name] = text;
    draw();
  }

  build() {
    const { task } = this;
    this.heading = h("h1", null, this.id);
    this.state = h("span", { class: "task-state", role: "status" });
    this.summary = h("p", { class: "task-summary" });
    this.actions = h("div", { class: "task-actions" });
    this.whyTitle = h("h2");
    this.whyBox = h("div", { class: "why" });
    this.facts = h("dl", { class: "facts" });
    this.messages = h("section", { class: "panel", hidden: true });
    fill(
      this.body,
      h(
        "nav",
        { "aria-label": "Path" },
        h("a", { href: hrefOfQuery("") }, "Tasks"),
        h("span", { class: "muted" }, " / "),
        h("a", { href: hrefOfQuery(`type:${quoted(task.task_type)}`) }, task.task_type),
      ),
      h("header", { class: "task-header" }, h("div", null, this.heading, this.state), this.actions),
      this.summary,
      h("section", { class: "panel" }, h("h2", null, "Waterfall"), this.waterfall.element),
      h(
        "div",
        { class: "task-columns" },
        h("section", { class: "panel" }, this.whyTitle, this.whyBox),
        h("section", { class: "panel" }, h("h2", null, "Properties"), this.facts),
      ),
      this.messages,
    );
  }

  // Actions.

  /** Return the actions; `why`: why an action is not possible now, or null. */
  actionsOf() {
    const { state, cancel_requested_at: asked } = this.task;
    const isOpen = OPEN.includes(state);
    return [
      {
        label: "Cancel",
        role: "client",
        why: !isOpen
          ? `Cannot cancel: the task is already ${state}.`
          : asked && `Cannot cancel: its agent was asked to stop ${ago(asked, feed.now())}.`,
        run: (button) => this.cancel(button),
      },
      {
        label: "Retry",
        role: "operator",
        why: state !== "failed" && `Cannot retry: only failed tasks can be retried, and this one is ${state}.`,
        run: (button) => this.retry(button),
      },
    ];
  }

  drawActions() {
    const rows = this.actionsOf().map((one) => {
      const refusal = session.refusal(one.role);
      return { ...one, why: one.why || (refusal && `Cannot ${one.label.toLowerCase()}: ${refusal}.`) };
    });
    this.part(
      "actions",
      rows.map(({ why }) => why?.replace(/\d.*ago/, "")),
      () => {
        const reasons = rows.filter(({ why }) => why).map(({ why }) => why);
        fill(
          this.actions,
          rows.map(({ label, why, run }) =>
            h(
              "button",
              {
                type: "button",
                class: "secondary",
                disabled: Boolean(why),
                "aria-describedby": why && "task-why-not",
                onclick: (event) => run(event.currentTarget),
              },
              label,
            ),
          ),
          reasons.length > 0 && h("p", { class: "muted", id: "task-why-not" }, reasons.join(" ")),
        );
      },
    );
  }

  async cancel(button) {
    const isHeld = !WAITING.includes(this.task.state);
    const text = isHeld
      ? `${this.task.agent_id ?? "Its agent"} is asked to stop it. If it does not, the attempt is ended.`
      : "It waits, so it ends at once.";
    const answer = await confirm({
      title: `Cancel ${this.id}?`,
      text,
      action: "Cancel the task",
      isDangerous: true,
      reason: "Reason (optional)",
    });
    if (answer) await this.act(button, "cancel", answer, "The cancel was accepted");
  }

  async retry(button) {
    const text = "It is queued again under its id, with fresh attempts. Its history is kept.";
    const answer = await confirm({ title: `Retry ${this.id}?`, text, action: "Retry" });
    if (answer) await this.act(button, "retry", undefined, "The task is queued again");
  }

  async act(button, name, body, done) {
    await attempt(button, () => post(`/tasks/${encodeURIComponent(this.id)}/${name}`, body), done);
    if (this.isOver) return;
    delete this.drawn.actions;
    await this.read();
    if (!this.isOver) rescueFocus(this.heading);
  }

  // Details.

  drawFacts() {
    const { task } = this;
    const at = (value) => value && [time(value), " (", h("span", { "data-time": value }, ago(value, feed.now())), ")"];
    const place = task.location && [task.location.region, task.location.zone].filter(Boolean).join(" / ");
    const rows = [
      ["Type", task.task_type],
      ["Priority", task.priority],
      ["Agent", task.agent_id && link(task.agent_id, "fleet", [task.agent_id])],
      ["Attempts", `${number(task.attempt)} (${number(task.failures)} failed, ${number(task.releases)} given back)`],
      ["Submitted", at(task.submitted_at)],
      ["Run time", at(task.run_at)],
      ["Deadline", task.deadline && time(task.deadline)],
      ["Cancel", at(task.cancel_requested_at)],
      ["Ended", at(task.finished_at)],
      ["Expected", task.expected_ms && duration(task.expected_ms)],
      ["Location", place],
      ["Key", task.affinity_key],
      ["Trace", task.traceparent && h("code", null, task.traceparent)],
      ["Payload", task.dropped ? "dropped to free memory" : sizeOf(task.payload)],
      ["Progress", task.progress !== null && sizeOf(task.progress)],
      ["Result", task.state === "completed" && (task.dropped ? "dropped to free memory" : sizeOf(task.result))],
    ];
    fill(
      this.facts,
      rows.filter(([, value]) => value).map(([name, value]) => [h("dt", null, name), h("dd", null, value)]),
    );
  }

  /** Show the messages that have the task's id as their correlation id. */
  async readMessages() {
    this.hasMessages = true;
    let found;
    try {
      found = await get("/messages/history", { correlation_id: this.id, limit: MESSAGES });
    } catch {
      return; // none, or the user may not read them
    }
    if (this.isOver || !this.task || !found.messages.length) return;
    this.messages.hidden = false;
    fill(
      this.messages,
      h("h2", null, "Messages"),
      h(
        "ul",
        { class: "task-messages" },
        found.messages.map((one) =>
          h(
            "li",
            null,
            h("span", { class: "muted" }, time(one.sent_at)),
            h("span", null, `${one.sender_id} → ${one.receiver_id}`),
            h("span", { class: "chip" }, one.message_type),
          ),
        ),
      ),
    );
  }
}
