// The frame: which view is shown, which key does what, how things stand.

import { access, token } from "./api.js";
import { recolour } from "./chart.js";
import { announce, fill, h, write } from "./dom.js";
import { begin, standing, state, tell, watch } from "./live.js";
import { flush } from "./verdicts.js";
import * as alerts from "./views/alerts.js";
import * as drift from "./views/drift.js";
import * as explain from "./views/explain.js";
import * as letters from "./views/letters.js";
import * as model from "./views/model.js";
import * as now from "./views/now.js";

const VIEWS = { now, alerts, model, drift, letters, explain };
const THEMES = ["auto", "light", "dark"];
const by = (id) => document.getElementById(id);

// ---- Which view.

let leaving = new AbortController();
let shown = null;

function route() {
  const [, name, rest] = /^#\/(\w+)(?:\/(.*))?$/s.exec(location.hash) ?? [];
  const chosen = Object.hasOwn(VIEWS, name ?? "") ? name : "now";
  const argument = rest ? decoded(rest) : null;
  if (shown?.name === chosen && VIEWS[chosen].turn) {
    VIEWS[chosen].turn(argument);
    return;
  }
  leaving.abort();
  leaving = new AbortController();
  const isFirst = shown === null;
  shown = { name: chosen, keys: {} };
  const root = h("div.view", { data: { view: chosen } }, h("h1", { class: "unseen" }, VIEWS[chosen].title));
  fill(by("main"), root);
  document.title = `${VIEWS[chosen].title} · weir`;
  for (const link of by("views").querySelectorAll("a")) {
    if (link.dataset.view === chosen) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  VIEWS[chosen].show(root, { argument, signal: leaving.signal, keys: shown.keys });
  if (!isFirst) by("main").focus({ preventScroll: true });
  scrollTo(0, 0);
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

fill(by("views"), h("ul", null, Object.entries(VIEWS).map(([name, view], i) => h("li", null,
  h("a", { href: `#/${name}`, data: { view: name }, "aria-keyshortcuts": String(i + 1) },
    h("span", null, view.title), h("span.badge", { id: `badge-${name}`, hidden: true }))))));

// ---- Keys.

const EVERYWHERE = [
  ["1 – 6", "the views, from left to right"], ["j  k", "next, previous"], ["/", "search"], ["?", "these keys"], ["Esc", "close, back to the list"],
];
const OF_ALERTS = [
  ["f", "confirm fraud"], ["l", "legitimate"], ["u", "unsure"], ["z", "undo, while it is held back"], ["e", "explain"],
];

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  const isWriting = event.target.closest("input, textarea, select");
  if (event.key === "Escape" && isWriting) {
    event.target.blur();
    return;
  }
  if (isWriting) return;
  const act = shown.keys[event.key] ?? frame(event.key);
  if (!act) return;
  event.preventDefault();
  act();
}

function frame(key) {
  const name = Object.keys(VIEWS)[Number(key) - 1];
  if (name) return () => { location.hash = `#/${name}`; };
  return key === "?" ? openHelp : null;
}

function openHelp() {
  const rows = (told) => h("dl.keys", null, told.map(([key, text]) => [
    h("dt", null, key.split(/\s+/).map((one) => (one === "–" ? " – " : h("kbd", null, one)))), h("dd", null, text)]));
  fill(by("help"), h("h2", { id: "help-title" }, "Keys"), rows(EVERYWHERE), h("h3", null, "On an alert"), rows(OF_ALERTS),
    h("form", { method: "dialog" }, h("button.plain", { autofocus: true }, "Close")));
  by("help").showModal();
}

// ---- How things stand.

const WORDS = {
  lost: "The worker does not answer. What you see is from before; this page tries again by itself.",
  failing: "What you see may be behind.",
};

function stand() {
  const [kind, words] = standing();
  by("state").dataset.state = kind;
  write(by("state-text"), words);
  const banner = by("banner");
  banner.hidden = !(kind in WORDS);
  banner.dataset.state = kind;
  if (!banner.hidden) write(banner, `${capital(words)}. ${WORDS[kind]}`);
}

const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

// ---- Light and dark.

function theme(name) {
  const root = document.documentElement;
  if (name === "auto") delete root.dataset.theme;
  else root.dataset.theme = name;
  localStorage.setItem("weir.theme", name);
  const told = { auto: "as the system has them", light: "light", dark: "dark" }[name];
  write(by("theme"), `Colours: ${name}`);
  by("theme").title = `Colours: ${told}`;
  recolour();
}

by("theme").addEventListener("click", () => {
  const next = THEMES[(THEMES.indexOf(localStorage.getItem("weir.theme") ?? "auto") + 1) % THEMES.length];
  theme(next);
  announce(`Colours: ${next}`);
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", recolour);

// ---- Who asks.

let asking = null;
access.ask = () => {
  asking ??= new Promise((done) => {
    const field = h("input", { id: "token", type: "password", autocomplete: "off", required: true, spellcheck: "false" });
    const form = h("form", { method: "dialog" },
      h("h2", { id: "sign-in-title" }, "Who are you?"),
      h("p", null, "This worker answers only to those who have a token."),
      h("label", { for: "token" }, "Token"), field, h("button.primary", null, "Go on"));
    form.addEventListener("submit", () => token.set(field.value.trim()));
    fill(by("sign-in"), form);
    by("sign-in").addEventListener("close", () => { asking = null; done(); }, { once: true });
    by("sign-in").showModal();
  });
  return asking;
};
by("sign-in").addEventListener("cancel", (event) => event.preventDefault());

// ---- Begin.

theme(localStorage.getItem("weir.theme") ?? "auto");
by("help-open").addEventListener("click", openHelp);
addEventListener("keydown", onKey);
addEventListener("hashchange", route);
addEventListener("pagehide", flush);
for (const kind of ["line", "broker", "summary"]) watch(kind, stand);
watch("line", (isOpen) => announce(isOpen ? "Connected" : "No connection to the worker"));
stand();
route();
begin().then(() => tell("ready", state));
