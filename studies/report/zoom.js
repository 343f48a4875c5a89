// Figures enlarged in a dialog, which closes on Escape, keeps the focus inside and returns it when it closes.

const zoom = byId("zoom");
const STEP = 1.5, LARGEST = 8;
let scale = 1;

function scaled(to) {
  const box = zoom.querySelector(".scroll"), image = box.querySelector("img");
  // The centre of the view stays in place.
  const at = [(box.scrollLeft + box.clientWidth / 2) / box.scrollWidth, (box.scrollTop + box.clientHeight / 2) / box.scrollHeight];
  scale = Math.min(LARGEST, Math.max(1, to));
  // At scale 1 the whole figure fits into the box.
  const fitting = Math.min(box.clientWidth, (box.clientHeight * image.naturalWidth) / image.naturalHeight);
  image.style.width = `${Math.floor(fitting * scale)}px`;
  box.scrollTo(at[0] * box.scrollWidth - box.clientWidth / 2, at[1] * box.scrollHeight - box.clientHeight / 2);
}

const acts = { in: () => scaled(scale * STEP), out: () => scaled(scale / STEP), fit: () => scaled(1), close: () => zoom.close() };
for (const button of zoom.querySelectorAll("[data-zoom]")) button.addEventListener("click", acts[button.dataset.zoom]);

zoom.addEventListener("keydown", (event) => {
  const act = { "+": "in", "=": "in", "-": "out", "0": "fit" }[event.key];
  if (act && !event.ctrlKey && !event.metaKey) acts[act]();
});
zoom.addEventListener("click", (event) => {
  if (event.target === zoom) zoom.close(); // the backdrop
  if (event.target.tagName === "IMG") acts[scale === 1 ? "in" : "fit"]();
});

// A picture has no size until it is decoded, even though its data is in the page.
const decoded = (element) => element.decode().catch(() => {});

function enlarge(figure) {
  const from = figure.querySelector("img"), into = zoom.querySelector("img");
  byId("zoom-title").textContent = figure.querySelector("h3").textContent;
  into.src = from.src;
  into.alt = from.alt;
  zoom.showModal();
  zoom.querySelector(".scroll").focus();
  decoded(into).then(() => openAt(Number(from.getAttribute("width"))));
}

// At least as large as on a wide page, where its letters can be read; from its top left corner if it does not fit.
function openAt(readable) {
  const box = zoom.querySelector(".scroll"), image = box.querySelector("img");
  scaled(1);
  scaled(readable / image.width);
  box.scrollTo(0, 0);
}

for (const figure of document.querySelectorAll("figure")) {
  for (const part of figure.querySelectorAll("img, .zoom")) part.addEventListener("click", () => enlarge(figure));
}
