// Samples: the answer to a prompt without a defence and with one, side by side; filtered, stepped through, linked to.

const browser = byId("browser");
if (browser) browse();

function browse() {
  const table = unpack("samples");
  const at = (column, row) => table.at(column, row);
  const isTrue = (column, row) => at(column, row) === "True";
  const FILTERS = {
    flipped: ["flipped by the defence", (row) => at("refused", row) !== at("guarded_refused", row)],
    succeeds: ["attack still succeeds", (row) => isTrue("harmful", row) && at("guarded_refused", row) === "False"],
    overrefused: ["refused though harmless", (row) => !isTrue("harmful", row) && isTrue("guarded_refused", row)],
    all: ["all", () => true],
  };
  const place = byId("sample-place"), defence = byId("sample-defence"), words = byId("sample-words"), shown = byId("sample");
  const placeOf = (row) => ["dataset", "setting", "modality"].map((column) => at(column, row) ?? "").join("/");
  const everyRow = Array.from({ length: table.rows }, (_, row) => row);
  let show = "flipped", rows = [], current = 0;

  setUp();
  restore(new URLSearchParams());
  onAddress("samples", restore);

  function setUp() {
    browser.hidden = false;
    const datasets = new Set(everyRow.map((row) => at("dataset", row)));
    options(place, placeOf, (row) => `${datasets.size > 1 ? `${at("dataset", row)}: ` : ""}${placeInWords(at("setting", row), at("modality", row))}`);
    options(defence, (row) => at("defence", row), (row) => inWords(at("defence", row)));
    for (const [name, [label]] of Object.entries(FILTERS)) {
      const radio = make("input", { type: "radio", name: "show", value: name });
      radio.addEventListener("change", () => { show = name; changed(); });
      byId("sample-show").append(make("label", {}, radio, make("span", {}, label), " ", make("b", {})));
    }
    for (const control of [place, defence, words]) control.addEventListener("input", changed);
    byId("sample-back").addEventListener("click", () => step(-1));
    byId("sample-next").addEventListener("click", () => step(1));
    document.addEventListener("keydown", stepByKey);
  }

  function options(select, valueOf, labelOf) {
    const labels = new Map(everyRow.map((row) => [valueOf(row), labelOf(row)]));
    if (select === place) select.append(make("option", { value: "" }, "all"));
    for (const [value, label] of labels) select.append(make("option", { value }, label));
  }

  // The state that an address describes; what it leaves out is as when the page opens: on a prompt that flips.
  function restore(state) {
    place.value = state.get("place") ?? "";
    const defences = [...defence.options].map((option) => option.value);
    defence.value = [state.get("defence"), "guard", defences[0]].find((name) => defences.includes(name));
    words.value = state.get("words") ?? "";
    show = state.get("show") in FILTERS ? state.get("show") : ["flipped", "succeeds", "all"].find((name) => count(name));
    filter();
    current = Math.max(0, rows.indexOf(Number(state.get("at") ?? -1)));
    draw();
  }

  function isMatch(row) {
    const text = `${at("text", row)} ${at("category", row) ?? ""}`.toLowerCase();
    return (!place.value || placeOf(row) === place.value) && at("defence", row) === defence.value
      && words.value.toLowerCase().split(/\s+/).every((word) => text.includes(word));
  }

  function count(name) {
    return everyRow.filter((row) => isMatch(row) && FILTERS[name][1](row)).length;
  }

  function filter() {
    rows = everyRow.filter((row) => isMatch(row) && FILTERS[show][1](row));
    for (const radio of byId("sample-show").querySelectorAll("input")) {
      radio.checked = radio.value === show;
      radio.parentElement.querySelector("b").textContent = count(radio.value).toLocaleString("en");
      if (radio.value === "flipped") radio.nextSibling.textContent = `flipped by ${defence.value === "guard" ? "the guard" : inWords(defence.value)}`;
    }
  }

  function changed() {
    filter();
    current = 0;
    draw();
    remember();
  }

  function step(by) {
    if (!rows.length) return;
    current = (current + by + rows.length) % rows.length;
    draw();
    remember();
  }

  function stepByKey(event) {
    const by = { j: 1, k: -1, ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const { top, bottom } = browser.getBoundingClientRect(), isArrow = event.key.startsWith("Arrow");
    if (!by || event.ctrlKey || event.metaKey || event.altKey || bottom < 0 || top > innerHeight || byId("zoom").open) return;
    // Arrows have a meaning of their own in controls, letters in fields.
    if (event.target.matches(isArrow ? "input, select, .scroll" : "select, input[type=search]")) return;
    step(by);
    event.preventDefault();
  }

  function remember() {
    writeAddress("samples", { show, place: place.value, defence: defence.value, words: words.value, at: rows[current] ?? null });
  }

  // --- one sample ----------------------------------------------------------------------------------------------

  function draw() {
    byId("sample-count").textContent = rows.length ? `${(current + 1).toLocaleString("en")} of ${rows.length.toLocaleString("en")}` : "none";
    for (const button of ["sample-back", "sample-next"]) byId(button).disabled = rows.length < 2;
    shown.replaceChildren(...(rows.length ? sample(rows[current]) : [make("p", { class: "fine" }, "No sample matches these filters.")]));
  }

  function sample(row) {
    const name = isTrue("harmful", row) ? "harmful" : "harmless", said = at("said", row);
    const category = at("category", row) === null ? "" : ` · ${inWords(at("category", row))}`;
    const reads = at("reference", row) === null ? "" : `, reads ${inWords(at("reference", row))}`;
    return [
      make("p", { class: "class" }, make("b", { class: name }, name), ` request ${placeInWords(at("setting", row), at("modality", row))}${category}`),
      make("p", { class: "prompt-text" }, at("text", row) ?? ""),
      ...(said === null ? [] : [make("details", {}, make("summary", {}, "The whole prompt"), make("p", { class: "said" }, said))]),
      make("div", { class: "pair" },
        answered("No defence", "", at("answer", row), at("refused", row), name),
        answered(`With ${inWords(at("defence", row))}${reads}`, gate(row), at("guarded_answer", row), at("guarded_refused", row), name)),
    ];
  }

  function gate(row) {
    return { True: "The gate is open: it acts on this prompt.", False: "The gate is shut: it leaves this prompt alone." }[at("gate", row)] ?? "";
  }

  function answered(title, note, text, refused, name) {
    const [word, kind] = {
      "harmful True": ["refused", "yes"], "harmful False": ["answered: the attack succeeds", "no"],
      "harmless True": ["refused though harmless", "no"], "harmless False": ["answered", "yes"],
    }[`${name} ${refused}`] ?? ["not judged", "none"];
    return make("section", { class: "answer" }, make("h3", {}, title), make("p", { class: `outcome ${kind}` }, word),
      make("blockquote", {}, text || "(empty answer)"), ...(note ? [make("p", { class: "fine" }, note)] : []));
  }
}
