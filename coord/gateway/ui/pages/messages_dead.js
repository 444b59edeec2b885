/** Dead letters: messages that were not delivered, or expired. An operator delivers them again, or deletes them. */

import { get, post } from "../api.js";
import { confirm } from "../dialog.js";
import { emptyState, fill, h, idText, rescueFocus, setText } from "../dom.js";
import { feed } from "../feed.js";
import { ago, count } from "../format.js";
import { hrefOf } from "../router.js";
import { session } from "../session.js";
import { attempt } from "../toast.js";
import { follow } from "./follow.js";
import { LiveTable, Problem } from "./live_table.js";

const ROWS = 50;

/** Return the buttons of an operator for a dead letter; `done` is called after each success. */
export function letterActions(id, done, isShort = false) {
  const refusal = session.refusal("operator");
  const button = (label, work, said) =>
    h(
      "button",
      {
        type: "button",
        class: "secondary",
        disabled: refusal !== null,
        title: refusal && `Not allowed: ${refusal}`,
        "aria-label": isShort ? `${label} ${id}` : null,
        "aria-describedby": refusal && (isShort ? "letters-refusal" : "letter-refusal"),
        onclick: async (event) => {
          const { currentTarget } = event;
          const question = work.question;
          if (question && !(await confirm(question))) return;
          if (await attempt(currentTarget, work.run, said)) done();
        },
      },
      label,
    );
  const replay = { run: () => post(`/messages/${encodeURIComponent(id)}/replay`) };
  const purge = {
    run: () => post("/messages/dead/purge", { message_id: id }),
    question: {
      title: "Delete the dead letter?",
      text: `${id} cannot be restored.`,
      action: "Delete",
      isDangerous: true,
    },
  };
  return h(
    "div",
    { class: "letter-actions" },
    button("Deliver again", replay, `${id} is delivered`),
    button("Delete", purge, `${id} is deleted`),
    refusal && !isShort && h("p", { class: "muted", id: "letter-refusal" }, `Not allowed: ${refusal}.`),
  );
}

export class DeadLetters {
  /** @param {() => void} changed called when there are more or fewer. */
  constructor(changed) {
    this.changed = changed;
    this.isOver = false;
    this.shown = ROWS;
    const role = () => session.refusal("operator") ?? "";
    this.table = new LiveTable(
      "Dead letters",
      [
        {
          label: "Message",
          class: "first",
          text: ({ message_id: id }) => id,
          node: ({ message_id: id }) =>
            h("a", { class: "mono id", href: hrefOf("messages", ["message", id]) }, idText(id)),
        },
        { label: "From", text: ({ sender_id: id }) => id, node: ({ sender_id: id }) => idText(id) },
        {
          label: "To",
          text: ({ receiver_id: id }) => id,
          node: ({ receiver_id: id }) => (id ? idText(id) : "several agents"),
        },
        { label: "Type", text: ({ message_type: type }) => type.replaceAll("_", " ") },
        {
          label: "Reason",
          class: "what",
          text: ({ code, reason }) => `${code} ${reason}`,
          node: ({ code, reason }) => [h("strong", null, code.replaceAll("_", " ")), h("br"), reason],
        },
        { label: "Died", class: "number", text: ({ died_at: at }) => ago(at, feed.now()) },
        {
          label: "Actions",
          class: "whole",
          text: role,
          node: ({ message_id: id }) => letterActions(id, () => this.read(), true),
        },
      ],
      ({ message_id: id }) => id,
    );
    this.problem = new Problem();
    this.text = h("span", { class: "muted" });
    this.note = h("div");
    this.more = h("button", { type: "button", class: "secondary", onclick: () => this.readMore() }, "Older ones");
    this.all = h("button", { type: "button", class: "secondary", onclick: () => this.purgeAll() }, "Delete all");
    this.refusal = h("p", { class: "muted body", id: "letters-refusal", hidden: true });
    this.element = h(
      "section",
      { class: "panel messages-list", "aria-label": "Dead letters" },
      h("header", null, this.text, this.all),
      this.refusal,
      this.problem.element,
      this.table.element,
      this.note,
      h("footer", null, this.more),
    );
    this.all.hidden = this.more.hidden = true;
    const types = ["message.dead", "message.delivered", "dead"];
    this.stop = follow(types, () => this.read(), { draw: () => this.draw() });
  }

  end() {
    this.isOver = true;
    this.stop();
  }

  async read() {
    try {
      this.found = await get("/messages/dead", { limit: this.shown });
      if (this.isOver) return;
      this.problem.set("");
      this.draw();
      if (this.total !== this.found.total) this.changed();
      this.total = this.found.total;
    } catch (error) {
      if (!this.isOver) this.problem.set(error.message);
    }
  }

  readMore() {
    this.shown = Math.min(1_000, this.shown * 4);
    this.read();
  }

  draw() {
    if (!this.found) return;
    const { messages, total, next } = this.found;
    this.table.set(messages);
    this.table.element.hidden = total === 0;
    setText(this.text, count(total, "dead letter"));
    const refusal = session.refusal("operator");
    this.all.disabled = refusal !== null;
    this.all.hidden = total === 0;
    this.refusal.hidden = refusal === null || total === 0;
    setText(this.refusal, `Actions are not allowed: ${refusal}.`);
    if (refusal) this.all.setAttribute("aria-describedby", "letters-refusal");
    else this.all.removeAttribute("aria-describedby");
    this.more.hidden = next === null || this.shown >= 1_000;
    if ((total === 0) === this.isEmpty) return;
    this.isEmpty = total === 0;
    fill(
      this.note,
      this.isEmpty &&
        emptyState(
          "No undelivered messages",
          [
            "No message is a dead letter. ",
            h("a", { href: hrefOf("tasks", [], { q: "state:failed" }) }, "Failed tasks"),
            " and invalid entries have lists of their own:",
          ],
          "coord dead list",
        ),
    );
  }

  async purgeAll() {
    const answer = await confirm({
      title: `Delete ${count(this.found.total, "dead letter")}?`,
      text: "They cannot be restored. Messages that die meanwhile are deleted too.",
      action: "Delete all",
      isDangerous: true,
    });
    if (!answer) return;
    await attempt(this.all, () => post("/messages/dead/purge", { older_than: 0 }), "Dead letters are deleted");
    if (!this.isOver) await this.read();
    if (!this.isOver) rescueFocus(this.element);
  }
}
