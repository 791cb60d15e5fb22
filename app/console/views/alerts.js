// Alerts: a list on one side, one of them on the other, a key for each verdict.

import { get, url } from "../api.js";
import { announce, fill, h, paced, table } from "../dom.js";
import { NONE, ago, amount, count, kind, moment, plural, score, version } from "../format.js";
import { List } from "../list.js";
import { may, watch } from "../live.js";
import { empty, entity, failed, meter, names, reasons, tag, waiting, when } from "../parts.js";
import { HELD_S, give, said, settle, undo } from "../verdicts.js";
import { OUTCOMES, say } from "../words.js";

export const title = "Alerts";

const PAGE = 500;
const HELD_MAX = 10_000; // the server holds no more
const VERDICTS = [["fraud", "f", "Fraud"], ["legitimate", "l", "Legitimate"], ["unsure", "u", "Unsure"]];

// What was looked for stays when one comes back from another view.
const asked = { state: "open", min_score: "", q: "", order: "newest" };

let feed = null;
let view = null;

/** Alerts that fit what was asked, in its order; fed by pages and by events. */
class Feed {
  constructor(query) {
    Object.assign(this, { query, items: [], ids: new Map(), next: null, total: 0, isLoading: false, isDone: false, problem: null, fresh: 0 });
  }

  async more() {
    if (this.isLoading || this.isDone || this.items.length >= HELD_MAX) return;
    this.isLoading = true;
    this.problem = null;
    try {
      const page = await get(url("/v1/alerts", { ...this.query, limit: PAGE, cursor: this.next }));
      for (const item of page.items) this.add(item);
      Object.assign(this, { next: page.next, isDone: !page.next, total: page.total, held: page.held });
    } catch (problem) {
      this.problem = problem;
    }
    this.isLoading = false;
  }

  /** Does an alert that just came fit what was asked? */
  fits(item) {
    const { state, min_score: least, q } = this.query;
    if (state && item.state !== state && !(state === "labelled" && item.state !== "open")) return false;
    if (least && item.score < Number(least)) return false;
    const text = [item.transaction_id, ...Object.values(item.entities)].join(" ").toLowerCase();
    return !q || text.includes(q.toLowerCase());
  }

  add(item) {
    if (this.ids.has(item.transaction_id)) return;
    this.ids.set(item.transaction_id, item);
    this.items.push(item);
  }

  come(item) {
    if (!this.fits(item) || this.ids.has(item.transaction_id)) return false;
    this.ids.set(item.transaction_id, item);
    let at = 0;
    if (this.query.order === "score") {
      at = this.items.findIndex((other) => other.score < item.score);
      if (at < 0) at = this.items.length;
    }
    this.items.splice(at, 0, item);
    this.total += 1;
    this.fresh += 1;
    if (this.items.length > HELD_MAX) this.ids.delete(this.items.pop().transaction_id);
    return true;
  }

  change(told) {
    const item = this.ids.get(told.transaction_id);
    if (!item) return;
    const changed = { ...item, ...told };
    this.ids.set(item.transaction_id, changed);
    this.items[this.items.indexOf(item)] = changed;
  }
}

export function show(root, { argument, signal, keys }) {
  const list = new List({
    label: "Alerts", key: (item) => item.transaction_id, cells,
    columns: [
      { text: "Time", class: "time" }, { text: "Score", class: "number" }, { text: "Amount", class: "number" },
      { text: "Who, and why", class: "why" },
    ],
    onSelect: (item) => open(item), onEnd: () => { if (feed?.next && !feed.isLoading && !feed.problem) load(); },
  });
  view = { list, root, signal, detail: h("article.detail", { "aria-label": "The alert" }), note: h("p.note.number-of"), hollow: h("div.over"), of: undefined };
  root.append(filters(), h("div.split", null, h("div.side", null, list.element, view.hollow), view.detail));
  keys.j = () => list.step(1);
  keys.k = () => list.step(-1);
  keys.z = () => undo();
  keys.e = () => { if (view.of) location.hash = `#/explain/${encodeURIComponent(view.of)}`; };
  keys["/"] = () => root.querySelector("input[type=search]").focus();
  keys.Escape = () => { location.hash = "#/alerts"; };
  for (const [verdict, key] of VERDICTS) keys[key] = () => judge(verdict);
  const redraw = paced(draw, 200);
  watch("alert", (item) => { if (feed.come(item)) { redraw(); tellOf(); } }, { signal });
  watch("label", (told) => { settle(told); feed.change(told); redraw(); if (told.transaction_id === view.of) reopen(); }, { signal });
  watch("verdict", (told) => { feed.change({ transaction_id: told.transaction_id }); draw(); if (told.transaction_id === view.of) verdicts(); }, { signal });
  watch("reset", () => search(), { signal });
  signal.addEventListener("abort", () => list.end());
  turn(argument);
  search();
}

