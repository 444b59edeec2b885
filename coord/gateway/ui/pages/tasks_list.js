/**
 * The list of tasks that match a query: it reads a page when its end comes into view, and never all of them.
 *
 * The rows of a page are one group. A group far from the window has no elements but its height. Rows follow the events
 * in their place. Tasks that match and are not in the list are counted, and shown when the user wants it.
 */

import { get } from "../api.js";
import { fill, h, icon, idText, setText } from "../dom.js";
import { feed } from "../feed.js";
import { count, number } from "../format.js";
import { hrefOf } from "../router.js";
import { applyEvent, EVENTS, quoted, rowOf, stateOf, whenOf } from "./task_states.js";

/** Tasks of a page. */
const PAGE = 100;
/** Milliseconds between two checks of tasks that are not in the list. */
const CHECK_MS = 1_500;
/** Most characters of ids in one query, and most new tasks that are counted. */
const MOST_TEXT = 3_000;
const MOST_NEWER = 999;
/** Fields of a query that a task can come to meet by any event; without them only new tasks are new in the list. */
const CHANGING = /(^|\s)-?(state|error|agent|reason|ended|since|attempts|priority):/;
const BEGINS = new Set(["task.queued", "task.scheduled", "task.refused"]);
const COLUMNS = ["Task", "Type", "State", "Priority", "Agent", "Attempt", "When"];

/** Return ids as a term of a query, as many as fit, and the number of them. */
function idsTerm(ids) {
  let term = "";
  let taken = 0;
  for (const id of ids) {
    const next = `${term}${term ? "," : "id:"}${quoted(id)}`;
    if (next.length > MOST_TEXT || taken === PAGE) break;
    term = next;
    taken++;
  }
  return { term, taken };
}

export class TaskList {
  /**
   * @param {Object} options
   * @param {(error: Error | null) => void} options.failed called with the outcome of the first page.
   * @param {() => Node} options.empty what to show if nothing matches.
   * @param {Node} options.actions shown above the list.
   */
  constructor({ failed, empty, actions }) {
    this.failed = failed;
    this.empty = empty;
    this.status = h("p", { class: "muted", role: "status" });
    this.newerButton = h("button", {
      type: "button",
      class: "secondary newer",
      hidden: true,
      onclick: () => this.reload(),
    });
    this.rowsBox = h("div", { class: "tasks-rows" });
    this.end_ = h("div", { class: "tasks-end" });
    this.table = h(
      "div",
      { role: "table", "aria-label": "Tasks", class: "panel tasks-table" },
      h(
        "div",
        { role: "rowgroup", class: "tasks-head" },
        h(
          "div",
          { role: "row", class: "task-row" },
          COLUMNS.map((name) => h("span", { role: "columnheader" }, name)),
        ),
      ),
      this.rowsBox,
    );
    this.element = h(
      "section",
      { class: "tasks-list", "aria-label": "List of tasks" },
      h("div", { class: "tasks-bar" }, this.status, this.newerButton, actions),
      this.table,
      this.end_,
    );
    this.turn = 0;
    this.isOver = false;
    this.reset("");
    this.near = new IntersectionObserver((found) => this.moved(found), { rootMargin: "900px 0px" });
    this.ends = [feed.subscribe(EVENTS, (batch) => this.apply(batch)), feed.onGap(() => this.expire())];
    const timers = [
      setInterval(() => !document.hidden && this.check(), CHECK_MS),
      setInterval(() => !document.hidden && this.drawTimes(), 1_000),
    ];
    this.ends.push(
      () => timers.forEach(clearInterval),
      () => this.near.disconnect(),
    );
  }

  end() {
    this.isOver = true;
    this.turn++;
    cancelAnimationFrame(this.frame);
    for (const end of this.ends) end();
  }

  reset(query) {
    this.query = query;
    this.isChanging = CHANGING.test(query);
    this.groups?.forEach(({ element }) => this.near?.unobserve(element));
    this.groups = [];
    this.rows = new Map(); // id -> its row
    this.drawn = new Map(); // id -> elements of its row
    this.changed = new Set();
    this.candidates = new Set(); // ids of events that are not in the list
    this.newer = new Set();
    this.late = []; // events since a read began: what it returns may be older than they are
    this.reads = 0; // under way
    this.next = null;
    this.isLoading = false;
    this.hasFailed = false;
    this.frame = 0;
  }

