/** Why a task went to its agent, or why it still waits: as GET /tasks/{id}/explain says. */

import { h } from "../dom.js";
import { feed } from "../feed.js";
import { count, duration, number, time } from "../format.js";
import { link } from "../router.js";
import { kindOf, reasonText } from "./task_states.js";

/** Parts of a decision that are shown elsewhere, or say only how to repeat it. */
const HIDDEN = new Set(["strategy", "eligible", "waiting_reason", "view_version", "seed"]);

/** Return a score or a part of one, short. */
const figure = (value) =>
  typeof value !== "number"
    ? String(value)
    : Number.isInteger(value)
      ? number(value)
      : String(Number(value.toPrecision(3)));

/** Return what an explanation says; null if it says nothing about the agent or the wait. */
export function whyView({ waiting, placed }) {
  if (waiting) return waitingView(waiting);
  return placed ? placedView(placed) : null;
}

/** Return the title of that. */
export const whyTitle = ({ waiting, placed }) =>
  waiting ? "Why it still waits" : placed ? `Why ${placed.agent_id}` : "Placement";

function meterOf(share, kind) {
  return h(
    "span",
    { class: "meter", "aria-hidden": "true" },
    h("i", { style: `width:${share * 100}%`, "data-kind": kind }),
  );
}

function waitingView(waiting) {
  const rejected = Object.entries(waiting.rejected);
  const { estimate, nearest, obstacles } = waiting;
  const facts = [
    [
      "Reason",
      [
        h(
          "span",
          { class: "reason", "data-kind": kindOf(waiting.reason) },
          h("i", { class: "swatch" }),
          reasonText(waiting.reason),
        ),
      ],
    ],
    [
      "Position",
      waiting.position !== null &&
        `${number(waiting.position)} of ${number(waiting.length ?? waiting.position)} in its pool`,
    ],
    [
      "Runs at",
      waiting.run_at && `${time(waiting.run_at)}, in ${duration(Math.max(0, Date.parse(waiting.run_at) - feed.now()))}`,
    ],
    ["Starts about", estimate && `${time(estimate.at)}: ${estimate.basis}`],
    [
      "Agents",
      waiting.agents > 0 && `${count(waiting.agents, "agent")} examined, ${number(waiting.eligible)} may get it now`,
    ],
  ];
  return [
    obstacles.length > 0 &&
      h(
        "ul",
        { class: "failure" },
        obstacles.map((text) => h("li", null, text)),
      ),
    h(
      "dl",
      { class: "facts" },
      facts.filter(([, value]) => value).map(([name, value]) => [h("dt", null, name), h("dd", null, value)]),
    ),
    rejected.length > 0 && [
      h("h3", null, "Agents that may not get it"),
      h(
        "ul",
        { class: "bars" },
        rejected.map(([reason, size]) =>
          h(
            "li",
            null,
            h("span", null, reasonText(reason)),
            meterOf(size / waiting.agents, kindOf(reason)),
            h("b", { class: "number" }, number(size)),
          ),
        ),
      ),
    ],
    nearest.length > 0 && [
      h("h3", null, "Nearest misses"),
      h(
        "ul",
        { class: "nearest" },
        nearest.map(({ agent_id: id, lacks }) =>
          h("li", null, link(id, "fleet", [id]), h("span", { class: "muted" }, " lacks "), lacks.join(", ")),
        ),
      ),
    ],
  ];
}

/** Return why a task was placed so; `isEarlier`: not at its last attempt. */
export function placedView(placed, isEarlier = false) {
  const { candidates = [], ...decision } = placed.decision ?? {};
  const facts = [
    ["Strategy", placed.strategy],
    ["Eligible", placed.eligible !== null && count(placed.eligible, "agent")],
    ["Had waited", placed.waiting_reason && reasonText(placed.waiting_reason)],
    ...Object.entries(decision)
      .filter(([name, value]) => !HIDDEN.has(name) && typeof value !== "object")
      .map(([name, value]) => [name.replaceAll("_", " "), figure(value)]),
  ];
  return [
    h(
      "dl",
      { class: "facts" },
      facts.filter(([, value]) => value).map(([name, value]) => [h("dt", null, name), h("dd", null, value)]),
    ),
    candidates.length > 0 ? candidatesView(candidates, placed.agent_id) : !isEarlier && noScores(),
  ];
}

function candidatesView(candidates, chosen) {
  const most = Math.max(...candidates.map(({ score }) => Math.abs(score)), 1e-9);
  return [
    h("h3", null, "Candidates, the lowest score is the best"),
    h(
      "ol",
      { class: "candidates" },
      candidates.map(({ agent_id: id, score, terms }) =>
        h(
          "li",
          { class: id === chosen ? "chosen" : null },
          h("div", null, link(id, "fleet", [id]), id === chosen && h("span", { class: "chip" }, "chosen")),
          meterOf(Math.abs(score) / most, id === chosen ? "next" : "other"),
          h("b", { class: "number" }, figure(score)),
          h(
            "div",
            { class: "terms muted" },
            Object.entries(terms).map(([name, value]) =>
              h("span", null, `${name.replaceAll("_", " ")} ${figure(value)}`),
            ),
          ),
        ),
      ),
    ),
  ];
}

function noScores() {
  return h(
    "div",
    { class: "muted" },
    h("p", null, "The scores of the other agents were not recorded. To record them with each placement from now on:"),
    h("pre", { tabindex: "0" }, "coord settings set full_scores true"),
  );
}
