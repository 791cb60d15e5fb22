// Elements out of plain values. Whatever comes from outside is text and nothing else: nothing here
// parses markup, and the content policy forbids it besides.

/** An element: `h("p.note", { title: "why" }, "text", child, [more])`; null and false are left out. */
export function h(what, props, ...children) {
  const [tag, ...classes] = what.split(".");
  const made = document.createElement(tag || "div");
  if (classes.length) made.className = classes.join(" ");
  for (const [name, value] of Object.entries(props ?? {})) set(made, name, value);
  add(made, children);
  return made;
}

function set(made, name, value) {
  if (value === null || value === undefined || value === false) return;
  if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
  else if (name === "data") Object.assign(made.dataset, value);
  else if (name === "style") for (const [key, one] of Object.entries(value)) made.style.setProperty(key, one);
  else made.setAttribute(name, value === true ? "" : String(value));
}

function add(parent, children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    parent.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
}

/** Put these children into an element instead of what it holds. */
export function fill(parent, ...children) {
  parent.replaceChildren();
  add(parent, children);
  return parent;
}

/** Write a text only where it differs: what a screen reader watches stays quiet otherwise. */
export function write(element, text) {
  const told = String(text);
  if (element.textContent !== told) element.textContent = told;
}

/** A table with a caption for those who do not see it; cells are texts or elements. */
export function table(caption, heads, rows, { compact = false } = {}) {
  const cells = (row) => row.map((cell, at) => h(at === 0 ? "th" : "td", {
    scope: at === 0 ? "row" : null, class: heads[at].numeric ? "number" : null,
  }, cell));
  return h("div.scrolls", { tabindex: "0", role: "region", "aria-label": caption },
    h(compact ? "table.compact" : "table", null,
      h("caption.unseen", null, caption),
      h("thead", null, h("tr", null, heads.map((head) =>
        h("th", { scope: "col", class: head.numeric ? "number" : null, title: head.title }, head.text)))),
      h("tbody", null, rows.map((row) => h("tr", null, cells(row))))));
}

let said = 0;
/** Tell a screen reader once; of what comes within three seconds only the last. */
export function announce(text) {
  clearTimeout(said);
  said = setTimeout(() => write(document.getElementById("announcer"), text), 300);
}

/** A line at the foot that goes by itself, with at most one thing to do. */
export function toast(text, { action = null, act = null, kind = "", seconds = 6 } = {}) {
  const gone = () => made.remove();
  const made = h("div.toast", { class: `toast ${kind}` }, h("span", null, text),
    action && h("button", { type: "button", onclick: () => { gone(); act(); } }, action));
  const shown = document.getElementById("toasts");
  while (shown.children.length > 2) shown.firstChild.remove();
  shown.append(made);
  setTimeout(gone, seconds * 1000);
  announce(text);
  return gone;
}

/** At most once in `ms`: the last call wins, and none is lost. */
export function paced(what, ms) {
  let waiting = null;
  return () => {
    waiting ??= setTimeout(() => { waiting = null; what(); }, ms);
  };
}
