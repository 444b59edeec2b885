/**
 * The pages. To add one, write a module in this folder and name it here; docs/dashboard.md has an example.
 *
 * @typedef {Object} Page
 * @property {string} title of the window.
 * @property {(root: HTMLElement, place: import("../router.js").Place) => void | Promise<void>} mount shows the page.
 * @property {() => void} unmount ends all subscriptions and timers of the page.
 * @property {(place: import("../router.js").Place) => void} [update] called instead of both when only the path or the
 *   query has changed.
 */

/**
 * `name` is the first word of the URL. A page with `label` is in the navigation, and `g` followed by `key` goes there.
 * `nav` names the page that the navigation marks instead: `task` belongs to `tasks`.
 *
 * @type {Array<{name: string, label?: string, key?: string, nav?: string, load: () => Promise<Page>}>}
 */
export const PAGES = [
  { name: "fleet", label: "Fleet", key: "f", load: () => import("./fleet.js") },
  { name: "tasks", label: "Tasks", key: "t", load: () => import("./tasks.js") },
  { name: "task", nav: "tasks", load: () => import("./task.js") },
  { name: "messages", label: "Messages", key: "m", load: () => import("./messages.js") },
  { name: "system", label: "System", key: "s", load: () => import("./system.js") },
];
