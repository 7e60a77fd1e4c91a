"use strict";
// The page: what the controls say, and what is drawn. The network's own arithmetic is in network.js.

const SIDE = 28, PIXELS = SIDE * SIDE, CLASSES = 10, CHAINS = 6, ROUNDS = 12;
const data = JSON.parse(document.getElementById("data").textContent);
const network = networkOf(data.network);
const densities = densitiesOf(data.densities, network.latents);
const LATENTS = network.latents;
const element = (id) => document.getElementById(id);

const state = {
  weight: Math.min(Math.max(data.weight, data.range[0]), data.range[1]), sampler: "fitted", seed: 0, sameStyle: false, moved: new Float32Array(LATENTS),
  ink: new Float32Array(PIXELS), hidden: new Uint8Array(PIXELS), tool: "draw", label: null, example: 0,
  chains: null, cursor: null,
};

// Numbers for people

/** Three digits: 0.2, 1.25, 30. */
function short(value) {
  return String(Number(value.toPrecision(3)));
}

function shareOfTrack(weight) {
  const [low, high] = data.range.map(Math.log);
  return (Math.log(weight) - low) / (high - low);
}

function weightAt(share) {
  const [low, high] = data.range.map(Math.log);
  return Math.exp(low + share * (high - low));
}

/** The curve's figure at a weight, linear in log β between the measured weights. */
function figureAt(name, weight) {
  const { kl_weight: at, [name]: values } = data.curve;
  let right = at.findIndex((other) => other >= weight);
  if (right === -1) right = at.length - 1;
  const left = Math.max(right - 1, 0);
  if (left === right) return values[right];
  const share = Math.log(weight / at[left]) / Math.log(at[right] / at[left]);
  return values[left] + share * (values[right] - values[left]);
}

// Noise

