// What the page knows and keeps up to date: one store, fed by the events, watched by the views.

import { follow, get } from "./api.js";

const SERIES_MAX = 300; // as many as the server holds: ten minutes

export const state = {
  me: null,
  isOpen: null, // null: not yet tried
  summary: null,
  series: [], // [time_ms, rate, alerts_per_s, p95_ms, lag]
  broker: { is_connected: true, since_ms: 0, reason: "" },
};

const watchers = new Map();

/** Be told of a kind: summary, line, broker, alert, label, outcome, drift, dead-letter, model, reset. */
export function watch(kind, told, { signal } = {}) {
  if (!watchers.has(kind)) watchers.set(kind, new Set());
  watchers.get(kind).add(told);
  signal?.addEventListener("abort", () => watchers.get(kind).delete(told));
}

export function tell(kind, data) {
  for (const told of watchers.get(kind) ?? []) told(data);
}

function on(kind, data) {
  if (kind === "summary") onSummary(data);
  else if (kind === "broker") onBroker(data);
  else if (kind === "hello") { if (data.missed) tell("reset", data); }
  else tell(kind, data);
}

let before = null;
function onSummary(data) {
  if (before && data.time_ms > before.time_ms && data.started_ms === before.started_ms) {
    const seconds = (data.time_ms - before.time_ms) / 1000;
    const alerts = Math.max(0, data.n_alerts - before.n_alerts) / seconds;
    state.series.push([data.time_ms, data.rate, alerts, data.latency_ms?.p95 ?? null, data.lag]);
    if (state.series.length > SERIES_MAX) state.series.splice(0, state.series.length - SERIES_MAX);
  }
  before = state.summary = data;
  if (data.broker && data.broker.is_connected !== state.broker.is_connected) onBroker(data.broker);
  tell("summary", data);
}

function onBroker(data) {
  state.broker = { reason: "", ...data };
  tell("broker", state.broker);
}

/** Who asks, what has been, and from now on what happens. */
export async function begin() {
  follow(on, (isOpen) => {
    if (state.isOpen === isOpen) return;
    const isBack = isOpen && state.isOpen === false;
    state.isOpen = isOpen;
    tell("line", isOpen);
    if (isBack) tell("reset", {});
  });
  await refresh();
  watch("reset", refresh);
}

async function refresh() {
  try {
    const [me, { series, ...summary }] = await Promise.all([get("/v1/me"), get("/v1/metrics/summary")]);
    state.me = me;
    state.series = series ?? [];
    onSummary(summary);
  } catch {
    // The line says so, and tries again.
  }
}

const RANK = { read: 0, feedback: 1, admin: 2 };
/** May who looks at this do that? Until it is known: yes, and the server has the last word. */
export const may = (role) => !state.me || RANK[state.me.role] >= RANK[role];

/** How things stand, worst first: [kind, words]. */
export function standing() {
  const told = state.summary;
  if (state.isOpen === false) return ["lost", "no connection to the worker"];
  if (!state.broker.is_connected) return ["failing", "no connection to Kafka"];
  if (!told) return ["loading", "connecting"];
  const [why] = Object.values(told.health ?? {});
  if (why) return ["failing", why];
  const [wait] = Object.values(told.readiness ?? {});
  if (wait) return ["starting", wait];
  return ["ok", "scoring"];
}
