// Numbers, times and words as people read them. Where there is no figure there is a dash.

export const NONE = "–";
const has = (value) => typeof value === "number" && Number.isFinite(value);

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const money = new Intl.NumberFormat("en", { minimumFractionDigits: 2, maximumFractionDigits: 2 });

export const count = (value) => (has(value) ? whole.format(value) : NONE);
export const amount = (value) => (has(value) ? money.format(value) : NONE);

/** Three digits that say something: 0.873, 12.4, 1,240. */
export function figure(value) {
  if (!has(value)) return NONE;
  const size = Math.abs(value);
  if (size >= 1000) return whole.format(value);
  if (size >= 100) return value.toFixed(0);
  if (size >= 10) return value.toFixed(1);
  if (size >= 1) return value.toFixed(2);
  if (size === 0) return "0";
  return size >= 0.001 ? value.toFixed(3) : value.toExponential(1);
}

/** A score, always as wide: .973; one that rounds to a whole says so honestly. */
export function score(value) {
  if (!has(value)) return NONE;
  if (value > 0.9995 && value < 1) return ">.999";
  return value >= 1 ? "1.00" : value.toFixed(3).replace(/^0/, "");
}

/** One digit after the point where the whole ones say little. */
export const percent = (value, digits = value < 0.1 ? 1 : 0) => (has(value) ? `${(100 * value).toFixed(digits)} %` : NONE);
export const signed = (value) => (has(value) ? `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(2)}` : NONE);
/** For the axis of a chart: no digit more than needed. */
export const tick = (value) => (has(value) ? String(Number(value.toPrecision(3))) : "");

/** Milliseconds as people say them: 8 ms, 1.4 s, 3 min, 5 h, 12 d. */
export function span(ms) {
  if (!has(ms)) return NONE;
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 60_000) return `${(ms / 1000).toFixed(ms < 10_000 ? 1 : 0)} s`;
  if (ms < 3_600_000) return `${Math.round(ms / 60_000)} min`;
  if (ms < 172_800_000) return `${Math.round(ms / 3_600_000)} h`;
  return `${Math.round(ms / 86_400_000)} d`;
}

const pad = (value) => String(value).padStart(2, "0");
const valid = (ms) => has(ms) && Math.abs(ms) < 8.64e15;

/** Event time is UTC, here as everywhere in weir. */
export function clock(ms) {
  if (!valid(ms)) return NONE;
  const at = new Date(ms);
  return `${pad(at.getUTCHours())}:${pad(at.getUTCMinutes())}:${pad(at.getUTCSeconds())}`;
}
export function date(ms) {
  return valid(ms) ? new Date(ms).toISOString().slice(0, 10) : NONE;
}
export const moment = (ms) => (valid(ms) ? `${date(ms)} ${clock(ms)}` : NONE);

/** How long ago, on this machine's clock. */
export const ago = (ms) => (has(ms) ? `${span(Math.max(0, Date.now() - ms))} ago` : NONE);

/** card_id is called card, terminal_id terminal: what people say. */
export const kind = (name) => String(name).replace(/_?(id|key)$/i, "").replaceAll("_", " ") || String(name);

/** One entity, many entities. */
export const plural = (n, one, many = `${one}s`) => `${count(n)} ${n === 1 ? one : many}`;

/** The first characters of a digest tell two versions apart. */
export const version = (model) => (model ? `${model.name ?? "model"} @${count(model.position)}` : NONE);
