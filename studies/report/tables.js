// Tables that sort and filter. Only one page of rows is in the document at a time, since a sweep has ten thousand.

const PAGE = 50;
const FEW = 60; // most distinct values for a drop-down list
const LONG = 40; // characters above which a column may break lines
const LEADING = ["defence", "setting", "modality", "metric", "value", "ci_low"]; // what differs, before how it was measured
const NAMED = ["defence", "setting", "modality", "reference", "metric"]; // columns of names for which users have words
const WORDS = new Intl.Collator("en", { numeric: true });

for (const box of document.querySelectorAll("details.table")) {
  let view = null;
  const opened = () => (view ??= new TableView(box));
  box.addEventListener("toggle", opened, { once: true });
  onAddress(box.dataset.table, (state) => {
    box.open = true;
    opened().restore(state);
    return box;
  });
}

function TableView(box) {
  const table = unpack(box.dataset.table);
  const columns = inOrder(table.columns);
  const all = Array.from({ length: table.rows }, (_, row) => row);
  const chosen = new Map(); // column name -> the only value that passes, as text
  let words = [], sorting = null, page = 0, rows = all;

  const rowCount = make("p", { class: "row-count", "aria-live": "polite" });
  const search = make("input", { type: "search", placeholder: "such as attack success" });
  const csv = make("button", { type: "button" }, "Download CSV");
  const pages = {
    back: make("button", { type: "button" }, "← Back"),
    next: make("button", { type: "button" }, "Next →"),
    shown: make("span"),
  };
  const heads = columns.map((column) => make("th", { scope: "col", "aria-sort": "none" },
    make("button", { type: "button", title: `Sort by ${column.title}` }, column.title)));
  const selects = columns.map((column) => make("td", {}, ...(chooser(column) ?? [])));
  const body = make("tbody");
  const grid = make("table", {}, make("thead", {}, make("tr", {}, ...heads), make("tr", { class: "filters" }, ...selects)), body);
  const scroll = make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `Table ${box.dataset.table}` }, grid);
  box.append(
    ...constants(),
    make("div", { class: "filter" }, make("label", {}, "Search ", search), rowCount, csv),
    scroll,
    make("div", { class: "pages", role: "group", "aria-label": "Pages" }, pages.back, pages.shown, pages.next),
  );

  const classes = columns.map((column) => (column.numeric ? "number" : column.values.some((v) => v?.length > LONG) ? "long" : ""));
  heads.forEach((head, place) => head.firstChild.addEventListener("click", () => sortBy(place)));
  search.addEventListener("input", () => { refresh(); remember(); });
  csv.addEventListener("click", () => save(`${box.dataset.table}.csv`, asCsv(table, rows)));
  pages.back.addEventListener("click", () => turn(-1));
  pages.next.addEventListener("click", () => turn(1));
  refresh();

  // The interval is one column, next to its value.
  function inOrder(columns) {
    const hasInterval = ["value", "ci_low", "ci_high"].every((name) => columns.some((column) => column.name === name));
    const shown = columns.filter((column) => !(hasInterval && column.name === "ci_high"))
      .map((column) => ({ ...column, title: column.name, ...(hasInterval && column.name === "ci_low" ? { title: "from, to", isInterval: true } : {}) }));
    const leading = LEADING.flatMap((name) => shown.filter((column) => column.name === name));
    // Only a table of measurements has columns that lead.
    return leading.some((column) => column.name === "value") ? [...leading, ...shown.filter((column) => !leading.includes(column))] : shown;
  }

  function constants() {
    const pairs = table.same.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, shownNumber(value))]);
    const empty = table.empty.length ? [make("p", {}, `Empty columns: ${table.empty.join(", ")}.`)] : [];
    if (!pairs.length && !empty.length) return [];
    const title = pairs.length ? `Same in every row: ${table.same.length} column${table.same.length > 1 ? "s" : ""}` : "Empty columns";
    return [make("details", { class: "constants" }, make("summary", {}, title), make("dl", {}, ...pairs), ...empty)];
  }

  // A drop-down list for columns with few values that repeat.
  function chooser(column) {
    if (!column.codes || column.values.length > FEW) return null;
    const order = (a, b) => (a === null) - (b === null) || (column.numeric ? a - b : WORDS.compare(a, b));
    const options = [...column.values].sort(order).map((value) => make("option", { value: asKey(value) }, labelOf(column, value)));
    const select = make("select", { "aria-label": `Only where ${column.title} is`, name: column.name }, make("option", { value: "*" }, "all"), ...options);
    select.addEventListener("change", () => {
      if (select.selectedIndex === 0) chosen.delete(column.name);
      else chosen.set(column.name, select.value);
      refresh();
      remember();
    });
    return [select];
  }

  function labelOf({ name }, value) {
    if (value === null) return "(empty)";
    const words = NAMED.includes(name) ? inWords(value) : String(value);
    return words.replaceAll(" ", "_") === String(value) ? words : `${words} (${value})`;
  }

  function asKey(value) {
    return value === null ? "" : String(value);
  }

  // What search finds in a row: its values, and what users call them.
  function textOf(row) {
    return columns.map(({ name }) => {
      const value = asKey(table.at(name, row));
      return NAMED.includes(name) && value ? `${value} ${inWords(value)}` : value;
    }).join("\n").toLowerCase();
  }

  function passes(row) {
    for (const [name, key] of chosen) if (asKey(table.at(name, row)) !== key) return false;
    const text = words.length ? textOf(row) : "";
    return words.every((word) => text.includes(word));
  }

  // Missing values come last in both directions; equal values keep the order of the file.
  function compare(row, other) {
    const { name, numeric } = columns[sorting.place];
    const [a, b] = [table.at(name, row), table.at(name, other)];
    if (a === null || b === null) return (a === null) - (b === null);
    return sorting.sign * (numeric ? Number(a) - Number(b) : WORDS.compare(a, b));
  }

  // Up, down, and back to the order of the file.
  function sortBy(place) {
    const sign = sorting?.place === place ? { 1: -1, [-1]: 0 }[sorting.sign] : 1;
    sorting = sign ? { place, sign } : null;
    refresh();
    remember();
  }

  function refresh() {
    words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    heads.forEach((head, at) => head.setAttribute("aria-sort", at === sorting?.place ? (sorting.sign > 0 ? "ascending" : "descending") : "none"));
    rows = all.filter(passes);
    if (sorting) rows.sort(compare);
    page = 0;
    show();
  }

  function turn(by) {
    page += by;
    show();
    scroll.scrollTop = 0;
  }

  function remember() {
    const sort = sorting ? { sort: `${sorting.sign < 0 ? "-" : ""}${columns[sorting.place].name}` } : {};
    writeAddress(box.dataset.table, { search: search.value, ...Object.fromEntries(chosen), ...sort });
  }

  this.restore = (state) => {
    search.value = state.get("search") ?? "";
    chosen.clear();
    for (const select of grid.querySelectorAll("select")) {
      const key = state.get(select.name), isThere = [...select.options].some((option, place) => place && option.value === key);
      select.value = isThere ? key : "*";
      if (isThere) chosen.set(select.name, key);
    }
    const sort = state.get("sort") ?? "", place = columns.findIndex(({ name }) => name === sort.replace("-", ""));
    sorting = place < 0 ? null : { place, sign: sort.startsWith("-") ? -1 : 1 };
    refresh();
  };

  function show() {
    const last = Math.max(0, Math.ceil(rows.length / PAGE) - 1);
    rowCount.textContent = rows.length === all.length ? `${all.length.toLocaleString("en")} rows`
      : `${rows.length.toLocaleString("en")} of ${all.length.toLocaleString("en")} rows`;
    pages.shown.textContent = `Page ${page + 1} of ${last + 1}`;
    pages.back.disabled = page === 0;
    pages.next.disabled = page >= last;
    body.replaceChildren(...rows.slice(page * PAGE, (page + 1) * PAGE).map(line));
  }

  function line(row) {
    return make("tr", {}, ...columns.map((column, place) => {
      const value = table.at(column.name, row);
      return make("td", { class: classes[place], title: column.numeric || NAMED.includes(column.name) ? asKey(value) : "" }, cellOf(column, value, row));
    }));
  }

  function cellOf(column, value, row) {
    if (value === null) return "";
    if (column.isInterval) return `${shownNumber(value)}, ${shownNumber(table.at("ci_high", row) ?? "")}`;
    return column.numeric ? shownNumber(value) : NAMED.includes(column.name) ? inWords(value) : value;
  }
}
