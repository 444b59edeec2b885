/**
 * The flights: each placed task moves from its queue to the tile of its agent, on a canvas above the page.
 *
 * A press on a flight opens its task. Who prefers reduced motion sees none; the list of placements has the same tasks.
 */

import { h } from "../dom.js";
import { color } from "../chart.js";

const FLIGHT_MS = 900;
const LANDING_MS = 350;
/** Most flights at a time; further ones are not drawn. */
const MOST = 160;
/** Pixels around a flight in which a press counts. */
const REACH = 16;

export class Flights {
  constructor() {
    this.element = h("canvas", { class: "flights", "aria-hidden": "true" });
    this.context = this.element.getContext("2d");
    this.flights = [];
    this.frame = 0;
    this.reduced = matchMedia("(prefers-reduced-motion: reduce)");
    this.resize = () => {
      const scale = devicePixelRatio || 1;
      this.element.width = innerWidth * scale;
      this.element.height = innerHeight * scale;
      this.context.setTransform(scale, 0, 0, scale, 0, 0);
    };
    this.paint = () => {
      this.color = color("accent");
    };
    this.resize();
    this.paint();
    addEventListener("resize", this.resize);
    addEventListener("themechange", this.paint);
  }

  /**
   * Let a task fly.
   *
   * @param {string} task its id.
   * @param {Element | null} from where it waited.
   * @param {Element | null} to the tile of its agent; null: it is not shown.
   */
  add(task, from, to) {
    if (!from || !to || this.reduced.matches || document.hidden || this.flights.length >= MOST) return;
    this.flights.push({ task, from, to, began: performance.now() + Math.random() * 120, path: null });
    this.frame ||= requestAnimationFrame((now) => this.draw(now));
  }

  /** Return the task of the flight at a point of the window; null: there is none. */
  at(x, y) {
    let found = null;
    let least = REACH;
    for (const { task, spot } of this.flights) {
      const distance = spot ? Math.hypot(spot[0] - x, spot[1] - y) : Infinity;
      if (distance < least) [found, least] = [task, distance];
    }
    return found;
  }

  draw(now) {
    const { context } = this;
    context.clearRect(0, 0, innerWidth, innerHeight);
    // All places are read before anything is drawn: a read after a write costs a layout.
    for (const flight of this.flights) flight.path ??= pathOf(flight);
    this.flights = this.flights.filter((flight) => flight.path && now - flight.began < FLIGHT_MS + LANDING_MS);
    for (const flight of this.flights) this.drawFlight(flight, now - flight.began);
    this.frame = this.flights.length ? requestAnimationFrame((next) => this.draw(next)) : 0;
  }

  drawFlight(flight, age) {
    if (age < 0) return;
    const { context } = this;
    const { path } = flight;
    const dy = scrollY - path.scroll;
    context.strokeStyle = this.color;
    context.fillStyle = this.color;
    if (age >= FLIGHT_MS) {
      const share = (age - FLIGHT_MS) / LANDING_MS;
      const [x, y] = path.end;
      flight.spot = [x, y - dy];
      context.globalAlpha = 1 - share;
      context.lineWidth = 2;
      context.beginPath();
      context.arc(x, y - dy, 5 + 12 * share, 0, 2 * Math.PI);
      context.stroke();
    } else {
      const share = ease(age / FLIGHT_MS);
      const steps = 7;
      let [lastX, lastY] = point(path, Math.max(0, share - 0.16));
      for (let step = 1; step <= steps; step++) {
        const [x, y] = point(path, Math.max(0, share - 0.16 * (1 - step / steps)));
        context.globalAlpha = (step / steps) * 0.55;
        context.lineWidth = 1 + (2 * step) / steps;
        context.beginPath();
        context.moveTo(lastX, lastY - dy);
        context.lineTo(x, y - dy);
        context.stroke();
        [lastX, lastY] = [x, y];
      }
      flight.spot = [lastX, lastY - dy];
      context.globalAlpha = 1;
      context.beginPath();
      context.arc(lastX, lastY - dy, 3.5, 0, 2 * Math.PI);
      context.fill();
    }
    context.globalAlpha = 1;
  }

  end() {
    cancelAnimationFrame(this.frame);
    this.flights = [];
    removeEventListener("resize", this.resize);
    removeEventListener("themechange", this.paint);
  }
}

/** Return the curve of a flight; null: one of its ends is not on the page any more. */
function pathOf({ from, to }) {
  if (!from.isConnected || !to.isConnected) return null;
  const [start, end] = [middle(from), middle(to)];
  const bend = Math.min(180, 30 + Math.abs(end[0] - start[0]) * 0.12);
  return { start, end, control: [(start[0] * 2 + end[0]) / 3, (start[1] + end[1]) / 2 - bend], scroll: scrollY };
}

function middle(element) {
  const { left, top, width, height } = element.getBoundingClientRect();
  return [left + width / 2, top + height / 2];
}

function point({ start, control, end }, t) {
  const [a, b, c] = [(1 - t) ** 2, 2 * t * (1 - t), t ** 2];
  return [a * start[0] + b * control[0] + c * end[0], a * start[1] + b * control[1] + c * end[1]];
}

const ease = (t) => (t < 0.5 ? 2 * t * t : 1 - (2 - 2 * t) ** 2 / 2);
