// Small charts, drawn by uPlot, in the page's colours. Each has its figures in words beside it:
// a canvas tells a screen reader nothing.

import uPlot from "./vendor/uplot/uPlot.esm.js";
import { h } from "./dom.js";
import { clock, date, tick } from "./format.js";

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const drawn = new Set();
const [HOUR_S, DAY_S] = [3_600, 86_400];

/** Colours have changed: draw again. */
export function recolour() {
  for (const chart of drawn) chart.rebuild();
}

class Chart {
  constructor(label, height, options, data) {
    Object.assign(this, { height, options, data, plot: null });
    this.element = h("div.chart", { role: "img", "aria-label": label, style: { height: `${height}px` } });
    this.sizes = new ResizeObserver(() => this.fit());
    this.sizes.observe(this.element);
    drawn.add(this);
  }

  fit() {
    const width = Math.floor(this.element.clientWidth);
    if (!this.element.isConnected || width < 20) return;
    if (!this.plot) this.plot = new uPlot({ ...this.options(), width, height: this.height }, this.data, this.element);
    else if (this.plot.width !== width) this.plot.setSize({ width, height: this.height });
  }

  set(data) {
    this.data = data;
    this.plot?.setData(data);
  }

  rebuild() {
    this.plot?.destroy();
    this.plot = null;
    this.fit();
  }

  end() {
    this.sizes.disconnect();
    drawn.delete(this);
    this.plot?.destroy();
  }
}

const font = () => `11px ${colour("font") || "system-ui"}`;
const axis = (more = {}) => ({
  stroke: colour("ink-3"), font: font(), grid: { stroke: colour("line"), width: 1 }, ticks: { show: false },
  gap: 4, ...more,
});
/** Days as month and day, shorter ranges by the clock. */
const times = (_, ticks) => ticks.map((time) => (ticks.at(-1) - ticks[0] > 2 * DAY_S ? date(time * 1000).slice(5) : clock(time * 1000).slice(0, 5)));
/** Moments close together, or a single one, have room on both sides: `least` seconds. uPlot itself gives a single one years. */
const roomy = (least) => ({ data: [xs] }) => {
  if (!xs.length) return [0, least];
  const room = Math.max(0, least - (xs.at(-1) - xs[0])) / 2;
  return [xs[0] - room, xs.at(-1) + room];
};
const utc = (time) => uPlot.tzDate(new Date(time * 1000), "Etc/UTC");
const bare = {
  legend: { show: false }, padding: [6, 22, 0, 2],
  cursor: { drag: { x: false, y: false }, points: { size: 5 } },
};

/** A line over wall-clock seconds, without axes: where it is and where it came from. */
export function spark(label, { name = "accent", height = 44, least = 0 } = {}) {
  return new Chart(label, height, () => ({
    ...bare, cursor: { show: false }, padding: [3, 0, 1, 0],
    scales: { x: { time: false }, y: { range: (_, low, high) => [Math.min(0, low ?? 0), Math.max(least, (high ?? 0) * 1.08) || 1] } },
    axes: [{ show: false }, { show: false }],
    series: [{}, { stroke: colour(name), width: 1.5, fill: colour(`${name}-wash`), points: { show: false } }],
  }), [[], []]);
}

/** Lines over event time. `lines`: [{label, name, band?: [low, high index], dash?, points?}]; x in seconds. */
export function lines(label, data, told, { height = 180, top = null, isTime = true, at = tick } = {}) {
  return new Chart(label, height, () => ({
    ...bare, tzDate: utc,
    scales: { x: isTime ? { time: true, range: roomy(2 * DAY_S + 1) } : { time: false }, y: { range: (_, low, high) => [Math.min(0, low ?? 0), top ?? ((high ?? 0) * 1.08 || 1)] } },
    axes: [axis({ size: 24, values: isTime ? times : undefined }), axis({ size: 40, values: (_, ticks) => ticks.map(at) })],
    series: [{}, ...told.map((line) => ({
      label: line.label, stroke: line.name ? colour(line.name) : "transparent", width: line.width ?? 1.5,
      dash: line.dash, paths: line.paths === null ? () => null : undefined, spanGaps: line.spanGaps ?? false,
      points: { show: line.points ?? false, size: 5, fill: colour(line.name ?? "ink-3"), stroke: colour(line.name ?? "ink-3") },
    }))],
    bands: told.flatMap((line, i) => (line.band ? [{ series: [i + 1, i + 1 + line.band], fill: colour(line.wash ?? "accent-wash"), dir: -1 }] : [])),
  }), data);
}