/** Another alert of the same view. */
export function turn(id) {
  view.root.dataset.open = String(id !== null);
  if (id === view.of) return;
  view.of = id;
  view.list.selectKey(id);
  if (id === null) nothing();
  else detail(id);
}

function open(item) {
  history.replaceState(null, "", `#/alerts/${encodeURIComponent(item.transaction_id)}`);
  turn(item.transaction_id);
}

function nothing() {
  fill(view.detail, empty("No alert is chosen", "Choose one, or press j. Then f for fraud, l for legitimate, u for unsure."));
}

// ---- What was asked for.

function filters() {
  const field = (name, label, made) => h("label", null, h("span", null, label), made);
  const choose = (name, options) => {
    const made = h("select", { onchange: () => { asked[name] = made.value; search(); } },
      options.map(([value, text]) => h("option", { value, selected: asked[name] === value }, text)));
    return made;
  };
  let typing = 0;
  const q = h("input", { type: "search", value: asked.q, placeholder: "id, card, terminal", spellcheck: "false", maxlength: "200", oninput: () => {
    clearTimeout(typing);
    typing = setTimeout(() => { asked.q = q.value.trim(); search(); }, 200);
  } });
  return h("form.filters", { role: "search", "aria-label": "Alerts", onsubmit: (event) => event.preventDefault() },
    field("state", "Show", choose("state", [["open", "open"], ["fraud", "fraud"], ["legitimate", "legitimate"], ["unsure", "unsure"], ["", "all"]])),
    field("order", "Order", choose("order", [["newest", "newest first"], ["score", "riskiest first"]])),
    field("min_score", "Score", choose("min_score", [["", "any"], ["0.5", "from .5"], ["0.8", "from .8"], ["0.95", "from .95"]])),
    field("q", "Search", q), view.note);
}

async function search() {
  feed = new Feed({ ...asked });
  const loading = load();
  draw();
  await loading;
  if (view.of && !view.signal.aborted) view.list.selectKey(view.of);
}

async function load() {
  const mine = feed;
  await mine.more();
  if (mine !== feed) return;
  draw();
}

// ---- The list.

function cells(item) {
  const told = said(item.transaction_id);
  const word = told && told.stage !== "failed" ? told.verdict : item.state;
  return [
    when(item.time_ms), meter(item.score), amount(item.amount),
    [h("span.who", null, names(item.entities)), h("small", null, item.reasons[0] ? say(item.reasons[0].feature, item.reasons[0].value) : item.policy), word !== "open" && tag(word)],
  ];
}

function draw() {
  const { list, hollow, note } = view;
  if (view.signal.aborted) return;
  list.set(feed.items);
  hollow.hidden = feed.items.length > 0;
  if (feed.problem && !feed.items.length) fill(hollow, failed(feed.problem, load));
  else if (feed.items.length) fill(hollow);
  else if (feed.isLoading) fill(hollow, waiting("Loading alerts"));
  else fill(hollow, isNarrow() ? empty("Nothing fits", "No alert is held that fits what was asked.") : empty("No alert yet", "The first appears here by itself."));
  const above = list.element.scrollTop > list.height ? feed.fresh : 0;
  if (!above) feed.fresh = 0;
  fill(note, `${count(Math.max(feed.total, feed.items.length))} ${feed.query.state || "held"}`,
    above > 0 && h("button.pill", { type: "button", onclick: () => { list.element.scrollTop = 0; feed.fresh = 0; draw(); } }, `${plural(above, "new alert")} above`));
}

const isNarrow = () => Boolean(asked.q || asked.min_score || asked.state !== "open");

let heard = 0;
const tellOf = (() => {
  const tell = paced(() => { announce(`${plural(heard, "new alert")}`); heard = 0; }, 8000);
  return () => { heard += 1; tell(); };
})();

// ---- One alert.

function judge(verdict) {
  const item = view.of && (feed.ids.get(view.of) ?? view.shown);
  if (!item || !may("feedback")) return;
  give(item, verdict);
}

