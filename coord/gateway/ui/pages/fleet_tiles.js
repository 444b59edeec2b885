/**
 * The tiles of the fleet: one button for each agent, in groups. Their size follows their number.
 *
 * The tiles are one stop of the Tab key; arrows, Home and End move between them. New tiles are added in slices, so that
 * a large fleet does not block the page, and a changed agent costs only the writes of what differs.
 */

import { h, setText } from "../dom.js";
import { number, percent } from "../format.js";
import { store } from "../store.js";
import { loadOf } from "./fleet_query.js";

/** @typedef {import("../store.js").Agent} Agent */
/** @typedef {{name: string, agents: Agent[]}} Group */

/** Most tiles of each size. */
const SIZES = [
  [36, "large"],
  [220, "medium"],
  [Infinity, "small"],
];
/** Tiles that are added in one frame. */
const SLICE = 150;
/** Health below this is marked on the tile. */
const UNWELL = 0.7;

/** Return what a screen reader says of an agent. */
export function labelOf(agent) {
  const parts = [agent.status, `${agent.load} of ${agent.capacity} tasks`, `health ${percent(agent.health_score)}`];
  if (agent.deaf) parts.push("does not read its inbox");
  return `${agent.agent_id}: ${parts.join(", ")}`;
}

class Tile {
  constructor(agent, size) {
    this.id = agent.agent_id;
    this.element = h("button", { type: "button", tabIndex: -1, "data-agent": this.id });
    this.update(agent, size);
  }

  /** Show an agent; write only what differs. */
  update(agent, size) {
    const { element } = this;
    const state = agent.deaf && agent.status === "active" ? "deaf" : agent.status;
    if (size !== this.size || state !== this.state) {
      this.size = size;
      this.state = state;
      element.className = `tile ${size}`;
      element.dataset.status = agent.status;
      this.meta = null;
      const shape = h("i", { class: "shape", "aria-hidden": "true" });
      if (size === "small") {
        element.replaceChildren(...(agent.status === "active" ? [] : [shape]));
      } else {
        this.meta = h("span", { class: "meta" });
        element.replaceChildren(h("span", { class: "name" }, shape, h("b", null, agent.agent_id)), this.meta);
      }
    }
    const fill = Math.round(loadOf(agent) * 100);
    if (fill !== this.fill) element.style.setProperty("--fill", `${(this.fill = fill)}%`);
    const isUnwell = agent.health_score < UNWELL || agent.deaf;
    if (isUnwell !== this.isUnwell) element.classList.toggle("unwell", (this.isUnwell = isUnwell));
    const label = labelOf(agent);
    if (label !== this.label) element.setAttribute("aria-label", (this.label = label));
    if (this.meta) {
      const text =
        size === "large"
          ? `${number(agent.load)} / ${number(agent.capacity)}`
          : `${number(agent.load)}/${number(agent.capacity)}`;
      setText(this.meta, text);
    }
  }
}

export class Tiles {
  /**
   * @param {(id: string) => void} open called when a tile is pressed.
   */
  constructor(open) {
    this.element = h("div", { class: "tiles" });
    this.tip = h("div", { class: "tip", "aria-hidden": "true", hidden: true });
    this.element.append(this.tip);
    this.sections = new Map(); // name of a group -> its elements and tiles
    this.tiles = new Map(); // agent -> its tiles; several if it is in several groups
    this.size = "large";
    this.turn = 0;
    this.element.addEventListener("click", (event) => {
      const tile = event.target.closest(".tile");
      if (tile) open(tile.dataset.agent);
    });
    this.element.addEventListener("keydown", (event) => this.move(event));
    this.element.addEventListener("focusin", ({ target }) => target.matches(".tile") && this.enter(target));
    this.element.addEventListener("focusout", () => (this.tip.hidden = true));
    this.element.addEventListener("pointerover", ({ target, pointerType }) => {
      const tile = pointerType === "mouse" && target.closest(".tile");
      if (tile) this.showTip(tile);
      else this.tip.hidden = true;
    });
    this.element.addEventListener("pointerleave", () => (this.tip.hidden = true));
  }

  /**
   * Show groups of agents.
   *
   * @param {Group[]} groups
   */
  show(groups) {
    const total = groups.reduce((sum, { agents }) => sum + agents.length, 0);
    this.size = SIZES.find(([most]) => total <= most)[1];
    const turn = ++this.turn;
    const left = new Map(this.sections);
    const tiles = new Map();
    const missing = [];
    let before = null;
    for (const group of groups) {
      const section = this.sections.get(group.name) ?? this.addSection(group.name);
      left.delete(group.name);
      if (before ? before.nextSibling !== section.element : this.element.firstChild !== section.element) {
        if (before) before.after(section.element);
        else this.element.prepend(section.element);
      }
      before = section.element;
      missing.push(...this.arrange(section, group.agents, tiles));
    }
    for (const [name, { element }] of left) {
      element.remove();
      this.sections.delete(name);
    }
    this.tiles = tiles;
    this.add(missing, turn);
    this.keepStop();
  }

