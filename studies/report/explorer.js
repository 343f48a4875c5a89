// Hidden states by layer: one panel per modality, one point per prompt, and the details of the selected prompt.

const explorer = byId("explorer");
if (explorer) explore();

function explore() {
  const points = unpack("points"), changes = unpack("changes");
  const layers = distinct(points, "layer").map(Number).sort((a, b) => a - b);
  const modalities = distinct(points, "modality");
  const { prompts, states } = gathered();
  const answers = changes ? answered() : new Map();
  const slider = byId("layer"), view = byId("view"), fill = byId("fill"), list = byId("prompt"), plot = byId("plot");
  let pinned = 0, Plotly = null;

  setUp();
  choose(0);
  whenIdle(async () => {
    Plotly = await unpackPlotly().catch(() => null);
    if (!Plotly) {
      byId("plot-waits").textContent = "This browser can't load the plot. The list of prompts has the same information.";
      return;
    }
    byId("plot-waits").remove();
    draw();
    listen();
  });

  // --- data ----------------------------------------------------------------------------------------------------

  function distinct(table, column) {
    return [...new Set(Array.from({ length: table.rows }, (_, row) => table.at(column, row)))];
  }

  function keyOf(table, row) {
    return `${table.at("harmful", row)} ${table.at("text", row)}`;
  }

  // Prompts in the order of the file, and their states by layer and modality.
  function gathered() {
    const prompts = [], place = new Map(), states = new Map();
    for (let row = 0; row < points.rows; row++) {
      const key = keyOf(points, row), where = `${points.at("layer", row)} ${points.at("modality", row)}`;
      if (!place.has(key)) {
        place.set(key, prompts.length);
        prompts.push({ key, text: points.at("text", row) ?? "", harmful: points.at("harmful", row) === "True" });
      }
      if (!states.has(where)) states.set(where, []);
      // Number(null) is 0, which would be drawn like any other value.
      const [pc1, pc2, coordinate] = ["pc1", "pc2", "coordinate"].map((column) => Number(points.at(column, row) ?? NaN));
      states.get(where).push({ prompt: place.get(key), pc1, pc2, coordinate });
    }
    return { prompts, states };
  }

  function answered() {
    const rows = new Map();
    for (let row = 0; row < changes.rows; row++) {
      const key = `${changes.at("modality", row)} ${keyOf(changes, row)}`;
      if (!rows.has(key)) rows.set(key, []);
      rows.get(key).push(row);
    }
    return rows;
  }

  function layer() {
    return layers[slider.value];
  }

  function statesAt(modality) {
    return states.get(`${layer()} ${modality}`) ?? [];
  }

  // Rows of changes.csv: one per reference.
  function changesOf(prompt, modality) {
    return answers.get(`${modality} ${prompts[prompt].key}`) ?? [];
  }

  function isTrue(column, row) {
    return changes.at(column, row) === "True";
  }

  // --- controls ------------------------------------------------------------------------------------------------

  function setUp() {
    explorer.hidden = false;
    slider.max = layers.length - 1;
    const guarded = layers.indexOf(Number(explorer.dataset.layer || NaN));
    slider.value = guarded < 0 ? layers.length - 1 : guarded;
    slider.addEventListener("input", () => { sayLayer(); choose(pinned); });
    sayLayer();
    view.addEventListener("change", draw);
    fill.addEventListener("change", () => {
      byId("hollow").hidden = !fill.value;
      draw();
    });
    for (const harmful of [true, false]) {
      const options = prompts.flatMap((prompt, place) => (prompt.harmful === harmful ? [make("option", { value: String(place) }, prompt.text)] : []));
      if (options.length) list.append(make("optgroup", { label: harmful ? "Harmful" : "Harmless" }, ...options));
    }
    list.addEventListener("change", () => choose(Number(list.value)));
    if (changes) {
      const references = distinct(changes, "reference");
      const several = (reference) => (references.length > 1 ? `, reference ${reference}` : "");
      fill.append(make("option", { value: "refused" }, "refused without the guard"));
      for (const reference of references) {
        fill.append(make("option", { value: `guarded ${reference}` }, `refused with the guard${several(reference)}`));
      }
      byId("fill-box").hidden = false;
    }
    document.addEventListener("theme", draw);
    new ResizeObserver(draw).observe(plot);
  }

  function sayLayer() {
    const isGuarded = explorer.dataset.layer === String(layer());
    byId("layer-shown").textContent = `${layer()} of ${layers.at(-1)}${isGuarded ? ", the guard's layer" : ""}`;
    slider.setAttribute("aria-valuetext", `layer ${layer()}${isGuarded ? ", the guard's layer" : ""}`);
  }

  // --- the plot ------------------------------------------------------------------------------------------------

  function draw() {
    if (!Plotly || !plot.clientWidth) return;
    const [ink, faint, line] = ["--ink", "--soft", "--line"].map(colour);
    const across = plot.clientWidth >= 560 ? 3 : 2, down = Math.ceil(modalities.length / across);
    const isPlane = view.value === "plane", every = modalities.flatMap(statesAt);
    const ranges = isPlane ? { x: spread(every.map((s) => s.pc1)), y: spread(every.map((s) => s.pc2)) }
      : { x: spread(every.map((s) => s.coordinate)), y: [-0.6, 1.6] };
    const panels = modalities.map((_, place) => panelAt(place, modalities.length, across));
    const layout = {
      width: plot.clientWidth, height: 40 + down * (across === 3 ? 235 : 185),
      margin: { l: isPlane ? 44 : 62, r: 6, t: 26, b: 40 },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: ink },
      showlegend: false, hovermode: "closest", hoverdistance: 12,
      // Scrolling past the plot with a finger must not zoom it.
      dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
      // The zoom is kept while prompts are selected; other layers and views have their own ranges.
      uirevision: `${layer()} ${view.value}`,
      annotations: panels.map((panel, place) => titleOf(panel, modalities[place])),
      ...Object.assign({}, ...panels.map((panel) => axesOf(panel, { isPlane, ranges, faint, line }))),
    };
    const traces = modalities.flatMap((modality, place) => {
      const { number } = panels[place], shown = statesAt(modality), ring = shown.filter((state) => state.prompt === pinned);
      const axes = { xaxis: `x${number}`, yaxis: `y${number}`, type: "scatter", mode: "markers" };
      return [
        { ...axes, ...at(shown, isPlane), hoverinfo: "none", customdata: shown.map((s) => s.prompt), meta: place, marker: marks(shown, modality) },
        { ...axes, ...at(ring, isPlane), hoverinfo: "skip", marker: { symbol: "circle-open", size: 17, color: ink, line: { width: 2 } } },
      ];
    });
    Plotly.react(plot, traces, layout, { displayModeBar: false, responsive: false, doubleClick: "reset" });
  }

  // Within a class, points are spread vertically by their place in the file, so that few overlap and nothing is random.
  function at(shown, isPlane) {
    const lane = (state) => Number(prompts[state.prompt].harmful) + (((state.prompt * 0.618034) % 1) - 0.5) * 0.7;
    return { x: shown.map((s) => (isPlane ? s.pc1 : s.coordinate)), y: shown.map((s) => (isPlane ? s.pc2 : lane(s))) };
  }

  function marks(shown, modality) {
    const [harmful, harmless] = ["--harmful", "--harmless"].map(colour);
    const states = shown.map(({ prompt }) => isFilled(prompt, modality));
    const colours = shown.map((s) => (prompts[s.prompt].harmful ? harmful : harmless));
    return {
      symbol: shown.map((s, i) => (prompts[s.prompt].harmful ? "x" : "circle") + (states[i] === false ? "-open" : "")),
      color: colours, size: 7, opacity: states.map((filled) => (filled === null ? 0.2 : 0.8)),
      line: { width: states.map((filled) => (filled === false ? 1.2 : 0)), color: colours },
    };
  }

  // True, false, or null if no answer to this prompt is recorded.
  function isFilled(prompt, modality) {
    if (!fill.value) return true;
    const rows = changesOf(prompt, modality);
    if (fill.value === "refused") return rows.length ? isTrue("refused", rows[0]) : null;
    const row = rows.find((row) => `guarded ${changes.at("reference", row)}` === fill.value);
    return row === undefined ? null : isTrue("guarded_refused", row);
  }

  // Custom properties return light-dark() unresolved; only a real property returns the colour in use.
  function colour(name) {
    tip.style.color = `var(${name})`;
    const color = getComputedStyle(tip).color;
    tip.style.color = "";
    return color;
  }

  function listen() {
    plot.on("plotly_hover", ({ points: [point], event }) => {
      showTip(described(point.customdata, modalities[point.data.meta]), event.clientX + 14, event.clientY + 14);
    });
    plot.on("plotly_unhover", hideTip);
    plot.on("plotly_click", ({ points: [point] }) => { choose(point.customdata); });
  }

  // --- the selected prompt -------------------------------------------------------------------------------------

  function choose(prompt) {
    pinned = prompt;
    list.value = String(prompt);
    byId("chosen").replaceChildren(
      make("p", { class: "prompt-text" }, prompts[prompt].text),
      className(prompt),
      ...modalities.map((modality) => make("section", { class: "way" }, ...inModality(prompt, modality))),
    );
    draw();
  }

  function described(prompt, modality) {
    return [make("p", { class: "prompt-text" }, prompts[prompt].text), className(prompt), ...inModality(prompt, modality)];
  }

  function className(prompt) {
    const name = prompts[prompt].harmful ? "harmful" : "harmless";
    return make("p", { class: `class ${name}` }, name);
  }

  function inModality(prompt, modality) {
    const state = statesAt(modality).find((candidate) => candidate.prompt === prompt);
    const coordinate = state && Number.isFinite(state.coordinate) ? `coordinate ${shownNumber(round(state.coordinate))} at layer ${layer()}` : "no state";
    const rows = changesOf(prompt, modality);
    const head = make("p", { class: "way-head" }, make("b", {}, modality), ` ${coordinate}`);
    if (!rows.length) return [head];
    return [head, make("dl", {}, ...answer("without", "", "answer", "refused", rows[0]),
      ...rows.flatMap((row) => answer("with", rows.length > 1 ? `${changes.at("reference", row)}: ` : "", "guarded_answer", "guarded_refused", row)))];
  }

  function answer(how, reference, column, refused, row) {
    const text = changes.at(column, row) ?? "";
    const verdict = isTrue(refused, row) ? "refused" : "answered";
    const gate = how === "with" && changes.has("gate") && !isTrue("gate", row) ? ", gate shut" : "";
    return [make("dt", {}, `${how} guard`), make("dd", {}, make("span", { class: `tag ${verdict}` }, `${reference}${verdict}${gate}`), ` ${text}`)];
  }

  function round(value) {
    return Number(value.toPrecision(3));
  }
}
