/** The strategy and the modifiers on the System page: what holds, who changed it, and how to change it. */

import { get, put } from "../api.js";
import { confirm } from "../dialog.js";
import { fill, h } from "../dom.js";
import { time } from "../format.js";
import { session } from "../session.js";
import { attempt } from "../toast.js";
import { follow } from "./follow.js";
import { LiveTable } from "./live_table.js";

const PATH = "/load-balancer/strategy";
const CHANGES = 20;
const MODIFIERS = {
  ejection: "An agent that fails a task type far more often than others gets none of it for a while.",
  avoid_failed_agent: "A retry goes to another agent than the failed attempts.",
  rare_skills_first: "Agents with rare capabilities are kept free.",
};
const named = (name) => name.replaceAll("_", " ");

export class Strategy {
  constructor() {
    this.isOver = false;
    this.drawn = "";
    this.body = h("div", { class: "body strategy" });
    this.history = new LiveTable(
      "Changes",
      [
        {
          label: "Change",
          class: "what",
          text: ({ name, task_type: type, value, before }) =>
            `${named(name)}${type ? ` of ${type}` : ""}: ${before ?? "unset"} → ${value ?? "reset"}`,
        },
        { label: "Who", class: "words", text: ({ by }) => by },
        { label: "Time", class: "number", text: ({ at }) => time(at) },
      ],
      ({ at, name, task_type: type }) => `${at} ${name} ${type}`,
    );
    this.changes = h("details", { class: "body", hidden: true }, h("summary", null, "Changes"), this.history.element);
    this.element = h(
      "section",
      { class: "panel" },
      h("header", null, h("h2", null, "Strategy")),
      this.body,
      this.changes,
    );
    this.stop = follow(["setting"], () => this.read());
  }

  end() {
    this.isOver = true;
    this.stop();
  }

  async read() {
    try {
      const [rules, history] = await Promise.all([get(PATH), get(`${PATH}/history`, { limit: CHANGES })]);
      if (this.isOver) return;
      this.rules = rules;
      this.latest = history.changes;
      this.draw();
    } catch (error) {
      if (!this.isOver) fill(this.body, h("p", { class: "failure" }, error.message));
      this.drawn = "";
    }
  }

  draw() {
    if (!this.rules) return;
    this.history.set(this.latest);
    this.changes.hidden = this.latest.length === 0;
    const refusal = session.refusal("operator");
    const since = (name) => {
      const change = this.latest.find((one) => one.name === name && one.task_type === null);
      return change ? `since ${time(change.at)}, by ${change.by}` : "as the workers were started";
    };
    const { strategy, strategies, modifiers, types } = this.rules;
    const names = Object.keys(MODIFIERS);
    const content = JSON.stringify([
      strategy,
      strategies,
      modifiers,
      types,
      refusal,
      ["strategy", ...names].map(since),
    ]);
    if (content === this.drawn) return;
    const focused = this.body.contains(document.activeElement) && document.activeElement.getAttribute("data-part");
    this.drawn = content;
    const describedBy = refusal && "strategy-refusal";
    const select = h(
      "select",
      {
        "aria-label": "Strategy",
        "data-part": "strategy",
        disabled: refusal !== null,
        "aria-describedby": describedBy,
      },
      strategies.map((name) => h("option", { value: name, selected: name === strategy }, named(name))),
    );
    const change = h(
      "button",
      { type: "button", class: "secondary", disabled: true, "aria-describedby": describedBy, "data-part": "switch" },
      "Switch",
    );
    select.addEventListener("change", () => (change.disabled = refusal !== null || select.value === strategy));
    change.addEventListener("click", () =>
      this.change(
        change,
        { strategy: select.value },
        {
          title: `Switch to ${named(select.value)}?`,
          text: [
            `All distributors choose agents with ${named(select.value)} in place of ${named(strategy)}`,
            " within a second, and keep it after a restart. Tasks that agents hold stay where they are.",
          ],
          action: "Switch",
        },
        `The strategy is ${named(select.value)}`,
      ),
    );
    fill(
      this.body,
      h("p", { class: "holds" }, h("strong", null, named(strategy))),
      h("p", { class: "muted" }, since("strategy")),
      h("div", { class: "switch" }, select, change),
      h(
        "ul",
        { class: "modifiers" },
        names.map((name) => this.modifier(name, modifiers[name], since(name), refusal)),
      ),
      refusal && h("p", { class: "muted", id: "strategy-refusal" }, `Not allowed: ${refusal}.`),
      Object.entries(types).map(([type, rules]) =>
        h(
          "p",
          { class: "muted" },
          `Tasks of ${type}: ${[rules.strategy, switches(rules.modifiers)].filter(Boolean).join(", ")}`,
        ),
      ),
    );
    if (focused) this.body.querySelector(`[data-part="${focused === "switch" ? "strategy" : focused}"]`)?.focus();
  }

  modifier(name, isOn, since, refusal) {
    const action = isOn ? "Turn off" : "Turn on";
    const button = h(
      "button",
      {
        type: "button",
        class: "secondary",
        disabled: refusal !== null,
        "aria-describedby": refusal && "strategy-refusal",
        "aria-label": `${action} ${named(name)}`,
        "data-part": name,
        onclick: () =>
          this.change(
            button,
            { modifiers: { [name]: !isOn } },
            { title: `${action} ${named(name)}?`, text: MODIFIERS[name], action },
            `${named(name)} is ${isOn ? "off" : "on"}`,
          ),
      },
      action,
    );
    return h(
      "li",
      { title: MODIFIERS[name] },
      h("span", null, named(name), " ", h("strong", null, isOn === null ? "mixed" : isOn ? "on" : "off")),
      h("span", { class: "muted" }, since),
      button,
    );
  }

  async change(button, values, question, done) {
    const answer = await confirm({ ...question, reason: "Reason (for the audit)" });
    if (!answer) return;
    const reason = answer.reason.slice(0, 128) || null;
    await attempt(button, () => put(PATH, { ...values, reason }), done);
    this.drawn = "";
    if (!this.isOver) await this.read();
  }
}

const switches = (modifiers) =>
  Object.entries(modifiers)
    .map(([name, isOn]) => `${named(name)} ${isOn ? "on" : "off"}`)
    .join(", ");
