// Features in plain words. Their names are made by rule (docs/features.md): entity, statistic,
// window, delay; what follows no rule is said as it is.

import { amount, figure, kind, percent, plural, span } from "./format.js";

const WINDOW = /^(.+?)_(since_first_fraud|since_fraud|since_legitimate|since_last|count|sum|mean|max|std|ratio|zscore|rank|distinct|seen|peak|burst|frauds|risk|share|last(\d+)|run)_(\d+)(ms|s|m|h|d)(?:_after_(\d+)(ms|s|m|h|d))?$/;
const UNITS = { ms: "ms", s: "second", m: "minute", h: "hour", d: "day" };
const DAY_MS = 86_400_000;
const LONG_MS = { ms: 1, s: 1000, m: 60_000, h: 3_600_000, d: DAY_MS };

const lasting = (n, unit) => (unit === "ms" ? `${n} ms` : plural(Number(n), UNITS[unit]));
const times = (value) => `${figure(value)} ×`;

/** What each statistic says: of whom, over which window, with this value. */
const SAYS = {
  count: (who, over, v) => `${plural(v, "transaction")} of this ${who} within ${over}`,
  sum: (who, over, v) => `${amount(v)} spent by this ${who} within ${over}`,
  mean: (who, over, v) => `${amount(v)} is this ${who}'s mean within ${over}`,
  max: (who, over, v) => `${amount(v)} is this ${who}'s highest within ${over}`,
  std: (who, over, v) => `amounts of this ${who} vary by ${amount(v)} within ${over}`,
  ratio: (who, over, v) => `amount is ${v < 1 ? `${percent(v, v < 0.1 ? 1 : 0)} of` : times(v)} this ${who}'s mean of ${over}`,
  zscore: (who, over, v) => `amount lies ${figure(Math.abs(v))} deviations ${v < 0 ? "below" : "above"} this ${who}'s mean of ${over}`,
  rank: (who, over, v) => (v === 0 ? `the highest amount of this ${who} in ${over}` : `${percent(v, 0)} of this ${who}'s amounts in ${over} were as high`),
  // Where there is none before, the length of the window stands for it.
  since_last: (who, over, v, ms) => (v * 1000 >= ms ? `no transaction of this ${who} within ${over} before` : `${span(v * 1000)} since this ${who}'s last transaction`),
  distinct: (who, over, v) => `${plural(Math.round(v), "different counterpart")} of this ${who} within ${over}`,
  seen: (who, over, v) => (v > 0 ? `this ${who} has been here before, within ${over}` : `this ${who} was never here before, within ${over}`),
  peak: (who, over, v) => `highest amount of this ${who} within ${over} lies ${figure(Math.abs(v))} deviations ${v < 0 ? "below" : "above"} its usual`,
  burst: (who, over, v) => `this ${who} is ${times(v)} as busy as usual, over ${over}`,
  frauds: (who, over, v) => `${plural(v, "known fraud")} of this ${who} within ${over}`,
  risk: (who, over, v) => `${percent(v)} of this ${who}'s transactions were frauds, within ${over}`,
  share: (who, over, v) => `${percent(v)} of what is known of this ${who} were frauds, within ${over}`,
  run: (who, over, v) => `${plural(v, "fraud")} in a row, the newest known of this ${who}`,
  since_fraud: (who, over, v) => `${span(v * DAY_MS)} since this ${who}'s last known fraud`,
  since_first_fraud: (who, over, v) => `${span(v * DAY_MS)} since this ${who}'s first known fraud`,
  since_legitimate: (who, over, v) => `${span(v * DAY_MS)} since this ${who} was last known to be honest`,
};
const NUMBERS = {
  weekend: (v) => (v ? "at the weekend" : "on a weekday"),
  night: (v) => (v ? "at night" : "by day"),
  amount: (v) => `amount is ${amount(v)}`,
  amount_log1p: (v) => `amount is ${amount(Math.expm1(v))}`,
  hour_sin: (v) => `time of day (sine ${figure(v)})`,
  hour_cos: (v) => `time of day (cosine ${figure(v)})`,
};

/** A feature and its value as a sentence without a full stop. */
export function say(name, value) {
  const [, entity, stat, newest, n, unit] = WINDOW.exec(name) ?? [];
  if (value === null || value === undefined) return `${title(name)}: not known`;
  if (!entity) return Object.hasOwn(NUMBERS, name) ? NUMBERS[name](value) : `${name} is ${figure(value)}`;
  const who = kind(entity);
  if (newest) return `${percent(value, 0)} of the newest ${newest} known of this ${who} were frauds`;
  return SAYS[stat](who, lasting(n, unit), value, Number(n) * LONG_MS[unit]);
}

/** Shares of what is the same in words, an amount and its logarithm, count as one; longest first. */
export function merged(told, words, share = "contribution") {
  const found = new Map();
  for (const one of told) {
    const text = words(one);
    const before = found.get(text);
    if (before) found.set(text, { ...before, [share]: before[share] + one[share], also: [...before.also, one.feature] });
    else found.set(text, { ...one, text, also: [] });
  }
  return [...found.values()].sort((a, b) => Math.abs(b[share]) - Math.abs(a[share]));
}

/** A feature's name for a table's head: "card: count, 7 days". */
export function title(name) {
  const [, entity, stat, , n, unit] = WINDOW.exec(name) ?? [];
  if (!entity) return String(name).replace(/_log1p$/, "").replaceAll("_", " ");
  return `${kind(entity)}: ${stat.replaceAll("_", " ")}, ${lasting(n, unit)}`;
}

/** What became of a label. */
export const OUTCOMES = {
  sent: "sent", learn: "the model has learnt it", duplicate: "was known already", corrected: "corrects an earlier label",
  expired: "came too late to teach", early: "waits for its transaction", unknown: "no such transaction",
  rejected: "refused", noted: "noted; teaches nothing",
};
