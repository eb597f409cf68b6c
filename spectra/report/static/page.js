// @ts-check
// The choice of what is shown, and the controls that change it.

/** @type {Choice & {axis: string}} */
const CHOSEN = { file: 0, operator: 0, mode: Object.keys(DATA.files[0].operators[0].modes)[0], moment: 0, axis: "asinh" };
/** @type {Choice[]} */
const PINS = [];
const MOST_PINS = DATA.palette.pins.length;

/** @returns {any} */
function chosenOperator() {
  return DATA.files[CHOSEN.file].operators[CHOSEN.operator];
}

/** Options of a select element. @param {string} id @param {string[]} words @param {string | number} chosen */
function offer(id, words, chosen) {
  byId(id).replaceChildren(...words.map((text, i) => element("option", { value: String(i) }, text)));
  byId(id).selectedIndex = typeof chosen === "number" ? chosen : words.indexOf(chosen);
  byId(id).disabled = words.length < 2;
}

/** Change the choice; what does not exist under it falls back to the first there is.
 * @param {Partial<Choice & {axis: string}>} change */
function choose(change) {
  const before = `${CHOSEN.file} ${CHOSEN.operator}`;
  const label = chosenOperator().labels[CHOSEN.moment];
  Object.assign(CHOSEN, change);
  CHOSEN.operator = Math.min(CHOSEN.operator, DATA.files[CHOSEN.file].operators.length - 1);
  const operator = chosenOperator();
  if (!operator.modes[CHOSEN.mode]) CHOSEN.mode = Object.keys(operator.modes)[0];
  if (`${CHOSEN.file} ${CHOSEN.operator}` !== before) {
    const same = operator.labels.indexOf(label);
    CHOSEN.moment = same < 0 ? operator.labels.length - 1 : same;
    drawTraining(CHOSEN, (moment) => choose({ moment }));
  }
  render();
}

/** Draw all that depends on the choice. */
function render() {
  const operator = chosenOperator();
  const index = recordOf(CHOSEN);
  offer("operator", DATA.files[CHOSEN.file].operators.map((/** @type {any} */ o) => o.name), CHOSEN.operator);
  offer("mode", Object.keys(operator.modes), CHOSEN.mode);
  byId("file").selectedIndex = CHOSEN.file;
  byId("moment").max = String(operator.labels.length - 1);
  byId("moment").value = String(CHOSEN.moment);
  byId("moment").setAttribute("aria-valuetext", operator.labels[CHOSEN.moment]);
  byId("moment").disabled = operator.labels.length < 2;
  byId("now").textContent = operator.labels[CHOSEN.moment];
  byId("before").disabled = CHOSEN.moment === 0;
  byId("after").disabled = CHOSEN.moment === operator.labels.length - 1;
  byId("announce").textContent = wordsOfChoice(CHOSEN);
  byId("pin").disabled = index === null || !DATA.views[index].stems;
  for (const words of document.querySelectorAll(".chosen")) words.textContent = wordsOfChoice(CHOSEN);
  for (const setup of document.querySelectorAll("section.setup")) {
    /** @type {any} */ (setup).hidden = Number(/** @type {any} */ (setup).dataset.file) !== CHOSEN.file;
  }
  for (const table of /** @type {NodeListOf<HTMLElement>} */ (document.querySelectorAll(".scroll[data-series]"))) {
    const series = seriesOf(table);
    table.hidden = series.file !== CHOSEN.file || series.operator !== CHOSEN.operator || series.mode !== CHOSEN.mode;
    for (const row of /** @type {NodeListOf<HTMLElement>} */ (table.querySelectorAll("tbody tr"))) {
      row.setAttribute("aria-selected", String(Number(row.dataset.moment) === CHOSEN.moment));
    }
  }
  showPins();
  drawDensity(CHOSEN, PINS, CHOSEN.axis);
  drawDegeneracy(CHOSEN, PINS);
  drawTables(index);
  drawTensors(index);
  moveMarkers();
}

/** The list of pinned curves, each a button that removes it. */
function showPins() {
  byId("pins").replaceChildren(
    ...PINS.map((pin, i) => {
      const colour = tint(DATA.palette.pins[i % MOST_PINS]);
      const button = element("button", { type: "button", "aria-label": `Remove the pin ${wordsOfChoice(pin)}` }, `${wordsOfChoice(pin)} ✕`);
      button.style.borderColor = colour;
      button.addEventListener("click", () => {
        PINS.splice(i, 1);
        render();
        byId("pin").focus();
      });
      return element("li", {}, button);
    }),
  );
}

function pinChosen() {
  const { file, operator, mode, moment } = CHOSEN;
  const same = (/** @type {Choice} */ p) => p.file === file && p.operator === operator && p.mode === mode && p.moment === moment;
  if (PINS.some(same)) return;
  if (PINS.length === MOST_PINS) PINS.shift();
  PINS.push({ file, operator, mode, moment });
  render();
}

function begin() {
  byId("controls").hidden = false;
  CHOSEN.moment = chosenOperator().labels.length - 1;
  for (const table of document.querySelectorAll("table.numbers")) enliven(/** @type {any} */ (table), (moment) => choose({ moment }));
  const on = (/** @type {string} */ id, /** @type {string} */ event, /** @type {() => void} */ act) => byId(id).addEventListener(event, act);
  on("file", "change", () => choose({ file: byId("file").selectedIndex }));
  on("operator", "change", () => choose({ operator: byId("operator").selectedIndex }));
  on("mode", "change", () => choose({ mode: Object.keys(chosenOperator().modes)[byId("mode").selectedIndex] }));
  on("moment", "input", () => choose({ moment: Number(byId("moment").value) }));
  on("before", "click", () => choose({ moment: CHOSEN.moment - 1 }));
  on("after", "click", () => choose({ moment: CHOSEN.moment + 1 }));
  on("pin", "click", pinChosen);
  on("tensor-order", "change", render);
  on("more-tensors", "click", () => {
    everyTensor = !everyTensor;
    render();
  });
  on("save-csv", "click", () => save("spectra.csv", csvRows().map((row) => row.map(csvCell).join(",")).join("\n") + "\n", "text/csv"));
  on("save-json", "click", () => save("spectra.json", JSON.stringify(DATA.records, null, 2), "application/json"));
  for (const input of document.querySelectorAll("input[name=axis]")) {
    input.addEventListener("change", () => choose({ axis: /** @type {HTMLInputElement} */ (input).value }));
  }
  const redraw = () => {
    drawTraining(CHOSEN, (moment) => choose({ moment }));
    render();
  };
  let width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth !== width) redraw();
    width = innerWidth;
  });
  dark.addEventListener("change", redraw);
  redraw();
}

begin();
