/** The audit on the System page: what operators have changed, who asked for it, and what became of it. */

import { get } from "../api.js";
import { emptyState, fill, h } from "../dom.js";
import { count, time } from "../format.js";
import { session } from "../session.js";
import { follow } from "./follow.js";
import { LiveTable, state } from "./live_table.js";

/** Events that an operator may have caused; all other changes are found by reading again. */
const EVENTS = ["setting", "dead", "token", "link", "master", "agent.changed", "task.cancelled", "task.replayed"];
const ROWS = 25;
const GOOD = ["ok", "delivered", "pending", "same"];

const COLUMNS = [
  { label: "Time", text: ({ at }) => time(at) },
  { label: "Who", class: "who-cell", text: ({ by }) => by },
  { label: "Action", class: "mono", text: ({ action }) => action },
  {
    label: "What",
    class: "what",
    text: ({ target, query, done, count: all }) =>
      [target, query, all && `${done ?? 0} of ${count(all, "task")}`].filter(Boolean).join(" · ") || "–",
  },
  { label: "Reason", class: "what", text: ({ reason }) => reason || "–" },
  {
    label: "Outcome",
    text: ({ outcome }) => outcome,
    node: ({ outcome }) => state(GOOD.includes(outcome) ? "active" : "busy", outcome.replaceAll("_", " ")),
  },
];

export class Audit {
  constructor() {
    this.isOver = false;
    this.entries = new Map();
    this.cursor = null;
    this.table = new LiveTable("Audit", COLUMNS, ({ id }) => id);
    this.note = h("div");
    this.more = h("button", { type: "button", class: "secondary", onclick: () => this.readMore() }, "Earlier changes");
    this.element = h(
      "section",
      { class: "panel audit" },
      h("header", null, h("h2", null, "Audit"), h("span", { class: "muted" }, "what operators have changed")),
      this.table.element,
      this.note,
      h("footer", null, this.more),
    );
    this.stop = follow(EVENTS, () => this.read());
  }

  end() {
    this.isOver = true;
    this.stop();
  }

  async read() {
    const refusal = session.refusal("operator");
    if (refusal) {
      this.table.element.hidden = this.more.hidden = true;
      fill(this.note, h("p", { class: "muted body" }, `Not shown: ${refusal}.`));
      return;
    }
    try {
      const { entries, next } = await get("/audit", { limit: ROWS });
      if (this.isOver) return;
      if (!entries.some(({ id }) => this.entries.has(id))) {
        // The first page, or there is a hole between it and the entries that are shown.
        this.entries.clear();
        this.cursor = next;
      }
      this.add(entries);
    } catch (error) {
      if (!this.isOver) fill(this.note, h("p", { class: "failure body" }, error.message));
    }
  }

  async readMore() {
    const { cursor } = this;
    try {
      const { entries, next } = await get("/audit", { limit: ROWS, cursor });
      if (this.isOver || cursor !== this.cursor) return;
      this.cursor = next;
      this.add(entries);
    } catch (error) {
      if (!this.isOver) fill(this.note, h("p", { class: "failure body" }, error.message));
    }
  }

  add(entries) {
    for (const entry of entries) this.entries.set(entry.id, entry);
    const rows = [...this.entries.values()].sort((a, b) => b.at.localeCompare(a.at) || b.id.localeCompare(a.id));
    this.table.set(rows);
    this.table.element.hidden = rows.length === 0;
    this.more.hidden = this.cursor === null;
    fill(
      this.note,
      rows.length === 0 &&
        emptyState("Nothing was changed yet", "Each change by an operator is listed here.", "coord strategy show"),
    );
  }
}
