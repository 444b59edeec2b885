/** Charts over time, with uPlot in the colours of the theme. The library is loaded with the first chart. */

import { h } from "./dom.js";

const LIBRARY = new URL("vendor/uplot.js", import.meta.url);
const STYLE = new URL("vendor/uplot.css", import.meta.url);
let loading = null;

function load() {
  loading ??= new Promise((resolve, reject) => {
    document.head.append(h("link", { rel: "stylesheet", href: STYLE }));
    const script = h("script", { src: LIBRARY });
    script.addEventListener("load", () => resolve(globalThis.uPlot));
    script.addEventListener("error", () => reject(new Error("the chart library did not load")));
    document.head.append(script);
  });
  return loading;
}

const clock = (second) => new Date(second * 1_000).toLocaleTimeString("en-GB");

/** Return the value of a colour of the theme: `color("accent")` is `--accent`. */
export const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

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
 * @param {Array<Array<number | null>>} options.data first the seconds since 1970, then the values of each series.
 * @returns {Promise<{set: (data: Array<Array<number | null>>) => void, destroy: () => void}>}
 */
export async function chart(parent, { label, height = 140, series, format = String, data }) {
  const UPlot = await load();
  const root = h("div", { class: "chart", role: "img", "aria-label": label });
  parent.append(root);
  let latest = data;
  let plot = null;

  function build() {
    plot?.destroy();
    const axis = {
      stroke: color("muted"),
      grid: { stroke: color("line"), width: 1 },
      ticks: { show: false },
      font: "11px Inter, system-ui, sans-serif",
    };
    plot = new UPlot(
      {
        width: Math.max(120, root.clientWidth),
        height,
        cursor: { y: false, points: { size: 6 } },
        legend: { live: true },
        scales: { x: { time: true }, y: { range: (_plot, _min, max) => [0, Math.max(1, max * 1.1)] } },
        axes: [
          { ...axis, space: 74, size: 28, values: (_plot, values) => values.map(clock) },
          { ...axis, size: 46, values: (_plot, values) => values.map(format) },
        ],
        series: [
          { value: (_plot, at) => (at === null ? "" : clock(at)) },
          ...series.map((one) => ({
            label: one.label,
            stroke: color(one.color),
            fill: one.fill ? `color-mix(in srgb, ${color(one.color)} 16%, transparent)` : undefined,
            dash: one.dash,
            width: 1.5,
            points: { show: false },
            value: (_plot, value) => (value === null || value === undefined ? "–" : format(value)),
          })),
        ],
      },
      latest,
      root,
    );
    showLast();
  }

  /** Show the last values in the legend while no pointer names others. */
  function showLast() {
    if (!(plot.cursor.left >= 0)) plot.setLegend({ idx: latest[0].length - 1 }, false);
  }

  build();
  const resized = new ResizeObserver(() => plot.setSize({ width: Math.max(120, root.clientWidth), height }));
  resized.observe(root);
  addEventListener("themechange", build);
  return {
    set(next) {
      latest = next;
      plot.setData(next);
      showLast();
    },
    destroy() {
      removeEventListener("themechange", build);
      resized.disconnect();
      plot.destroy();
      root.remove();
    },
  };
}
