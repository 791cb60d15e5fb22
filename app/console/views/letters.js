// Dead letters: what could not be read, why, and what to do with it.

import { get, part, post, url } from "../api.js";
import { fill, h, paced, toast } from "../dom.js";
import { NONE, ago, count, plural } from "../format.js";
import { List } from "../list.js";
import { may, watch } from "../live.js";
import { empty, failed, tag, waiting } from "../parts.js";

export const title = "Dead letters";

const PAGE = 200;
const asked = { state: "open", reason: "" };
let view = null;
let feed = null;

export function show(root, { argument, signal, keys }) {
  const list = new List({
    label: "Dead letters", key: (item) => String(item.offset), cells,
    columns: [{ text: "Seen", class: "ago" }, { text: "Where", class: "where" }, { text: "Why", class: "why" }, { text: "", class: "verdict" }],
    onSelect: (item) => { history.replaceState(null, "", `#/letters/${item.offset}`); turn(String(item.offset)); },
    onEnd: () => { if (feed?.next && !feed.isLoading && !feed.problem) load(); },
  });
  view = { root, signal, list, over: h("div.over"), chips: h("div.chips", { role: "group", "aria-label": "Reasons" }), detail: h("article.detail", { "aria-label": "The dead letter" }), of: undefined };
  const state = h("select", { onchange: () => { asked.state = state.value; asked.reason = ""; search(); } },
    ["open", "retried", "dropped", "all"].map((one) => h("option", { value: one, selected: one === asked.state }, one)));
  root.append(h("form.filters", { onsubmit: (event) => event.preventDefault() }, h("label", null, h("span", null, "Show"), state), view.chips),
    h("div.split", null, h("div.side", null, list.element, view.over), view.detail));
  keys.j = () => list.step(1);
  keys.k = () => list.step(-1);
  keys.Escape = () => { location.hash = "#/letters"; };
  const again = paced(search, 500);
  watch("dead-letter", (letter) => { if (letter.state === "open" || asked.state !== "open") again(); }, { signal });
  watch("reset", search, { signal });
  signal.addEventListener("abort", () => list.end());
  turn(argument);
  search();
}

export function turn(id) {
  view.root.dataset.open = String(id !== null);
  if (id === view.of) return;
  view.of = id;
  view.list.selectKey(id);
  if (id === null) fill(view.detail, empty("None is chosen", "Choose one to see it raw, mend it and send it again, or drop it."));
  else open(id);
}

const cells = (item) => [
  h("time", { title: new Date(item.seen_ms).toISOString() }, ago(item.seen_ms)), h("code", null, item.position), item.reason, item.state === "open" ? "" : tag(item.state),
];

async function search() {
  const fresh = { items: [], next: null, isLoading: false, problem: null, reasons: feed?.reasons ?? [] };
  await load(fresh);
  if (view.signal.aborted) return;
  feed = fresh;
  paint();
}

async function load(into = feed) {
  into.isLoading = true;
  if (!feed) fill(view.over, waiting("Loading dead letters"));
  try {
    const page = await get(url("/v1/dead-letters", { ...asked, limit: PAGE, cursor: into.next }));
    into.items = [...into.items, ...page.items];
    Object.assign(into, { next: page.next, problem: null, reasons: asked.reason ? into.reasons : page.by_reason ?? [] });
  } catch (problem) {
    into.problem = problem;
  }
  into.isLoading = false;
  if (into === feed) paint();
}

function paint() {
  view.list.set(feed.items);
  view.over.hidden = feed.items.length > 0;
  if (feed.problem && !feed.items.length) fill(view.over, failed(feed.problem, search));
  else if (feed.items.length) fill(view.over);
  else fill(view.over, asked.state === "open" ? empty("None is open", "What cannot be read lands here, raw, with the reason.") : empty("None", `None is ${asked.state}.`));
  fill(view.chips, feed.reasons.slice(0, 8).map((one) => h("button.chip", {
    type: "button", "aria-pressed": String(asked.reason === one.reason), onclick: () => { asked.reason = asked.reason === one.reason ? "" : one.reason; search(); },
  }, one.reason, h("b", null, count(one.n)))));
}

async function open(id) {
  fill(view.detail, waiting("Loading the record"));
  try {
    const { letter, ...raw } = await get(`/v1/dead-letters/${part(id)}`);
    if (view.of === id && !view.signal.aborted) detail({ ...letter, ...raw });
  } catch (problem) {
    if (view.of === id && !view.signal.aborted) fill(view.detail, failed(problem, () => open(id)));
  }
}

function detail(letter) {
  const isOpen = letter.state === "open";
  const canSend = isOpen && letter.can_retry && may("admin");
  const raw = letter.value ?? "";
  const value = h("textarea", { id: "raw", rows: String(Math.min(16, 3 + raw.split("\n").length)), spellcheck: "false", readonly: !(canSend && letter.is_text) });
  value.value = pretty(raw, letter.is_text);
  const was = value.value;
  const retry = () => act(letter, "retry", value.value === was ? {} : { value: value.value });
  fill(view.detail,
    h("header", null, h("a.back", { href: "#/letters" }, "All dead letters"), h("div", null, h("h2", null, letter.reason),
      h("p.note", null, h("code", null, letter.position), ` at the stage ${letter.stage}, ${ago(letter.seen_ms)}, ${plural(letter.value_bytes, "byte")}, key `, h("code", null, letter.key ?? NONE)))),
    h("label", { for: "raw" }, letter.is_text === false ? "Its value, base64: it is no text" : "Its value, as it came"), value,
    h("div.acts", null,
      isOpen ? [h("button.primary", { type: "button", disabled: !canSend, onclick: retry }, "Send again"),
        h("button.plain", { type: "button", disabled: !may("admin"), onclick: () => act(letter, "drop", {}) }, "Drop"),
        h("p.note", null, hint(letter, canSend))] : h("p.note", null, tag(letter.state), letter.by ? ` by ${letter.by}` : "")),
    headers(letter.headers ?? {}));
}

/** JSON is laid out to be read and mended; what is none stays as it came. */
function pretty(raw, isText) {
  if (isText === false || raw.length > 20_000) return raw;
  try {
    return JSON.stringify(JSON.parse(raw), null, 2);
  } catch {
    return raw;
  }
}

function hint(letter, canSend) {
  if (!may("admin")) return "Sending and dropping need the role admin.";
  if (!letter.can_retry) return "It was not published by a service: it cannot be sent again.";
  return canSend ? "Mend the value if need be; it is checked before it is sent." : "";
}

function headers(told) {
  const rows = Object.entries(told);
  return rows.length > 0 && h("details", null, h("summary", null, "Headers"), h("dl.headers", null, rows.map(([name, text]) => [h("dt", null, name), h("dd", null, text)])));
}

async function act(letter, what, body) {
  try {
    await post(`/v1/dead-letters/${part(letter.offset)}/${what}`, body);
    toast(`${letter.position}: ${what === "retry" ? "sent again" : "dropped"}`);
    await Promise.all([open(view.of), search()]);
  } catch (problem) {
    const why = problem.errors?.length ? problem.errors.map((one) => one.message).join("; ") : problem.message;
    toast(`Not done: ${why}`, { kind: "failed", seconds: 10 });
  }
}
