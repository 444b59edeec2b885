/**
 * The Fleet page: every agent as a tile, in one view; the tasks that wait, and their flight to the tile of their agent.
 *
 * `#/fleet/gpu-7?group=region&q=state:active&view=table`: the path is the agent whose panel is open.
 */

import { emptyState, fill, h, icon, idText, setText } from "../dom.js";
import { feed } from "../feed.js";
import { count, number, percent, rate, short } from "../format.js";
import { queryBar } from "../querybar.js";
import { go, hrefOf, link, place, setQuery } from "../router.js";
import { setPageKeys } from "../shortcuts.js";
import { store } from "../store.js";
import { AgentPanel } from "./fleet_agent.js";
import { Flights } from "./fleet_flights.js";
import { fieldsOfFleet, loadOf, parseFleetQuery } from "./fleet_query.js";
import { Tiles } from "./fleet_tiles.js";
import { PAGES } from "./index.js";

export const title = "Fleet";

/** Name of the group of all agents that are in no other one; it is the last. */
const NOTHING = "None";

/** Ways to group: name -> the groups of an agent. */
const GROUPS = {
  none: { label: "Nothing", of: () => [""] },
  region: { label: "Region", of: (agent) => [agent.location?.region || NOTHING] },
  type: { label: "Type", of: (agent) => [agent.agent_type] },
  capability: { label: "Capability", of: (agent) => (agent.capabilities.length ? agent.capabilities : [NOTHING]) },
};
const STATES = ["active", "busy", "draining", "maintenance", "error", "stale"];
const PRIORITIES = ["urgent", "critical", "high", "normal", "low"];
/** Milliseconds between two arrangements of the tiles, and between two updates of the numbers. */
const ARRANGE_MS = 400;
const NUMBERS_MS = 500;
/** Rows of the table that are shown first, and with each step. */
const ROWS = 200;
const PLACEMENTS = 12;
const CONTROLS = "a, input, select, label, aside, button:not(.tile)";
const NAMES = new Intl.Collator("en", { numeric: true });

const meter = (bar) => h("span", { class: "meter", "aria-hidden": "true" }, bar);

/** @type {FleetPage | null} */
let page = null;

export function mount(root, where) {
  page = new FleetPage(root, where);
}

export function unmount() {
  page?.end();
  page = null;
}

export function update(where) {
  page?.update(where);
}

class FleetPage {
  constructor(root, where) {
    this.query = where.query;
    this.test = () => true;
    this.panel = null;
    this.rows = ROWS;
    this.needsArrange = true;
    this.arrangedAt = 0;
    this.timer = 0;
    this.priorities = new Map(); // task -> priority, of tasks that wait
    this.placements = [];
    this.tiles = new Tiles((id) => this.open(id));
    this.flights = new Flights();
    this.build(root);
    this.ends = [
      store.subscribe((change) => this.changed(change)),
      feed.subscribe(["task.queued", "task.replayed", "task.assigned"], (batch) => this.follow(batch)),
    ];
    const timer = setInterval(() => this.drawNumbers(), NUMBERS_MS);
    this.ends.push(() => clearInterval(timer));
    setPageKeys([{ key: "Escape", label: "Close the agent", run: () => this.panel && this.close() }]);
    this.setFilter(this.query.get("q") ?? "");
    this.arrange();
    this.drawNumbers();
    this.update(where);
  }

  end() {
    for (const end of this.ends) end();
    clearTimeout(this.timer);
    this.flights.end();
    this.panel?.end();
  }

