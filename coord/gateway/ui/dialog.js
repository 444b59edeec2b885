/**
 * Dialogs, with the browser's own `<dialog>`: it keeps the focus inside, closes with Escape and gives the focus back.
 */

import { fill, h, icon } from "./dom.js";

let number = 0;

/**
 * Show a dialog.
 *
 * @param {string} title
 * @param {Array<any>} content
 * @param {{class?: string, canClose?: boolean, closed?: () => void}} [options] `canClose` false: only code closes it.
 * @returns {HTMLDialogElement} already shown; `close()` ends it.
 */
export function showDialog(title, content, { class: name = "", canClose = true, closed } = {}) {
  const id = `dialog-${++number}`;
  const dialog = h("dialog", { class: `dialog ${name}`, "aria-labelledby": id });
  const close = h(
    "button",
    { class: "quiet icon-only", type: "button", "aria-label": "Close", onclick: () => dialog.close() },
    icon("close"),
  );
  fill(dialog, h("header", null, h("h2", { id }, title), canClose && close), content);
  // Browsers close a dialog at the second Escape, also if the first "cancel" was prevented.
  dialog.addEventListener("keydown", (event) => {
    if (!canClose && event.key === "Escape") event.preventDefault();
  });
  dialog.addEventListener("cancel", (event) => {
    if (!canClose) event.preventDefault();
  });
  dialog.addEventListener("close", () => {
    dialog.remove();
    closed?.();
  });
  dialog.addEventListener("click", (event) => {
    if (canClose && event.target === dialog) dialog.close(); // beside its content
  });
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}

/**
 * Ask for a confirmation.
 *
 *     if (await confirm({ title: "Drain gpu-7?", text: "It finishes its 3 tasks …", action: "Drain" })) …
 *
 * @param {{title: string, text: any, action: string, isDangerous?: boolean, reason?: string}} question `reason`: label
 *   of an optional text field.
 * @returns {Promise<false | {reason: string}>}
 */
export function confirm({ title, text, action, isDangerous = false, reason }) {
  return new Promise((resolve) => {
    let answer = false;
    const field = reason && h("input", { type: "text", maxlength: "200" });
    const form = h(
      "form",
      {
        method: "dialog",
        onsubmit: () => {
          answer = { reason: field ? field.value.trim() : "" };
        },
      },
      h("div", { class: "text" }, text),
      field && h("label", { class: "field" }, reason, field),
      h(
        "footer",
        null,
        h("button", { type: "button", class: "secondary", onclick: () => dialog.close() }, "Cancel"),
        h("button", { class: isDangerous ? "danger" : "primary", autofocus: true }, action),
      ),
    );
    const dialog = showDialog(title, [form], { class: "confirm", closed: () => resolve(answer) });
  });
}