async function detail(id) {
  const known = feed?.ids.get(id);
  if (known) {
    paint(known);
    return;
  }
  fill(view.detail, waiting("Loading the alert"));
  try {
    const found = await get(`/v1/transactions/${encodeURIComponent(id)}`);
    if (view.of !== id) return;
    paint(found.alert ?? { ...found.score, state: "open", labels: found.labels, policy: "not an alert", isNone: true });
  } catch (problem) {
    if (view.of === id) fill(view.detail, failed(problem, () => detail(id)));
  }
}

function reopen() {
  const item = feed.ids.get(view.of);
  if (!item) return;
  view.shown = item;
  verdicts();
  trail();
}

function paint(item) {
  view.shown = item;
  view.leaving?.abort();
  view.leaving = new AbortController();
  view.signal.addEventListener("abort", () => view.leaving.abort());
  const signal = view.leaving.signal;
  view.verdicts = h("div.verdicts", { role: "group", "aria-label": "What is it?" });
  view.trail = h("div");
  fill(view.detail,
    h("header", null,
      h("a.back", { href: "#/alerts" }, "All alerts"),
      h("p.big", { data: { high: String(item.score >= 0.5) } }, score(item.score), h("small", null, "score")),
      h("div", null, h("h2", null, amount(item.amount)), h("p.note", null, "at ", h("b", null, `${moment(item.time_ms)} UTC`), item.source && [", scored ", ago(item.source.published_ms)]),
        h("p.note", null, h("code", null, item.transaction_id)))),
    view.verdicts,
    h("section", null, h("h3", null, item.isNone ? "What moved the score" : "Why it was flagged"), h("p.policy", null, item.policy, item.repeats > 0 && `; ${plural(item.repeats, "alert")} of the same held back before it`),
      item.reasons.length ? reasons(item.reasons) : h("p.note", null, "No feature raised it by itself."),
      h("p", null, h("a", { href: `#/explain/${encodeURIComponent(item.transaction_id)}` }, "All features, and what would change the decision"), " ", h("kbd", { "aria-hidden": "true" }, "e"))),
    Object.entries(item.entities).map(([of, name]) => entity(of, name, { marked: item, signal })),
    segments(item), view.trail,
    h("p.note", null, "Scored by ", h("code", null, version(item.model)), " from ", h("code", null, `${item.source?.topic ?? NONE}[${item.source?.partition ?? NONE}]@${item.source?.offset ?? NONE}`)));
  view.detail.scrollTop = 0;
  verdicts();
  trail();
}

function segments(item) {
  const some = Object.entries(item.segments ?? {});
  return some.length > 0 && h("p.note", null, some.map(([name, value]) => [kind(name), " ", h("b", null, value || NONE), " "]));
}

const STAGES = { held: `held back for ${HELD_S} s: z takes it back`, sending: "sending", sent: "", failed: "not sent" };

function verdicts() {
  const item = view.shown;
  const told = said(item.transaction_id);
  const now = told && told.stage !== "failed" ? told.verdict : item.state;
  const words = told ? (STAGES[told.stage] || told.says || OUTCOMES[told.will] || "sent") : "";
  const focused = view.verdicts.contains(document.activeElement) ? document.activeElement.dataset.verdict : null;
  fill(view.verdicts, VERDICTS.map(([verdict, key, text]) => h("button", {
    type: "button", data: { verdict }, "aria-pressed": String(now === verdict), "aria-keyshortcuts": key,
    disabled: !may("feedback"), onclick: () => judge(verdict),
  }, text, h("kbd", { "aria-hidden": "true" }, key))),
  told?.stage === "held" && h("button.quiet", { type: "button", "aria-keyshortcuts": "z", onclick: () => undo(item.transaction_id) }, "Undo", h("kbd", { "aria-hidden": "true" }, "z")),
  h("p.note", { data: { stage: told?.stage ?? "" } }, may("feedback") ? words : "You may look; labelling needs the role feedback."));
  if (focused) view.verdicts.querySelector(`[data-verdict="${focused}"]`)?.focus();
}

function trail() {
  const told = view.shown.labels ?? [];
  const says = (one) => (one.is_fraud === null ? "unsure" : one.is_fraud ? "fraud" : "legitimate");
  fill(view.trail, told.length > 0 && h("section", null, h("h3", null, "What was said of it"),
    table("Labels of this transaction", [{ text: "When, UTC" }, { text: "Label" }, { text: "By" }, { text: "What became of it" }],
      told.map((one) => [moment(one.time_ms), tag(says(one)), one.by ? `${one.by} (${one.source})` : one.source, `${OUTCOMES[one.outcome] ?? one.outcome}${one.reason ? `: ${one.reason}` : ""}`]), { compact: true })));
}

