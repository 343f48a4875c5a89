// Shared by the other files: finding and making elements, and unpacking the tables of the page.

const byId = (id) => document.getElementById(id);

// Text only ever becomes text: strings are appended as text nodes, and nothing here sets innerHTML.
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name in element && typeof value !== "string") element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

// A column that repeats itself has its distinct values and one index per row; other columns have one value per row.
// Columns with the same value in every row are packed once.
function unpack(name) {
  const source = byId(`table-${name}`);
  if (!source) return null;
  const packed = JSON.parse(source.textContent);
  const same = new Map(packed.same);
  const reads = new Map(packed.columns.map((column) => [
    column.name,
    column.codes ? (row) => column.values[column.codes[row]] : (row) => column.values[row],
  ]));
  return {
    ...packed,
    has: (column) => reads.has(column) || same.has(column),
    at: (column, row) => (reads.has(column) ? reads.get(column)(row) : same.get(column) ?? null),
  };
}

// Numbers are shown with four digits and a typographic minus sign; infinite ones are packed as words.
const shownNumber = (value) => (typeof value === "number" ? String(Number(value.toPrecision(4))).replace("-", "−") : String(value));

// What users call the names in the tables; a name without such words is its own.
const { names: NAMES, places: PLACES } = JSON.parse(byId("names").textContent);
const inWords = (name) => (Object.hasOwn(NAMES, name) ? NAMES[name] : String(name).replaceAll("_", " "));
// How a request reaches the model.
const placeInWords = (setting, modality) => PLACES[`${setting} ${modality}`] ?? `${inWords(setting)}, ${inWords(modality)}`;

const percent = (value) => `${Math.round(100 * value)}`.replace("-", "−");
