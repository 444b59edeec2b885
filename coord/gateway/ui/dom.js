/** Builds elements. Data is always set as text or attribute, never parsed as markup. */

const PROPERTIES = new Set(["value", "checked", "disabled", "hidden", "indeterminate", "tabIndex", "htmlFor"]);

/**
 * Return a new element.
 *
 *     h("button", { class: "quiet", type: "button", onclick: close, "aria-label": "Close" }, icon("close"))
 *
 * @param {string} name of the element.
 * @param {Object<string, any> | null} [attributes] `class`, `data-…`, `aria-…`; functions named `on…` are listeners;
 *   null, undefined and false leave an attribute out.
 * @param {...any} children nodes, text, numbers, lists of them; null, undefined and false are left out.
 * @returns {HTMLElement}
 */
export function h(name, attributes, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || (value === false && !PROPERTIES.has(key))) continue;
    if (typeof value === "function" && key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (PROPERTIES.has(key)) element[key] = value;
    else element.setAttribute(key, value === true ? "" : String(value));
  }
  append(element, children);
  return element;
}

function append(parent, children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    parent.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
}

const controlsOf = (element) => [...element.querySelectorAll("a[href], button:enabled, [tabindex]")];
const nameOf = (control) => control.getAttribute("href") ?? control.dataset.name ?? control.textContent;

/**
 * Replace the content of an element. A focus in it goes to the new control of the same address or name, otherwise to
 * the one in the same place, otherwise to the element. It never goes from a button to another one: a key pressed twice
 * would do something else.
 */
export function fill(element, ...children) {
  const focused = document.activeElement;
  const place = element.contains(focused) ? controlsOf(element).indexOf(focused) : -1;
  element.replaceChildren();
  append(element, children);
  if (place < 0) return element;
  const controls = controlsOf(element);
  const same = controls.find((control) => nameOf(control) === nameOf(focused));
  const next = controls[Math.min(place, controls.length - 1)];
  const isOther = focused.tagName === "BUTTON" && next?.tagName === "BUTTON";
  focusOn(same ?? (isOther ? element : next) ?? element);
  return element;
}

/** Give an element the focus, also one that takes none by itself. */
export function focusOn(element) {
  if (element.tabIndex < 0) element.tabIndex = -1;
  element.focus({ preventScroll: true });
}

/** Give an element the focus if nothing has it any more: what had it was removed, or is disabled. */
export function rescueFocus(element) {
  if (document.activeElement === document.body) focusOn(element);
}

/** Return an id. Where it has no room its middle is left out: generated ids differ at their end. */
export function idText(id) {
  if (id.length <= 16) return id;
  const shown = [id.slice(0, -6), id.slice(-6)].map((part) => h("span", { "aria-hidden": "true" }, part));
  return h("span", { class: "long-id", title: id }, shown, h("span", { class: "hidden" }, id)); // copied as a whole
}

/** Set the text of an element, only if it differs: a write costs a layout. */
export function setText(element, text) {
  const value = String(text);
  if (element.textContent !== value) element.textContent = value;
}

const SVG = "http://www.w3.org/2000/svg";

/** Paths of the icons, on a grid of 16. */
const ICONS = {
  close: "M4 4l8 8M12 4l-8 8",
  sun: "M8 5a3 3 0 100 6 3 3 0 000-6zM8 1v1.5M8 13.5V15M1 8h1.5M13.5 8H15M3 3l1 1M12 12l1 1M3 13l1-1M12 4l1-1",
  moon: "M13 9.5A5.5 5.5 0 016.5 3 5.5 5.5 0 1013 9.5z",
  system: "M2 3h12v8H2zM6 14h4M8 11v3",
  keyboard: "M1.5 4h13v8h-13zM4 6.5h.01M6.5 6.5h.01M9 6.5h.01M11.5 6.5h.01M5 9.5h6",
  user: "M8 8a2.8 2.8 0 100-5.6A2.8 2.8 0 008 8zM2.5 14c.6-2.6 2.8-4 5.5-4s4.9 1.4 5.5 4",
  search: "M7 12A5 5 0 107 2a5 5 0 000 10zM10.6 10.6L14 14",
  arrow: "M3 8h9M8.5 4.5L12 8l-3.5 3.5",
  reload: "M13 8a5 5 0 11-1.5-3.6M13 2v3h-3",
};

