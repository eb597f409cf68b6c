// @ts-check
// Numbers over training: a panel each, a line per batch-norm mode, with intervals.

/** @typedef {{value: (number | null)[], lower: (number | null)[], upper: (number | null)[], resolved: boolean[]}} Column */

/** The checkpoints of an operator that have a place on the axis of time.
 * @param {any} operator @returns {number[]} their indices */
function placed(operator) {
  return operator.at.flatMap((/** @type {number | null} */ at, /** @type {number} */ i) => (at === null ? [] : [i]));
}

/** A number of every checkpoint. @param {any} operator @param {string} mode @param {(record: number) => any} read
 * @returns {Column} */
function columnOf(operator, mode, read) {
  const found = placed(operator).map((i) => {
    const record = operator.modes[mode][i];
    return record === null ? null : read(record);
  });
  const finite = (/** @type {any} */ v) => (v === undefined || v === null || !Number.isFinite(v) ? null : v);
  return {
    value: found.map((n) => (n?.resolved === false ? null : finite(n?.value))),
    lower: found.map((n) => finite(n?.lower)),
    upper: found.map((n) => finite(n?.upper)),
    resolved: found.map((n) => n?.resolved !== false),
  };
}

/** Draw all panels of the chosen matrix. @param {Choice} chosen @param {(moment: number) => void} choose */
function drawTraining(chosen, choose) {
  const operator = DATA.files[chosen.file].operators[chosen.operator];
  const modes = Object.keys(operator.modes);
  const host = byId("training-panels");
  for (const id of charts.keys()) if (id.startsWith("panel-")) charts.get(id).destroy(), charts.delete(id);
  host.replaceChildren();
  byId("sharpness-panels").replaceChildren();
  byId("training-legend").replaceChildren();
  byId("measures-over").hidden = true;
  if (placed(operator).length < 2) return host.append(element("p", { class: "gap" }, "One checkpoint: there is nothing to draw over training."));
  for (const mode of modes) byId("training-legend").append(legendOf(mode));
  const measures = new Set(modes.flatMap((mode) => operator.modes[mode].flatMap((/** @type {number | null} */ r) => (r === null ? [] : (DATA.views[r].sharpness ?? []).map((/** @type {any} */ m) => m.name)))));
  for (const [name, title] of Object.entries(DATA.titles)) {
    panel(host, `panel-${name}`, title, DATA.units[name] ?? "", chosen, choose, (record) => numberOf(record, name), (record) => wordsOf(record, name));
  }
  byId("measures-over").hidden = !measures.size;
  for (const [i, name] of [...measures].entries()) {
    const measure = (/** @type {number} */ record) => (DATA.views[record].sharpness ?? []).find((/** @type {any} */ m) => m.name === name);
    const read = (/** @type {number} */ record) => {
      const [value, lower, upper] = measure(record)?.ends ?? [];
      return { value, lower, upper };
    };
    panel(byId("sharpness-panels"), `panel-sharpness-${i}`, name.replaceAll("_", " "), "", chosen, choose, read, (record) => measure(record)?.words ?? "-");
  }
}

/** @param {string} mode @returns {HTMLElement} */
function legendOf(mode) {
  const { colour, dash } = lookOf(mode);
  const stroke = { x1: 0, x2: 30, y1: 6, y2: 6, stroke: tint(colour), "stroke-width": 2.5, "stroke-dasharray": dash.join(" ") };
  const made = element("span", {}, `batch norm in ${mode} mode`);
  made.prepend(drawing("svg", { width: 30, height: 12, "aria-hidden": "true" }, drawing("line", stroke)));
  return made;
}

/** One panel; nothing where no checkpoint has the number.
 * @param {HTMLElement} host @param {string} id @param {string} title @param {string} unit @param {Choice} chosen
 * @param {(moment: number) => void} choose @param {(record: number) => any} read
 * @param {(record: number) => string} words */
