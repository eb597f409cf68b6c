// @ts-check
// The tables: checkpoints (sorted, chosen, with error budgets), all numbers, tensors, checks and measures.

/** The position of a table of checkpoints. @param {HTMLElement} table */
function seriesOf(table) {
  const [file, operator, index] = String(table.dataset.series).split("-").map(Number);
  const { modes } = DATA.files[file].operators[operator];
  return { file, operator, mode: Object.keys(modes)[index] };
}

/** Make a table of checkpoints sortable, its cells reachable by arrow keys, and its rows a choice.
 * @param {HTMLElement} table @param {(moment: number) => void} choose */
function enliven(table, choose) {
  table.setAttribute("role", "grid");
  const series = seriesOf(table);
  const record = (/** @type {Element} */ row) => recordOf({ ...series, moment: Number(/** @type {HTMLElement} */ (row).dataset.moment) });
  for (const head of table.querySelectorAll("thead th")) {
    const sort = element("button", { type: "button" }, head.textContent ?? "");
    head.replaceChildren(sort);
    sort.addEventListener("click", () => sortBy(table, /** @type {HTMLElement} */ (head), record));
  }
  const cells = /** @type {NodeListOf<HTMLElement>} */ (table.querySelectorAll("tbody th, tbody td"));
  for (const cell of cells) cell.tabIndex = -1;
  if (cells.length) cells[0].tabIndex = 0;
  const row = (/** @type {any} */ event) => event.target.closest("tbody tr");
  const show = (/** @type {any} */ event) => {
    const cell = event.target.closest("td[data-name]");
    if (cell) showBudget(cell, record(row(event)));
    else hideTip();
  };
  table.addEventListener("mouseover", show);
  table.addEventListener("mouseleave", hideTip);
  table.addEventListener("focusin", (event) => {
    const cell = /** @type {HTMLElement} */ (event.target);
    if (!cell.matches("tbody th, tbody td")) return hideTip();
    for (const other of cells) other.tabIndex = -1;
    cell.tabIndex = 0;
    show(event);
  });
  table.addEventListener("focusout", hideTip);
  table.addEventListener("click", (event) => row(event) && choose(Number(row(event).dataset.moment)));
  table.addEventListener("keydown", (event) => {
    if (event.key === "Escape") return hideTip();
    const at = row(event);
    if (!at) return;
    if (event.key === "Enter" || event.key === " ") {
      choose(Number(at.dataset.moment));
      event.preventDefault();
      return;
    }
    const target = neighbour(/** @type {HTMLElement} */ (event.target), at, event.key);
    if (target) {
      target.focus();
      event.preventDefault();
    }
  });
}

/** The cell that an arrow key, Home or End leads to. @param {HTMLElement} cell @param {HTMLTableRowElement} row
 * @param {string} key @returns {HTMLElement | null} */
function neighbour(cell, row, key) {
  const column = [...row.cells].indexOf(/** @type {any} */ (cell));
  const last = row.cells.length - 1;
  const across = { ArrowLeft: column - 1, ArrowRight: column + 1, Home: 0, End: last }[key];
  if (across !== undefined) return row.cells[Math.min(Math.max(across, 0), last)];
  const next = key === "ArrowDown" ? row.nextElementSibling : key === "ArrowUp" ? row.previousElementSibling : null;
  const found = /** @type {HTMLTableRowElement | null} */ (next);
  return found ? found.cells[Math.min(column, found.cells.length - 1)] : null;
}

/** Sort the rows by a column, ascending and then descending; a missing number is last.
 * @param {HTMLElement} table @param {HTMLElement} head @param {(row: Element) => number | null} record */
function sortBy(table, head, record) {
  const up = head.getAttribute("aria-sort") !== "ascending";
  for (const other of table.querySelectorAll("thead th")) other.setAttribute("aria-sort", "none");
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  const name = String(head.dataset.name);
  const body = /** @type {HTMLElement} */ (table.querySelector("tbody"));
  const key = (/** @type {Element} */ row) => {
    if (!name) return Number(/** @type {HTMLElement} */ (row).dataset.moment);
    const index = record(row);
    return index === null ? null : numberOf(index, name)?.value ?? null;
  };
  const rows = [...body.children].map((row) => ({ row, at: key(row) }));
  rows.sort((a, b) => (a.at === null ? 1 : 0) - (b.at === null ? 1 : 0) || (up ? 1 : -1) * (Number(a.at) - Number(b.at)));
  body.append(...rows.map(({ row }) => row));
}

// --- the error budget of a number ----------------------------------------------------------------------------------

/** Show a number in full and the parts of its error, near its cell.
 * @param {HTMLElement} cell @param {number | null} index of its record */
