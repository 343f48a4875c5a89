// One tooltip for the whole page: terms that are explained, and points of the plot.

const tip = byId("tip");

// Beside a place in the window, and inside of it.
function showTip(children, x, y) {
  tip.replaceChildren(...children);
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  const right = x + width < innerWidth;
  tip.style.left = `${Math.max(4, right ? x : Math.min(x - 28 - width, innerWidth - width - 4))}px`;
  tip.style.top = `${Math.max(4, Math.min(y, innerHeight - height - 4))}px`;
}

function hideTip() {
  tip.hidden = true;
}

const meanings = new Map();

function showMeaning(term) {
  const { left, bottom } = term.getBoundingClientRect();
  showTip([meanings.get(term)], left, bottom + 6);
}

for (const term of document.querySelectorAll(".term")) {
  meanings.set(term, term.title);
  term.setAttribute("aria-description", term.title);
  term.removeAttribute("title"); // without scripts, the browser shows it
  for (const event of ["mouseenter", "focus"]) term.addEventListener(event, () => showMeaning(term));
  for (const event of ["mouseleave", "blur"]) term.addEventListener(event, hideTip);
}
// A term that gets the focus may be scrolled into view: its meaning comes along.
addEventListener("scroll", () => {
  if (meanings.has(document.activeElement) && !tip.hidden) showMeaning(document.activeElement);
  else hideTip();
}, { passive: true });
addEventListener("keydown", ({ key }) => { if (key === "Escape") hideTip(); });
