// @ts-check
// The figures: density and Ritz values, rank degeneracy, and numbers over training.

/** @typedef {{file: number, operator: number, mode: string, moment: number}} Choice */

/** The record of a choice; null where there is none. @param {Choice} choice @returns {number | null} */
function recordOf(choice) {
  return DATA.files[choice.file].operators[choice.operator].modes[choice.mode]?.[choice.moment] ?? null;
}

/** What a choice shows, in words. @param {Choice} choice @returns {string} */
function wordsOfChoice(choice) {
  const file = DATA.files[choice.file];
  const operator = file.operators[choice.operator];
  const name = DATA.files.length > 1 ? `${file.name}: ` : "";
  return `${name}${operator.labels[choice.moment]}, ${operator.name}, BN ${choice.mode}`;
}

/** Put words in the caption and the readout of a chart. @param {string} id @param {string} caption */
function caption(id, caption) {
  const figure = byId(id).closest("figure");
  figure.querySelector("figcaption").textContent = caption;
  figure.querySelector(".readout").textContent = "";
}

/** Say why there is no chart. @param {string} id @param {string} why */
function gap(id, why) {
  charts.get(id)?.destroy();
  charts.delete(id);
  const host = byId(id);
  host.removeAttribute("role");
  host.removeAttribute("aria-label");
  host.replaceChildren(element("p", { class: "gap" }, why));
}

/** The curves to draw: the pinned ones, which have spectra, and the chosen one last.
 * @param {Choice} chosen @param {Choice[]} pins */
function curvesOf(chosen, pins) {
  const shadows = pins.map((choice, i) => ({ choice, colour: DATA.palette.pins[i % DATA.palette.pins.length], dash: [6, 4], pinned: true }));
  const all = [...shadows, { choice: chosen, ...lookOf(chosen.mode), pinned: false }];
  return all.flatMap((curve) => {
    const index = recordOf(curve.choice);
    return index === null || !DATA.views[index].stems ? [] : [{ ...curve, view: DATA.views[index] }];
  });
}

/** The record of a choice with a spectrum; else its charts say why there is none.
 * @param {Choice} choice @param {string[]} ids @returns {number | null} */
function drawable(choice, ids) {
  const index = recordOf(choice);
  const view = index === null ? null : DATA.views[index];
  if (view?.stems) return index;
  const why = view === null ? `There is no record of ${wordsOfChoice(choice)}.` : `${wordsOfChoice(choice)} failed: ${view.reason}`;
  for (const id of ids) {
    caption(id, "");
    gap(id, why);
  }
  return null;
}

/** The coordinates, the values and the upper ends of a density, on the axis of another one. A density is per unit of
 * the coordinate, so it changes with the coordinate: its mass does not.
 * @param {any} density @param {Scale} scale of the axis @param {number | null} s of the axis
 * @returns {{x: number[], value: number[], upper: number[]}} */
function onAxis(density, scale, s) {
  const own = density.value.map((/** @type {number} */ _, /** @type {number} */ i) => density.origin + (density.first + i) * density.step);
  const factor = (/** @type {number} */ u) => (s === null || s === density.s ? 1 : (s * Math.hypot(1, (density.s * Math.sinh(u)) / s)) / (density.s * Math.cosh(u)));
  const factors = own.map(factor);
  return {
    x: s === density.s ? own : own.map((/** @type {number} */ u) => scale.forward(density.s * Math.sinh(u))),
    value: density.value.map((/** @type {number} */ v, /** @type {number} */ i) => v * factors[i]),
    upper: density.value.map((/** @type {number} */ v, /** @type {number} */ i) => (density.upper?.[i] ?? v) * factors[i]),
  };
}

// --- density and Ritz values ---------------------------------------------------------------------------------------

/** Draw the density of a choice, with its band and the pinned densities.
 * @param {Choice} chosen @param {Choice[]} pins @param {string} axis */