/** Two histograms over the same edges, before and after, as shares. */
export function histogram(label, edges, before, after, { height = 120 } = {}) {
  const middles = edges.slice(0, -1).map((edge, i) => (edge + edges[i + 1]) / 2);
  const steps = (name, wash) => ({
    stroke: colour(name), fill: wash && colour(wash), width: 1.5, points: { show: false }, paths: uPlot.paths.stepped({ align: 0 }),
  });
  return new Chart(label, height, () => ({
    ...bare,
    scales: { x: { time: false }, y: { range: (_, low, high) => [0, (high ?? 1) * 1.1 || 1] } },
    axes: [axis({ size: 22, values: (_, ticks) => ticks.map(tick) }), { show: false }],
    series: [{}, steps("ink-3", "grey-wash"), steps("accent", "accent-wash")],
  }), [middles, shares(before), shares(after)]);
}

const shares = (counts) => {
  const total = counts.reduce((sum, n) => sum + n, 0) || 1;
  return counts.map((n) => n / total);
};

/** Amounts over time as dots, frauds in red, the one that is asked about ringed. */
export function history(label, rows, { height = 84, marked = null } = {}) {
  const told = [...rows].sort((a, b) => a.time_ms - b.time_ms);
  const of = (wanted) => told.map((row) => (wanted(row) ? row.amount : null));
  const dots = (name, size) => ({
    stroke: "transparent", paths: () => null, points: { show: true, size, fill: colour(name), stroke: colour(name) },
  });
  return new Chart(label, height, () => ({
    ...bare, tzDate: utc, padding: [8, 22, 0, 0],
    scales: { x: { time: true, range: roomy(HOUR_S) }, y: { range: (_, low, high) => [0, (high ?? 1) * 1.15 || 1] } },
    axes: [axis({ size: 20, values: times, space: 60 }), axis({ size: 38, values: (_, ticks) => ticks.map(tick) })],
    series: [{}, dots("ink-3", 4), dots("fraud", 6), { ...dots("accent", 9), points: { show: true, size: 10, width: 2, fill: "transparent", stroke: colour("accent") } }],
  }), [told.map((row) => row.time_ms / 1000), of((row) => row.is_fraud !== true), of((row) => row.is_fraud === true),
    of((row) => marked !== null && row.time_ms === marked.time_ms && row.amount === marked.amount)]);
}

/** Share of frauds against score, with the line on which honest scores lie; x in [0, 1]. */
export function reliability(label, data, { height = 200 } = {}) {
  const mark = { paths: () => null, points: { show: true, size: 7, fill: colour("accent"), stroke: colour("accent") } };
  return new Chart(label, height, () => ({
    ...bare,
    scales: { x: { time: false, range: [0, 1] }, y: { range: [0, 1] } },
    axes: [axis({ size: 24, values: (_, ticks) => ticks.map(tick) }), axis({ size: 40, values: (_, ticks) => ticks.map(tick) })],
    series: [{}, { stroke: colour("ink-3"), dash: [4, 4], width: 1, points: { show: false }, spanGaps: true },
      { stroke: "transparent", points: { show: false }, spanGaps: true }, { stroke: "transparent", points: { show: false }, spanGaps: true },
      { stroke: colour("accent"), width: 1.5, ...mark, paths: undefined, spanGaps: true }],
    bands: [{ series: [2, 3], fill: colour("accent-wash"), dir: -1 }],
  }), data);
}

