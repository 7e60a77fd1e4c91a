"use strict";
// What the page shows now, and ten digits with their figures at its weight.

const SIDE = 28, PIXELS = SIDE * SIDE, CLASSES = 10;
const data = JSON.parse(document.getElementById("data").textContent);
const network = networkOf(data.network), densities = densitiesOf(data.densities);
const LATENTS = network.latents;
const [LOW, HIGH] = data.network.range;
const digitLabels = Array.from({ length: CLASSES }, (_, digit) => digit);

const state = {
  weight: Math.min(Math.max(data.weight, LOW), HIGH), sampler: "fitted", seed: 0, sameStyle: false,
  moved: new Float32Array(LATENTS), ink: new Float32Array(PIXELS), hidden: new Uint8Array(PIXELS), tool: "draw",
  label: null, example: 0, chains: null, cursor: null,
};

const element = (id) => document.getElementById(id);

/** A new element with properties and children. */
function make(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

/** A number for people, to three digits: 0.2, 1.25, 30. */
function short(value) {
  return String(Number(value.toPrecision(3)));
}

/** Where a weight lies on the slider, from 0 to 1. */
function shareOfTrack(weight) {
  return Math.log(weight / LOW) / Math.log(HIGH / LOW);
}

function weightAt(share) {
  return LOW * (HIGH / LOW) ** share;
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
  const one = () => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform());
  return Float32Array.from({ length: count }, one);
}

// Ten digits

/** Latents (10 × latents), one row for each digit, from the chosen sampler at the present weight. */
function digitLatents() {
  const uniform = uniforms(state.seed + 1);
  const shared = { choice: uniform(), noise: normals(uniform, LATENTS) };
  const z = new Float32Array(CLASSES * LATENTS);
  const mixtures = densities.at(state.weight);
  for (const digit of digitLabels) {
    const own = state.sameStyle ? shared : { choice: uniform(), noise: normals(uniform, LATENTS) };
    let row = own.noise;
    if (state.sampler === "fitted") {
      row = state.sameStyle ? mixtures.style(digit, own.noise) : mixtures.sample(digit, own.choice, own.noise);
    }
    for (let i = 0; i < LATENTS; i++) z[digit * LATENTS + i] = row[i] + state.moved[i];
  }
  return z;
}

/** Ink (784, 0 to 1) on a canvas of 28 × 28 pixels, dark on white; hidden pixels are striped. */
function paint(canvas, ink, hidden) {
  const context = canvas.getContext("2d", { willReadFrequently: true }); // so few pixels need no GPU
  const picture = context.createImageData(SIDE, SIDE);
  for (let i = 0; i < PIXELS; i++) {
    const striped = hidden && hidden[i];
    const grey = striped ? ((Math.floor(i / SIDE) + (i % SIDE)) % 4 < 2 ? 150 : 190) : 255 - 255 * ink[i];
    picture.data.fill(grey, 4 * i, 4 * i + 3);
    picture.data[4 * i + 3] = 255;
  }
  context.putImageData(picture, 0, 0);
}

/** A canvas of one digit, whose name a screen reader says. */
function digitCanvas(name) {
  return make("canvas", { width: SIDE, height: SIDE, role: "img", ariaLabel: name });
}

function rowOf(rows, index) {
  return rows.subarray(index * PIXELS, (index + 1) * PIXELS);
}

const digitCanvases = digitLabels.map((digit) => {
  const canvas = digitCanvas(`a generated ${digit}`);
  element("digits").append(make("figure", {}, canvas, make("figcaption", { textContent: digit })));
  return canvas;
});

function drawDigits() {
  const pixels = network.decode(digitLatents(), digitLabels, state.weight);
  digitCanvases.forEach((canvas, digit) => paint(canvas, rowOf(pixels, digit)));
}

// Their figures

const FIGURES = [
  { name: "frechet", title: "frechet: distance to real digits", ofSampler: true, log: true },
  { name: "class_accuracy", title: "class_accuracy: read as the digit asked for", ofSampler: true, percent: true },
  { name: "diversity", title: "diversity: real digits have 1", ofSampler: true },
  { name: "kl", title: "kl, nats per image" },
  { name: "reconstruction", title: "reconstruction, nats per image" },
  { name: "active_units", title: `active latents of ${LATENTS}`, whole: true },
];

function svg(name, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

for (const figure of FIGURES) {
  const chart = svg("svg", { viewBox: "0 0 100 40", preserveAspectRatio: "none", "aria-hidden": "true" });
  figure.value = make("span", { className: "value" });
  figure.line = chart.appendChild(svg("path", {}));
  figure.here = chart.appendChild(svg("line", { class: "here", y1: 0, y2: 40 }));
  element("figures").append(
    make("div", {}, make("dt", { textContent: figure.title }), make("dd", {}, figure.value, chart)));
}

/** The curve's values of a figure, one for each measured weight. */
function valuesOf(figure) {
  return data.curve[figure.ofSampler ? `${state.sampler}/${figure.name}` : figure.name];
}

/** The curves, once for each sampler: their lines don't move with the weight. */
function drawCurves() {
  for (const figure of FIGURES) {
    const values = valuesOf(figure).map((value) => (figure.log ? Math.log(value) : value));
    const low = Math.min(...values), height = Math.max(...values) - low || 1;
    const places = data.curve.kl_weight.map((weight, i) =>
      `${(100 * shareOfTrack(weight)).toFixed(2)},${(38 - (34 * (values[i] - low)) / height).toFixed(2)}`);
    figure.line.setAttribute("d", `M${places.join("L")}`);
  }
}

function drawFigures() {
  const x = 100 * shareOfTrack(state.weight), place = placeAmong(data.curve.kl_weight, state.weight);
  for (const figure of FIGURES) {
    const [value] = between(valuesOf(figure), 1, place);
    figure.value.textContent =
      figure.percent ? `${(100 * value).toFixed(1)} %` : figure.whole ? String(Math.round(value)) : short(value);
    figure.here.setAttribute("x1", x);
    figure.here.setAttribute("x2", x);
  }
}
