// Before the first paint, or a reader with the other theme would see a flash of this one.
try {
  const theme = localStorage.getItem("vlm-guard-theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch { /* A file opened from disk may be refused storage: the system's theme is used then. */ }
