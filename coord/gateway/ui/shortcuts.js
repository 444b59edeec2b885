/** Keys: `/` goes to the query bar, `?` lists the keys, `g` and a letter goes to a page. Pages add their own. */

import { showDialog } from "./dialog.js";
import { h, keys } from "./dom.js";
import { PAGES } from "./pages/index.js";
import { go } from "./router.js";

/** Milliseconds for the second key. */
const SECOND_MS = 1_500;
/** @type {Array<{key: string, label: string, run: () => void}>} */
let ofPage = [];
let isOpen = false;

/** Set the keys of the current page: `[{key: "Escape", label: "Close the panel", run: close}]`. */
export function setPageKeys(list) {
  ofPage = list;
}

/** Show the list of keys. */
export function showKeys() {
  if (isOpen) return;
  isOpen = true;
  const rows = [
    [keys("/"), "Go to the query bar"],
    [keys("?"), "Show this list"],
    ...PAGES.filter(({ key }) => key).map(({ key, label }) => [keys("g", key), `Go to ${label}`]),
    ...ofPage.map(({ key, label }) => [keys(key), label]),
  ];
  const list = h(
    "dl",
    { class: "keylist" },
    rows.map(([key, label]) => h("div", null, h("dt", null, key), h("dd", null, label))),
  );
  showDialog("Keys", [list], {
    closed: () => {
      isOpen = false;
    },
  });
}

/** Listen to the keyboard. */
export function listenToKeys() {
  let first = 0; // when `g` was pressed
  addEventListener("keydown", (event) => {
    if (
      event.defaultPrevented ||
      event.ctrlKey ||
      event.metaKey ||
      event.altKey ||
      document.querySelector("dialog[open]")
    )
      return;
    const isTyping = event.target.closest?.("input, textarea, select, [contenteditable]");
    if (isTyping) return;
    const page = Date.now() - first < SECOND_MS && PAGES.find(({ key }) => key === event.key);
    first = 0;
    if (page) go(page.name);
    else if (event.key === "g") first = Date.now();
    else if (event.key === "?") showKeys();
    else if (event.key === "/") document.querySelector("#main [data-querybar]")?.focus();
    else {
      const own = ofPage.find(({ key }) => key === event.key);
      if (!own) return;
      own.run();
    }
    event.preventDefault();
  });
}