/** Uniform numbers from a seed (mulberry32, a public-domain generator). */
function uniforms(seed) {
  let a = seed >>> 0;
  return () => {
    a = (a + 0x6d2b79f5) | 0;
    let t = Math.imul(a ^ (a >>> 15), 1 | a);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

/** Standard normal numbers from uniform ones (Box & Muller 1958). */
function normals(uniform, count) {
  const numbers = new Float32Array(count);
  for (let i = 0; i < count; i++) {
    numbers[i] = Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform());
  }
  return numbers;
}

/** Latents (10 × latents), one row for each digit, from the chosen sampler at the present weight. */
function digitLatents() {
  const uniform = uniforms(state.seed + 1);
  const shared = { choice: uniform(), noise: normals(uniform, LATENTS) };
  const z = new Float32Array(CLASSES * LATENTS);
  const mixtures = densities.at(state.weight);
  for (let digit = 0; digit < CLASSES; digit++) {
    const own = state.sameStyle ? shared : { choice: uniform(), noise: normals(uniform, LATENTS) };
    let row = own.noise;
    if (state.sampler === "fitted") {
      row = state.sameStyle ? mixtures.style(digit, own.noise) : mixtures.sample(digit, own.choice, own.noise);
    }
    for (let i = 0; i < LATENTS; i++) z[digit * LATENTS + i] = row[i] + state.moved[i];
  }
  return z;
}

// Drawing

/** Ink (784, 0 to 1) on a canvas of 28 × 28 pixels, dark on white; hidden pixels are striped. */
function paint(canvas, ink, hidden) {
  const context = canvas.getContext("2d", { willReadFrequently: true }); // so few pixels need no GPU
  const picture = context.createImageData(SIDE, SIDE);
  for (let i = 0; i < PIXELS; i++) {
    const striped = hidden && hidden[i];
    const grey = striped ? ((Math.floor(i / SIDE) + (i % SIDE)) % 4 < 2 ? 150 : 190) : 255 - 255 * ink[i];
    picture.data.set([grey, grey, grey, 255], 4 * i);
  }
  context.putImageData(picture, 0, 0);
}

/** A canvas of one digit. */
function digitCanvas(name) {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = SIDE;
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", name);
  return canvas;
}

function rowOf(rows, index) {
  return rows.subarray(index * PIXELS, (index + 1) * PIXELS);
}

function drawDigits() {
  const pixels = network.decode(digitLatents(), digitLabels, state.weight);
  digitCanvases.forEach((canvas, digit) => paint(canvas, rowOf(pixels, digit)));
}

const FIGURES = [
  { name: "frechet", title: "frechet: distance to real digits", ofSampler: true, log: true },
  { name: "class_accuracy", title: "class_accuracy: the right digit", ofSampler: true, percent: true },
  { name: "diversity", title: "diversity: real digits have 1", ofSampler: true },
  { name: "kl", title: "kl, nats per image" },
  { name: "reconstruction", title: "reconstruction, nats per image" },
  { name: "active_units", title: `active latents of ${LATENTS}`, whole: true },
];

function fullName(figure) {
  return figure.ofSampler ? `${state.sampler}/${figure.name}` : figure.name;
}

function figureText(figure, value) {
  if (figure.percent) return `${(100 * value).toFixed(1)} %`;
  return figure.whole ? String(Math.round(value)) : short(value);
}

/** The curves, once for each sampler: their lines don't move with the weight. */
function drawCurves() {
  for (const figure of FIGURES) {
    const values = data.curve[fullName(figure)].map((value) => (figure.log ? Math.log(value) : value));
    const low = Math.min(...values), high = Math.max(...values), height = high - low || 1;
    const places = data.curve.kl_weight.map((weight, i) =>
      `${(100 * shareOfTrack(weight)).toFixed(2)},${(38 - (34 * (values[i] - low)) / height).toFixed(2)}`);
    figure.line.setAttribute("d", `M${places.join("L")}`);
  }
}

function drawFigures() {
  const x = 100 * shareOfTrack(state.weight);
  for (const figure of FIGURES) {
    figure.value.textContent = figureText(figure, figureAt(fullName(figure), state.weight));
    figure.here.setAttribute("x1", x);
    figure.here.setAttribute("x2", x);
  }
}

// The drawing

/** The drawing and its hidden pixels, moved so that the ink's middle is where MNIST's digits have theirs. */
function centred() {
  let mass = 0, down = 0, across = 0;
  for (let i = 0; i < PIXELS; i++) {
    mass += state.ink[i];
    down += state.ink[i] * Math.floor(i / SIDE);
    across += state.ink[i] * (i % SIDE);
  }
  if (mass < 1) return { ink: state.ink, hidden: state.hidden };
  const middle = (SIDE - 1) / 2;
  const dy = Math.round(middle - down / mass), dx = Math.round(middle - across / mass);
  const ink = new Float32Array(PIXELS), hidden = new Uint8Array(PIXELS);
  for (let row = 0; row < SIDE; row++) {
    for (let column = 0; column < SIDE; column++) {
      const from = Math.min(Math.max(row - dy, 0), SIDE - 1) * SIDE + Math.min(Math.max(column - dx, 0), SIDE - 1);
      const inside = row - dy >= 0 && row - dy < SIDE && column - dx >= 0 && column - dx < SIDE;
      ink[row * SIDE + column] = inside ? state.ink[from] : 0;
      hidden[row * SIDE + column] = state.hidden[from];
    }
  }
  return { ink, hidden };
}

/** −log p of the visible pixels, nats, of each row of a batch of decoded pixels. */
function costs(pixels, picture) {
  return Array.from({ length: pixels.length / PIXELS }, (_, row) => {
    let cost = 0;
    for (let i = 0; i < PIXELS; i++) {
      const p = Math.min(Math.max(pixels[row * PIXELS + i], 1e-6), 1 - 1e-6), x = picture.ink[i];
      if (!picture.hidden[i]) cost -= x * Math.log(p) + (1 - x) * Math.log(1 - p);
    }
    return cost;
  });
}

/** Starts what the encoder makes of the drawing: all labels, and completions if a part is hidden. */
function follow() {
  const picture = centred();
  const labels = [...digitLabels];
  if (state.label !== null) labels.push(...Array(CHAINS).fill(state.label));
  const uniform = uniforms(state.seed + 7919);
  const partly = picture.hidden.some(Boolean);
  const rows = new Float32Array(labels.length * PIXELS);
  labels.forEach((_, row) => rows.set(picture.ink, row * PIXELS));
  state.chains = { picture, labels, uniform, rows, partly, round: 0, best: state.label };
  if (partly) hideIn(state.chains, network.decode(normals(uniform, labels.length * LATENTS), labels, state.weight));
  requestFrame();
}

/** Puts decoded pixels where the drawing is hidden. */
function hideIn(chains, pixels) {
  for (let i = 0; i < pixels.length; i++) if (chains.picture.hidden[i % PIXELS]) chains.rows[i] = pixels[i];
}

/** One round: encode, decode, fill in. With hidden pixels it is pseudo-Gibbs sampling (Rezende 2014, appendix F). */
function nextRound() {
  const { chains } = state;
  const q = network.encode(chains.rows, chains.labels, state.weight);
  const z = q.mu.slice();
  const last = !chains.partly || chains.round === ROUNDS - 1;
  const noise = normals(chains.uniform, z.length);
  const start = last ? CLASSES * LATENTS : 0; // the labels' own rows end at the mean, the six others at samples
  for (let i = start; i < z.length; i++) z[i] += Math.exp(q.log_var[i] / 2) * noise[i];
  const pixels = network.decode(z, chains.labels, state.weight);
  const cost = costs(pixels.subarray(0, CLASSES * PIXELS), chains.picture);
  const rate = network.kl(q);
  if (chains.partly) hideIn(chains, pixels);
  else chains.rows = pixels;
  chains.round = last ? ROUNDS : chains.round + 1;
  chains.totals = cost.map((value, label) => value + rate[label]);
  showLabels();
  if (!last) requestFrame();
}

function showLabels() {
  const { chains } = state;
  const empty = !state.ink.some((value) => value > 0.05);
  const best = chains.totals.indexOf(Math.min(...chains.totals));
  labelButtons.forEach(({ button, canvas, words }, label) => {
    paint(canvas, rowOf(chains.rows, label));
    words.textContent = `${label}: ${Math.round(chains.totals[label])}${label === best && !empty ? " ★" : ""}`;
    button.setAttribute("aria-pressed", String(label === state.label));
    button.setAttribute("aria-label", `as a ${label}: ${Math.round(chains.totals[label])} nats`);
  });
  element("labels-words").textContent = empty
    ? "Draw something first."
    : `Cost in nats of ${chains.partly ? "the visible part" : "the drawing"} as each digit, kl included. ★: the ` +
      `network reads a ${best}. Choose a digit to see ${chains.partly ? "six completions of it" : "more of it"}.`;
  const count = chains.labels.length - CLASSES;
  element("completions-title").textContent =
    count === 0 ? "" : chains.partly ? `Six completions as a ${state.label}` : `Six samples of its latents, as a ${state.label}`;
  completionCanvases.forEach((canvas, place) => {
    canvas.hidden = place >= count;
    if (place < count) paint(canvas, rowOf(chains.rows, CLASSES + place));
  });
}

function drawPad() {
  const pad = element("pad"), context = pad.getContext("2d");
  paint(small, state.ink, state.hidden);
  context.imageSmoothingEnabled = false;
  context.drawImage(small, 0, 0, pad.width, pad.height);
  if (state.cursor !== null) {
    const cell = pad.width / SIDE;
    context.strokeStyle = "#b23a0a";
    context.lineWidth = 2;
    context.strokeRect((state.cursor % SIDE) * cell, Math.floor(state.cursor / SIDE) * cell, cell, cell);
  }
}

/** The chosen tool at a place, in pixels of the drawing. */
function applyTool(x, y) {
  const radius = state.tool === "hide" ? 2.5 : 1.6;
  for (let row = 0; row < SIDE; row++) {
    for (let column = 0; column < SIDE; column++) {
      const near = radius - Math.hypot(column + 0.5 - x, row + 0.5 - y), i = row * SIDE + column;
      if (near <= 0) continue;
      if (state.tool === "draw") state.ink[i] = Math.max(state.ink[i], Math.min(near, 1));
      else if (state.tool === "erase") { state.ink[i] = 0; state.hidden[i] = 0; }
      else state.hidden[i] = 1;
    }
  }
}

// Frames: whatever changed is drawn once in the next one

let pending = false;
const changed = { digits: true, pad: true };

function requestFrame(...what) {
  for (const name of what) changed[name] = true;
  if (!pending) requestAnimationFrame(frame);
  pending = true;
}

function frame() {
  pending = false;
  if (changed.digits) { drawDigits(); drawFigures(); }
  if (changed.pad) drawPad();
  changed.digits = changed.pad = false;
  if (state.chains && state.chains.round < ROUNDS) nextRound();
}

// Controls

function showWeight() {
  const text = short(state.weight);
  element("weight-value").textContent = text;
  element("weight").setAttribute("aria-valuetext", `beta ${text}`);
  requestFrame("digits");
  follow();
}

function showMarks() {
  const marks = element("marks"), words = [];
  const interval = data.intervals && data.intervals[state.sampler];
  marks.replaceChildren();
  const mark = (kind, from, to) => {
    const part = document.createElement("div");
    part.className = kind;
    part.style.left = `${100 * Math.max(shareOfTrack(from), 0)}%`;
    if (to) part.style.width = `${100 * (Math.min(shareOfTrack(to), 1) - Math.max(shareOfTrack(from), 0))}%`;
    marks.append(part);
  };
  if (interval) {
    mark("band", ...interval);
    words.push(`Shaded: ${short(interval[0])} to ${short(interval[1])}, the best weights with this sampler, which the ` +
      "study can't tell apart.");
  }
  if (data.collapse) {
    const beyond = data.collapse > data.range[1];
    if (!beyond) mark("tick", data.collapse);
    words.push(`The spectrum of the data says: above ${short(data.collapse)}${beyond ? ", beyond this slider" : ""}, ` +
      "all latents are unused.");
  }
  element("marks-words").textContent = words.join(" ");
}

function buildFigures() {
  for (const figure of FIGURES) {
    const name = document.createElement("dt"), place = document.createElement("dd");
    name.textContent = figure.title;
    figure.value = document.createElement("span");
    figure.value.className = "value";
    const chart = svg("svg", { viewBox: "0 0 100 40", preserveAspectRatio: "none", "aria-hidden": "true" });
    figure.line = chart.appendChild(svg("path", {}));
    figure.here = chart.appendChild(svg("line", { class: "here", y1: 0, y2: 40 }));
    place.append(figure.value, chart);
    const group = document.createElement("div");
    group.append(name, place);
    element("figures").append(group);
  }
}

function svg(name, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function buildDigits() {
  return Array.from({ length: CLASSES }, (_, digit) => {
    const figure = document.createElement("figure"), caption = document.createElement("figcaption");
    const canvas = digitCanvas(`a generated ${digit}`);
    caption.textContent = digit;
    figure.append(canvas, caption);
    element("digits").append(figure);
    return canvas;
  });
}

function buildLatents() {
  for (let i = 0; i < LATENTS; i++) {
    const label = document.createElement("label"), slider = document.createElement("input");
    Object.assign(slider, { type: "range", min: -3, max: 3, step: 0.05, value: 0 });
    slider.setAttribute("aria-label", `latent ${i}`);
    slider.addEventListener("input", () => { state.moved[i] = Number(slider.value); requestFrame("digits"); });
    label.append(`z${i}`, slider);
    element("latents").append(label);
  }
}

function buildLabels() {
  return Array.from({ length: CLASSES }, (_, label) => {
    const button = document.createElement("button"), words = document.createElement("span");
    button.type = "button";
    const canvas = digitCanvas(`the drawing as a ${label}`);
    button.append(canvas, words);
    button.addEventListener("click", () => { state.label = state.label === label ? null : label; follow(); });
    element("labels").append(button);
    return { button, canvas, words };
  });
}

function buildCompletions() {
  return Array.from({ length: CHAINS }, (_, place) => {
    const canvas = digitCanvas(`completion ${place + 1}`);
    element("completions").append(canvas);
    return canvas;
  });
}

function buildScale() {
  for (const weight of [0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100]) {
    if (weight < data.range[0] * 0.999 || weight > data.range[1] * 1.001) continue;
    const label = document.createElement("span");
    label.textContent = weight;
    label.style.left = `${100 * shareOfTrack(weight)}%`;
    element("scale").append(label);
  }
}

function showExample() {
  const example = data.examples[state.example % data.examples.length];
  bytesOf(example.pixels).forEach((value, i) => { state.ink[i] = value / 255; });
  state.hidden.fill(0);
  state.label = example.label;
  requestFrame("pad");
  follow();
}

function buildRuns() {
  element("runs-section").hidden = data.runs.length === 0;
  data.runs.forEach((run, index) => {
    const label = document.createElement("label"), box = document.createElement("input");
    box.type = "checkbox";
    box.checked = data.runs.length <= 4 || index % Math.ceil(data.runs.length / 4) === 0;
    const figure = document.createElement("figure"), caption = document.createElement("figcaption");
    const image = document.createElement("img");
    image.src = `data:image/png;base64,${run.png}`;
    image.alt = `samples of ${run.name}`;
    caption.textContent = run.words ? `${run.name} · ${run.words}` : run.name;
    figure.append(caption, image);
    figure.hidden = !box.checked;
    box.addEventListener("change", () => { figure.hidden = !box.checked; });
    label.append(box, ` ${run.name}`);
    element("run-choices").append(label);
    element("runs").append(figure);
  });
}

function listen() {
  const weight = element("weight");
  weight.value = 1000 * shareOfTrack(state.weight);
  weight.addEventListener("input", () => { state.weight = weightAt(weight.value / 1000); showWeight(); });
  for (const radio of document.getElementsByName("sampler")) {
    radio.addEventListener("change", () => {
      state.sampler = radio.value;
      drawCurves();
      showMarks();
      requestFrame("digits");
    });
  }
  element("seed").addEventListener("input", () => {
    state.seed = Math.min(Math.max(Math.trunc(Number(element("seed").value)) || 0, 0), 99999);
    requestFrame("digits");
  });
  element("new-seed").addEventListener("click", () => {
    state.seed = (state.seed + 1) % 100000;
    element("seed").value = state.seed;
    requestFrame("digits");
  });
  element("same-style").addEventListener("change", (event) => {
    state.sameStyle = event.target.checked;
    requestFrame("digits");
  });
  element("reset-latents").addEventListener("click", () => {
    state.moved.fill(0);
    for (const slider of element("latents").querySelectorAll("input")) slider.value = 0;
    requestFrame("digits");
  });
  for (const radio of document.getElementsByName("tool")) {
    radio.addEventListener("change", () => { state.tool = radio.value; });
  }
  element("clear").addEventListener("click", () => {
    state.ink.fill(0);
    state.hidden.fill(0);
    state.label = null;
    drawn();
  });
  element("example").addEventListener("click", () => { state.example += 1; showExample(); });
  element("hide-half").addEventListener("click", () => { state.hidden.fill(1, PIXELS / 2); drawn(); });
  element("show-all").addEventListener("click", () => { state.hidden.fill(0); drawn(); });
  listenToPad(element("pad"));
}

function drawn() {
  requestFrame("pad");
  follow();
}

function listenToPad(pad) {
  let last = null;
  const place = (event) => {
    const box = pad.getBoundingClientRect();
    return [((event.clientX - box.left) / box.width) * SIDE, ((event.clientY - box.top) / box.height) * SIDE];
  };
  const stroke = (event) => { // a fast pointer jumps: fill the way
    const [x, y] = place(event), [fromX, fromY] = last ?? [x, y];
    const steps = Math.max(Math.ceil(Math.hypot(x - fromX, y - fromY)), 1);
    for (let i = 1; i <= steps; i++) applyTool(fromX + ((x - fromX) * i) / steps, fromY + ((y - fromY) * i) / steps);
    last = [x, y];
    drawn();
  };
  pad.addEventListener("pointerdown", (event) => {
    pad.setPointerCapture(event.pointerId);
    state.cursor = null;
    stroke(event);
  });
  pad.addEventListener("pointermove", (event) => { if (last) stroke(event); });
  for (const end of ["pointerup", "pointercancel"]) pad.addEventListener(end, () => { last = null; });
  pad.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -SIDE, ArrowDown: SIDE }[event.key];
    if (move === undefined && event.key !== " ") return;
    event.preventDefault();
    const at = state.cursor ?? (SIDE / 2) * SIDE + SIDE / 2;
    if (move === undefined) applyTool((at % SIDE) + 0.5, Math.floor(at / SIDE) + 0.5);
    const next = at + (move ?? 0);
    const sameRow = Math.abs(move ?? 0) !== 1 || Math.floor(next / SIDE) === Math.floor(at / SIDE);
    state.cursor = next >= 0 && next < PIXELS && sameRow ? next : at;
    drawn();
  });
  pad.addEventListener("blur", () => { state.cursor = null; requestFrame("pad"); });
}

const digitLabels = Array.from({ length: CLASSES }, (_, digit) => digit);
const small = digitCanvas("");
const digitCanvases = buildDigits(), labelButtons = buildLabels(), completionCanvases = buildCompletions();
element("lowest").textContent = short(data.range[0]);
element("highest").textContent = short(data.range[1]);
element("about").textContent = data.about;
element("figures-words").textContent = data.figures_words;
buildScale();
buildFigures();
buildLatents();
buildRuns();
listen();
drawCurves();
showMarks();
showExample();
showWeight();
