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

for (const term of document.querySelectorAll(".term")) {
  const meaning = term.title;
  term.removeAttribute("title"); // without scripts, the browser shows it
  term.setAttribute("aria-description", meaning);
  const show = () => {
    const { left, bottom } = term.getBoundingClientRect();
    showTip([meaning], left, bottom + 6);
  };
  for (const [event, act] of Object.entries({ mouseenter: show, focus: show, mouseleave: hideTip, blur: hideTip })) term.addEventListener(event, act);
}
addEventListener("scroll", hideTip, { passive: true });
addEventListener("keydown", ({ key }) => { if (key === "Escape") hideTip(); });
