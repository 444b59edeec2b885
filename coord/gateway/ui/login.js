/** Asks for a credential when the gateway needs one. */

import { ApiError, call } from "./api.js";
import { showDialog } from "./dialog.js";
import { fill, h } from "./dom.js";
import { session } from "./session.js";

const KEY_PREFIX = "coord_key_";
let isShown = false;

/**
 * Return whom a credential stands for.
 *
 * @param {string} secret an API key or a JWT.
 * @returns {Promise<import("./session.js").Identity>}
 */
async function identify(secret) {
  const isKey = secret.startsWith(KEY_PREFIX);
  const path = isKey ? "/auth/api-key/validate" : "/auth/validate";
  const found = await call("POST", path, { body: isKey ? { api_key: secret } : { token: secret } });
  return { name: found.username, role: found.role };
}

/**
 * Find out whether the gateway needs a credential and whether the stored one is valid.
 *
 * @returns {Promise<"open" | "known" | "unknown">} `unknown`: ask for one.
 */
export async function recognize() {
  if (session.credential) {
    try {
      session.logIn(session.credential, await identify(session.credential));
      return "known";
    } catch (error) {
      if (error.status !== 401 && error.code !== "security_off") throw error;
      session.forget();
    }
  }
  try {
    await call("GET", "/registry/stats");
  } catch (error) {
    if (error.status === 401) return "unknown";
    throw error;
  }
  session.open();
  return "open";
}

/** Show the login, once; it ends when a credential is accepted. */
export function showLogin(reason = "") {
  if (isShown) return;
  isShown = true;
  const failure = h("p", { class: "failure", role: "alert" }, reason);
  const field = h("input", {
    type: "password",
    name: "credential",
    required: true,
    autocomplete: "off",
    spellcheck: "false",
    autofocus: true,
  });
  const button = h("button", { class: "primary" }, "Log in");
  const form = h(
    "form",
    { class: "login", onsubmit: submit },
    h(
      "p",
      null,
      "This gateway needs a credential. ",
      h("code", null, "coord keys create --role readonly"),
      " makes an API key.",
    ),
    h("label", { class: "field" }, "API key or token", field),
    failure,
    h("footer", null, button),
  );
  const dialog = showDialog("Log in", [form], {
    class: "confirm",
    canClose: false,
    closed: () => {
      isShown = false;
    },
  });

  async function submit(event) {
    event.preventDefault();
    const secret = field.value.trim();
    button.disabled = true;
    fill(failure);
    try {
      const who = await identify(secret);
      dialog.close();
      session.logIn(secret, who);
    } catch (error) {
      const isRefused = error instanceof ApiError && error.status === 401;
      fill(failure, isRefused ? `The credential is not valid: ${error.message}` : error.message);
      field.select();
    } finally {
      button.disabled = false;
    }
  }
}