function showBudget(cell, index) {
  const name = String(cell.dataset.name);
  if (index === null) return hideTip();
  const words = DATA.views[index].numbers?.[name];
  const number = numberOf(index, name);
  if (!number) return hideTip();
  const tip = byId("tip");
  /** @type {[string, number | null | undefined][]} */
  const rows = [["value", number.value]];
  if (words) rows.push(["standard error", number.stderr], ["lower", number.lower], ["upper", number.upper], ["tolerance τ", number.tau]);
  const known = rows.filter(([, value]) => value !== null && value !== undefined);
  tip.replaceChildren(element("b", {}, `${name}: ${wordsOf(index, name)}`));
  tip.append(element("table", { class: "full" }, ...known.map(([title, value]) => pairRow(title, String(value)))));
  if (words?.budget) {
    tip.append(element("p", {}, "Parts of the error (half-widths of 95 % intervals):"));
    const parts = Object.entries(words.budget).map(([part, size]) => pairRow(part, size === "-" && words.unknown[part] ? `not known: ${words.unknown[part]}` : String(size)));
    tip.append(element("table", { class: "budget" }, ...parts));
  }
  if (words?.limited) tip.append(element("p", {}, `Limited by ${words.limited}. ${words.advice[0].toUpperCase()}${words.advice.slice(1)}.`));
  if (words?.test) tip.append(element("p", {}, `On the test data: ${words.test.replaceAll("+-", "±")}`));
  if (words?.note) tip.append(element("p", {}, `Note: ${words.note}`));
  cell.setAttribute("aria-describedby", "tip");
  tip.hidden = false;
  const { left, bottom, top: above } = cell.getBoundingClientRect();
  const { width, height } = tip.getBoundingClientRect();
  const x = Math.max(8, Math.min(left, document.documentElement.clientWidth - width - 8));
  const y = bottom + height + 12 > innerHeight && above > height + 12 ? above - height - 6 : bottom + 6;
  tip.style.left = `${x + scrollX}px`;
  tip.style.top = `${y + scrollY}px`;
}

function hideTip() {
  byId("tip").hidden = true;
  for (const cell of document.querySelectorAll("[aria-describedby=tip]")) cell.removeAttribute("aria-describedby");
}

/** @param {string} title @param {string} words @returns {HTMLElement} */
function pairRow(title, words) {
  return element("tr", {}, element("th", { scope: "row" }, title), element("td", {}, words));
}

// --- tables of the chosen record -----------------------------------------------------------------------------------

/** Fill a table: heads (left-aligned ones begin with "<"), and rows whose first cell is their head.
 * @param {string} id @param {string[]} heads @param {(string | Node)[][]} rows */
function fill(id, heads, rows) {
  /** @param {string} head @returns {Record<string, string>} */
  const kind = (head) => (head.startsWith("<") ? { class: "words" } : {});
  const kinds = heads.map(kind);
  const top = heads.map((head, i) => element("th", { scope: "col", ...kinds[i] }, head.replace("<", "")));
  const body = rows.map((row) => element("tr", {}, ...row.map((cell, i) => (i ? element("td", kinds[i], cell) : element("th", { scope: "row" }, cell)))));
  byId(id).replaceChildren(element("thead", {}, element("tr", {}, ...top)), element("tbody", {}, ...body));
}

/** Fill a list of names and words. @param {string} id @param {string[][]} pairs */
function fillPairs(id, pairs) {
  byId(id).replaceChildren(...pairs.map(([name, words]) => element("div", {}, element("dt", {}, name), element("dd", {}, words))));
}

/** Show why a section has no numbers, or hide the reason. @param {string} id of the section @param {string} why */
function sectionGap(id, why) {
  const words = byId(id).querySelector("p.gap");
  words.textContent = why;
  words.hidden = !why;
}

/** All tables of a record; null: there is none. @param {number | null} index */
function drawTables(index) {
  const view = index === null ? {} : DATA.views[index];
  const numbers = Object.entries(view.numbers ?? {});
  const tested = numbers.some(([, n]) => n.test !== undefined);
  const heads = ["quantity", "value", "±", "interval", "<limited by", ...(tested ? ["<test data"] : []), "<remarks"];
  fill("estimates", heads, numbers.map(([name, n]) => [name, n.value, n.error, n.interval, n.limited ?? "", ...(tested ? [(n.test ?? "").replaceAll("+-", "±")] : []), [n.marks, n.marks === n.note ? "" : n.note].filter(Boolean).join("; ")]));
  const notes = index === null ? [] : DATA.records[index].notes;
  byId("notes").replaceChildren(...notes.map((/** @type {string} */ note) => element("li", {}, shown(note))));
  byId("notes").hidden = !notes.length;
  fillPairs("facts", view.facts ?? []);
  fillPairs("origin", view.origin ?? []);
  fill("settings", ["setting", "<value"], Object.entries(index === null ? {} : DATA.records[index].settings).map(([name, value]) => [name, typeof value === "string" ? value : JSON.stringify(value)]));
  const checks = view.checks ?? { rows: [], reasons: [], words: "-", kind: "exact" };
  byId("checks-words").textContent = checks.rows.length ? `${checks.words}. ${checks.reasons.join(" ")}` : `No comparison with an exact trace. ${checks.reasons.join(" ")}`;
  byId("checks").querySelector("details").hidden = !checks.rows.length;
  fill("checks-table", ["comparison", "estimate", checks.kind, "z", "would notice", "<verdict"], checks.rows);
  const measures = view.sharpness ?? [];
  fill("sharpness-table", ["measure", "value", "<form", "<remarks"], measures.map((/** @type {any} */ m) => [m.name.replaceAll("_", " "), m.words, m.form, [m.conditions, m.reason].filter(Boolean).join("; ")]));
  byId("sharpness-table").hidden = !measures.length;
  sectionGap("sharpness", measures.length ? "" : "This record has no sharpness measures: spectra analyze --sharpness computes them.");
}

