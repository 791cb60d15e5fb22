// Now: is it well, is it fast, is it any good?

import { get, url } from "../api.js";
import { spark } from "../chart.js";
import { fill, h, paced, write } from "../dom.js";
import { NONE, amount, count, date, figure, kind, percent, plural, score, span, version } from "../format.js";
import { standing, state, watch } from "../live.js";
import { empty, meter, names, panel, stat, waiting } from "../parts.js";
import { say, title as nameOf } from "../words.js";

export const title = "Now";

const CHECKS = { broker: "Kafka answers", loop: "Records move on", lease: "The lease holds", assignment: "Partitions are assigned", state: "State is restored", model: "The model is loaded" };
const SMOOTH = 15; // samples of two seconds: half a minute

export function show(root, { signal }) {
  const hollow = waiting("Waiting for the first figures");
  const body = h("div.now", { hidden: true });
  root.append(hollow, body);
  const tiles = TILES.map((one) => tile(one, signal));
  const [quality, model, health, risky, drift] = [h("div"), h("div"), h("ul.checks"), h("div"), h("div")];
  fill(body, h("p.lead", { id: "lead" }), h("div.tiles", null, tiles.map((one) => one.element)),
    h("div.panels", null,
      panel("Riskiest open alerts", risky), panel("Quality so far", quality), panel("Model", model), panel("What has changed", drift), panel("Health", health)));
  const update = () => {
    const told = state.summary;
    if (!told) return;
    hollow.remove();
    body.hidden = false;
    write(body.querySelector("#lead"), lead(told));
    for (const one of tiles) one.update(told);
    fill(quality, qualityOf(told));
    fill(model, modelOf(told));
    fill(health, healthOf(told));
  };
  watch("summary", update, { signal });
  watch("broker", update, { signal });
  watch("ready", update, { signal });
  update();
  const look = paced(() => riskiest(risky, signal), 2000);
  for (const event of ["alert", "label", "reset", "ready"]) watch(event, look, { signal });
  riskiest(risky, signal);
  const lately = paced(() => incidents(drift, signal), 500);
  for (const event of ["drift", "reset"]) watch(event, lately, { signal });
  incidents(drift, signal);
}

/** All of it in two sentences. */
function lead(told) {
  const [kind, words] = standing();
  if (kind !== "ok") return `Not scoring: ${words}.`;
  const pace = told.rate > 0.5 ? `Scoring ${plural(Math.round(told.rate), "transaction")} a second` : "Waiting for transactions";
  const late = told.rate > 0.5 && told.latency_ms?.p95 ? `, nineteen in twenty within ${span(told.latency_ms.p95)}` : "";
  return `${pace}${late}. ${plural(told.n_alerts, "alert")} of ${plural(told.n_scored, "score")} since the start, ${plural(told.n_learned, "label")} learnt.`;
}

const TILES = [
  { name: "Transactions a second", colour: "accent", of: (told) => figure(told.rate), note: (told) => `${count(told.n_scored)} scored`, series: 1 },
  { name: "Latency, p95", colour: "violet", of: (told) => span(told.latency_ms?.p95), note: (told) => `p50 ${span(told.latency_ms?.p50)}, p99 ${span(told.latency_ms?.p99)}`, series: 3 },
  { name: "Lag", colour: "amber", of: (told) => count(told.lag), note: (told) => (told.lag === null ? "not known" : plural(told.lag, "record").replace(/^\S+ /, "") + " not yet read"), series: 4, least: 20 },
  { name: "Alerts a day", colour: "fraud", of: (told) => figure(told.alerts?.per_day), note: budget, series: 2, isBudget: true },
];

function budget(told) {
  const { kind: policy, budget_per_day: most, threshold, rate } = told.alerts ?? {};
  const share = rate === null || rate === undefined ? "" : `, ${percent(rate, 2)} of scores`;
  if (policy === "budget") return `budget ${figure(most)}${share}`;
  return `${policy === "cost" ? "by expected cost" : `from a score of ${score(threshold)}`}${share}`;
}

function tile(one, signal) {
  const chart = spark(`${one.name}, the last ten minutes`, { name: one.colour, least: one.least });
  signal.addEventListener("abort", () => chart.end());
  const value = h("p.value");
  const note = h("p.note");
  const gauge = one.isBudget ? h("meter", { min: "0", "aria-label": "Alerts a day against the budget", hidden: true }) : null;
  const update = (told) => {
    write(value, one.of(told));
    write(note, one.note(told));
    const values = state.series.map((row) => row[one.series]);
    chart.set([state.series.map((row) => row[0] / 1000), one.isBudget ? smooth(values) : values]);
    if (gauge) against(gauge, told.alerts ?? {});
  };
  return { element: h("section.tile", null, h("h2", null, one.name), value, note, gauge, chart.element), update };
}

