/**
 * The query bar: `type:ocr state:failed age:>1h`, with completion of fields and values.
 *
 * The fields come from the gateway (GET /query/fields) or from the page. Without them the bar is a plain text field.
 */

import { get } from "./api.js";
import { fill, h, icon } from "./dom.js";

/**
 * A field of a query, as the gateway describes it.
 *
 * @typedef {Object} Field
 * @property {string} name
 * @property {string} [help]
 * @property {string[]} [values] valid or known ones.
 * @property {string} [example]
 */

const MOST_SHOWN = 8;
let number = 0;

/** Return the fields of queries for `tasks` or `messages`; none if the gateway does not describe them. */
export async function fieldsOf(kind) {
  try {
    return (await get("/query/fields", { for: kind })).fields ?? [];
  } catch {
    return [];
  }
}

/**
 * Return the word at a position, in which spaces between quotes count as text.
 *
 * @returns {{start: number, end: number, word: string}}
 */
export function wordAt(text, at) {
  let start = 0;
  let isQuoted = false;
  for (let i = 0; i < at; i++) {
    if (text[i] === '"') isQuoted = !isQuoted;
    else if (text[i] === " " && !isQuoted) start = i + 1;
  }
  return { start, end: at, word: text.slice(start, at) };
}

/**
 * Return what could stand in place of a word.
 *
 * @param {string} word
 * @param {Field[]} fields
 * @returns {Array<{text: string, help: string}>}
 */
export function completions(word, fields) {
  const minus = word.startsWith("-") ? "-" : "";
  const [name, value] = word.slice(minus.length).split(/:(.*)/s);
  if (value === undefined) {
    return fields
      .filter((field) => field.name.startsWith(name.toLowerCase()))
      .map((field) => ({ text: `${minus}${field.name}:`, help: field.help ?? "" }));
  }
  const field = fields.find((one) => one.name === name);
  const given = value.split(",");
  const last = given.pop().toLowerCase();
  return (field?.values ?? [])
    .filter((one) => one.toLowerCase().startsWith(last) && !given.includes(one))
    .map((one) => ({
      text: `${minus}${name}:${[...given, /[\s",]/.test(one) ? `"${one}"` : one].join(",")}`,
      help: "",
    }));
}

/**
 * Return a query bar. `/` puts the focus into the first one of a page.
 *
 * @param {Object} options
 * @param {string} options.label for screen readers.
 * @param {string} [options.value]
 * @param {string} [options.placeholder]
 * @param {Field[] | Promise<Field[]> | (() => Field[])} [options.fields] a function is called with each completion.
 * @param {(text: string) => void} options.submitted called with Enter.
 * @param {(text: string) => void} [options.typed] called with each change.
 * @returns {{element: HTMLElement, value: string, showError: (text: string) => void}} `showError` with "" removes it.
 */
export function queryBar({ label, value = "", placeholder = "", fields = [], submitted, typed }) {
  const id = `query-${++number}`;
  let known = [];
  if (typeof fields !== "function") Promise.resolve(fields).then((found) => (known = found));
  const input = h("input", {
    type: "search",
    role: "combobox",
    "aria-label": label,
    "aria-autocomplete": "list",
    "aria-expanded": "false",
    "aria-controls": `${id}-list`,
    "aria-describedby": `${id}-error`,
    "data-querybar": true,
    autocomplete: "off",
    autocapitalize: "off",
    spellcheck: "false",
    value,
    placeholder,
  });
  const list = h("ul", { role: "listbox", id: `${id}-list`, "aria-label": "Completions", hidden: true });
  const error = h("p", { class: "failure", id: `${id}-error`, role: "alert" });
  const element = h(
    "div",
    { class: "querybar" },
    icon("search"),
    input,
    h("kbd", { "aria-hidden": "true" }, "/"),
    list,
    error,
  );
  let shown = [];
  let selected = -1;

  function show() {
    const { word } = wordAt(input.value, input.selectionStart ?? input.value.length);
    const all = typeof fields === "function" ? fields() : known;
    shown =
      document.activeElement === input
        ? completions(word, all)
            .filter(({ text }) => text !== word)
            .slice(0, MOST_SHOWN)
        : [];
    selected = -1;
    draw();
  }

  function draw() {
    const isOpen = shown.length > 0;
    list.hidden = !isOpen;
    input.setAttribute("aria-expanded", String(isOpen));
    if (selected >= 0) input.setAttribute("aria-activedescendant", `${id}-${selected}`);
    else input.removeAttribute("aria-activedescendant");
    fill(
      list,
      shown.map(({ text, help }, at) =>
        h(
          "li",
          {
            role: "option",
            id: `${id}-${at}`,
            "aria-selected": String(at === selected),
            onpointerdown: (event) => (event.preventDefault(), take(at)),
          },
          h("code", null, text),
          help && h("span", null, help),
        ),
      ),
    );
  }

  function take(at) {
    const { start, end } = wordAt(input.value, input.selectionStart ?? input.value.length);
    const { text } = shown[at];
    const rest = input.value.slice(end).trimStart();
    const space = text.endsWith(":") ? "" : " ";
    input.value = input.value.slice(0, start) + text + space + rest;
    input.setSelectionRange(start + text.length + space.length, start + text.length + space.length);
    typed?.(input.value.trim());
    show();
  }

  function close() {
    shown = [];
    selected = -1;
    draw();
  }

  input.addEventListener("input", () => {
    typed?.(input.value.trim());
    show();
  });
  input.addEventListener("focus", show);
  input.addEventListener("blur", close);
  input.addEventListener("keydown", (event) => {
    if ((event.key === "ArrowDown" || event.key === "ArrowUp") && shown.length) {
      const step = event.key === "ArrowDown" ? 1 : -1;
      selected = (selected + step + shown.length + (selected < 0 && step < 0 ? 1 : 0)) % shown.length;
      draw();
    } else if ((event.key === "Enter" || event.key === "Tab") && selected >= 0) {
      take(selected);
    } else if (event.key === "Enter") {
      close();
      submitted(input.value.trim());
    } else if (event.key === "Escape") {
      if (shown.length) close();
      else input.blur();
    } else {
      return;
    }
    event.preventDefault();
  });

  return {
    element,
    get value() {
      return input.value.trim();
    },
    set value(text) {
      input.value = text;
    },
    showError(text) {
      fill(error, text);
      input.setAttribute("aria-invalid", String(text !== ""));
    },
  };
}
