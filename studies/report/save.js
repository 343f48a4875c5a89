// Downloads, made in the browser from what the page holds.

const PNG_SCALE = 3; // of an SVG, whose pixels are 1/96 inch

function save(name, source) {
  const url = source instanceof Blob ? URL.createObjectURL(source) : source;
  make("a", { href: url, download: name }).click();
  if (source instanceof Blob) setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

// The chosen rows with all columns of the file, in its order.
function asCsv(table, rows) {
  const cell = (value) => (/[",\r\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value);
  const text = (value) => cell(value === null ? "" : String(value).replace("Infinity", "inf"));
  const lines = rows.map((row) => table.names.map((name) => text(table.at(name, row))).join(","));
  return new Blob([[table.names.map(cell).join(","), ...lines, ""].join("\n")], { type: "text/csv" });
}

async function savePng(name, image) {
  if (image.src.startsWith("data:image/png")) return save(name, image.src);
  await image.decode();
  const canvas = make("canvas", { width: image.naturalWidth * PNG_SCALE, height: image.naturalHeight * PNG_SCALE });
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  canvas.toBlob((blob) => save(name, blob), "image/png");
}

function savePdf(name, base64) {
  save(name, new Blob([Uint8Array.from(atob(base64), (character) => character.charCodeAt(0))], { type: "application/pdf" }));
}

for (const figure of document.querySelectorAll("figure")) {
  const name = figure.id.replace("figure-", ""), [png, pdf] = figure.querySelectorAll("[data-save]");
  png.addEventListener("click", () => savePng(`${name}.png`, figure.querySelector("img")));
  pdf.addEventListener("click", () => savePdf(`${name}.pdf`, byId(`pdf-${name}`).textContent));
}
