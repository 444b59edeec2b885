/**
 * The URL is the saved view: `#/fleet/gpu-1?q=state:busy` is the page `fleet`, its path and its query.
 *
 * A page changes its query with `setQuery`; a link or the browser's buttons change the page.
 */

import { h } from "./dom.js";
import { PAGES } from "./pages/index.js";

/** @typedef {{page: string, path: string[], query: URLSearchParams}} Place */

/** Return the place in the URL. */
export function place() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?", 2);
  const [name, ...rest] = path.split("/").map(decoded).filter(Boolean);
  const page = name === "tasks" && rest.length ? "task" : name === "agents" ? "fleet" : name; // as in the paths of HTTP
  return { page: page ?? PAGES[0].name, path: rest, query: new URLSearchParams(query) };
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

/**
 * Return the URL of a place: `hrefOf("task", ["t1"])`, `hrefOf("tasks", [], { q: "state:failed" })`.
 *
 * @param {string} page
 * @param {string[]} [path]
 * @param {Object<string, string | null | undefined>} [query] empty values are left out.
 */
export function hrefOf(page, path = [], query = {}) {
  const parts = [page, ...path].map(encodeURIComponent).join("/");
  const given = Object.entries(query).filter(([, value]) => value);
  const text = new URLSearchParams(given).toString();
  return `#/${parts}${text ? `?${text}` : ""}`;
}

/** Return a link to a place; plain text if this dashboard has no such page. */
export function link(text, page, path = [], query = {}) {
  if (!PAGES.some(({ name }) => name === page)) return h("span", null, text);
  return h("a", { href: hrefOf(page, path, query) }, text);
}

/** Go to a place. */
export function go(page, path = [], query = {}) {
  location.hash = hrefOf(page, path, query);
}

/**
 * Change the query of the current place, without a new entry in the history; the page is not mounted again.
 *
 * @param {Object<string, string | null | undefined>} changes an empty value removes its name.
 */
export function setQuery(changes) {
  const { page, path, query } = place();
  for (const [name, value] of Object.entries(changes)) {
    if (value) query.set(name, value);
    else query.delete(name);
  }
  history.replaceState(null, "", hrefOf(page, path, Object.fromEntries(query)));
}

/** Call a function with the place, now and after each change of the URL. */
export function onPlace(listener) {
  addEventListener("hashchange", () => listener(place()));
  listener(place());
}
