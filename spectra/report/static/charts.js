// @ts-check
// Axes, ticks and colours of the charts. Each chart has linear scales: logarithms are taken of the data.

/** @typedef {{forward: (v: number) => number, back: (v: number) => number,
 *   ticks: (low: number, high: number, most: number) => {at: number, label: string}[]}} Scale */

/** uPlot, of its own script. @type {any} */
const Plot = /** @type {any} */ (window).uPlot;

/** Charts on the page, by the id of their element. @type {Map<string, any>} */
const charts = new Map();

const dark = matchMedia("(prefers-color-scheme: dark)");

/** The value of a custom property of the style.
 * @param {string} name @returns {string} */
function styled(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

/** A colour of the palette, lighter on a dark page; with an opacity.
 * @param {string} colour as #rrggbb @param {number} [opacity] @returns {string} */
function tint(colour, opacity = 1) {
  const parts = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
  const [r, g, b] = parts.map((part) => (dark.matches ? Math.round(part + (255 - part) * 0.4) : part));
  return `rgba(${r}, ${g}, ${b}, ${opacity})`;
}

/** The colour and the dashes of a batch-norm mode.
 * @param {string} mode @returns {{colour: string, dash: number[]}} */
function lookOf(mode) {
  const look = DATA.palette.modes[mode] ?? DATA.palette.other;
  const dashes = { "-": [], "--": [7, 4], "-.": [8, 3, 2, 3], ":": [2, 3] };
  return { colour: look.colour, dash: /** @type {any} */ (dashes)[look.dash] ?? [] };
}

// --- scales --------------------------------------------------------------------------------------------------------

/** @type {Scale} */
const linear = {
  forward: (v) => v,
  back: (v) => v,
  ticks(low, high, most) {
    const least = (high - low) / Math.max(1, most);
    const power = 10 ** Math.floor(Math.log10(least));
    const step = power * ([1, 2, 5].find((digit) => digit * power >= least * 0.999) ?? 10);
    const found = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high * (1 + 1e-12) + 1e-12 * step; i += 1) found.push(i * step);
    const size = Math.max(Math.abs(low), Math.abs(high));
    const places = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
    const plain = size < 1e5 && places <= 4;
    const digits = Math.max(0, Math.floor(Math.log10(size)) - Math.floor(Math.log10(step) + 1e-9));
    return found.map((at) => ({ at, label: plain ? at.toFixed(places) : at === 0 ? "0" : at.toExponential(Math.min(digits, 4)) }));
  },
};

/** @type {Scale} */
const logarithmic = {
  forward: (v) => (v > 0 ? Math.log10(v) : -Infinity),
  back: (v) => 10 ** v,
  ticks(low, high, most) {
    const powers = [];
    for (let power = Math.ceil(low - 1e-9); power <= high + 1e-9; power += 1) powers.push(power);
    if (high - low > 3) {
      const every = Math.ceil(powers.length / Math.max(1, most));
      return powers.filter((power) => power % every === 0).map((power) => ({ at: power, label: powerOfTen(power) }));
    }
    const found = [];
    for (let power = Math.floor(low); power <= high; power += 1) {
      for (const digit of [1, 2, 5]) {
        const at = power + Math.log10(digit);
        if (at >= low && at <= high) found.push({ at, label: rounded(digit * 10 ** power, 3) });
      }
    }
    if (found.length > 1) return found;
    return linear.ticks(10 ** low, 10 ** high, most).map((tick) => ({ at: Math.log10(Number(tick.label)), label: tick.label }));
  },
};

/** Linear within s of 0 and logarithmic beyond it.
 * @param {number} s @returns {Scale} */