/**
 * Return an icon. It is hidden from screen readers: the element around it has the label.
 *
 * @param {keyof typeof ICONS} name
 * @returns {SVGElement}
 */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  const path = document.createElementNS(SVG, "path");
  svg.setAttribute("viewBox", "0 0 16 16");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

/** Return text as keys of a keyboard: `keys("g", "f")`. */
export function keys(...names) {
  return h(
    "span",
    { class: "keys" },
    names.map((name) => h("kbd", null, name)),
  );
}

/**
 * Return what a page shows in place of an empty list: what is missing, and the next step.
 *
 * @param {string} title
 * @param {any} text what to do next.
 * @param {string} [command] a command line for it.
 */
export function emptyState(title, text, command) {
  return h("div", { class: "empty" }, h("h2", null, title), h("p", null, text), command && commandLine(command));
}

/** Return a command with a button that copies it; `isInline`: within a sentence. */
export function commandLine(command, isInline = false) {
  const text = h(isInline ? "code" : "pre", isInline ? null : { tabindex: "0" }, command);
  const label = h("span", null, "Copy");
  const copy = async () => {
    let isCopied = true;
    try {
      await navigator.clipboard.writeText(command);
    } catch {
      getSelection().selectAllChildren(text); // browsers allow the clipboard to pages of localhost and of HTTPS only
      isCopied = document.execCommand("copy");
    }
    setText(label, isCopied ? "Copied" : "Selected");
    setTimeout(() => setText(label, "Copy"), 2_000);
  };
  const button = h("button", { type: "button", class: "secondary", onclick: copy, "aria-live": "polite" }, label);
  button.append(h("span", { class: "hidden" }, ` ${command}`));
  return h("span", { class: isInline ? "command inline" : "command" }, text, button);
}

/**
 * Return a table. Cells are text or nodes.
 *
 * @param {string} caption for screen readers.
 * @param {Array<string | {label: string, class?: string}>} columns
 * @param {Array<Array<any>>} rows
 */
export function table(caption, columns, rows) {
  const named = columns.map((column) => (typeof column === "string" ? { label: column } : column));
  return h(
    "div",
    { class: "table", tabindex: "0", role: "region", "aria-label": caption },
    h(
      "table",
      null,
      h("caption", { class: "hidden" }, caption),
      h(
        "thead",
        null,
        h(
          "tr",
          null,
          named.map((column) => h("th", { scope: "col", class: column.class }, column.label)),
        ),
      ),
      h(
        "tbody",
        null,
        rows.map((row) =>
          h(
            "tr",
            null,
            row.map((cell, at) => h("td", { class: named[at].class }, cell)),
          ),
        ),
      ),
    ),
  );
}

/**
 * Return tabs with one panel: arrows, Home and End move between them.
 *
 * @param {string} label of the list of tabs, for screen readers.
 * @param {Array<{id: string, label: string, show: (panel: HTMLElement) => void}>} tabs
 * @param {string} selected id of the first one.
 * @param {(id: string) => void} [changed]
 */
export function tabs(label, tabs, selected, changed) {
  const panel = h("div", { role: "tabpanel", class: "tabpanel", id: `panel-${tabs[0].id}`, tabindex: "0" });
  const buttons = tabs.map((tab) =>
    h(
      "button",
      { role: "tab", type: "button", id: `tab-${tab.id}`, "aria-controls": panel.id, onclick: () => select(tab.id) },
      tab.label,
    ),
  );
  function select(id) {
    tabs.forEach((tab, at) => {
      const isSelected = tab.id === id;
      buttons[at].setAttribute("aria-selected", String(isSelected));
      buttons[at].tabIndex = isSelected ? 0 : -1;
      if (!isSelected) return;
      panel.setAttribute("aria-labelledby", buttons[at].id);
      panel.replaceChildren();
      tab.show(panel);
    });
    changed?.(id);
  }
  function onkeydown(event) {
    const steps = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity };
    if (!(event.key in steps)) return;
    event.preventDefault();
    const at = buttons.indexOf(document.activeElement);
    const step = steps[event.key];
    const next = Number.isFinite(step) ? (at + step + tabs.length) % tabs.length : step < 0 ? 0 : tabs.length - 1;
    buttons[next].focus();
    select(tabs[next].id);
  }
  const root = h(
    "div",
    { class: "tabs" },
    h("div", { role: "tablist", "aria-label": label, onkeydown }, buttons),
    panel,
  );
  select(selected);
  return root;
}