function drawDensity(chosen, pins, axis) {
  const index = drawable(chosen, ["density-chart", "stems-chart"]);
  if (index === null) return;
  const curves = curvesOf(chosen, pins).map((curve) => ({ ...curve, density: curve.view[axis] }));
  const { s } = DATA.views[index][axis];
  const scale = axis === "asinh" ? symmetric(s) : linear;
  const floor = Math.min(...curves.map((c) => c.density.floor));
  const log = (/** @type {number} */ v) => Math.log10(Math.max(v, floor * 1e-3));
  const tables = curves.map(({ density, pinned }) => {
    const { x, value, upper } = onAxis(density, scale, s);
    const band = pinned || !density.upper ? [] : [value.map((v, i) => log(2 * v - upper[i])), upper.map(log)];
    return [x, value.map(log), ...band];
  });
  const data = tables.length > 1 ? Plot.join(tables) : tables[0];
  const own = curves[curves.length - 1];
  const series = curves.flatMap((curve) => [line(tint(curve.colour), curve.dash), ...(curve.pinned || !curve.density.upper ? [] : [edge(), edge()])]);
  const peak = 10 ** Math.max(...tables.flatMap((table) => table[1]));
  /** @type {[number, number]} */
  const range = [data[0][0], data[0][data[0].length - 1]];
  const unit = axis === "asinh" ? "density per unit of asinh(λ/s)" : "density of eigenvalues";
  const matrix = DATA.records[index].operator;
  const at = curves.length;
  chart("density-chart", {
    x: { label: `eigenvalue λ of the ${matrix} (loss / parameter²)`, scale, range },
    y: { label: `${unit} (mass 1)`, scale: logarithmic, range: [Math.log10(floor), Math.log10(peak * 4)] },
    data,
    series,
    bands: own.density.upper ? [{ series: [at + 2, at + 1], fill: tint(own.colour, 0.22) }] : [],
    height: 330,
    describe: `Spectral density of ${wordsOfChoice(chosen)}${pins.length ? `, with ${pins.length} pinned` : ""}; eigenvalues from ${rounded(scale.back(range[0]), 3)} to ${rounded(scale.back(range[1]), 3)}`,
    under: axis === "asinh" ? shadeLinear : undefined,
    cursor: (u) => {
      const i = u.cursor.idx;
      const value = i === null || i === undefined ? null : u.data[at][i];
      const readout = byId("density-chart").closest("figure").querySelector(".readout");
      if (value === null || value === undefined) return void (readout.textContent = "");
      const band = own.density.upper ? ` [${rounded(10 ** u.data[at + 1][i], 3)}, ${rounded(10 ** u.data[at + 2][i], 3)}]` : "";
      readout.textContent = `λ = ${rounded(scale.back(u.data[0][i]), 4)}: density ${rounded(10 ** value, 3)}${band}`;
    },
  });
  const view = DATA.views[index];
  const width = axis === "asinh" ? `0.1 decades (σ = ${rounded(own.density.sigma, 3)} in asinh(λ/s)), s = ${rounded(s, 3)}; the axis is linear in the shaded strip |λ| ≤ s` : `σ = ${rounded(own.density.sigma, 3)}, the range of the Ritz values over the number of steps`;
  const band = own.density.upper ? "band: 95 % over the probes, pointwise" : "one probe has no band";
  caption("density-chart", `Mean of ${view.probes} probes, ${view.steps} Lanczos steps; ${band}. Kernel: a Gaussian of ${width}. The vertical axis ends at the height of a hundredth of one eigenvalue in n = ${view.n.toLocaleString("en")}. ${pins.length && axis === "asinh" ? "A pinned density has the kernel of its own s. " : ""}Drag to zoom, double-click to return.`);
  drawStems(curves, scale, range, chosen, matrix);
}

/** Shade the part of an axis that is linear. @param {any} u */
function shadeLinear(u) {
  const [left, right] = [-Math.asinh(1), Math.asinh(1)].map((v) => u.valToPos(v, "x", true));
  u.ctx.fillStyle = styled("shade");
  u.ctx.fillRect(Math.max(left, u.bbox.left), u.bbox.top, Math.min(right, u.bbox.left + u.bbox.width) - Math.max(left, u.bbox.left), u.bbox.height);
}

/** Draw the Ritz values of all probes against their weights.
 * @param {any[]} curves @param {Scale} scale @param {[number, number]} range @param {Choice} chosen
 * @param {string} matrix */
