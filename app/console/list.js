// A long list of which only what is seen is drawn: ten thousand rows cost as much as thirty.

import { h } from "./dom.js";

const BEYOND = 6; // rows drawn above and below what is seen

/** A grid of rows of one height. `columns`: [{text, class}]; `cells(item)`: one child a column. */
export class List {
  constructor({ label, columns, cells, key, onSelect, onEnd = () => {} }) {
    Object.assign(this, { columns, cells, key, onSelect, onEnd, items: [], at: -1, drawn: new Map(), selectedKey: null });
    this.head = h("div.row.head", { role: "row", "aria-rowindex": "1" },
      columns.map((column) => h("span", { role: "columnheader", class: column.class ?? "" }, column.text)));
    this.space = h("div.space", { role: "rowgroup" });
    this.element = h("div.list", { role: "grid", tabindex: "0", "aria-label": label, "aria-readonly": "true" },
      h("div.sticky", { role: "rowgroup" }, this.head), this.space);
    this.element.addEventListener("scroll", () => this.draw(), { passive: true });
    this.element.addEventListener("keydown", (event) => this.onKey(event));
    this.space.addEventListener("click", (event) => {
      const row = event.target.closest("[data-at]");
      if (row) this.select(Number(row.dataset.at));
    });
    this.sizes = new ResizeObserver(() => this.resize());
    this.sizes.observe(this.element);
  }

  get height() {
    // Named in the style sheet, where narrow screens have higher rows.
    this.rowHeight ||= parseFloat(getComputedStyle(this.element).getPropertyValue("--row")) || 40;
    return this.rowHeight;
  }

  /** Somebody points at a row or reads on: what is seen must not move away. */
  get isInUse() {
    return this.element.scrollTop > 0 || this.element.matches(":hover") || this.element.matches(":focus-visible");
  }

  /** Show these items; what is seen stays in its place if it is in use. Returns rows added above it. */
  set(items) {
    const top = Math.floor(this.element.scrollTop / this.height);
    const anchor = this.isInUse && this.items[top] ? this.key(this.items[top]) : null;
    this.items = [...items]; // a copy: what was is compared with what is
    this.at = this.selectedKey === null ? -1 : this.find(this.selectedKey, this.at);
    const now = anchor === null ? top : this.find(anchor, top);
    this.space.style.height = `${items.length * this.height}px`;
    this.element.setAttribute("aria-rowcount", String(items.length + 1));
    if (now > top) this.element.scrollTop += (now - top) * this.height;
    this.draw();
  }

  /** Where the item with this key is now; it is seldom far from where it was. */
  find(key, near) {
    const { items } = this;
    for (let off = 0; off < 64; off += 1) {
      if (near + off >= 0 && items[near + off] && this.key(items[near + off]) === key) return near + off;
    }
    return items.findIndex((item) => this.key(item) === key);
  }

  /** Rows may be higher now: all are laid anew. */
  resize() {
    this.rowHeight = 0;
    for (const row of this.drawn.values()) row.element.remove();
    this.drawn = new Map();
    this.space.style.height = `${this.items.length * this.height}px`;
    this.draw();
  }

  draw() {
    const { height, items, element } = this;
    const first = Math.max(0, Math.floor(element.scrollTop / height) - BEYOND);
    const last = Math.min(items.length, Math.ceil((element.scrollTop + element.clientHeight) / height) + BEYOND);
    const kept = new Map();
    for (let at = first; at < last; at += 1) {
      const item = items[at];
      const key = this.key(item);
      let row = this.drawn.get(key);
      if (!row || row.item !== item) {
        row?.element.remove();
        row = { item, element: this.row(item) };
      }
      this.place(row.element, at);
      kept.set(key, row);
    }
    for (const [key, row] of this.drawn) if (!kept.has(key)) row.element.remove();
    this.drawn = kept;
    this.mark();
    if (last > items.length - 3 * BEYOND) this.onEnd();
  }

  row(item) {
    return h("div.row", { role: "row" }, this.cells(item).map((cell, i) =>
      h("span", { role: "gridcell", class: this.columns[i].class ?? "" }, cell)));
  }

  place(row, at) {
    if (row.dataset.at !== String(at)) {
      row.dataset.at = String(at);
      row.id = `row-${at}`;
      row.setAttribute("aria-rowindex", String(at + 2));
      row.style.transform = `translateY(${at * this.height}px)`;
    }
    // In the order in which they are read, whatever the order in which they came.
    if (!row.isConnected) {
      const next = [...this.space.children].find((other) => Number(other.dataset.at) > at);
      this.space.insertBefore(row, next ?? null);
    }
  }

  mark() {
    for (const { element, item } of this.drawn.values()) {
      element.setAttribute("aria-selected", String(this.key(item) === this.selectedKey));
    }
    const isDrawn = this.at >= 0 && this.drawn.has(this.selectedKey);
    if (isDrawn) this.element.setAttribute("aria-activedescendant", `row-${this.at}`);
    else this.element.removeAttribute("aria-activedescendant");
  }

  select(at, { quietly = false } = {}) {
    if (!this.items.length) return;
    this.at = Math.min(Math.max(at, 0), this.items.length - 1);
    this.selectedKey = this.key(this.items[this.at]);
    this.reveal();
    this.draw();
    if (!quietly) this.onSelect(this.items[this.at]);
  }

  /** Mark the item with this key, if it is here; nobody is told. */
  selectKey(key) {
    this.selectedKey = key;
    this.at = key === null ? -1 : this.find(key, this.at);
    if (this.at >= 0) this.reveal();
    this.draw();
  }

  reveal() {
    const { element, height } = this;
    const head = this.head.offsetHeight;
    const top = this.at * height;
    if (top < element.scrollTop) element.scrollTop = top;
    const room = element.clientHeight - head;
    if (room > 0 && top + height > element.scrollTop + room) element.scrollTop = top + height - room;
  }

  step(by) {
    this.select(this.at + by);
  }

  onKey(event) {
    const page = Math.max(1, Math.floor(this.element.clientHeight / this.height) - 2);
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -this.items.length, End: this.items.length };
    const by = steps[event.key];
    if (by === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    this.step(by);
  }

  end() {
    this.sizes.disconnect();
  }
}