  build(root) {
    this.bar = queryBar({
      label: "Filter agents",
      placeholder: "Filter agents: a name, state:busy, region:eu*, load:>=0.8",
      value: this.query.get("q") ?? "",
      fields: () => fieldsOfFleet([...store.agents.values()]),
      submitted: (text) => this.setFilter(text),
      typed: (text) => this.setFilter(text),
    });
    this.group = h(
      "select",
      { onchange: () => (setQuery({ group: this.group.value === "none" ? null : this.group.value }), this.arrange()) },
      Object.entries(GROUPS).map(([name, { label }]) => h("option", { value: name }, label)),
    );
    this.group.value = this.query.get("group") in GROUPS ? this.query.get("group") : "none";
    this.views = ["tiles", "table"].map((name) =>
      h(
        "button",
        { type: "button", "data-view": name, onclick: () => this.setView(name) },
        name === "tiles" ? "Tiles" : "Table",
      ),
    );
    this.total = h("h1", null, "Fleet");
    this.states = h("div", { class: "states", role: "group", "aria-label": "Agents by state" });
    this.use = h("span");
    this.useMeter = h("i");
    this.rateText = h("span");
    const waiting = hrefOf("tasks", [], { q: "state:scheduled,queued" });
    this.waiting = h("a", { href: waiting, title: "Show them with their reasons" });
    this.lanes = new Map(
      PRIORITIES.map((name) => [
        name,
        { size: h("b", null, "–"), dots: h("span", { class: "dots", "aria-hidden": "true" }) },
      ]),
    );
    this.queues = h(
      "div",
      { class: "queues", role: "group", "aria-label": "Tasks that wait, by priority" },
      [...this.lanes].map(([name, lane]) => {
        lane.element = h("div", { class: "lane" }, h("span", { class: "muted" }, name), lane.size, lane.dots);
        return lane.element;
      }),
    );
    this.placed = h("ol");
    this.placedBox = h("section", { class: "placements" }, h("h2", null, "Just placed"), this.placed);
    this.body = h("div", { class: "fleet-body" });
    this.side = h("div", { class: "fleet-side" }, this.placedBox);
    this.root = h(
      "div",
      { class: "fleet" },
      h(
        "div",
        { class: "fleet-top" },
        h("div", { class: "fleet-title" }, this.total, this.states),
        h(
          "div",
          { class: "fleet-tools" },
          this.bar.element,
          h("label", { class: "inline-field" }, "Group by", this.group),
          h("div", { class: "segments", role: "group", "aria-label": "View" }, this.views),
        ),
      ),
      h(
        "div",
        { class: "flow panel" },
        h("div", null, h("h2", null, "Waiting"), this.waiting),
        this.queues,
        h("div", null, h("h2", null, "Throughput"), this.rateText),
        h("div", { class: "use" }, h("h2", null, "Slots in use"), this.use, meter(this.useMeter)),
      ),
      h("div", { class: "fleet-main" }, this.body, this.side),
      this.flights.element,
    );
    this.root.addEventListener("click", (event) => this.press(event), true);
    root.append(this.root);
  }

  // The place in the URL.

  update({ path, query }) {
    this.query = query;
    const group = query.get("group") in GROUPS ? query.get("group") : "none";
    if (group !== this.group.value || (query.get("q") ?? "") !== this.bar.value) {
      this.group.value = group;
      this.bar.value = query.get("q") ?? "";
      this.setFilter(this.bar.value);
    }
    this.showView();
    this.show(path[0] ?? null);
  }

  get view() {
    return this.query.get("view") === "table" ? "table" : "tiles";
  }

  setView(name) {
    setQuery({ view: name === "table" ? "table" : null });
    this.query = place().query;
    this.showView();
  }

  showView() {
    for (const button of this.views) button.setAttribute("aria-pressed", String(button.dataset.view === this.view));
    if (this.shownView !== this.view) this.arrange();
  }

  setFilter(text) {
    setQuery({ q: text || null });
    try {
      this.test = parseFleetQuery(text);
      this.bar.showError("");
    } catch (error) {
      this.bar.showError(error.message);
      return;
    }
    this.rows = ROWS;
    this.arrange();
  }

  open(id) {
    this.opener = id;
    go("fleet", [id], Object.fromEntries(place().query));
  }

  close() {
    const id = this.panel?.id;
    go("fleet", [], Object.fromEntries(place().query));
    this.show(null);
    const back =
      this.view === "tiles"
        ? this.tiles.elementOf(id)
        : this.body.querySelector(`[data-agent="${CSS.escape(id ?? "")}"]`);
    back?.focus();
  }

  show(id) {
    if ((this.panel?.id ?? null) === id) return;
    this.panel?.end();
    this.panel = id === null ? null : new AgentPanel(id, () => this.close());
    this.root.classList.toggle("has-panel", this.panel !== null);
    this.tiles.select(id);
    if (!this.panel) return;
    this.side.prepend(this.panel.element);
    if (this.opener === id) this.panel.title.focus({ preventScroll: innerWidth > 1000 });
    this.opener = null;
  }

  // Agents.

  changed({ ids, isReset }) {
    if (isReset) {
      this.needsArrange = true;
    } else {
      for (const id of ids) {
        const agent = store.agents.get(id);
        const isShown = this.shownIds?.has(id);
        if (Boolean(agent && this.test(agent)) !== Boolean(isShown)) this.needsArrange = true;
        else if (isShown) this.view === "tiles" ? this.tiles.update(agent) : this.updateRow(agent);
      }
    }
    if (!this.needsArrange || this.timer) return;
    const wait = Math.max(0, this.arrangedAt + ARRANGE_MS - performance.now());
    this.timer = setTimeout(() => this.arrange(), wait);
  }

