// Defences side by side: a row per defence and what it reads, a column per setting, one measure at a time.

const pivotBox = byId("pivot");
if (pivotBox) pivot();

function pivot() {
  const table = unpack("defence");
  const RATES = ["asr", "over_refusal_rate", "refusal_rate", "harm_rate", "coherence", "changed_share"];
  // Rows of whole settings, as the first judge sees them.
  const judge = first(table, "judge");
  const rows = Array.from({ length: table.rows }, (_, row) => row).filter((row) => table.at("category", row) === null
    && table.at("versus", row) === null && table.at("defence", row) !== null && table.at("metric", row)
    && [null, judge].includes(table.at("judge", row)));
  const datasets = new Set(rows.map((row) => table.at("dataset", row)));
  const measures = [...new Set(rows.map((row) => table.at("metric", row)))].filter((metric) => rows.some((row) =>
    table.at("metric", row) === metric && table.at("defence", row) === "guard") || RATES.includes(metric));
  const select = make("select", {}, ...measures.map((name) => make("option", { value: name }, inWords(name))));
  const scroll = make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Defences side by side" });
  pivotBox.append(make("h3", {}, "Defences side by side"), make("label", {}, "Measure ", select), scroll);
  select.addEventListener("change", () => {
    draw();
    writeAddress("pivot", { measure: select.value });
  });
  onAddress("pivot", (state) => {
    if (measures.includes(state.get("measure"))) select.value = state.get("measure");
    draw();
  });
  if (measures.includes("asr")) select.value = "asr";
  draw();

  function first(table, column) {
    for (let row = 0; row < table.rows; row++) if (table.at(column, row) !== null) return table.at(column, row);
    return null;
  }

  function draw() {
    const places = new Map(), arms = new Map();
    for (const row of rows.filter((row) => table.at("metric", row) === select.value)) {
      const [dataset, setting, modality, defence, reference] = ["dataset", "setting", "modality", "defence", "reference"].map((column) => table.at(column, row));
      const place = `${datasets.size > 1 ? `${dataset}: ` : ""}${placeInWords(setting, modality)}`;
      places.set(place, places.size);
      const arm = `${defence} ${reference}`;
      if (!arms.has(arm)) arms.set(arm, { defence, reference, standing: table.at("standing", row), cells: new Map() });
      arms.get(arm).cells.set(place, row);
    }
    const order = [...new Set([...arms.values()].map(({ defence }) => defence))];
    const lines = [...arms.values()].sort((a, b) => order.indexOf(a.defence) - order.indexOf(b.defence));
    const heads = ["defence", ...places.keys()].map((text) => make("th", { scope: "col" }, text));
    scroll.replaceChildren(make("table", {}, make("thead", {}, make("tr", {}, ...heads)),
      make("tbody", {}, ...lines.map((line) => make("tr", {}, armName(line), ...[...places.keys()].map((place) => make("td", {}, ...cell(line, place))))))));
  }

  function armName({ defence, reference, standing }) {
    const notes = [...(reference === null ? [] : [`reads ${inWords(reference)}`]), ...(["bound", "control"].includes(standing) ? [`a ${standing}`] : [])];
    return make("th", { scope: "row" }, inWords(defence), make("small", {}, notes.join("; ")));
  }

  function cell({ defence, cells }, place) {
    const row = cells.get(place);
    if (row === undefined) return [];
    const [value, low, high] = ["value", "ci_low", "ci_high"].map((name) => table.at(name, row));
    const isRate = RATES.includes(select.value), shown = isRate ? percent : shownNumber;
    const interval = low === null ? "" : ` [${shown(low)}, ${shown(high)}]`;
    const bar = make("i", { class: `bar ${defence === "guard" ? "guard" : ""}`, "aria-hidden": "true" });
    for (const [name, share] of Object.entries({ value, low: low ?? value, high: high ?? value })) bar.style.setProperty(`--${name}`, share);
    return [...(isRate ? [bar] : []), `${shown(value)}${isRate ? " %" : ""}`, make("small", {}, interval)];
  }
}
