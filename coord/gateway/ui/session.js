/**
 * Who uses the dashboard: the credential, kept until the tab is closed, and what its role may do.
 *
 * Without security at the gateway there is no credential, and everyone may do everything.
 */

const KEY = "coord.credential";
const RANKS = ["readonly", "client", "agent", "operator", "admin"];

/** @typedef {{name: string, role: string}} Identity */

let credential = read();
/** @type {Identity | null} null: security is off, or nobody has logged in. */
let identity = null;
let isOpen = false;
const listeners = new Set();

function read() {
  try {
    return sessionStorage.getItem(KEY) ?? "";
  } catch {
    return "";
  }
}

function changed() {
  for (const listener of listeners) listener();
}

export const session = {
  /** The credential for the next request; empty: none. */
  get credential() {
    return credential;
  },
  get identity() {
    return identity;
  },
  /** True if the gateway needs no credential. */
  get isOpen() {
    return isOpen;
  },
  /** Call a function after each login and logout; returns a function that ends that. */
  onChange(listener) {
    listeners.add(listener);
    return () => listeners.delete(listener);
  },
  /** Record that the gateway answers without a credential. */
  open() {
    isOpen = true;
    identity = null;
    changed();
  },
  /** Record a credential that the gateway has accepted. */
  logIn(secret, who) {
    credential = secret;
    identity = who;
    isOpen = false;
    try {
      sessionStorage.setItem(KEY, secret);
    } catch {
      // it holds until the page is loaded again
    }
    changed();
  },
  /** Forget the credential; nobody learns of it. */
  forget() {
    credential = "";
    identity = null;
    isOpen = false;
    try {
      sessionStorage.removeItem(KEY);
    } catch {
      // nothing was kept
    }
  },
  /** Forget the credential, so that the next one is asked for. */
  logOut() {
    this.forget();
    changed();
  },
  /**
   * Return why the user may not do something that needs a role; null: it is allowed.
   *
   * @param {"readonly" | "client" | "agent" | "operator" | "admin"} role
   */
  refusal(role) {
    if (isOpen) return null;
    if (identity === null) return "log in first";
    const isAllowed = RANKS.indexOf(identity.role) >= RANKS.indexOf(role);
    return isAllowed ? null : `needs the role ${role}; your role is ${identity.role}`;
  },
};