  /** Find out which agents are shown, in which groups and order. */
  arrange() {
    clearTimeout(this.timer);
    this.timer = 0;
    this.needsArrange = false;
    this.arrangedAt = performance.now();
    this.shownView = this.view;
    const agents = [...store.agents.values()].filter(this.test);
    agents.sort((a, b) => NAMES.compare(a.agent_id, b.agent_id));
    this.shownIds = new Set(agents.map((agent) => agent.agent_id));
    this.side.hidden = !store.agents.size && !this.panel;
    this.queues.parentElement.hidden = !store.isLoaded;
    if (!store.isLoaded) {
      const text = store.error
        ? h("p", { role: "alert" }, store.error.message)
        : h("p", { role: "status" }, "Reading the agents …");
      fill(this.body, h("div", { class: "empty" }, text));
    } else if (!agents.length) {
      fill(this.body, this.emptyView());
    } else if (this.view === "tiles") {
      if (!this.tiles.element.isConnected) fill(this.body, this.tiles.element);
      this.tiles.show(this.groupsOf(agents));
      this.tiles.select(this.panel?.id);
    } else {
      this.drawTable(agents);
    }
    this.drawNumbers();
  }

  emptyView() {
    if (!store.agents.size) {
      return emptyState(
        "No agent is registered",
        [
          "An agent advertises what it can do, and gets tasks that need it. Start one, and it appears here. ",
          h("code", null, "coord demo"),
          " starts a few.",
        ],
        "coord agent hello --capability greet -- sh -c 'echo \"hello\"'",
      );
    }
    const clear = h(
      "button",
      { class: "secondary", type: "button", onclick: () => ((this.bar.value = ""), this.setFilter("")) },
      "Clear the filter",
    );
    return emptyState("No agent meets the filter", [`${count(store.agents.size, "agent")} do not. `, h("br"), clear]);
  }

  groupsOf(agents) {
    const { of } = GROUPS[this.group.value];
    const groups = new Map();
    for (const agent of agents) {
      for (const name of of(agent)) {
        if (!groups.has(name)) groups.set(name, { name, agents: [] });
        groups.get(name).agents.push(agent);
      }
    }
    return [...groups.values()].sort(
      (a, b) => (a.name === NOTHING) - (b.name === NOTHING) || NAMES.compare(a.name, b.name),
    );
  }

  // The table.

  drawTable(agents) {
    const shown = agents.slice(0, this.rows);
    this.cells = new Map();
    const columns = ["Agent", "State", "Tasks", "Health", "Type", "Region", "Capabilities"];
    const rows = shown.map((agent) => {
      const cells = { state: h("td"), load: h("td", { class: "number" }), health: h("td", { class: "number" }) };
      this.cells.set(agent.agent_id, cells);
      this.updateRow(agent);
      return h(
        "tr",
        null,
        h(
          "th",
          { scope: "row" },
          h(
            "a",
            {
              href: hrefOf("fleet", [agent.agent_id], Object.fromEntries(this.query)),
              "data-agent": agent.agent_id,
              onclick: () => (this.opener = agent.agent_id),
            },
            agent.agent_id,
          ),
        ),
        cells.state,
        cells.load,
        cells.health,
        h("td", null, agent.agent_type),
        h("td", null, agent.location?.region ?? ""),
        h("td", { class: "muted" }, agent.capabilities.join(", ")),
      );
    });
    const more = agents.length - shown.length;
    fill(
      this.body,
      h(
        "div",
        { class: "panel table", tabindex: "0", role: "region", "aria-label": "Agents", "data-name": "table" },
        h(
          "table",
          null,
          h("caption", { class: "hidden" }, "Agents"),
          h(
            "thead",
            null,
            h(
              "tr",
              null,
              columns.map((name) =>
                h("th", { scope: "col", class: name === "Tasks" || name === "Health" ? "number" : null }, name),
              ),
            ),
          ),
          h("tbody", null, rows),
        ),
      ),
      more > 0 &&
        h(
          "p",
          { class: "more" },
          h(
            "button",
            {
              class: "secondary",
              type: "button",
              "data-name": `more than ${shown.length}`, // the next ones take the focus from it
              onclick: () => ((this.rows += ROWS), this.arrange()),
            },
            `Show ${number(Math.min(ROWS, more))} of ${number(more)} more`,
          ),
        ),
    );
  }

