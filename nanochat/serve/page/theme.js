// This file holds the choice between light and dark colours. It runs before anything is shown, so that no dark page
// begins white; what nobody has chosen is as the system says.
{
  const NAME = "nanochat.theme";
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  let chosen = null;
  try {
    chosen = localStorage.getItem(NAME);
  } catch {
    // The person wants nothing to be kept.
  }

  const isDark = () => (chosen ? chosen === "dark" : system.matches);

  const show = () => {
    document.documentElement.dataset.theme = isDark() ? "dark" : "light";
    document.getElementById("theme")?.setAttribute("aria-pressed", String(isDark()));
  };

  const toggle = () => {
    const wanted = isDark() ? "light" : "dark";
    const isSystems = (wanted === "dark") === system.matches;
    chosen = isSystems ? null : wanted;
    try {
      if (chosen) localStorage.setItem(NAME, chosen);
      else localStorage.removeItem(NAME);
    } catch {
      // It lasts as long as the page, then.
    }
    show();
  };

  system.addEventListener("change", show);
  document.addEventListener("DOMContentLoaded", () => {
    document.getElementById("theme").addEventListener("click", toggle);
    show();
  });
  show();
}
