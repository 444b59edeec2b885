/** Short notices in a corner. Screen readers read them: their container is a live region. */

import { h, icon, rescueFocus } from "./dom.js";

const SHOWN_MS = { good: 5_000, bad: 12_000 };

/**
 * Show a notice.
 *
 * @param {string} text
 * @param {"good" | "bad"} [kind]
 */
export function toast(text, kind = "good") {
  const close = h(
    "button",
    { class: "quiet icon-only", type: "button", "aria-label": "Dismiss", onclick: () => notice.remove() },
    icon("close"),
  );
  const notice = h(
    "div",
    { class: `toast ${kind}` },
    h("span", null, kind === "bad" && h("strong", null, "Failed: "), text),
    close,
  );
  document.getElementById("toasts").append(notice);
  setTimeout(() => notice.remove(), SHOWN_MS[kind]);
}

/**
 * Do something and show how it ended. Its button is disabled meanwhile.
 *
 * @param {HTMLButtonElement | null} button
 * @param {() => Promise<any>} work
 * @param {string} done what to say when it succeeded.
 * @returns {Promise<any>} what `work` returned; null if it failed.
 */
export async function attempt(button, work, done) {
  if (button) button.disabled = true;
  try {
    const answer = await work();
    toast(answer?.status === "accepted" ? `${done} (no worker has answered yet)` : done);
    return answer ?? true;
  } catch (error) {
    toast(error.message, "bad");
    return null;
  } finally {
    if (button) {
      button.disabled = false;
      rescueFocus(button); // it lost the focus when it was disabled
    }
  }
}
