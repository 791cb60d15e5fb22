// Explain: which features a score is made of, and what would change the decision.

import { get, post, url } from "../api.js";
import { fill, h, table } from "../dom.js";
import { NONE, amount, count, figure, plural, score, signed, version } from "../format.js";
import { empty, failed, meter, names, reasons, waiting } from "../parts.js";
import { merged, say, title as nameOf } from "../words.js";

export const title = "Explain";

let view = null;

export function show(root, { argument, signal, keys }) {
  const id = h("input", { id: "explain-id", spellcheck: "false", placeholder: "an id", maxlength: "500", autocomplete: "off" });
  const text = h("textarea", { id: "explain-text", rows: "9", spellcheck: "false", placeholder: '{"transaction_id": "…", "amount": …}' });
  view = { signal, id, text, of: null, result: h("article.detail", { "aria-label": "Explanation", "aria-live": "off" }), picks: h("div.picks") };
  root.append(h("div.split.ask", null, h("div.side.asks", null,
    h("form", { onsubmit: (event) => { event.preventDefault(); location.hash = `#/explain/${encodeURIComponent(id.value.trim())}`; turn(id.value.trim()); } },
      h("label", { for: "explain-id" }, "A transaction that was scored"), h("div.line", null, id, h("button.primary", null, "Explain"))),
    h("form", { onsubmit: (event) => { event.preventDefault(); pasted(); } },
      h("label", { for: "explain-text" }, "Or one as a service would publish it; nothing is recorded"), text,
      h("button.plain", null, "Decide, without recording")),
    h("h2", null, "Or a recent alert"), view.picks), view.result));
  keys["/"] = () => id.focus();
  pick();
  turn(argument);
}

export function turn(argument) {
  if (!argument) {
    view.of = null;
    fill(view.result, empty("Nothing is explained yet", "Give an id, paste a transaction, or pick an alert."));
    return;
  }
  view.id.value = argument;
  const path = `/v1/transactions/${encodeURIComponent(argument)}`;
  // What was decided then stands beside what the model of now makes of it.
  explain(argument, async () => {
    const [told, then] = await Promise.all([get(`${path}/explain`), get(path).catch(() => null)]);
    return { ...told, then: then?.score };
  });
}

async function pick() {
  try {
    const { items } = await get(url("/v1/alerts", { limit: 8 }));
    if (view.signal.aborted) return;
    fill(view.picks, items.length ? h("ul.risky", null, items.map((item) => h("li", null,
      h("a", { href: `#/explain/${encodeURIComponent(item.transaction_id)}` }, meter(item.score), h("span.what", null, h("b", null, amount(item.amount)), " ", names(item.entities)))))) : h("p.note", null, "No alert yet."));
  } catch {
    fill(view.picks, h("p.note", null, "Alerts could not be loaded."));
  }
}

function pasted() {
  let transaction;
  try {
    transaction = JSON.parse(view.text.value);
  } catch (error) {
    fill(view.result, failed({ status: 400, title: "This is not JSON", message: error.message }));
    return;
  }
  explain("pasted", () => post("/v1/explain", transaction));
}

async function explain(of, ask) {
  if (view.of === of && of !== "pasted") return;
  view.of = of;
  fill(view.result, waiting("Explaining"));
  try {
    const told = await ask();
    if (view.of === of && !view.signal.aborted) paint(told);
  } catch (problem) {
    if (view.of !== of || view.signal.aborted) return;
    view.of = null;
    fill(view.result, failed(problem, problem.status === 0 ? () => explain(of, ask) : null));
  }
}

function paint(told) {
  const order = [...told.features].sort((a, b) => Math.abs(b.contribution) - Math.abs(a.contribution));
  fill(view.result,
    h("header", null, h("p.big", { data: { high: String(told.is_alert) } }, score(told.score), h("small", null, "score")),
      h("div", null, h("h2", null, told.is_alert ? "An alert" : "Not an alert"), h("p.note", null, told.policy || (told.is_alert ? "" : "below the line of the policy")), sinceThen(told),
        h("p.note", null, h("code", null, told.transaction_id)))),
    h("section", null, h("h3", null, "What moved the score"), order.length ? reasons(order, { most: 10 }) : empty("No feature", "This model has nothing to say of single features."), sum(told, order)),
    h("section", null, h("h3", null, "What would change the decision"), changes(told)),
    h("section", null, h("details", null, h("summary", null, `All ${plural(order.length, "feature")}`), table("All features",
      [{ text: "Feature" }, { text: "Value", numeric: true }, { text: "Share", numeric: true }, { text: "In words" }],
      order.map((one) => [h("code", null, one.feature), figure(one.value), signed(one.contribution), say(one.feature, one.value)]), { compact: true }))),
    h("p.note", null, "Explained by ", h("code", null, version(told.model)),
      told.scored_by && told.scored_by.digest !== told.model?.digest && [", scored then by ", h("code", null, version(told.scored_by)), ": the model has learnt since, and shares may differ"], "."));
  view.result.scrollTop = 0;
  view.result.scrollIntoView(); // where it lies below the questions
}

/** The model has learnt since: what it said then, where that differs. */
function sinceThen({ then, score: now, is_alert: is }) {
  if (!then || (Math.abs(then.score - now) < 0.005 && then.is_alert === is)) return null;
  const was = then.is_alert ? "an alert" : "no alert";
  return h("p.then", null, "That is what the model makes of it now. When it came it was ", h("b", null, was), " with a score of ", h("b", null, score(then.score)), ".");
}

/** Where the shares come from and what they add up to. */
function sum(told, order) {
  if (!order.length || told.bias === null || told.bias === undefined) return null;
  const groups = merged(order, (one) => say(one.feature, one.value));
  const rest = groups.slice(10).reduce((total, one) => total + one.contribution, 0);
  const total = told.bias + order.reduce((all, one) => all + one.contribution, 0);
  const row = (name, value) => [h("dt", null, name), h("dd", null, signed(value))];
  return h("dl.sum", null, row("where every score begins", told.bias), groups.length > 10 && row(`${count(groups.length - 10)} others`, rest), row("log-odds of the score", total));
}

function changes(told) {
  const some = told.changes ?? [];
  const turned = told.is_alert ? "would not be an alert" : "would be an alert";
  return [some.length > 0 && h("ul.changes", null, some.map((one) => h("li", null,
    h("p", null, one.changes.map((step, i) => [i > 0 && " and ", h("b", null, say(step.feature, rounded(step.to))), ` instead of ${value(step.feature, step.from)}`])),
    h("p.note", null, one.is_alert === told.is_alert ? "does not change it" : `it ${turned}: score `, meter(one.score))))),
  some.length === 0 && told.searched?.length > 0 && h("p", null, "None of the changes that were tried."),
  h("p.note", null, told.note, told.searched?.length > 0 && ` Tried: ${told.searched.map(nameOf).join(", ")}.`)];
}

/** What is counted is told in whole numbers. */
const rounded = (told) => (told >= 2 ? Math.round(told) : told);

/** What is a logarithm is said as what it is of. */
function value(feature, told) {
  if (told === null || told === undefined) return NONE;
  return feature.endsWith("_log1p") ? amount(Math.expm1(told)) : figure(told);
}
