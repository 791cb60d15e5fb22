// Drift: what changed, since when, from what to what.

import { url } from "../api.js";
import { histogram } from "../chart.js";
import { fill, h, paced } from "../dom.js";
import { ago, figure, moment, plural, version } from "../format.js";
import { watch } from "../live.js";
import { empty, fetched, stat, tag, waiting } from "../parts.js";
import { title as nameOf } from "../words.js";

export const title = "Drift";

const KINDS = {
  score: "The scores changed", performance: "The model's mistakes changed", feature: "What comes in changed",
  label: "The labels changed", schema: "The records changed", estimate: "The model is expected to do worse",
};
const MEANS = {
  score: "Scores lie elsewhere than before, though no label says yet whether they are right. Look at what comes in: a service, a season, an attack.",
  performance: ({ before, after }) => `By labels, the model errs ${after > before ? "more" : "less"} than it did. It goes on learning; watch the quality by day.`,
  feature: "Values of a feature lie elsewhere than before. Ask the service that sends it whether it changed.",
  label: "Frauds are confirmed more or less often, earlier or later than before.",
  schema: "Fields came, went or changed their type. Ask the service that publishes.",
};

const means = (item) => (typeof MEANS[item.kind] === "function" ? MEANS[item.kind](item) : MEANS[item.kind]);

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

const idOf = (item) => item.incident ?? item.cursor;

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
      h("span.kind", null, tag(item.kind), item.severity && tag(item.severity), item.status && tag(item.status)),
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
    h("p", null, item.action ?? item.suggestion ?? means(item)),
    affected(item),
    h("dl.stats", null, stat("Detector", item.detector), stat("Learnt until then", figure(item.n_examples), "examples"), stat("Model", h("code", null, version(item.model)))),
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

function affected(item) {
  const told = item.features ?? [];
  if (!told.length) return item.histogram ? draw(item.subject, item.histogram) : null;
  return h("section", null, h("h3", null, "What changed most"), told.slice(0, 6).map((one) => h("div.feature", null,
    h("p", null, h("b", null, nameOf(one.feature ?? one.name)), " ", h("small", null, one.distance === undefined ? "" : `moved by ${figure(one.distance)}`)), draw(one.feature ?? one.name, one))));
}

function draw(name, { before, after, edges }) {
  const at = edges ?? before?.edges;
  const [was, is] = [before?.counts ?? before, after?.counts ?? after];
  if (!Array.isArray(at) || !Array.isArray(was) || !Array.isArray(is) || at.length !== was.length + 1) return null;
  const chart = histogram(`${name} before and after`, at, was, is);
  view.charts.push(chart);
  return [chart.element, h("p.legend", null, h("span", { data: { of: "before" } }, "before"), h("span", { data: { of: "after" } }, "after"))];
}

function samples(item) {
  const ids = item.samples ?? item.sample_ids ?? [];
  return ids.length > 0 && h("section", null, h("h3", null, "For example"), h("ul.plain", null, ids.slice(0, 10).map((id) =>
    h("li", null, h("a", { href: `#/explain/${encodeURIComponent(id)}` }, h("code", null, id))))));
}