function symmetric(s) {
  return {
    forward: (v) => Math.asinh(v / s),
    back: (v) => s * Math.sinh(v),
    ticks(low, high, most) {
      const ends = [s * Math.sinh(low), s * Math.sinh(high)];
      const reach = Math.max(Math.abs(ends[0]), Math.abs(ends[1]));
      const first = Math.floor(Math.log10(s));
      const last = Math.ceil(Math.log10(reach));
      const inside = (/** @type {number} */ v) => v >= ends[0] && v <= ends[1];
      /** @param {number[]} digits @param {number} every */
      const signed = (digits, every) => {
        const steps = [];
        for (let power = last; power >= first; power -= every) for (const digit of digits) steps.push(digit * 10 ** power);
        return steps.filter((v) => v > 1.4 * s).flatMap((v) => [-v, v]).filter(inside);
      };
      const count = signed([1], 1).length;
      const few = count <= 2;
      const found = (inside(0) ? [0] : []).concat(few ? signed([1, 2, 5], 1) : signed([1], Math.max(1, Math.ceil(count / Math.max(1, most - 1)))));
      const label = (/** @type {number} */ v) => (v === 0 ? "0" : few ? rounded(v, 3) : powerOfTen(Math.round(Math.log10(Math.abs(v))), v < 0));
      return found.sort((a, b) => a - b).map((v) => ({ at: Math.asinh(v / s), label: label(v) }));
    },
  };
}

/** The scale that suits numbers, by the rule of the figures of `spectra plot`.
 * @param {number[]} points @param {number[]} lower ends of their intervals @returns {Scale} */
function fitted(points, lower) {
  const sizes = points.filter((v) => v !== 0).map(Math.abs).sort((a, b) => a - b);
  const positive = points.every((v) => v > 0);
  if (sizes.length < 2) return linear;
  const median = sizes[Math.floor((sizes.length - 1) / 2)];
  if (sizes[sizes.length - 1] <= 30 * (positive ? sizes[0] : median)) return linear;
  if (positive && lower.filter((v) => v <= 0).length <= lower.length / 4) return logarithmic;
  return symmetric(10 ** Math.floor(Math.log10(median)));
}

/** The limits of an axis: all points, and intervals unless a few of them are far longer than the typical one.
 * @param {{value: number | null, lower: number | null, upper: number | null}[]} numbers on the scale
 * @returns {[number, number]} */
function limitsOf(numbers) {
  const finite = (/** @type {any} */ v) => v !== null && Number.isFinite(v);
  const middles = numbers.map((n) => (finite(n.value) ? n.value : finite(n.lower) && finite(n.upper) ? (Number(n.lower) + Number(n.upper)) / 2 : null));
  const points = /** @type {number[]} */ (middles.filter(finite));
  if (points.length === 0) return [0, 1];
  const reaches = numbers.flatMap((n, i) => [Number(middles[i]) - Number(n.lower ?? NaN), Number(n.upper ?? NaN) - Number(middles[i])]);
  const known = reaches.filter((r) => r > 0 && Number.isFinite(r)).sort((a, b) => a - b);
  const least = Math.min(...points);
  const most = Math.max(...points);
  const typical = known.length ? known[Math.floor((known.length - 1) / 2)] : 0;
  const spare = Math.max(1.5 * typical, 0.5 * (most - least));
  const low = Math.min(least, ...numbers.map((n) => (n.lower === null ? least : n.lower)));
  const high = Math.max(most, ...numbers.map((n) => (n.upper === null ? most : n.upper)));
  let limits = [low, high];
  const cut = [Math.max(low, least - spare), Math.min(high, most + spare)];
  if (!(high - low <= 2.5 * (cut[1] - cut[0])) && cut[1] > cut[0]) limits = cut;
  if (!(limits[1] > limits[0])) limits = [limits[0] - Math.max(Math.abs(limits[0]) * 0.1, 1e-12), limits[1] + Math.max(Math.abs(limits[1]) * 0.1, 1e-12)];
  const margin = 0.06 * (limits[1] - limits[0]);
  return [limits[0] - margin, limits[1] + margin];
}

// --- a chart -------------------------------------------------------------------------------------------------------

/** @typedef {{label: string, scale: Scale, range: [number, number], size?: number}} AxisOf
 * @typedef {{x: AxisOf, y: AxisOf, data: any[], series: any[], bands?: any[], height: number, under?: (u: any) => void,
 *   over?: (u: any) => void, cursor?: (u: any) => void, sync?: string, describe: string}} Spec */

/** Draw a chart in place of what an element shows.
 * @param {string} id @param {Spec} spec @returns {any} */
