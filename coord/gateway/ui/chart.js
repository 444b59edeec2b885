/**
 * Charts over time, on a canvas, in the colours of the theme.
 *
 * The legend is text: it has the values of the time under the pointer, or chosen with the arrow keys, with that time;
 * else the last values.
 */

import { h, setText } from "./dom.js";

/** Pixels around the plot: for the values at the left, and the times below. */
const [LEFT, RIGHT, TOP, BOTTOM] = [46, 8, 8, 20];
/** Pixels between two labels at least. */
const [BETWEEN_TIMES, BETWEEN_VALUES] = [78, 30];
/** Seconds between two labels of times. */
const STEPS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1_800, 3_600, 7_200, 14_400, 43_200, 86_400];
const FONT = "11px Inter, system-ui, sans-serif";

const clock = (second) => new Date(second * 1_000).toLocaleTimeString("en-GB");

/** Return the value of a colour of the theme: `color("accent")` is `--accent`. */
export const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

/** Return a step of 1, 2 or 5 times a power of 10 that is at least so large. */
function stepOf(least) {
  const power = 10 ** Math.floor(Math.log10(least));
  return [1, 2, 5, 10].map((factor) => factor * power).find((step) => step >= least);
}

/**
 * Add a chart over time to an element. Its width follows the element.
 *
 * @param {HTMLElement} parent
 * @param {Object} options
 * @param {string} options.label for screen readers: what it shows.
 * @param {number} [options.height] in pixels.
 * @param {Array<{label: string, color: string, fill?: boolean, dash?: number[]}>} options.series `color` is the name of
 *   a colour of the theme; give each a dash or a label too, so that colour is not the only difference.
 * @param {(value: number) => string} [options.format] of the values.
 * @param {string} [options.empty] what to say without any value.
 * @param {Array<Array<number | null>>} options.data first the seconds since 1970, then the values of each series.
 * @returns {Promise<{set: (data: Array<Array<number | null>>) => void, destroy: () => void}>}
 */
export async function chart(parent, { label, height = 140, series, format = String, empty = "", data }) {
  const canvas = h("canvas", { role: "img", "aria-label": label, tabindex: "0" });
  const when = h("span", { class: "when" });
  const values = series.map(() => h("b"));
  const names = series.map((one, at) =>
    h("span", { style: `--series: var(--${one.color})` }, h("i", { class: one.dash && "dash" }), one.label, values[at]),
  );
  const root = h("div", { class: "chart" }, canvas, h("div", { class: "legend" }, names, when));
  const context = canvas.getContext("2d");
  let width = 0;
  let chosen = null; // index of the time that the keys chose
  let pointer = null; // pixels from the left
  parent.append(root);

  /** Return where a time and a value are. */
  function scales() {
    const times = data[0];
    const first = times[0] ?? 0;
    const span = (times.at(-1) ?? 1) - first || 1;
    const most = Math.max(1, ...data.slice(1).flat());
    const step = stepOf((most * BETWEEN_VALUES) / (height - TOP - BOTTOM));
    const top = Math.ceil((most * 1.05) / step) * step;
    const x = (second) => LEFT + ((second - first) / span) * (width - LEFT - RIGHT);
    const y = (value) => height - BOTTOM - (value / top) * (height - TOP - BOTTOM);
    return { x, y, first, span, step, top };
  }

  function drawAxes({ x, y, first, span, step, top }, isEmpty) {
    context.strokeStyle = color("line");
    context.fillStyle = color("muted");
    context.textAlign = "right";
    for (let value = 0; value <= (isEmpty ? 0 : top); value += step) {
      context.beginPath();
      context.moveTo(LEFT, Math.round(y(value)) + 0.5);
      context.lineTo(width - RIGHT, Math.round(y(value)) + 0.5);
      context.stroke();
      context.fillText(format(value), LEFT - 8, y(value) + 4);
    }
    context.textAlign = "center";
    if (isEmpty) context.fillText(empty, LEFT + (width - LEFT - RIGHT) / 2, height / 2);
    const least = (span * BETWEEN_TIMES) / (width - LEFT - RIGHT);
    const every = STEPS.find((seconds) => seconds >= least) ?? least;
    for (let second = Math.ceil(first / every) * every; second <= first + span; second += every) {
      context.fillText(clock(second), Math.min(Math.max(x(second), LEFT), width - RIGHT - 24), height - 4);
    }
  }

  function drawSeries({ x, y }, { color: name, fill, dash = [] }, list) {
    context.strokeStyle = context.fillStyle = color(name);
    context.setLineDash(dash);
    context.lineWidth = 1.5;
    let from = 0;
    for (let at = 0; at <= list.length; at++) {
      if (at < list.length && list[at] !== null) continue;
      if (at > from) {
        context.beginPath();
        for (let i = from; i < at; i++) context.lineTo(x(data[0][i]), y(list[i]));
        context.stroke();
        context.lineTo(x(data[0][at - 1]), y(0));
        context.lineTo(x(data[0][from]), y(0));
        context.globalAlpha = fill ? 0.14 : 0;
        context.fill();
        context.globalAlpha = 1;
      }
      from = at + 1;
    }
    context.setLineDash([]);
  }

  function draw() {
    const all = scales();
    const scale = devicePixelRatio || 1;
    if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
      canvas.width = width * scale;
      canvas.height = height * scale;
      canvas.style.height = `${height}px`;
    }
    context.setTransform(scale, 0, 0, scale, 0, 0);
    context.clearRect(0, 0, width, height);
    context.font = FONT;
    context.lineWidth = 1;
    const isEmpty = !data.slice(1).some((values) => values.some((value) => value !== null));
    drawAxes(all, isEmpty);
    series.forEach((one, at) => drawSeries(all, one, data[at + 1]));
    const at = shown(all);
    if ((chosen ?? pointer) !== null && at >= 0) {
      context.fillStyle = color("muted");
      context.fillRect(Math.round(all.x(data[0][at])), TOP, 1, height - TOP - BOTTOM);
    }
    setText(when, (chosen ?? pointer) === null || at < 0 ? "" : clock(data[0][at]));
    values.forEach((element, i) => setText(element, textOf(data[i + 1][at])));
  }

  /** Return the index of the time that the legend shows: the chosen one, that under the pointer, or the last. */
  function shown({ x }) {
    const last = data[0].length - 1;
    if (chosen !== null) return Math.min(chosen, last);
    if (pointer === null) return last;
    const distances = data[0].map((second) => Math.abs(x(second) - pointer));
    return distances.indexOf(Math.min(...distances));
  }

  function textOf(value) {
    return value === null || value === undefined ? "–" : format(value);
  }

  function choose(index, offset = null) {
    chosen = index === null ? null : Math.max(0, Math.min(index, data[0].length - 1));
    pointer = offset;
    if (width) draw();
  }

  canvas.addEventListener("pointermove", ({ offsetX }) => choose(null, offsetX));
  canvas.addEventListener("pointerleave", () => choose(null));
  canvas.addEventListener("blur", () => choose(null));
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step || !width) return;
    event.preventDefault();
    choose(shown(scales()) + step);
  });
  const resized = new ResizeObserver(() => {
    width = Math.max(120, root.clientWidth);
    draw();
  });
  resized.observe(root);
  addEventListener("themechange", draw);
  return {
    set(next) {
      data = next;
      if (width) draw();
    },
    destroy() {
      removeEventListener("themechange", draw);
      resized.disconnect();
      root.remove();
    },
  };
}
