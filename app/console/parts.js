// Pieces that several views have in common.

import { get, part, url } from "./api.js";
import { history } from "./chart.js";
import { fill, h, table } from "./dom.js";
import { NONE, amount, clock, date, figure, kind, moment, plural, score, signed } from "./format.js";
import { merged, say } from "./words.js";

/** A piece that is fetched: while it comes, when it came, when it did not. */
export async function fetched(root, path, render, signal) {
  if (!root.firstChild) fill(root, waiting());
  try {
    const found = await get(path);
    if (signal?.aborted) return null;
    render(found);
    return found;
  } catch (problem) {
    if (!signal?.aborted) fill(root, failed(problem, () => { fill(root); fetched(root, path, render, signal); }));
    return null;
  }
}

export const waiting = (text = "Loading") => h("div.hollow", { "aria-busy": "true" }, h("span.pulse", { "aria-hidden": "true" }), h("p", null, text));

export const empty = (head, text) => h("div.hollow", null, h("p.head", null, head), text && h("p", null, text));

export function failed(problem, again) {
  const head = { 0: "The worker does not answer", 403: "This is not yours to see", 404: "Not known here" }[problem.status] ?? problem.title;
  return h("div.hollow.failed", { role: "group" }, h("p.head", null, head), h("p", null, problem.message),
    problem.errors?.length > 0 && h("ul", null, problem.errors.map((one) => h("li", null, one.message))),
    again && h("button", { type: "button", onclick: again }, "Try again"));
}

/** A head with what belongs to it. */
export const panel = (name, ...children) => h("section.panel", null, h("h2", null, name), children);

/** A number with what it is of. */
export const stat = (name, value, note) => h("div.stat", null, h("dt", null, name), h("dd", null, value, note && h("small", null, note)));

/** How high a score is, as a number and as a length. */
export const meter = (value) => h("span.score", { data: { high: String(value >= 0.8) }, style: { "--share": String(Math.max(0, Math.min(1, value ?? 0))) } },
  h("i", { "aria-hidden": "true" }), score(value));

/** Features that pushed a score up or down, longest first, as sentences beside their share. */
export function reasons(told, { most = 8 } = {}) {
  const shown = merged(told, (one) => say(one.feature, one.value)).slice(0, most);
  const widest = Math.max(...shown.map((one) => Math.abs(one.contribution)), 1e-9);
  return h("ol.reasons", null, shown.map((one) => h("li", { data: { up: String(one.contribution > 0) } },
    h("span.bar", { "aria-hidden": "true", style: { "--share": String(Math.abs(one.contribution) / widest) } }),
    h("span.says", null, one.text, h("small", null, h("code", null, one.feature), one.value === null ? "" : ` = ${figure(one.value)}`, one.also.map((name) => [", ", h("code", null, name)]))),
    h("span.number", { title: "share in the log-odds of the score" }, signed(one.contribution)))));
}

const LABELS = new Map([[true, "fraud"], [false, "legitimate"], [null, NONE]]);

/** The recent transactions of one card, terminal or whatever is watched. */
export function entity(of, name, { marked = null, signal } = {}) {
  const body = h("div");
  const path = url(`/v1/entities/${part(of)}/${part(name)}`, {});
  fetched(body, path, (found) => fill(body, recent(of, found.transactions, marked, signal)), signal);
  return h("section.entity", null, h("h3", null, kind(of), " ", h("b", null, name)), body);
}

function recent(of, rows, marked, signal) {
  if (!rows.length) return empty("Nothing yet", `No transaction of this ${kind(of)} is kept.`);
  const frauds = rows.filter((row) => row.is_fraud === true).length;
  const days = Math.max(1, Math.round((rows[0].time_ms - rows.at(-1).time_ms) / 86_400_000));
  const words = `${plural(rows.length, "transaction")} kept, of ${plural(days, "day")}; ${frauds ? plural(frauds, "known fraud") : "no known fraud"}`;
  const chart = history(`Amounts over time. ${words}`, rows, { marked });
  signal?.addEventListener("abort", () => chart.end());
  return [h("p.note", null, words), chart.element, h("details", null, h("summary", null, "The newest, in figures"),
    table(`Newest transactions of the ${kind(of)}`, [{ text: "Time, UTC" }, { text: "Amount", numeric: true }, { text: "Label" }],
      rows.slice(0, 12).map((row) => [moment(row.time_ms), amount(row.amount), tag(LABELS.get(row.is_fraud) ?? NONE)]), { compact: true }))];
}

/** One word that has a colour of its own. */
export const tag = (word) => h("span.tag", { data: { word } }, word);

/** When something happened: the clock, and the day before it where that helps. */
export const when = (ms) => h("time", { datetime: ms > 0 && ms < 8e15 ? new Date(ms).toISOString() : null, title: `${moment(ms)} UTC` },
  h("span.day", null, date(ms).slice(5)), " ", clock(ms).slice(0, 5));

/** Cards, terminals: names with what they are. */
export const names = (entities) => Object.entries(entities).map(([of, name]) => h("span.name", { title: `${kind(of)} ${name}` }, name));
