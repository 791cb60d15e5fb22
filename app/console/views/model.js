// Model: which one decides, how good it was day by day, whether its scores are honest.

import { lines, reliability } from "../chart.js";
import { fill, h, paced, table } from "../dom.js";
import { NONE, ago, count, date, figure, percent, plural, score, version } from "../format.js";
import { state, watch } from "../live.js";
import { empty, fetched, panel, stat, tag } from "../parts.js";
import { merged, title as nameOf } from "../words.js";

export const title = "Model";

export function show(root, { signal }) {
  const body = h("div.model");
  root.append(body);
  let charts = [];
  const keep = (chart) => { charts.push(chart); return chart.element; };
  const paint = (told) => {
    for (const chart of charts) chart.end();
    charts = [];
    fill(body, render(told, keep));
  };
  const look = () => fetched(body, "/v1/models", paint, signal);
  const later = paced(look, 5000);
  watch("model", later, { signal });
  for (const event of ["reset", "ready"]) watch(event, look, { signal });
  signal.addEventListener("abort", () => charts.forEach((chart) => chart.end()));
  look();
}

/** Wilson's interval of a share, at 95 %: honest where there are few. */
export function wilson(share, n) {
  if (share === null || share === undefined || !(n > 0)) return [null, null];
  const z = 1.96;
  const middle = share + (z * z) / (2 * n);
  const reach = z * Math.sqrt((share * (1 - share)) / n + (z * z) / (4 * n * n));
  const whole = 1 + (z * z) / n;
  return [Math.max(0, (middle - reach) / whole), Math.min(1, (middle + reach) / whole)];
}

function render(told, keep) {
  const days = told.days ?? [];
  return [
    champion(told),
    h("div.panels.two", null,
      panel("Alerts that were frauds, by day", precision(days, keep)),
      panel("Frauds that were alerts, by day", recall(days, keep), days.length > 0 && figures(days)),
      panel("Are its scores honest?", honesty(told.reliability ?? [], keep)),
      panel("What moves its alerts", features(told.features ?? []))),
    panel("Versions", versions(told.versions ?? [])),
  ];
}

function champion(told) {
  const now = state.summary;
  const others = told.challengers ?? [];
  const between = (one) => (one ? `between ${percent(one.low, 0)} and ${percent(one.high, 0)}, at 95 %` : "no day is mature yet");
  const { alert_precision: right, alert_recall: found } = told.intervals ?? {};
  return h("section.champion", null,
    h("div", null, h("p.note", null, "Champion: the model that decides"), h("p.name", null, version(told.champion)), h("p.note", null, h("code", null, told.champion?.digest))),
    h("dl.stats", null, now && stat("Learnt", count(now.n_learned), `${count(now.quality?.n_frauds)} frauds`),
      stat("Alerts that were frauds", percent(right?.value, 0), between(right)), stat("Frauds that were alerts", percent(found?.value, 0), between(found)),
      now && stat("Average precision", figure(now.quality?.average_precision))),
    h("p.note", null, others.length ? ["Beside it, in silence: ", others.map((one) => [h("b", null, one.name), ` ${figure(one.average_precision)} `])] : "No challenger is scored beside it."));
}

const WEEK = 7;

/** A share by day, and over the seven days up to it with its interval: a day alone has few alerts. */
function weekly(days, keep, { share, of, what, none }) {
  const told = days.filter((day) => day[share] !== null && day[of] > 0);
  if (told.length < 2) return empty("Not enough days yet", none);
  const pooled = days.map((_, i) => pool(days.slice(Math.max(0, i - WEEK + 1), i + 1), share, of));
  const ends = pooled.map(([value, n]) => wilson(value, n));
  const [last, n] = pooled.at(-1);
  const words = `The last seven days: ${percent(last, 0)} of ${plural(n, what)}`;
  return [keep(lines(words, [days.map((day) => day.start_ms / 1000), ends.map((one) => one[1]), ends.map((one) => one[0]), pooled.map(([value]) => value), days.map((day) => day[share])],
    [{ label: "high", band: 1, width: 0 }, { label: "low", width: 0 }, { label: "of seven days", name: "accent" }, { label: "of a day", name: "ink-3", paths: null, points: true }], { top: 1, at: (value) => percent(value, 0) })),
  h("p.note", null, `${words}. Dots are single days; the shade is where the truth lies, 19 times in 20.`)];
}

