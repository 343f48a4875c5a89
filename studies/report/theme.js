// Light or dark theme, by default that of the system. The plot, which is drawn by script, listens for "theme".

const DARK = matchMedia("(prefers-color-scheme: dark)");
const ROOT = document.documentElement;
const isDark = () => (ROOT.dataset.theme ? ROOT.dataset.theme === "dark" : DARK.matches);
const PRINT = matchMedia("print"); // always light: see page.css

function themed() {
  const button = byId("theme");
  button.hidden = false;
  button.textContent = isDark() ? "Light" : "Dark";
  button.setAttribute("aria-label", `Switch to the ${isDark() ? "light" : "dark"} theme`);
  document.dispatchEvent(new Event("theme"));
}

byId("theme").addEventListener("click", () => {
  ROOT.dataset.theme = isDark() ? "light" : "dark";
  try {
    localStorage.setItem("vlm-guard-theme", ROOT.dataset.theme);
  } catch { /* Without storage the choice is not remembered. */ }
  themed();
});
for (const query of [DARK, PRINT]) query.addEventListener("change", themed);
themed();

// The contents mark the section that is on screen.
const links = new Map([...document.querySelectorAll(".contents a")].map((link) => [link.hash.slice(1), link]));
const reading = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (!isIntersecting) continue;
    for (const link of links.values()) link.removeAttribute("aria-current");
    links.get(target.id)?.setAttribute("aria-current", "true");
    follow(links.get(target.id));
  }
}, { rootMargin: "-20% 0px -75%" });
for (const section of document.querySelectorAll("main > section")) reading.observe(section);

// On a phone the contents are a bar, which follows.
function follow(link) {
  const bar = document.querySelector(".contents");
  if (link && bar.scrollWidth > bar.clientWidth) bar.scrollTo({ left: link.offsetLeft - (bar.clientWidth - link.offsetWidth) / 2 });
}
