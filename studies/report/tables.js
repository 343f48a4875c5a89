// Tables that sort and filter. Only one page of rows is in the document at a time, since a sweep has ten thousand.

const PAGE = 50;
const FEW = 30; // most distinct values for a drop-down list
const LONG = 40; // characters above which a column may break lines
const WORDS = new Intl.Collator("en", { numeric: true });

for (const box of document.querySelectorAll("details.table")) {
  box.addEventListener("toggle", () => new TableView(box), { once: true });
}

function TableView(box) {
  const table = unpack(box.dataset.table);
  const columns = table.columns;
  const all = Array.from({ length: table.rows }, (_, row) => row);
  const chosen = new Map(); // column name -> the only value that passes, as text
  let words = [], sorting = null, page = 0, rows = all;

  const rowCount = make("p", { class: "row-count", "aria-live": "polite" });
  const search = make("input", { type: "search", placeholder: "text in any column" });
  const pages = {
    back: make("button", { type: "button" }, "← Back"),
    next: make("button", { type: "button" }, "Next →"),
    shown: make("span"),
  };
  const heads = columns.map((column) => make("th", { scope: "col", "aria-sort": "none" },
    make("button", { type: "button", title: `Sort by ${column.name}` }, column.name)));
  const selects = columns.map((column) => make("td", {}, ...(chooser(column) ?? [])));
  const body = make("tbody");
  const grid = make("table", {}, make("thead", {}, make("tr", {}, ...heads), make("tr", { class: "filters" }, ...selects)), body);
  const scroll = make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `Table ${box.dataset.table}` }, grid);
  box.append(
    ...constants(),
    make("div", { class: "filter" }, make("label", {}, "Filter ", search), rowCount),
    scroll,
    make("div", { class: "pages", role: "group", "aria-label": "Pages" }, pages.back, pages.shown, pages.next),
  );

  const classes = columns.map((column) => (column.numeric ? "number" : column.values.some((v) => v?.length > LONG) ? "long" : ""));
  heads.forEach((head, place) => head.firstChild.addEventListener("click", () => sortBy(place)));
  search.addEventListener("input", () => {
    words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    refresh();
  });
  pages.back.addEventListener("click", () => turn(-1));
  pages.next.addEventListener("click", () => turn(1));
  refresh();

  function constants() {
    const notes = [];
    if (table.same.length) {
      const pairs = table.same.flatMap(([name, value], place) => [place ? ", " : "", `${name} `, make("b", {}, shownNumber(value))]);
      notes.push(make("p", { class: "constants" }, "Same in every row: ", ...pairs, "."));
    }
    if (table.empty.length) notes.push(make("p", { class: "constants" }, `Empty columns: ${table.empty.join(", ")}.`));
    return notes;
  }

  // A drop-down list for columns with few values that repeat.
  function chooser(column) {
    if (!column.codes || column.values.length > FEW) return null;
    const order = (a, b) => (a === null) - (b === null) || (column.numeric ? a - b : WORDS.compare(a, b));
    const options = [...column.values].sort(order).map((value) => make("option", { value: asKey(value) }, asKey(value) || "(empty)"));
    const select = make("select", { "aria-label": `Only where ${column.name} is` }, make("option", { value: "*" }, "all"), ...options);
    select.addEventListener("change", () => {
      if (select.selectedIndex === 0) chosen.delete(column.name);
      else chosen.set(column.name, select.value);
      refresh();
    });
    return [select];
  }

  function asKey(value) {
    return value === null ? "" : String(value);
  }

  function passes(row) {
    for (const [name, key] of chosen) if (asKey(table.at(name, row)) !== key) return false;
    return words.every((word) => columns.some(({ name }) => asKey(table.at(name, row)).toLowerCase().includes(word)));
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
    heads.forEach((head, at) => head.setAttribute("aria-sort", at === place && sign ? (sign > 0 ? "ascending" : "descending") : "none"));
    refresh();
  }

  function refresh() {
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
    return make("tr", {}, ...columns.map(({ name, numeric }, place) => {
      const value = table.at(name, row);
      return make("td", { class: classes[place] }, value === null ? "" : numeric ? shownNumber(value) : value);
    }));
  }
}
