// The theme: light, dark, or that of the system. This file is no module and runs before the page is painted, so that
// the page does not flash in the wrong colours.
(() => {
  "use strict";
  const KEY = "coord.theme";
  const CHOICES = ["system", "light", "dark"];
  const dark = matchMedia("(prefers-color-scheme: dark)");

  function stored() {
    try {
      const found = localStorage.getItem(KEY);
      return CHOICES.includes(found) ? found : "system";
    } catch {
      return "system"; // the browser keeps nothing for this page
    }
  }

  let choice = stored();

  function apply() {
    const isDark = choice === "dark" || (choice === "system" && dark.matches);
    document.documentElement.dataset.theme = isDark ? "dark" : "light";
    dispatchEvent(new CustomEvent("themechange"));
  }

  dark.addEventListener("change", apply);
  apply();
  globalThis.coordTheme = {
    choices: CHOICES,
    get choice() {
      return choice;
    },
    set(value) {
      choice = value;
      try {
        localStorage.setItem(KEY, value);
      } catch {
        // it holds until the page is closed
      }
      apply();
    },
  };
})();
