/** Starts the dashboard: the bar at the top, the state of the connection, the login, and the page of the URL. */

import { onRefused } from "./api.js";
import { emptyState, fill, h, icon, setText } from "./dom.js";
import { feed, STATES } from "./feed.js";
import { recognize, showLogin } from "./login.js";
import { PAGES } from "./pages/index.js";
import { hrefOf, onPlace, place } from "./router.js";
import { session } from "./session.js";
import { listenToKeys, setPageKeys, showKeys } from "./shortcuts.js";
import { store } from "./store.js";

const main = document.getElementById("main");
const notice = document.getElementById("notice");

/** @type {{name: string, page: import("./pages/index.js").Page} | null} */
let shown = null;
let isReady = false;
let turn = 0;
/** Why the login is shown again. */
let reason = "";

// The bar.

const THEMES = { system: "System theme", light: "Light theme", dark: "Dark theme" };
const THEME_ICONS = { system: "system", light: "sun", dark: "moon" };

function themeButton() {
  const theme = globalThis.coordTheme;
  const button = h("button", { class: "quiet icon-only", type: "button" });
  const draw = () => {
    button.setAttribute("aria-label", `${THEMES[theme.choice]}; change it`);
    button.title = THEMES[theme.choice];
    fill(button, icon(THEME_ICONS[theme.choice]));
  };
  button.addEventListener("click", () => {
    theme.set(theme.choices[(theme.choices.indexOf(theme.choice) + 1) % theme.choices.length]);
    draw();
  });
  draw();
  return button;
}

const CONNECTION = {
  [STATES.off]: "Not connected",
  [STATES.live]: "Live",
  [STATES.lost]: "Connection lost",
  [STATES.behind]: "Catching up",
};

function connection() {
  const text = h("span", null, CONNECTION[feed.state]);
  const element = h("span", { class: "connection", "data-state": feed.state }, h("i", { "aria-hidden": "true" }), text);
  feed.onState((state) => {
    element.dataset.state = state;
    setText(text, CONNECTION[state]);
    showNotice(state);
  });
  return element;
}

function showNotice(state) {
  const texts = {
    [STATES.lost]: "Connection lost. The page shows the last known state, and connects again by itself.",
    [STATES.behind]: "Connected again. Catching up …",
  };
  const text = texts[state];
  fill(
    notice,
    text &&
      h(
        "div",
        { class: "notice", "data-state": state },
        h("span", null, text),
        state === STATES.lost &&
          h("button", { class: "secondary", type: "button", onclick: () => feed.retry() }, "Connect now"),
      ),
  );
}

function user() {
  const element = h("span", { class: "user" });
  const draw = () => {
    const who = session.identity;
    fill(
      element,
      who && [
        h(
          "span",
          { class: "who", title: `Logged in as ${who.name}` },
          icon("user"),
          h("span", { class: "name" }, who.name),
          h("span", { class: "chip" }, who.role),
        ),
        h("button", { class: "quiet", type: "button", onclick: () => session.logOut() }, "Log out"),
      ],
    );
  };
  session.onChange(draw);
  draw();
  return element;
}

function bar() {
  const nav = h(
    "nav",
    { "aria-label": "Pages" },
    PAGES.filter(({ label }) => label).map(({ name, label }) =>
      h("a", { href: hrefOf(name), "data-page": name }, label),
    ),
  );
  fill(
    document.getElementById("top"),
    h(
      "a",
      { class: "brand", href: hrefOf(PAGES[0].name), "aria-label": "coord, go to the first page" },
      h("img", { src: new URL("icon.svg", import.meta.url), alt: "", width: 22, height: 22 }),
      h("span", null, "coord"),
    ),
    nav,
    h(
      "div",
      { class: "tools" },
      connection(),
      user(),
      themeButton(),
      h(
        "button",
        {
          class: "quiet icon-only wide-only",
          type: "button",
          "aria-label": "Keys",
          title: "Keys (?)",
          onclick: showKeys,
        },
        icon("keyboard"),
      ),
    ),
  );
}

// Pages.

/** Show the page of the URL. */
async function show(where) {
  if (!isReady) return;
  const mine = ++turn;
  const row = PAGES.find(({ name }) => name === where.page);
  for (const link of document.querySelectorAll("#top nav a")) {
    if (link.dataset.page === (row?.nav ?? where.page)) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (shown && shown.name === where.page && shown.page.update) {
    shown.page.update(where);
    return;
  }
  leave();
  if (!row) {
    document.title = "Not found · coord";
    fill(
      main,
      emptyState("There is no such page", [
        "The address names the page “",
        where.page,
        "”. ",
        h("a", { href: hrefOf(PAGES[0].name) }, `Go to ${PAGES[0].label}`),
      ]),
    );
    return;
  }
  let page;
  try {
    page = await row.load();
  } catch (error) {
    if (mine === turn) fill(main, failed(`The page did not load: ${error.message}`));
    return;
  }
  if (mine !== turn) return;
  shown = { name: where.page, page };
  document.title = `${page.title} · coord`;
  fill(main);
  try {
    await page.mount(main, where);
  } catch (error) {
    if (mine !== turn) return;
    console.error(error);
    fill(main, failed(error.message));
  }
}

function leave() {
  setPageKeys([]);
  const page = shown?.page;
  shown = null;
  page?.unmount();
}

function failed(text) {
  const again = h(
    "button",
    { class: "secondary", type: "button", onclick: () => begin() },
    icon("reload"),
    "Try again",
  );
  return h("div", { class: "empty" }, h("h2", null, "This did not work"), h("p", { role: "alert" }, text), again);
}

// Start and end.

/** Find out who uses the page, then follow the cell and show the page of the URL. */
async function begin() {
  end();
  const mine = ++turn;
  let who;
  try {
    who = await recognize();
  } catch (error) {
    if (mine !== turn) return;
    fill(main, failed(error.message));
    setTimeout(() => mine === turn && begin(), 3_000);
    return;
  }
  if (who === "unknown") showLogin();
}

function end() {
  isReady = false;
  leave();
  fill(main);
  fill(notice);
  feed.stop();
  store.stop();
}

session.onChange(() => {
  if (session.isOpen || session.identity) {
    if (isReady) return;
    isReady = true;
    store.start();
    feed.start();
    show(place());
  } else {
    end();
    showLogin(reason);
    reason = "";
  }
});

onRefused((error) => {
  if (!isReady) return; // the login shows it
  if (session.identity) reason = `The credential is not valid any more: ${error.message}`;
  session.logOut();
});

bar();
// Its address is no page: the router would show that there is no page "main".
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});
listenToKeys();
onPlace(show);
begin();
