// Runs before the first paint, so that readers of the other theme see no flash of this one.
try {
  const theme = localStorage.getItem("vlm-guard-theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch { /* Browsers may refuse storage to files opened from disk; the system's theme is used then. */ }