/** Means of the last half minute: alerts come in drops. */
function smooth(values) {
  return values.map((_, i) => {
    const some = values.slice(Math.max(0, i - SMOOTH + 1), i + 1);
    return some.reduce((sum, value) => sum + value, 0) / some.length;
  });
}

function against(gauge, { budget_per_day: most, per_day: now }) {
  gauge.hidden = !(most > 0 && now >= 0);
  if (gauge.hidden) return;
  Object.assign(gauge, { max: most * 1.5, high: most * 1.1, optimum: most / 2, value: now });
  gauge.title = `${figure(now)} of ${figure(most)}`;
}

function qualityOf(told) {
  const of = told.quality ?? {};
  if (!of.n_labelled) return empty("No label yet", "Figures appear with the first labels.");
  return h("dl.stats", null,
    stat("Average precision", figure(of.average_precision), `${count(of.n_frauds)} frauds of ${count(of.n_labelled)} labelled`),
    stat("ROC AUC", figure(of.roc_auc)),
    stat("Alerts that were frauds", percent(of.alert_precision, 0), of.alert_precision === null ? "no day is mature yet" : "of mature days"),
    stat("Frauds that were alerts", percent(of.alert_recall, 0)),
    stat("Calibration error", figure(of.calibration_error)),
    stat("Card precision", figure(of.card_precision)));
}

function modelOf(told) {
  const kept = Object.entries(told.entities ?? {}).map(([of, n]) => plural(n, kind(of)));
  return [
    h("p", null, h("code", null, version(told.model)), " ", h("code.digest", { title: "digest of all that was learnt" }, (told.model?.digest ?? "").slice(0, 12))),
    h("dl.stats", null,
      stat("Learnt", count(told.n_learned), "examples"),
      stat("Kept", count(told.pending), "transactions, for their labels"),
      stat("Trust", percent(told.trust, 0), told.trust < 1 ? "the rest is a scorer of unlikeness" : "it decides alone")),
    kept.length > 0 && h("p.note", null, `Knows ${kept.join(", ")}.`),
  ];
}

function healthOf(told) {
  const wrong = { ...told.readiness, ...told.health };
  if (!state.broker.is_connected) wrong.broker ??= state.broker.reason || "no connection";
  if (state.isOpen === false) wrong.line = "this page has no connection to the worker";
  const checks = { ...CHECKS, ...Object.fromEntries(Object.keys(wrong).filter((name) => !(name in CHECKS)).map((name) => [name, kind(name)])) };
  return Object.entries(checks).map(([name, text]) => h("li", { data: { ok: String(!(name in wrong)) } },
    h("span.mark", { "aria-hidden": "true" }), h("span", null, text, h("span.unseen", null, name in wrong ? ": no" : ": yes"), name in wrong && h("small", null, wrong[name]))));
}

async function riskiest(root, signal) {
  try {
    const { items } = await get(url("/v1/alerts", { state: "open", order: "score", limit: 8 }));
    if (signal.aborted) return;
    fill(root, items.length ? h("ol.risky", null, items.map((item) => h("li", null,
      h("a", { href: `#/alerts/${encodeURIComponent(item.transaction_id)}` },
        meter(item.score), h("span.what", null, h("b", null, amount(item.amount)), " ", names(item.entities)),
        h("small", null, item.reasons[0] ? say(item.reasons[0].feature, item.reasons[0].value) : item.policy || NONE))))) : empty("None is open", "Alerts appear here by themselves, the highest score first."));
  } catch {
    if (!signal.aborted && !root.firstChild) fill(root, empty("Not known", "The worker does not answer."));
  }
}

async function incidents(root, signal) {
  try {
    const { items } = await get(url("/v1/drift", { limit: 3 }));
    if (signal.aborted) return;
    fill(root, items.length ? h("ul.lately", null, items.map((item) => h("li", null,
      h("a", { href: `#/drift/${encodeURIComponent(item.incident || item.cursor)}` }, h("span", null, nameOf(item.subject)), h("b", null, `${figure(item.before)} → ${figure(item.after)}`),
        h("small", null, `${item.kind}, ${item.event}, since ${date(item.since_ms)}`))))) : empty("Nothing has drifted", "Incidents open here by themselves."));
  } catch {
    if (!signal.aborted && !root.firstChild) fill(root, empty("Not known", "The worker does not answer."));
  }
}