  /** Show the tasks that match a query, from the first one. */
  show(query) {
    this.turn++;
    this.reset(query);
    this.isFirst = true;
    this.drawStatus();
    this.load();
  }

  reload() {
    this.show(this.query);
    this.element.scrollIntoView({ block: "nearest" });
  }

  // Pages.

  async load() {
    if (this.isLoading || this.hasFailed || (!this.isFirst && this.next === null)) return;
    const { turn } = this;
    this.isLoading = true;
    this.drawStatus();
    try {
      const page = await this.read({ q: this.query, limit: PAGE, cursor: this.next });
      if (turn !== this.turn) return;
      this.add(page);
      if (this.isFirst) this.failed(null);
    } catch (error) {
      if (turn !== this.turn) return;
      this.hasFailed = true;
      if (this.isFirst) this.failed(error);
      this.error = error;
    }
    this.isFirst = false;
    this.isLoading = false;
    this.drawStatus();
    this.near.unobserve(this.end_); // so that it says again whether the end is near
    this.near.observe(this.end_);
  }

  /** Read tasks as rows that have the events since. Lists that were left meanwhile need none. */
  async read(query) {
    const { turn } = this;
    this.reads++;
    const from = this.late.length;
    try {
      const { tasks, next } = await get("/tasks", query);
      const rows = new Map(tasks.map((task) => [task.task_id, rowOf(task)]));
      if (turn !== this.turn) return { rows: [], next: null };
      for (const event of this.late.slice(from)) {
        const row = rows.get(event.data.task_id);
        if (row) applyEvent(row, event);
      }
      return { rows: [...rows.values()], next };
    } finally {
      if (turn === this.turn && --this.reads === 0) this.late = [];
    }
  }

  add(page) {
    if (this.isFirst) fill(this.rowsBox);
    this.next = page.next;
    const rows = page.rows.filter(({ id }) => !this.rows.has(id)); // a task that moved comes twice
    for (const row of rows) {
      this.rows.set(row.id, row);
      this.newer.delete(row.id);
    }
    if (!rows.length) return;
    const group = { rows, first: this.rows.size - rows.length, element: h("div"), isDrawn: false, isOld: false };
    group.element.style.setProperty("--rows", String(rows.length));
    this.groups.push(group);
    this.draw(group);
    this.rowsBox.append(group.element);
    this.near.observe(group.element);
  }

  moved(found) {
    for (const { target, isIntersecting } of found) {
      if (target === this.end_) {
        if (isIntersecting) this.load();
        continue;
      }
      const group = this.groups.find(({ element }) => element === target);
      if (group && isIntersecting && !group.isDrawn) this.draw(group);
      else if (group && !isIntersecting && !target.contains(document.activeElement)) this.erase(group);
    }
  }

  draw(group) {
    if (group.isOld) this.refresh(group);
    group.isDrawn = true;
    group.element.setAttribute("role", "rowgroup");
    fill(
      group.element,
      group.rows.map((row, at) => this.rowElement(row, group.first + at)),
    );
  }

  erase(group) {
    group.isDrawn = false;
    group.element.removeAttribute("role");
    for (const { id } of group.rows) this.drawn.delete(id);
    fill(group.element);
  }

  // Rows.

  rowElement(row, at) {
    const cell = (name, ...content) => h("span", { role: "cell", class: name }, content);
    const cells = {
      state: cell("state-cell"),
      priority: cell("priority"),
      agent: cell("agent-cell"),
      attempt: cell("number tries"),
      when: cell("number when"),
    };
    const id = h("a", { href: hrefOf("task", [row.id]), title: row.id }, idText(row.id));
    const element = h(
      "div",
      { role: "row", class: "task-row", "aria-rowindex": at + 2, "data-task": row.id },
      cell("id", id),
      cell("type muted", row.type),
      cells.state,
      cells.priority,
      cells.agent,
      cells.attempt,
      cells.when,
    );
    this.drawn.set(row.id, { element, cells, state: "" });
    this.update(row, false);
    return element;
  }