function panel(host, id, title, unit, chosen, choose, read, words) {
  const operator = DATA.files[chosen.file].operators[chosen.operator];
  const shown = placed(operator);
  const x = shown.map((i) => operator.at[i]);
  const columns = Object.keys(operator.modes).map((mode) => ({ mode, ...lookOf(mode), column: columnOf(operator, mode, read) }));
  const points = columns.flatMap(({ column }) => /** @type {number[]} */ (column.value.filter((v) => v !== null)));
  const brackets = columns.some(({ column }) => column.lower.some((v) => v !== null));
  if (points.length === 0 && !brackets) return;
  const lower = columns.flatMap(({ column }) => /** @type {number[]} */ (column.lower.filter((v, i) => v !== null && column.value[i] !== null)));
  const edges = id === "panel-lambda_max" ? columns.map(({ mode }) => operator.modes[mode].map((/** @type {number | null} */ r) => (r === null ? null : edgeOf(r)))) : [];
  const edgeValues = edges.flat().filter((/** @type {any} */ v) => v !== null);
  const scale = fitted([...points, ...edgeValues], lower);
  const put = (/** @type {(number | null)[]} */ values) => values.map((v) => (v === null ? null : scale.forward(v)));
  const drawn = columns.map((c) => ({ ...c, value: put(c.column.value), lower: put(c.column.lower), upper: put(c.column.upper) }));
  const numbers = drawn.flatMap((c) => c.value.map((value, i) => ({ value, lower: c.lower[i], upper: c.upper[i] })));
  const range = limitsOf([...numbers, ...edgeValues.map((/** @type {number} */ v) => ({ value: scale.forward(v), lower: null, upper: null }))]);
  const fit = (/** @type {number | null} */ v) => (v === null ? null : Math.min(Math.max(v, range[0] - (range[1] - range[0])), range[1] + (range[1] - range[0])));
  const readout = element("p", { class: "readout", "aria-hidden": "true" });
  const box = element("div", { class: "panel" }, element("h3", {}, `${title} `, element("small", {}, unit)), element("div", { class: "chart", id }), readout);
  host.append(box);
  const data = [x, ...drawn.flatMap((c) => [c.value, c.lower.map((v, i) => (c.value[i] === null ? null : fit(v))), c.upper.map((v, i) => (c.value[i] === null ? null : fit(v)))])];
  const spare = (x[x.length - 1] - x[0]) * 0.04 || 1;
  const made = chart(id, {
    x: { label: operator.time, scale: linear, range: [x[0] - spare, x[x.length - 1] + spare] },
    y: { label: "", scale, range, size: 62 },
    data,
    series: drawn.flatMap((c) => [line(tint(c.colour), c.dash, { points: { show: true, size: shown.length > 25 ? 4 : 7, fill: c.dash.length ? styled("paper") : tint(c.colour), stroke: tint(c.colour) } }), edge(), edge()]),
    bands: drawn.map((c, i) => ({ series: [3 * i + 3, 3 * i + 2], fill: tint(c.colour, 0.16) })),
    height: 200,
    sync: "training",
    describe: `${title} over ${operator.time}; at the chosen checkpoint ${Object.keys(operator.modes).map((mode) => said(operator, mode, chosen.moment, words)).join("; ")}`,
    under: (u) => marker(u, operator.at[CHOSEN.moment]),
    over: (u) => {
      for (const [i, c] of drawn.entries()) paintIntervals(u, x, c, range, 5 * (i - (drawn.length - 1) / 2));
      if (edgeValues.length) paintEdge(u, x, edges[0], scale, shown);
    },
    cursor: (u) => {
      const i = u.cursor.idx;
      const at = i === null || i === undefined ? -1 : shown[i];
      const all = at < 0 ? [] : Object.keys(operator.modes).map((mode) => said(operator, mode, at, words));
      readout.textContent = at < 0 ? "" : `${operator.labels[at]}: ${all.join("; ")}`;
    },
  });
  made.over.addEventListener("click", () => {
    if (made.cursor.idx !== null && made.cursor.idx !== undefined) choose(shown[made.cursor.idx]);
  });
}

/** @param {any} operator @param {string} mode @param {number} moment @param {(record: number) => string} words */
function said(operator, mode, moment, words) {
  const record = operator.modes[mode][moment];
  return `${mode} ${record === null ? "-" : words(record)}`;
}

/** Bars of intervals: dotted where only the bracket is known; a triangle where one goes on beyond the axis.
 * @param {any} u @param {number[]} x @param {any} c @param {[number, number]} range
 * @param {number} aside pixels by which open brackets of several modes are apart */
function paintIntervals(u, x, c, range, aside) {
  const ctx = u.ctx;
  const unit = devicePixelRatio;
  ctx.strokeStyle = ctx.fillStyle = tint(c.colour);
  for (const [i, at] of x.entries()) {
    const [low, high] = [c.lower[i], c.upper[i]];
    const open = c.value[i] === null;
    if (low === null && high === null) continue;
    const from = low ?? c.value[i];
    const to = high ?? c.value[i];
    if (from === null || to === null || !(to > from)) continue;
    const column = u.valToPos(at, "x", true) + (open ? aside * unit : 0);
    const place = (/** @type {number} */ v) => u.valToPos(Math.min(Math.max(v, range[0]), range[1]), "y", true);
    ctx.lineWidth = (open ? 1.6 : 1.1) * unit;
    ctx.setLineDash(open ? [2 * unit, 3 * unit] : []);
    ctx.beginPath();
    ctx.moveTo(column, place(from));
    ctx.lineTo(column, place(to));
    ctx.stroke();
    ctx.setLineDash([]);
    for (const [v, out] of [[from, from < range[0] ? 1 : 0], [to, to > range[1] ? -1 : 0]]) {
      const y = place(v);
      ctx.beginPath();
      if (out) {
        ctx.moveTo(column - 4 * unit, y - out * 6 * unit);
        ctx.lineTo(column + 4 * unit, y - out * 6 * unit);
        ctx.lineTo(column, y);
        ctx.fill();
      } else {
        ctx.moveTo(column - 3 * unit, y);
        ctx.lineTo(column + 3 * unit, y);
        ctx.stroke();
      }
    }
  }
}

/** The stability edge of the optimizer, a dashed line in the ink of the text.
 * @param {any} u @param {number[]} x @param {(number | null)[]} edges @param {Scale} scale @param {number[]} shown */
function paintEdge(u, x, edges, scale, shown) {
  u.ctx.strokeStyle = styled("ink");
  u.ctx.lineWidth = 1.5 * devicePixelRatio;
  u.ctx.setLineDash([5 * devicePixelRatio, 4 * devicePixelRatio]);
  u.ctx.beginPath();
  for (const [i, at] of x.entries()) {
    const value = edges[shown[i]];
    if (value !== null) u.ctx.lineTo(u.valToPos(at, "x", true), u.valToPos(scale.forward(value), "y", true));
  }
  u.ctx.stroke();
  u.ctx.setLineDash([]);
}

/** Move the line of the chosen checkpoint in all panels. */
function moveMarkers() {
  for (const [id, made] of charts) if (id.startsWith("panel-")) made.redraw(false);
}