function chart(id, spec) {
  const host = byId(id);
  charts.get(id)?.destroy();
  host.setAttribute("role", "img");
  host.setAttribute("aria-label", spec.describe);
  const width = Math.max(240, host.clientWidth);
  const font = '12px system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif';
  const common = { stroke: styled("muted"), font, labelFont: font, labelSize: 20, grid: { stroke: styled("grid"), width: 1 }, ticks: { stroke: styled("grid"), width: 1, size: 5 } };
  /** @param {AxisOf} axis @param {number} each */
  const ticks = (axis, each) => ({
    label: axis.label,
    splits: (/** @type {any} */ u, /** @type {any} */ _, /** @type {number} */ low, /** @type {number} */ high) => {
      const length = each === 64 ? u.bbox.width : u.bbox.height;
      return axis.scale.ticks(low, high, Math.max(2, Math.floor(length / devicePixelRatio / each))).map((tick) => tick.at);
    },
    values: (/** @type {any} */ u, /** @type {number[]} */ splits) => {
      const { min, max } = u.scales[each === 64 ? "x" : "y"];
      const length = each === 64 ? u.bbox.width : u.bbox.height;
      const labels = new Map(axis.scale.ticks(min, max, Math.max(2, Math.floor(length / devicePixelRatio / each))).map((tick) => [tick.at, tick.label]));
      return splits.map((at) => labels.get(at) ?? "");
    },
  });
  const made = new Plot(
    {
      width,
      height: spec.height,
      padding: [10, 12, 0, 0],
      legend: { show: false },
      cursor: { y: false, points: { show: false }, ...(spec.sync ? { sync: { key: spec.sync, scales: ["x", null] } } : {}) },
      scales: {
        x: { time: false, range: (/** @type {any} */ _, /** @type {number} */ low, /** @type {number} */ high) => (zoomed(spec.data[0], low, high) ? [low, high] : spec.x.range) },
        y: { range: () => spec.y.range },
      },
      axes: [
        { ...common, ...ticks(spec.x, 64), size: 34 },
        { ...common, ...ticks(spec.y, 22), size: spec.y.size ?? 56 },
      ],
      series: [{}, ...spec.series],
      bands: spec.bands ?? [],
      hooks: {
        drawClear: spec.under ? [spec.under] : [],
        draw: spec.over ? [(/** @type {any} */ u) => clipped(u, spec.over)] : [],
        setCursor: spec.cursor ? [spec.cursor] : [],
      },
    },
    spec.data,
    host,
  );
  charts.set(id, made);
  return made;
}

/** Whether limits are those of a zoom, and not all of the data.
 * @param {number[]} x @param {number} low @param {number} high @returns {boolean} */
function zoomed(x, low, high) {
  return x.length > 0 && (low > x[0] || high < x[x.length - 1]);
}

/** Draw within the plotting area only.
 * @param {any} u @param {any} paint */
function clipped(u, paint) {
  const { left, top: above, width, height } = u.bbox;
  u.ctx.save();
  u.ctx.beginPath();
  u.ctx.rect(left, above, width, height);
  u.ctx.clip();
  paint(u);
  u.ctx.restore();
}

/** A line of a chart. @param {string} colour @param {number[]} dash @param {any} [more] @returns {any} */
function line(colour, dash, more = {}) {
  return { stroke: colour, width: 1.8, dash, pxAlign: 0, points: { show: false }, spanGaps: false, ...more };
}

/** The edge of a band, which is not drawn. @returns {any} */
function edge() {
  return { stroke: "transparent", width: 0, pxAlign: 0, points: { show: false } };
}

/** A vertical line of the shown checkpoint. @param {any} u @param {number} at */
function marker(u, at) {
  const x = u.valToPos(at, "x", true);
  u.ctx.strokeStyle = styled("muted");
  u.ctx.lineWidth = devicePixelRatio;
  u.ctx.setLineDash([]);
  u.ctx.beginPath();
  u.ctx.moveTo(x, u.bbox.top);
  u.ctx.lineTo(x, u.bbox.top + u.bbox.height);
  u.ctx.stroke();
}
