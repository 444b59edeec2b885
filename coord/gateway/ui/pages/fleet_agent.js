/** The panel of one agent: what it is, why it has its health, what it runs and ran, and what an operator can do. */

import { get, post } from "../api.js";
import { confirm } from "../dialog.js";
import { fill, h, icon, idText, rescueFocus, setText } from "../dom.js";
import { feed } from "../feed.js";
import { ago, count, duration, number, percent, time } from "../format.js";
import { link } from "../router.js";
import { session } from "../session.js";
import { store } from "../store.js";
import { attempt } from "../toast.js";

/** Milliseconds between two reads of its tasks while events arrive. */
const TASKS_MS = 1_000;
const HELD = "assigned,running";
const ENDED = "completed,cancelled,expired";
const MOST_HELD = 50;
const MOST_ENDED = 12;

/** What the agent does with what it holds. */
const finishes = (agent) => `It finishes the ${count(agent.load, "task")} that it holds and gets no new ones`;
const resumesAs = (agent) => (agent.drained_from ? ` (${agent.drained_from})` : "");

/** What an operator can do: the path, its label, what it means, and what to say when it is done. */
const ACTIONS = {
  drain: {
    path: "drain",
    label: "Drain",
    done: "drains",
    text: (agent) => `${finishes(agent)}, whatever it reports, until it is resumed.`,
  },
  maintenance: {
    path: "maintenance",
    label: "Maintenance",
    done: "is in maintenance",
    text: (agent) => `${finishes(agent)} until it is resumed. Lists show it as in maintenance.`,
  },
  resume: {
    path: "resume",
    label: "Resume",
    done: "is resumed",
    text: (agent) => `It has the status again that it reports${resumesAs(agent)}, and gets tasks if that is active.`,
  },
};

export class AgentPanel {
  /**
   * @param {string} id
   * @param {() => void} close
   */
  constructor(id, close) {
    this.id = id;
    this.title = h("h2", { id: "agent-title", tabindex: "-1" }, id);
    this.summary = h("div", { class: "agent-summary" });
    this.actions = h("div", { class: "agent-actions" });
    this.facts = h("dl", { class: "facts" });
    this.health = h("div", { class: "health" });
    this.held = h("div");
    this.ended = h("div");
    const button = h(
      "button",
      { class: "quiet icon-only", type: "button", "aria-label": "Close the agent", onclick: close },
      icon("close"),
    );
    this.element = h(
      "aside",
      { class: "panel agent", "aria-labelledby": "agent-title" },
      h("header", null, this.title, button),
      this.summary,
      this.actions,
      h("section", null, h("h3", null, "In flight"), this.held),
      h("section", null, h("h3", null, "Health"), this.health),
      h("section", null, h("h3", null, "Recent tasks"), this.ended),
      h("section", null, h("h3", null, "Properties"), this.facts),
    );
    this.isOver = false;
    this.isOld = true;
    this.drawn = new Map(); // part -> its content as text
    this.ends = [
      feed.subscribe(["task"], (batch) => {
        if (batch.some(({ data }) => data.agent_id === id)) this.isOld = true;
      }),
      store.subscribe(({ ids, isReset }) => {
        if (isReset || ids.has(id)) this.draw(store.agents.get(id));
      }),
      session.onChange(() => this.draw(store.agents.get(id))),
    ];
    const timer = setInterval(() => {
      if (this.isOld && !document.hidden) this.readTasks();
    }, TASKS_MS);
    const clock = setInterval(() => this.drawTimes(), 1_000);
    this.ends.push(
      () => clearInterval(timer),
      () => clearInterval(clock),
    );
    this.draw(store.agents.get(id));
    this.read();
  }

  end() {
    this.isOver = true;
    for (const end of this.ends) end();
    this.element.remove();
  }

  async read() {
    this.readTasks();
    try {
      const agent = await store.readAgent(this.id);
      if (!this.isOver && agent) this.draw(agent);
      else if (!this.isOver) this.drawAbsent(`There is no agent “${this.id}”.`);
    } catch (error) {
      if (!this.isOver) this.drawAbsent(error.message);
    }
  }