  update(row, isLive) {
    const { element, cells, ...before } = this.drawn.get(row.id);
    const state = `${row.state} ${row.code}`;
    if (before.state !== state) {
      this.drawn.get(row.id).state = state;
      fill(cells.state, stateOf(row.state, row.code));
      if (isLive) {
        element.classList.remove("is-new");
        requestAnimationFrame(() => element.classList.add("is-new"));
      }
    }
    setText(cells.priority, row.priority);
    element.dataset.priority = row.priority;
    setText(cells.agent, row.agent ?? "");
    setText(cells.attempt, row.attempt || "");
    setText(cells.when, whenOf(row, feed.now()));
  }

  drawTimes() {
    const now = feed.now();
    for (const [id, { cells }] of this.drawn) setText(cells.when, whenOf(this.rows.get(id), now));
  }

  drawStatus() {
    const shown = this.rows.size;
    const isAll = this.next === null && !this.isFirst && !this.isLoading;
    const text = isAll ? count(shown, "task") : `First ${count(shown, "task")}, more below`;
    setText(
      this.status,
      this.isLoading ? (shown ? `${count(shown, "task")}, reading more …` : "Reading tasks …") : text,
    );
    const isEmpty = isAll && !shown && !this.hasFailed;
    this.table.hidden = !shown;
    this.status.hidden = isEmpty || (this.hasFailed && !shown);
    const again = () => ((this.hasFailed = false), this.load());
    if (this.hasFailed && shown) {
      const button = h("button", { type: "button", class: "secondary", onclick: again }, icon("reload"), "Try again");
      fill(this.end_, h("p", { class: "failure" }, this.error.message), button);
    } else {
      fill(this.end_, isEmpty && this.empty());
    }
    this.drawNewer();
  }

  drawNewer() {
    const { size } = this.newer;
    this.newerButton.hidden = size === 0;
    setText(this.newerButton, size >= MOST_NEWER ? `${number(MOST_NEWER)}+ newer` : `${number(size)} newer`);
  }

  // Events.

  apply(batch) {
    if (this.reads) this.late.push(...batch);
    for (const event of batch) {
      const id = event.data.task_id;
      const row = this.rows.get(id);
      if (row === undefined) {
        if (!this.isChanging && !BEGINS.has(event.type)) continue;
        if (!this.newer.has(id) && this.candidates.size < MOST_NEWER) this.candidates.add(id);
      } else if (applyEvent(row, event) && this.drawn.has(id)) {
        this.changed.add(id);
      }
    }
    if (this.changed.size && !this.frame) {
      this.frame = requestAnimationFrame(() => {
        this.frame = 0;
        for (const id of this.changed) if (this.drawn.has(id)) this.update(this.rows.get(id), true);
        this.changed.clear();
      });
    }
  }

  /** Ask which of the tasks that events have named match the query. */
  async check() {
    if (!this.candidates.size || this.isFirst || this.hasFailed || this.isChecking || this.newer.size >= MOST_NEWER)
      return;
    const { turn } = this;
    this.isChecking = true;
    const { term, taken } = idsTerm(this.candidates);
    for (const id of [...this.candidates].slice(0, taken)) this.candidates.delete(id);
    try {
      const { tasks } = await get("/tasks", { q: `${this.query} ${term}`.trim(), limit: PAGE });
      if (turn !== this.turn) return;
      for (const { task_id: id } of tasks) if (!this.rows.has(id)) this.newer.add(id);
      if (this.newer.size && !this.rows.size) this.show(this.query);
      else this.drawNewer();
    } catch {
      // the connection is lost, or the query is wrong; both are shown already
    } finally {
      this.isChecking = false;
    }
  }

  /** Events were lost: read the rows in view again, and the others once they come into view. */
  expire() {
    if (this.hasFailed && !this.rows.size) {
      this.show(this.query);
      return;
    }
    for (const group of this.groups) {
      group.isOld = true;
      if (group.isDrawn) this.refresh(group);
    }
  }

  async refresh(group) {
    group.isOld = false;
    const { turn } = this;
    const ids = new Set(group.rows.map(({ id }) => id));
    try {
      while (ids.size) {
        const { term, taken } = idsTerm(ids);
        for (const id of [...ids].slice(0, taken)) ids.delete(id);
        const { rows } = await this.read({ q: term, limit: PAGE });
        if (turn !== this.turn) return;
        for (const row of rows) {
          Object.assign(this.rows.get(row.id), row);
          if (this.drawn.has(row.id)) this.update(this.rows.get(row.id), true);
        }
      }
    } catch {
      group.isOld = true; // the next connection reads them again
    }
  }
}
