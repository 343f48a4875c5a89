// The state of a part of the page is in its address: `#samples?show=flipped&at=12` opens the page on that sample.

const restorers = new Map();

// `restore` gets what the address says about the part, when the page opens and when a link is followed; it may return
// the element to scroll to.
function onAddress(part, restore) {
  restorers.set(part, restore);
}

function readAddress() {
  const [part, query] = location.hash.slice(1).split("?");
  if (query === undefined || !restorers.has(part)) return; // the browser itself goes to a plain anchor
  const shown = restorers.get(part)(new URLSearchParams(query)) ?? byId(part);
  shown.scrollIntoView();
}

function writeAddress(part, values) {
  const query = new URLSearchParams(Object.entries(values).filter(([, value]) => value !== "" && value !== null));
  history.replaceState(null, "", `#${part}?${query}`);
}

addEventListener("hashchange", readAddress);
queueMicrotask(readAddress); // once all parts are there
addEventListener("load", readAddress, { once: true }); // pictures above the part have their size now