function drawStems(curves, scale, range, chosen, matrix) {
  const bottom = Math.max(-16, Math.min(...curves.flatMap((c) => c.view.stems.weight)) - 0.5);
  const own = curves[curves.length - 1].view.stems;
  chart("stems-chart", {
    x: { label: `Ritz value of the ${matrix} (loss / parameter²)`, scale, range },
    y: { label: "weight (sum 1 per probe)", scale: logarithmic, range: [bottom, 0.3] },
    data: [range, [null, null]],
    series: [edge()],
    height: 260,
    describe: `${own.node.length} Ritz values of ${wordsOfChoice(chosen)} and their weights`,
    over: (u) => {
      for (const curve of curves) paintStems(u, curve, scale, bottom);
    },
    cursor: (u) => {
      const readout = byId("stems-chart").closest("figure").querySelector(".readout");
      const { left } = u.cursor;
      if (left === undefined || left < 0) return void (readout.textContent = "");
      const distance = (/** @type {number} */ i) => Math.abs(u.valToPos(scale.forward(own.node[i]), "x") - left);
      let nearest = 0;
      for (let i = 1; i < own.node.length; i += 1) if (distance(i) < distance(nearest)) nearest = i;
      const state = own.converged[nearest] ? "converged" : "not converged";
      readout.textContent = `Ritz value ${rounded(own.node[nearest], 3)}, weight ${rounded(10 ** own.weight[nearest], 2)}, ${state}`;
    },
  });
  const settled = own.converged.filter(Boolean).length;
  caption("stems-chart", `Nodes and weights of the quadrature rules of all probes: ${own.node.length} Ritz values. Filled: converged (${settled}), the residual is below a tenth of the distance to the next Ritz value; open: it stands for the eigenvalues around it.`);
}

/** @param {any} u @param {any} curve @param {Scale} scale @param {number} bottom */
function paintStems(u, curve, scale, bottom) {
  const { node, weight, converged } = curve.view.stems;
  const ctx = u.ctx;
  const foot = u.valToPos(bottom, "y", true);
  const radius = (curve.pinned ? 2 : 3) * devicePixelRatio;
  ctx.strokeStyle = tint(curve.colour, curve.pinned ? 0.5 : 0.55);
  ctx.lineWidth = devicePixelRatio;
  ctx.setLineDash(curve.pinned ? [3 * devicePixelRatio, 3 * devicePixelRatio] : []);
  ctx.beginPath();
  const places = node.map((/** @type {number} */ v, /** @type {number} */ i) => [u.valToPos(scale.forward(v), "x", true), u.valToPos(weight[i], "y", true)]);
  for (const [x, y] of places) {
    ctx.moveTo(x, foot);
    ctx.lineTo(x, y);
  }
  ctx.stroke();
  ctx.setLineDash([]);
  ctx.strokeStyle = tint(curve.colour, curve.pinned ? 0.6 : 1);
  for (const [i, [x, y]] of places.entries()) {
    ctx.beginPath();
    ctx.arc(x, y, radius, 0, 2 * Math.PI);
    ctx.fillStyle = converged[i] && !curve.pinned ? tint(curve.colour) : styled("paper");
    ctx.fill();
    ctx.stroke();
  }
}

// --- rank degeneracy -----------------------------------------------------------------------------------------------

