// The HTTP API as the page uses it: JSON in and out, problems as errors, events as they come.

const TOKEN = "weir.token";
const QUIET_MS = 25_000; // the server says something at least every 15 s
const SLOWEST_MS = 5_000; // between two tries to connect

/** What the server answered when it could not do it (RFC 9457); status 0: it did not answer. */
export class Problem extends Error {
  constructor(status, title, detail, errors = []) {
    super(detail || title);
    Object.assign(this, { status, title, errors });
  }
}

export const token = {
  get: () => sessionStorage.getItem(TOKEN),
  set: (value) => (value ? sessionStorage.setItem(TOKEN, value) : sessionStorage.removeItem(TOKEN)),
};

/** Called when the server wants to know who asks; resolves when a token was given. */
export const access = { ask: async () => {} };

function headers(more = {}) {
  const held = token.get();
  return held ? { ...more, Authorization: `Bearer ${held}` } : more;
}

async function call(method, path, body, more, how = {}) {
  const sent = body === undefined ? {} : { body: JSON.stringify(body) };
  const kind = body === undefined ? {} : { "Content-Type": "application/json" };
  let answer;
  try {
    answer = await fetch(path, { method, headers: headers({ ...kind, ...more }), ...sent, ...how });
  } catch {
    throw new Problem(0, "No answer", "The worker does not answer.");
  }
  if (answer.status === 401) {
    await access.ask();
    return call(method, path, body, more, how);
  }
  if (!answer.ok) throw await problem(answer);
  return answer.json();
}

async function problem(answer) {
  const told = await answer.json().catch(() => ({}));
  return new Problem(answer.status, told.title ?? answer.statusText, told.detail ?? "", told.errors);
}

export const get = (path) => call("GET", path);
export const post = (path, body, more, how) => call("POST", path, body, more, how);

/** A path with its query; what is null or empty is left out. */
export function url(path, query) {
  const kept = Object.entries(query).filter(([, value]) => value !== null && value !== undefined && value !== "");
  return kept.length ? `${path}?${new URLSearchParams(kept)}` : path;
}

/** A part of a path, whatever it holds. */
export const part = (text) => encodeURIComponent(text);

/**
 * Follow the events for ever: `on(kind, data)` for each, `line(isOpen)` when the line breaks or holds.
 * It is read with fetch, not EventSource, which cannot say who asks.
 */
export async function follow(on, line) {
  let last = null;
  for (let failed = 0; ; failed += 1) {
    try {
      await listen(url("/v1/events", { after: last }), (kind, data, id) => {
        if (kind === "hello") { failed = 0; line(true); }
        last = id ?? last;
        on(kind, data);
      });
    } catch (error) {
      if (error instanceof Problem && error.status === 401) await access.ask();
    }
    line(false);
    await new Promise((again) => setTimeout(again, Math.min(250 * 2 ** failed, SLOWEST_MS)));
  }
}

async function listen(path, on) {
  const ending = new AbortController();
  let quiet;
  const heard = () => { clearTimeout(quiet); quiet = setTimeout(() => ending.abort(), QUIET_MS); };
  heard();
  try {
    const answer = await fetch(path, { headers: headers({ Accept: "text/event-stream" }), signal: ending.signal });
    if (!answer.ok) throw await problem(answer);
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    const parse = events(on);
    for (let step = await reader.read(); !step.done; step = await reader.read()) {
      heard();
      parse(step.value);
    }
  } finally {
    clearTimeout(quiet);
    ending.abort();
  }
}

/** A parser of server-sent events, fed with text however it was cut. */
export function events(on) {
  let rest = "";
  return (text) => {
    const blocks = (rest + text).replaceAll("\r\n", "\n").split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const told = { event: "message", data: "", id: null };
      for (const line of block.split("\n")) {
        const [, name, value] = /^(\w+): ?(.*)$/s.exec(line) ?? [];
        if (name === "data") told.data += (told.data && "\n") + value;
        else if (name in told) told[name] = value;
      }
      if (told.data) on(told.event, JSON.parse(told.data), told.id);
    }
  };
}