  updateRow(agent) {
    const cells = this.cells?.get(agent.agent_id);
    if (!cells) return;
    if (cells.status !== agent.status) {
      cells.status = agent.status;
      fill(
        cells.state,
        h(
          "span",
          { class: "state", "data-status": agent.status },
          h("i", { class: "shape", "aria-hidden": "true" }),
          agent.status,
        ),
      );
    }
    setText(cells.load, `${number(agent.load)} / ${number(agent.capacity)}`);
    setText(cells.health, percent(agent.health_score));
  }

  // Numbers.

  drawNumbers() {
    if (!store.isLoaded) return;
    const counts = Object.fromEntries(STATES.map((name) => [name, 0]));
    let used = 0;
    let slots = 0;
    for (const agent of store.agents.values()) {
      counts[agent.status] = (counts[agent.status] ?? 0) + 1;
      if (agent.status === "stale" || agent.status === "inactive") continue;
      used += Math.min(agent.load, agent.capacity);
      slots += agent.capacity;
    }
    const shown = this.shownIds?.size ?? 0;
    const all = store.agents.size;
    setText(this.total, shown === all ? count(all, "agent") : `${number(shown)} of ${count(all, "agent")}`);
    const text = JSON.stringify(counts);
    if (text !== this.shownCounts) {
      this.shownCounts = text;
      fill(
        this.states,
        STATES.filter((name) => counts[name]).map((name) => this.stateButton(name, counts[name])),
      );
    }
    setText(this.use, `${number(used)} of ${number(slots)}${slots ? ` · ${percent(used / slots)}` : ""}`);
    this.useMeter.style.width = `${slots ? (used / slots) * 100 : 0}%`;
    setText(this.waiting, store.queues ? count(store.waiting, "task") : "–");
    setText(
      this.rateText,
      `${rate(store.rate("task.assigned"))} placed/s · ${rate(store.rate("task.completed"))} completed/s`,
    );
    for (const [name, lane] of this.lanes) {
      const size = store.queues?.[name] ?? 0;
      setText(lane.size, store.queues ? short(size) : "–");
      lane.element.classList.toggle("is-empty", size === 0);
      // One dot for each doubling: a long queue is seen, and a short one is not lost.
      lane.dots.style.setProperty("--dots", String(size ? Math.min(14, Math.floor(Math.log2(size)) + 1) : 0));
    }
    this.tiles.drawGroups();
    this.drawPlacements();
  }

  stateButton(name, total) {
    const wanted = `state:${name}`;
    return h(
      "button",
      {
        type: "button",
        class: "chip state",
        "data-status": name,
        "data-name": name,
        title: `Show only agents in this state: ${wanted}`,
        onclick: () => {
          this.bar.value = this.bar.value === wanted ? "" : wanted;
          this.setFilter(this.bar.value);
        },
      },
      h("i", { class: "shape", "aria-hidden": "true" }),
      `${number(total)} ${name}`,
    );
  }

  // Flights.

  follow(batch) {
    for (const { type, data } of batch) {
      if (type !== "task.assigned") {
        this.priorities.set(data.task_id, data.priority);
        if (this.priorities.size > 20_000) this.priorities.delete(this.priorities.keys().next().value);
        continue;
      }
      const lane = this.lanes.get(this.priorities.get(data.task_id) ?? "normal") ?? this.lanes.get("normal");
      this.priorities.delete(data.task_id);
      this.placements.push({ task: data.task_id, agent: data.agent_id });
      if (this.view === "tiles" && feed.state === "live")
        this.flights.add(data.task_id, lane.element, this.tiles.elementOf(data.agent_id));
    }
    this.placements = this.placements.slice(-PLACEMENTS);
  }

  drawPlacements() {
    const text = JSON.stringify(this.placements);
    if (text === this.shownPlacements || this.placed.matches(":hover")) return;
    this.shownPlacements = text;
    this.placedBox.hidden = !this.placements.length;
    fill(
      this.placed,
      this.placements
        .toReversed()
        .map(({ task, agent }) =>
          h(
            "li",
            null,
            link(idText(task), "task", [task]),
            icon("arrow"),
            h("a", { href: hrefOf("fleet", [agent], Object.fromEntries(this.query)) }, agent),
          ),
        ),
    );
  }

  /** A press on a flight opens its task, unless it is over a control; a tile is large enough for both. */
  press(event) {
    if (event.target.closest(CONTROLS)) return;
    const task = this.flights.at(event.clientX, event.clientY);
    if (task === null || !PAGES.some(({ name }) => name === "task")) return;
    event.preventDefault();
    event.stopPropagation();
    go("task", [task]);
  }
}