// --- tensors -------------------------------------------------------------------------------------------------------

const FEW_TENSORS = 20;
let everyTensor = false;

/** The tensors of a record, in the order of the network. @param {number} index @returns {any[]} */
function tensorsOf(index) {
  const { size, words, exact, verdict } = DATA.views[index].tensors ?? {};
  return Object.keys(size ?? {}).map((name) => {
    const { value, lower, upper } = DATA.records[index].tensor_traces[name] ?? {};
    return {
      name: shown(name),
      size: size[name],
      words: words[name]?.replaceAll("+-", "±") ?? "-",
      ends: [value, lower, upper],
      exact: Object.hasOwn(exact, name) ? DATA.records[index].exact.by_layer[name] : null,
      exactWords: Object.hasOwn(exact, name) ? exact[name] : "-",
      verdict: Object.hasOwn(verdict, name) ? verdict[name] : "",
    };
  });
}

/** The traces of the tensors: bars with intervals, and exact traces as diamonds. @param {number | null} index */
function drawTensors(index) {
  const rows = index === null ? [] : tensorsOf(index);
  byId("tensor-table").hidden = !rows.length;
  byId("more-tensors").hidden = rows.length <= FEW_TENSORS;
  sectionGap("tensors", rows.length ? "" : "The traces of the tensors are not in this record: they are kept by newer versions, for models whose parameters have names.");
  const order = byId("tensor-order").value;
  const size = (/** @type {any} */ row) => (order === "size" ? Number(row.size ?? 0) : Math.abs(row.exact ?? row.ends[0] ?? 0));
  if (order !== "network") rows.sort((a, b) => size(b) - size(a));
  const shown = everyTensor ? rows : rows.slice(0, FEW_TENSORS);
  byId("more-tensors").textContent = everyTensor ? `Show the first ${FEW_TENSORS}` : `Show all ${rows.length} tensors`;
  const values = shown.flatMap((row) => [0, row.ends[0] ?? 0, row.exact ?? 0]);
  const spread = Math.max(...values, 0) - Math.min(...values, 0) || 1;
  const reach = (/** @type {any} */ v) => Math.min(Math.max(v, Math.min(...values) - 0.6 * spread), Math.max(...values) + 0.6 * spread);
  const ends = shown.flatMap((row) => [row.ends[1], row.ends[2]].filter((v) => v !== null && v !== undefined).map(reach));
  const limits = [Math.min(...values, ...ends), Math.max(...values, ...ends)];
  const colour = tint(lookOf(index === null ? "eval" : DATA.records[index].bn_mode).colour);
  fill("tensor-table", ["tensor", "size", "<trace of its block (bar: probes, line: 95 %, ◇: exact)", "by probes", "exact", "<check"], shown.map((row) => [row.name, row.size === null ? "-" : row.size.toLocaleString("en"), barOf(row, limits, colour), row.words, row.exactWords, row.verdict]));
}

/** @param {any} row @param {number[]} limits @param {string} colour @returns {Node} */
function barOf(row, limits, colour) {
  const [width, height] = [360, 18];
  const x = (/** @type {number} */ v) => 6 + ((v - limits[0]) / (limits[1] - limits[0] || 1)) * (width - 12);
  const inside = (/** @type {number} */ v) => Math.min(Math.max(x(v), 1), width - 1);
  const svg = drawing("svg", { width, height, "aria-hidden": "true" });
  const [value, lower, upper] = row.ends.map((/** @type {any} */ v) => v ?? null);
  if (value !== null) {
    svg.append(drawing("rect", { class: "bar", x: Math.min(x(0), x(value)), y: 4, width: Math.max(Math.abs(x(value) - x(0)), 1), height: 10, fill: colour }));
    if (lower !== null && upper !== null) svg.append(drawing("line", { class: "whisker", x1: inside(lower), x2: inside(upper), y1: 9, y2: 9 }));
  }
  svg.append(drawing("line", { class: "axis", x1: x(0), x2: x(0), y1: 0, y2: height }));
  if (row.exact !== null) svg.append(drawing("path", { class: "diamond", d: `M${x(row.exact) - 4.5} 9l4.5 -5l4.5 5l-4.5 5z` }));
  return svg;
}