  async readTasks() {
    this.isOld = false;
    try {
      const list = (state, limit) => get("/tasks", { agent_id: this.id, state, limit });
      // Failed tasks are kept apart from the others that ended, and each list begins with the latest.
      const [held, failed, ended] = await Promise.all([
        list(HELD, MOST_HELD),
        list("failed", MOST_ENDED),
        list(ENDED, MOST_ENDED),
      ]);
      if (this.isOver) return;
      this.drawHeld(held.tasks, held.next !== null);
      const all = [...failed.tasks, ...ended.tasks].sort((a, b) => b.finished_at.localeCompare(a.finished_at));
      this.drawEnded(all.slice(0, MOST_ENDED));
    } catch (error) {
      if (this.isOver) return;
      this.isOld = true;
      fill(this.held, h("p", { class: "failure" }, error.message));
    }
  }

  drawAbsent(text) {
    this.agent = null;
    this.drawn.clear();
    fill(this.summary, h("p", { class: "failure", role: "alert" }, text));
    for (const part of [this.actions, this.facts, this.health, this.held, this.ended]) fill(part);
  }

  /** @param {import("../store.js").Agent | undefined} agent */
  draw(agent) {
    if (!agent) {
      if (store.isLoaded && this.agent) this.drawAbsent("The agent has left the cell.");
      return;
    }
    this.agent = agent;
    const share = agent.capacity ? Math.min(1, agent.load / agent.capacity) : 0;
    fill(
      this.summary,
      h(
        "p",
        { class: "line" },
        h(
          "span",
          { class: "state", "data-status": agent.status },
          h("i", { class: "shape", "aria-hidden": "true" }),
          h("strong", null, agent.status),
        ),
        h(
          "span",
          { class: "muted" },
          agent.drained_from ? `set by an operator; it reports ${agent.drained_from}` : agent.agent_type,
        ),
      ),
      h(
        "div",
        { class: "load" },
        h("span", { class: "meter" }, h("i", { style: `width:${share * 100}%` })),
        h("span", null, `${number(agent.load)} of ${count(agent.capacity, "slot")}`),
      ),
      agent.deaf_text && h("p", { class: "failure" }, `Gets nothing: ${agent.deaf_text}.`),
    );
    this.drawActions(agent);
    // A busy agent changes many times a second, and these hardly ever: text that is selected stays.
    this.drawChanged("health", [agent.health_score, agent.health], () => this.drawHealth(agent));
    this.drawChanged("facts", { ...agent, load: 0, rev: 0, health: 0, health_score: 0, status: "" }, () =>
      this.drawFacts(agent),
    );
  }

  drawChanged(name, content, draw) {
    const text = JSON.stringify(content);
    if (this.drawn.get(name) === text) return;
    this.drawn.set(name, text);
    draw();
  }

  drawActions(agent) {
    const isHeld = agent.drained_from !== "" || agent.status === "draining" || agent.status === "maintenance";
    const names = isHeld
      ? ["resume", agent.status === "maintenance" ? "drain" : "maintenance"]
      : ["drain", "maintenance"];
    const refusal = session.refusal("operator");
    const buttons = () =>
      names.map((name) =>
        h(
          "button",
          {
            type: "button",
            class: "secondary",
            disabled: refusal !== null,
            "aria-describedby": refusal && "agent-refusal",
            onclick: (event) => this.act(ACTIONS[name], event.currentTarget),
          },
          ACTIONS[name].label,
        ),
      );
    const reason = () => refusal && h("p", { class: "muted", id: "agent-refusal" }, `Not allowed: ${refusal}.`);
    this.drawChanged("actions", [names, refusal], () => fill(this.actions, buttons(), reason()));
  }

  async act(action, button) {
    const answer = await confirm({
      title: `${action.label} ${this.id}?`,
      text: action.text(this.agent),
      action: action.label,
    });
    if (!answer) return;
    const done = await attempt(
      button,
      () => post(`/agents/${encodeURIComponent(this.id)}/${action.path}`),
      `${this.id} ${action.done}`,
    );
    if (done && !this.isOver) await this.read();
    if (!this.isOver) rescueFocus(this.title);
  }