/** Draw the fraction of eigenvalues near zero over the tolerance. @param {Choice} chosen @param {Choice[]} pins */
function drawDegeneracy(chosen, pins) {
  const id = "degeneracy-chart";
  const index = drawable(chosen, [id]);
  if (index === null) return;
  const curves = curvesOf(chosen, pins).filter((curve) => curve.view.degeneracy);
  const own = DATA.views[index].degeneracy;
  if (!own) {
    caption(id, "");
    return gap(id, "Every eigenvalue is 0, or the noise of the products leaves no tolerance: there is no curve.");
  }
  const known = (/** @type {any} */ c, /** @type {number[]} */ column) => column.map((v, i) => (c.resolved[i] ? v : null));
  const tables = curves.map(({ view: { degeneracy: c }, pinned }) => {
    const x = c.tau.map(Math.log10);
    return pinned ? [x, known(c, c.value)] : [x, known(c, c.value), known(c, c.lower), known(c, c.upper)];
  });
  const data = tables.length > 1 ? Plot.join(tables) : tables[0];
  const { colour } = curves[curves.length - 1];
  const at = curves.length;
  const headline = numberOf(index, "rank_degeneracy");
  chart(id, {
    x: { label: "tolerance τ / ‖H‖₂", scale: logarithmic, range: [data[0][0] - 0.1, data[0][data[0].length - 1] + 0.1] },
    y: { label: "fraction of eigenvalues, |λ| ≤ τ", scale: linear, range: [-0.02, 1.02] },
    data,
    series: curves.flatMap((c) => [line(tint(c.colour), c.dash, { points: { show: true, size: 6, fill: tint(c.colour), stroke: tint(c.colour) } }), ...(c.pinned ? [] : [edge(), edge()])]),
    bands: [{ series: [at + 2, at + 1], fill: tint(colour, 0.25) }],
    height: 320,
    describe: `Fraction of eigenvalues within a tolerance of 0, ${wordsOfChoice(chosen)}; headline ${wordsOf(index, "rank_degeneracy")}`,
    under: (u) => clipped(u, () => paintUnresolved(u, own)),
    over: (u) => {
      if (headline?.resolved && headline.tau && headline.value !== null) paintStar(u, Math.log10(headline.tau / own.scale), headline.value, tint(colour));
    },
    cursor: (u) => {
      const readout = byId(id).closest("figure").querySelector(".readout");
      const i = own.tau.map(Math.log10).indexOf(u.data[0][u.cursor.idx]);
      if (i < 0) return void (readout.textContent = "");
      const value = own.resolved[i] ? rounded(own.value[i], 4) : "not resolved";
      readout.textContent = `τ = ${rounded(own.tau[i], 3)} ‖H‖₂: ${value} [${rounded(own.lower[i], 4)}, ${rounded(own.upper[i], 4)}]`;
    },
  });
  const open = own.resolved.filter((/** @type {number} */ one) => !one).length;
  caption(id, `Rank degeneracy: ${wordsOf(index, "rank_degeneracy")}${headline?.resolved ? " (star: the smallest resolved tolerance)" : ""}. Points: resolved, with the bracket and 95 % over the probes. Hatched: not resolved, the bracket alone (${open} of ${own.tau.length} tolerances). ‖H‖₂ = ${rounded(own.scale)}.`);
}

/** Hatch the bracket where it is too wide for a number. @param {any} u @param {any} curve */
function paintUnresolved(u, curve) {
  const last = curve.tau.length - 1;
  const near = curve.resolved.map((/** @type {number} */ one, /** @type {number} */ i) => !one || !curve.resolved[Math.max(0, i - 1)] || !curve.resolved[Math.min(last, i + 1)]);
  const place = (/** @type {number} */ i, /** @type {number[]} */ column) => [u.valToPos(Math.log10(curve.tau[i]), "x", true), u.valToPos(column[i], "y", true)];
  const region = new Path2D();
  for (let i = 0; i < last; i += 1) {
    if (!near[i] || !near[i + 1] || (curve.resolved[i] && curve.resolved[i + 1])) continue;
    const corners = [place(i, curve.lower), place(i + 1, curve.lower), place(i + 1, curve.upper), place(i, curve.upper)];
    corners.forEach(([x, y], corner) => (corner ? region.lineTo(x, y) : region.moveTo(x, y)));
    region.closePath();
  }
  const ctx = u.ctx;
  ctx.fillStyle = styled("shade");
  ctx.fill(region);
  ctx.save();
  ctx.clip(region);
  ctx.strokeStyle = styled("muted");
  ctx.lineWidth = 0.7 * devicePixelRatio;
  ctx.beginPath();
  const { left, top: above, width, height } = u.bbox;
  for (let x = left - height; x < left + width; x += 8 * devicePixelRatio) {
    ctx.moveTo(x, above + height);
    ctx.lineTo(x + height, above);
  }
  ctx.stroke();
  ctx.restore();
}

/** @param {any} u @param {number} at @param {number} value @param {string} colour */
function paintStar(u, at, value, colour) {
  const [x, y] = [u.valToPos(at, "x", true), u.valToPos(value, "y", true)];
  u.ctx.beginPath();
  for (let i = 0; i < 10; i += 1) {
    const radius = (i % 2 ? 4 : 9) * devicePixelRatio;
    const angle = (Math.PI * i) / 5 - Math.PI / 2;
    u.ctx.lineTo(x + radius * Math.cos(angle), y + radius * Math.sin(angle));
  }
  u.ctx.closePath();
  u.ctx.fillStyle = colour;
  u.ctx.strokeStyle = styled("paper");
  u.ctx.lineWidth = devicePixelRatio;
  u.ctx.fill();
  u.ctx.stroke();
}