function pool(days, share, of) {
  const some = days.filter((day) => day[share] !== null && day[of] > 0);
  const n = some.reduce((sum, day) => sum + day[of], 0);
  return [n > 0 ? some.reduce((sum, day) => sum + day[share] * day[of], 0) / n : null, n];
}

const precision = (days, keep) => weekly(days, keep, { share: "precision", of: "n_alerts", what: "alert", none: "Alerts of two days must have their labels." });
const recall = (days, keep) => weekly(days, keep, { share: "recall", of: "n_frauds", what: "fraud", none: "Frauds of two days must be known." });

function figures(days) {
  return h("details", null, h("summary", null, "In figures"), table("Quality by day",
    [{ text: "Day" }, { text: "Scored", numeric: true }, { text: "Frauds", numeric: true }, { text: "Alerts", numeric: true }, { text: "AP", numeric: true, title: "average precision" }, { text: "Right", numeric: true, title: "frauds among the alerts" }, { text: "Found", numeric: true, title: "alerts among the frauds" }],
    [...days].reverse().map((day) => [date(day.start_ms), count(day.n), count(day.n_frauds), count(day.n_alerts), figure(day.average_precision), percent(day.precision, 0), percent(day.recall, 0)]), { compact: true }));
}

function honesty(groups, keep) {
  const told = groups.filter((one) => one.n !== 0 && one.mean_score !== null && one.share_fraud !== null);
  if (told.length < 2) return empty("Not enough labels yet", "Scores are held against what they turned out to be.");
  const ends = told.map((one) => wilson(one.share_fraud, one.n));
  const x = [0, ...told.map((one) => one.mean_score), 1];
  const within = (values) => [null, ...values, null];
  const data = [x, x.map((value, i) => (i === 0 || i === x.length - 1 ? value : null)), within(ends.map((one) => one[1])), within(ends.map((one) => one[0])), within(told.map((one) => one.share_fraud))];
  return [keep(reliability("Share of frauds among transactions of like score", data)),
    h("p.note", null, "On the dashed line a score of .2 means that one in five is a fraud. Above it scores are too low, below it too high."),
    h("details", null, h("summary", null, "In figures"), table("Reliability",
      [{ text: "Score" }, { text: "Frauds", numeric: true }, { text: "Transactions", numeric: true }],
      told.map((one) => [score(one.mean_score), percent(one.share_fraud), count(one.n)]), { compact: true }))];
}

function features(told) {
  if (!told.length) return empty("No alert yet", "What moved the alerts appears with them.");
  const groups = merged(told, (one) => nameOf(one.feature), "mean_contribution");
  const widest = Math.max(...groups.map((one) => Math.abs(one.mean_contribution)), 1e-9);
  return h("ol.reasons", null, groups.slice(0, 10).map((one) => h("li", { data: { up: String(one.mean_contribution > 0) } },
    h("span.bar", { "aria-hidden": "true", style: { "--share": String(Math.abs(one.mean_contribution) / widest) } }),
    h("span.says", null, one.text), h("span.number", null, figure(one.mean_contribution)))));
}

function versions(told) {
  if (!told.length) return empty("No snapshot yet", "A snapshot is written as the model learns.");
  return table("Versions of the model, newest first",
    [{ text: "Position" }, { text: "Digest" }, { text: "Written" }, { text: "Learnt", numeric: true }, { text: "Frauds", numeric: true }, { text: "AP", numeric: true }, { text: "Size", numeric: true }, { text: "" }],
    told.slice(0, 50).map((one) => [`@${count(one.position)}`, h("code", null, (one.digest ?? NONE).slice(0, 12)), ago(one.written_ms), count(one.n_learned), count(one.n_frauds), figure(one.average_precision), `${figure(one.bytes / 1024)} KiB`,
      one.in_use ? tag("in use") : one.verifies ? "" : h("span", { title: one.reason }, tag("refused"))]), { compact: true });
}
