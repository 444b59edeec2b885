/** A table whose rows keep their elements: what has not changed is not written, so selected text and the focus stay. */

import { fill, focusOn, h, setText } from "../dom.js";

/**
 * A column: `text` returns the text of a cell. Or `node` returns its content, drawn again when the text differs.
 *
 * @typedef {Object} Column
 * @property {string} label
 * @property {string} [class]
 * @property {(row: any) => string} text
 * @property {(row: any) => any} [node]
 */

export class LiveTable {
  /**
   * @param {string} caption
   * @param {Column[]} columns
   * @param {(row: any) => string} keyOf
   * @param {boolean} [isCards] on a phone each row is a card.
   */
  constructor(caption, columns, keyOf, isCards = true) {
    this.columns = columns;
    this.keyOf = keyOf;
    this.rows = new Map();
    this.body = h("tbody");
    const heads = columns.map(({ label, class: name }) => h("th", { scope: "col", class: name }, label));
    this.element = h(
      "div",
      { class: `table live${isCards ? " cards" : ""}`, tabindex: "0", role: "region", "aria-label": caption },
      h("table", null, h("caption", { class: "hidden" }, caption), h("thead", null, h("tr", null, heads)), this.body),
    );
  }

  /** Show these rows, in their order. */
  set(rows) {
    const gone = new Set(this.rows.keys());
    const focused = this.body.contains(document.activeElement) && document.activeElement.closest("tr");
    const place = focused && [...this.body.children].indexOf(focused);
    let before = null;
    for (const row of rows) {
      const key = this.keyOf(row);
      gone.delete(key);
      const shown = this.rows.get(key) ?? this.add(key);
      this.columns.forEach((column, at) => {
        const text = String(column.text(row));
        if (!column.node) setText(shown.cells[at], text);
        else if (shown.texts[at] !== text) fill(shown.cells[at], column.node(row));
        shown.texts[at] = text;
      });
      const next = before ? before.nextSibling : this.body.firstChild;
      if (next !== shown.element) this.body.insertBefore(shown.element, next);
      before = shown.element;
    }
    for (const key of gone) {
      this.rows.get(key).element.remove();
      this.rows.delete(key);
    }
    if (focused && !focused.isConnected) {
      const row = this.body.children[Math.min(place, this.body.children.length - 1)];
      focusOn(row?.querySelector("a, button:enabled") ?? this.element);
    }
  }

  add(key) {
    const cells = this.columns.map(({ label, class: name }) => h("td", { class: name, "data-label": label }));
    const row = { element: h("tr", { "data-key": key }, cells), cells, texts: [] };
    this.rows.set(key, row);
    return row;
  }
}

/** Says why a list could not be read. */
export class Problem {
  element = h("p", { class: "failure body", role: "alert", hidden: true });

  /** Show it; an empty text: the last read succeeded. */
  set(text) {
    setText(this.element, text);
    this.element.hidden = !text;
  }
}

/** Return a state: its shape and its name. */
export const state = (status, text = status) =>
  h("span", { class: "state", "data-status": status }, h("i", { class: "shape", "aria-hidden": "true" }), text);
