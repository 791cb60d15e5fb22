// Drift: what changed, since when, from what to what.

import { url } from "../api.js";
import { histogram } from "../chart.js";
import { fill, h, paced } from "../dom.js";
import { NONE, ago, figure, moment, plural, version } from "../format.js";
import { watch } from "../live.js";
import { empty, fetched, stat, tag, waiting } from "../parts.js";
import { title as nameOf } from "../words.js";

export const title = "Drift";

const KINDS = {
  score: "The scores changed", performance: "The model's mistakes changed", feature: "What comes in changed",
  label: "The labels changed", traffic: "The traffic changed",
};
const MEANS = {
  score: "Scores lie elsewhere than before, though no label says yet whether they are right. Look at what comes in: a service, a season, an attack.",
  performance: "By labels, the model errs otherwise than it did. It goes on learning; watch the quality by day.",
  feature: "Values of a feature lie elsewhere than before. Ask the service that sends it whether it changed.",
  label: "Frauds are confirmed more or less often, earlier or later than before.",
  traffic: "More or fewer transactions come than usual at this hour. Compare with what publishers say they sent.",
};

let view = null;

export function show(root, { argument, signal, keys }) {
  view = { root, signal, items: [], of: argument, side: h("div.side.cards"), detail: h("article.detail", { "aria-label": "The incident" }), charts: [] };
  root.append(h("div.split", null, view.side, view.detail));
  keys.j = () => step(1);
  keys.k = () => step(-1);
  keys.Escape = () => { location.hash = "#/drift"; };
  const look = () => fetched(view.side, url("/v1/drift", { limit: 100 }), (told) => { view.items = told.items; paint(); }, signal);
  watch("drift", paced(look, 300), { signal });
  watch("reset", look, { signal });
  signal.addEventListener("abort", () => view.charts.forEach((chart) => chart.end()));
  fill(view.side, waiting("Loading incidents"));
  look();
}

export function turn(argument) {
  view.of = argument;
  paint();
}

const idOf = (item) => item.incident || item.cursor;

function step(by) {
  const at = view.items.findIndex((item) => idOf(item) === view.of);
  const next = view.items[Math.min(Math.max(at + by, 0), view.items.length - 1)];
  if (next) location.hash = `#/drift/${encodeURIComponent(idOf(next))}`;
}

function paint() {
  const { items, side, root } = view;
  root.dataset.open = String(view.of !== null);
  if (!items.length) {
    fill(side, empty("Nothing has drifted", "When scores, features or mistakes change, an incident opens here by itself."));
    fill(view.detail, h("div.hollow", null, h("p", null, "Scores are watched without labels, mistakes with them.")));
    return;
  }
  const chosen = items.find((item) => idOf(item) === view.of) ?? items[0];
  fill(side, h("ul.incidents", null, items.map((item) => h("li", null,
    h("a", { href: `#/drift/${encodeURIComponent(idOf(item))}`, "aria-current": item === chosen ? "true" : null },
      h("span.kind", null, tag(item.kind), tag(item.severity), tag(item.ended || item.event)),
      h("b", null, nameOf(item.subject)), h("span.change", null, `${figure(item.before)} → ${figure(item.after)}`),
      h("small", null, `${moment(item.detected_ms)} UTC, seen ${ago(item.seen_ms)}`))))));
  detail(chosen);
}

function detail(item) {
  view.charts.forEach((chart) => chart.end());
  view.charts = [];
  fill(view.detail,
    h("header", null, h("a.back", { href: "#/drift" }, "All incidents"), h("div", null,
      h("h2", null, `${KINDS[item.kind] ?? "Something changed"}: ${nameOf(item.subject)}`),
      h("p.note", null, `since about ${moment(item.since_ms)} UTC, noticed ${lateness(item)} later`))),
    h("div.beforeafter", null, pair("Before", item.before), h("span.arrow", { "aria-hidden": "true" }, "→"), pair("After", item.after), h("p.note", null, moved(item))),
    h("p", null, item.action || MEANS[item.kind]),
    affected(item),
    h("dl.stats", null, stat("Detector", item.detector), stat("Learnt until then", figure(item.n_examples), "examples"), stat("Model", h("code", null, version(item.model))), stat("Model before", h("code", null, item.model_before ? version(item.model_before) : NONE)), stat("Reaction", item.reaction || NONE)),
    where(item),
    samples(item));
}

const pair = (name, value) => h("div.pair", null, h("small", null, name), h("b", null, figure(value)));

function lateness({ since_ms: since, detected_ms: noticed }) {
  const hours = Math.max(0, Math.round((noticed - since) / 3_600_000));
  return hours < 48 ? plural(hours, "hour") : plural(Math.round(hours / 24), "day");
}

function moved({ before, after }) {
  if (!(before > 0)) return "";
  const times = after / before;
  return times >= 1 ? `${figure(times)} times what it was` : `${figure(100 * (1 - times))} % less than it was`;
}

function affected({ features }) {
  return features.length > 0 && h("section", null, h("h3", null, "What changed most"), features.slice(0, 6).map((one) => h("div.feature", null,
    h("p", null, h("b", null, nameOf(one.name)), " ", h("small", null, `${one.aspect}, ${figure(100 * one.contribution)} % of the change`)), one.bins && draw(one.name, one.bins))));
}

// The outermost bins have no end; they are drawn as wide as their neighbours.
function draw(name, { edges, before, after }) {
  if (!edges.length) return null;
  const last = edges.length - 1;
  const wide = [edges[0] - ((edges[1] ?? edges[0] + 1) - edges[0]), ...edges, edges[last] + (edges[last] - (edges[last - 1] ?? edges[last] - 1))];
  const chart = histogram(`${name} before and after`, wide, before, after);
  view.charts.push(chart);
  return [chart.element, h("p.legend", null, h("span", { data: { of: "before" } }, "before"), h("span", { data: { of: "after" } }, "after"))];
}

function where({ segments }) {
  return segments.length > 0 && h("section", null, h("h3", null, "Where"), h("ul.plain", null, segments.map((one) =>
    h("li", null, h("code", null, `${one.segment} ${one.value || "missing"}`), ` has ${figure(100 * one.share)} % of the rows and ${figure(100 * one.of_change)} % of the change`))));
}

function samples(item) {
  const ids = item.samples;
  return ids.length > 0 && h("section", null, h("h3", null, "For example"), h("ul.plain", null, ids.slice(0, 10).map((id) =>
    h("li", null, h("a", { href: `#/explain/${encodeURIComponent(id)}` }, h("code", null, id))))));
}