  addSection(name) {
    const title = h("h2", null);
    const count = h("span", { class: "muted" });
    const meter = h("span", { class: "meter", "aria-hidden": "true" }, h("i"));
    const grid = h("div", { class: "grid", role: "group" });
    const element = h("section", { class: "group" }, h("header", null, title, count, meter), grid);
    const section = {
      element,
      grid,
      own: new Map(), // agent -> tile
      draw() {
        let [used, all] = [0, 0];
        for (const id of section.own.keys()) {
          const agent = store.agents.get(id);
          if (!agent) continue;
          used += Math.min(agent.load, agent.capacity);
          all += agent.capacity;
        }
        setText(count, `${number(section.own.size)} · ${number(used)} of ${number(all)} slots`);
        meter.firstChild.style.width = `${all ? Math.round((used / all) * 100) : 0}%`;
      },
    };
    element.classList.toggle("unnamed", name === "");
    setText(title, name || "Agents");
    grid.setAttribute("aria-label", name || "Agents");
    this.sections.set(name, section);
    return section;
  }

  /** Keep the tiles of a section that stay, in their order; return what is to be added: section, agent, tile before. */
  arrange(section, agents, tiles) {
    const wanted = new Set(agents.map((agent) => agent.agent_id));
    for (const [id, tile] of section.own) {
      if (wanted.has(id)) continue;
      tile.element.remove();
      section.own.delete(id);
    }
    const missing = [];
    for (const agent of agents) {
      const tile = section.own.get(agent.agent_id);
      if (tile) {
        tile.update(agent, this.size);
        push(tiles, agent.agent_id, tile);
      }
      missing.push({ section, agent, tile });
    }
    return missing.some(({ tile }) => !tile) ? missing : [];
  }

  /** Add tiles slice by slice; those that exist are only passed. */
  add(list, turn) {
    if (turn !== this.turn) return;
    let added = 0;
    let at = 0;
    for (; at < list.length && added < SLICE; at++) {
      const { section, agent } = list[at];
      let tile = list[at].tile ?? section.own.get(agent.agent_id);
      if (!tile) {
        tile = new Tile(agent, this.size);
        section.own.set(agent.agent_id, tile);
        push(this.tiles, agent.agent_id, tile);
        added++;
      }
      const last = section.last === undefined || section.turn !== turn ? null : section.last;
      const place = last ? last.nextSibling : section.grid.firstChild;
      if (place !== tile.element) section.grid.insertBefore(tile.element, place);
      section.last = tile.element;
      section.turn = turn;
    }
    this.keepStop();
    if (at < list.length) requestAnimationFrame(() => this.add(list.slice(at), turn));
  }

  /** Show the numbers of the groups. */
  drawGroups() {
    for (const section of this.sections.values()) section.draw();
  }

  /** Show an agent that has changed. */
  update(agent) {
    for (const tile of this.tiles.get(agent.agent_id) ?? []) tile.update(agent, this.size);
  }

  /** Return the element of an agent; null: it is not shown. */
  elementOf(id) {
    return this.tiles.get(id)?.[0].element ?? null;
  }

  /** Mark the tile whose agent is open. */
  select(id) {
    for (const tile of this.element.querySelectorAll('.tile[aria-pressed="true"]'))
      tile.removeAttribute("aria-pressed");
    if (id) for (const { element } of this.tiles.get(id) ?? []) element.setAttribute("aria-pressed", "true");
  }

  // Keyboard.

  /** One tile is in the order of the Tab key. */
  keepStop() {
    if (this.stop?.isConnected) return;
    this.stop = this.element.querySelector(".tile");
    if (this.stop) this.stop.tabIndex = 0;
  }

  enter(tile) {
    if (this.stop) this.stop.tabIndex = -1;
    this.stop = tile;
    tile.tabIndex = 0;
    if (tile.matches(":focus-visible")) this.showTip(tile);
  }

  move(event) {
    if (!event.target.matches(".tile")) return;
    const all = [...this.element.querySelectorAll(".tile")];
    const at = all.indexOf(event.target);
    const next = {
      ArrowRight: () => all[at + 1],
      ArrowLeft: () => all[at - 1],
      ArrowDown: () => neighbour(all, at, 1),
      ArrowUp: () => neighbour(all, at, -1),
      Home: () => all[0],
      End: () => all.at(-1),
    }[event.key]?.();
    if (next === undefined) return;
    event.preventDefault();
    next.focus();
    next.scrollIntoView({ block: "nearest" });
  }

  showTip(tile) {
    const small = tile.classList.contains("small");
    this.tip.hidden = !small;
    if (!small) return;
    setText(this.tip, tile.getAttribute("aria-label"));
    const box = this.element.getBoundingClientRect();
    const { left, top, width } = tile.getBoundingClientRect();
    const half = this.tip.offsetWidth / 2;
    const middle = Math.min(Math.max(left + width / 2 - box.left, half), Math.max(half, box.width - half));
    this.tip.style.transform = `translate(${middle - half}px, ${top - box.top - this.tip.offsetHeight - 7}px)`;
  }
}

/** Return the tile in the next or the previous row that is nearest in its column. */
function neighbour(all, at, step) {
  const { left, top } = all[at].getBoundingClientRect();
  let row = null;
  let found;
  let distance = Infinity;
  for (let i = at + step; i >= 0 && i < all.length; i += step) {
    const box = all[i].getBoundingClientRect();
    if (box.top === top) continue;
    row ??= box.top;
    if (box.top !== row) break;
    if (Math.abs(box.left - left) < distance) [found, distance] = [all[i], Math.abs(box.left - left)];
  }
  return found;
}

function push(map, key, value) {
  const list = map.get(key);
  if (!list) map.set(key, [value]);
  else if (!list.includes(value)) list.push(value);
}