  drawHealth(agent) {
    const { health } = agent;
    const rows = health && [
      ["Heartbeats on time", health.freshness, 1],
      ["Heartbeats received", health.regularity, 1],
      ["Load", health.load_penalty, -1],
      ["Status", health.status_penalty, -1],
      ["Ejected from a task type", health.ejected_penalty, -1],
      ["Does not read its inbox", health.deaf_penalty, -1],
    ];
    fill(
      this.health,
      h(
        "p",
        { class: "line" },
        h("strong", { class: "score" }, percent(agent.health_score)),
        h("span", { class: "muted" }, "freshness × regularity, less the penalties"),
      ),
      rows &&
        h(
          "ul",
          null,
          rows
            .filter(([, value, sign]) => sign > 0 || value > 0)
            .map(([label, value, sign]) =>
              h(
                "li",
                { class: sign < 0 ? "penalty" : null },
                h("span", null, label),
                h("span", { class: "meter" }, h("i", { style: `width:${Math.min(1, value) * 100}%` })),
                h("span", { class: "number" }, sign < 0 ? `−${Math.round(value * 100)}` : percent(value)),
              ),
            ),
        ),
    );
  }

  drawFacts(agent) {
    const chips = (list) =>
      list.length > 0 &&
      h(
        "span",
        { class: "chips" },
        list.map((one) => h("span", { class: "chip" }, one)),
      );
    const place = agent.location && [agent.location.region, agent.location.zone].filter(Boolean).join(" / ");
    const metrics = Object.entries(agent.load_metrics).map(([name, value]) => `${name} ${Number(value.toFixed(3))}`);
    this.seen = h("span", { "data-time": agent.last_heartbeat ?? "" }, ago(agent.last_heartbeat, feed.now()));
    const rows = [
      ["Type", agent.agent_type],
      ["Version", agent.version],
      [
        "Location",
        place ||
          (agent.location?.lat !== undefined &&
            agent.location?.lat !== null &&
            `${agent.location.lat}, ${agent.location.lon}`),
      ],
      ["Capabilities", chips(agent.capabilities)],
      ["Services", chips(agent.services)],
      ["Tags", chips(agent.tags)],
      ["Labels", chips(Object.entries(agent.labels).map(([name, value]) => `${name}=${value}`))],
      ["Reports", chips(metrics)],
      ["Weight", agent.weight !== 1 && String(agent.weight)],
      ["Inbox", { push: "pushed over HTTP", poll: "polled over HTTP" }[agent.delivery] ?? "read from Redis"],
      [
        "Heartbeat",
        [this.seen, agent.heartbeat_interval ? `, every ${duration(agent.heartbeat_interval * 1_000)}` : ""],
      ],
      ["Registered", time(agent.registration_time)],
    ];
    fill(
      this.facts,
      rows.filter(([, value]) => value).map(([name, value]) => [h("dt", null, name), h("dd", null, value)]),
    );
  }

  drawHeld(tasks, hasMore) {
    fill(
      this.held,
      tasks.length === 0
        ? h("p", { class: "muted" }, "No task at the moment.")
        : h(
            "ul",
            { class: "tasklist" },
            tasks.map((task) => this.row(task, task.state, task.started_at ?? task.assigned_at)),
          ),
      hasMore && h("p", { class: "muted" }, "There are more."),
    );
  }

  drawEnded(tasks) {
    fill(
      this.ended,
      tasks.length === 0
        ? h("p", { class: "muted" }, "None of the tasks that are kept.")
        : h(
            "ul",
            { class: "tasklist" },
            tasks.map((task) =>
              this.row(task, task.error?.code ? `${task.state}: ${task.error.code}` : task.state, task.finished_at),
            ),
          ),
    );
  }

  row(task, state, at) {
    return h(
      "li",
      { "data-state": task.state },
      h("span", { class: "id" }, link(idText(task.task_id), "task", [task.task_id])),
      h("span", { class: "muted" }, task.task_type),
      h("span", { class: "task-state" }, state),
      h("span", { class: "muted number", "data-time": at ?? "" }, ago(at, feed.now())),
    );
  }

  drawTimes() {
    for (const element of this.element.querySelectorAll("[data-time]")) {
      if (element.dataset.time) setText(element, ago(element.dataset.time, feed.now()));
    }
  }
}
