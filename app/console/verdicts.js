// What a person says of an alert: held back for some seconds, so that it can be taken back, then
// sent as a label of the source "analyst". What has been sent is in the log for good: it is
// corrected by saying something else.

import { post } from "./api.js";
import { toast } from "./dom.js";
import { tell } from "./live.js";
import { OUTCOMES } from "./words.js";

export const HELD_S = 4;
const SAYS = { fraud: true, legitimate: false, unsure: null };
const WORDS = { fraud: "fraud", legitimate: "legitimate", unsure: "unsure" };

const held = []; // newest last: {id, verdict, was, timer, gone}
const sent = new Map(); // verdicts given here, by transaction

/** What was said here of a transaction, and how far it has come: {verdict, stage} or undefined. */
export const said = (id) => sent.get(id);

function mark(id, value) {
  if (value) sent.set(id, value);
  else sent.delete(id);
  tell("verdict", { transaction_id: id });
}

/** Once the log has decided, what it says counts: somebody else may have said otherwise since. */
export function settle({ transaction_id: id, labels = [] }) {
  const isDecided = labels.length > 0 && labels.every((label) => label.outcome !== "sent");
  if (isDecided && said(id)?.stage === "sent") sent.delete(id);
}

/** Say what an alert is. The same again changes nothing. */
export function give(alert, verdict) {
  const id = alert.transaction_id;
  const was = said(id);
  if (was?.verdict === verdict && was.stage !== "failed") return;
  take(id);
  const one = { id, verdict, was: was?.stage === "held" ? null : was, timer: 0, gone: () => {} };
  one.timer = setTimeout(() => send(one), HELD_S * 1000);
  one.gone = toast(`${short(id)}: ${WORDS[verdict]}`, { action: "Undo (z)", act: () => undo(id), kind: verdict, seconds: HELD_S });
  held.push(one);
  mark(id, { verdict, stage: "held" });
}

function take(id) {
  const at = held.findIndex((one) => one.id === id);
  if (at < 0) return null;
  const [one] = held.splice(at, 1);
  clearTimeout(one.timer);
  one.gone();
  return one;
}

/** Take back what is still held back: this one, or the newest. */
export function undo(id = held.at(-1)?.id) {
  const one = id === undefined ? null : take(id);
  if (!one) {
    toast("Nothing is held back. What has been sent is corrected by saying something else.");
    return;
  }
  mark(one.id, one.was);
  toast(`${short(one.id)}: taken back, nothing was sent`, { seconds: 3 });
}

async function send(one, keepalive = false) {
  take(one.id);
  mark(one.id, { verdict: one.verdict, stage: "sending" });
  const body = { transaction_id: one.id, is_fraud: SAYS[one.verdict], source: "analyst" };
  try {
    const answer = await post("/v1/labels", body, { "Idempotency-Key": crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}` }, { keepalive });
    mark(one.id, { verdict: one.verdict, stage: "sent", will: answer.will, says: answer.says });
    toast(`${short(one.id)}: ${answer.says ?? OUTCOMES[answer.will] ?? "sent"}`, { seconds: 4 });
  } catch (problem) {
    mark(one.id, { verdict: one.verdict, stage: "failed", says: problem.message });
    toast(`${short(one.id)} was not labelled: ${problem.message}`, {
      action: "Again", act: () => give({ transaction_id: one.id }, one.verdict), kind: "failed", seconds: 12,
    });
  }
}

/** Send what is held back, at once: the page is being left. */
export function flush() {
  for (const one of [...held]) send(one, true);
}

const short = (id) => (id.length > 24 ? `${id.slice(0, 22)}…` : id);
