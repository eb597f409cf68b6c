// @ts-check
"use strict";
// The data of the page, and small functions for numbers and elements. Every text enters the page as a text node.

/** The element with an id.
 * @param {string} id @returns {any} */
function byId(id) {
  return document.getElementById(id);
}

/** A value from its packed form: shapes are lists of keys, -1 begins a list, -2 a text of the table.
 * @param {{shapes: string[][], texts: string[], data: any}} packed @returns {any} */
function unpacked(packed) {
  /** @param {any} part @returns {any} */
  function unpack(part) {
    if (!Array.isArray(part)) return part;
    const [kind, ...entries] = part;
    if (kind === -1) return entries.map(unpack);
    if (kind === -2) return packed.texts[entries[0]];
    return Object.fromEntries(packed.shapes[kind].map((key, i) => [key, unpack(entries[i])]));
  }
  return unpack(packed.data);
}

/** Numbers from the first one and the differences of the others. @param {number[]} steps @returns {number[]} */
function summed(steps) {
  let sum = 0;
  return steps.map((step) => (sum += step));
}

/** Put the curves of a record in full. @param {any} view */
function restore(view) {
  for (const density of [view.linear, view.asinh]) {
    if (!density) continue;
    const height = (/** @type {number} */ level) => density.floor * 10 ** (level / 1000);
    const levels = summed(density.level);
    density.value = levels.map(height);
    density.upper = density.above?.map((/** @type {number} */ above, /** @type {number} */ i) => height(levels[i] + above));
  }
  if (!view.stems) return;
  view.stems.node = summed(view.stems.node).map((level) => view.stems.s * Math.sinh(level / 1000));
  view.stems.weight = view.stems.weight.map((/** @type {number} */ level) => level / 100);
  view.stems.converged = [...view.stems.converged].map((one) => one === "1");
}

/** @type {any} */
const DATA = unpacked(JSON.parse(byId("spectra-data").textContent));

/** An element with attributes and children; a child that is a text becomes a text node.
 * @param {string} tag @param {Record<string, string>} [attributes] @param {...(Node | string)} children
 * @returns {HTMLElement} */
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** An element of SVG.
 * @param {string} tag @param {Record<string, string | number>} attributes @param {...Node} children
 * @returns {SVGElement} */
function drawing(tag, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, String(value));
  made.append(...children);
  return made;
}

/** The number to quote of a record: exact where it is known, else the estimate; a fact has no error.
 * @param {number} index of the record @param {string} name
 * @returns {{value: number | null, lower?: number | null, upper?: number | null, stderr?: number | null,
 *   resolved?: boolean | null, tau?: number | null, source?: string} | null} */
function numberOf(index, name) {
  const record = DATA.records[index];
  const found = record.headline?.[name] ?? record.estimates?.[name];
  if (found) return found;
  const fact = record.facts?.[name];
  return fact === undefined || fact === null ? null : { value: fact };
}

/** The stability edge of the optimizer: the entry `edge` or `stability_edge` of its mapping, in the record or in its
 * settings; null where there is none. @param {number} index @returns {number | null} */
function edgeOf(index) {
  const { optimizer, settings } = DATA.records[index];
  const found = [optimizer, settings?.optimizer].flatMap((known) => [known?.edge, known?.stability_edge]);
  return found.find((value) => typeof value === "number") ?? null;
}

/** The words for a number, as in the tables of `spectra show`.
 * @param {number} index @param {string} name @returns {string} */
function wordsOf(index, name) {
  const words = DATA.views[index].numbers?.[name]?.short;
  return words === undefined ? rounded(numberOf(index, name)?.value ?? null) : words.replaceAll("+-", "±");
}

/** A number to five digits, for readouts.
 * @param {number | null | undefined} value @param {number} [digits] @returns {string} */
function rounded(value, digits = 5) {
  if (value === null || value === undefined || Number.isNaN(value)) return "-";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-4 || size >= 1e6)) return value.toExponential(digits - 1).replace(/\.?0+e/, "e");
  return String(Number(value.toPrecision(digits)));
}

/** A power of ten, such as −10⁻³.
 * @param {number} power @param {boolean} [negative] @returns {string} */
function powerOfTen(power, negative = false) {
  const digits = [...String(Math.abs(power))].map((digit) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[Number(digit)]).join("");
  return `${negative ? "−" : ""}10${power < 0 ? "⁻" : ""}${digits}`;
}

for (const view of DATA.views) restore(view);

// --- downloads -----------------------------------------------------------------------------------------------------

/** The rows of CSV, as `spectra show --csv` has them: one per record and estimate.
 * @returns {any[][]} */
function csvRows() {
  /** @type {string[]} */
  const columns = DATA.csv;
  const parts = columns.slice(columns.indexOf("value"), -1);
  /** @type {any[][]} */
  const rows = [columns];
  /** @param {any} shared @param {any} estimates @param {string} prefix */
  function add(shared, estimates, prefix) {
    for (const [name, estimate] of Object.entries(estimates)) {
      const cells = Object.fromEntries(parts.map((part) => [part, estimate[part]]));
      const row = { ...shared, ...cells, estimate: prefix + name, reason: estimate.reason || estimate.note };
      rows.push(columns.map((column) => row[column]));
    }
  }
  for (const record of DATA.records) {
    const shared = Object.fromEntries(columns.filter((name) => name !== "reason").map((name) => [name, record[name]]));
    if (record.status === "failed") rows.push(columns.map((name) => (name === "reason" ? record.reason : shared[name])));
    add(shared, record.estimates, "");
    if (record.test) add({ ...shared, loss: record.test.loss, n_samples: record.test.n_samples }, record.test.estimates, "test_");
  }
  return rows;
}

/** A text with control characters and marks of direction written out.
 * @param {string} text @returns {string} */
function shown(text) {
  const unshown = /[\u0000-\u001f\u007f-\u009f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g;
  return text.replace(unshown, (found) => `\\u${found.charCodeAt(0).toString(16).padStart(4, "0")}`);
}

/** A cell of CSV; control characters are shown as escapes.
 * @param {any} cell @returns {string} */
function csvCell(cell) {
  if (cell === null || cell === undefined) return "";
  if (typeof cell === "boolean") return cell ? "True" : "False";
  const text = shown(String(cell));
  return /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

/** Save a text as a file, without a network.
 * @param {string} name @param {string} text @param {string} type */
function save(name, text, type) {
  const link = /** @type {HTMLAnchorElement} */ (element("a", { download: name }));
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
