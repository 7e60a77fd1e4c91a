"use strict";
// Your own digit: the drawing, what the network makes of it under each label, and completions of a hidden part.

const CHAINS = 6, ROUNDS = 12;
const small = digitCanvas("");

const labelButtons = digitLabels.map((label) => {
  const canvas = digitCanvas(`the drawing as a ${label}`), words = make("span");
  const button = make("button", { type: "button" }, canvas, words);
  button.addEventListener("click", () => { state.label = state.label === label ? null : label; follow(); });
  element("labels").append(button);
  return { button, canvas, words };
});

const completionCanvases = Array.from({ length: CHAINS }, (_, place) => {
  const canvas = digitCanvas(`completion ${place + 1}`);
  element("completions").append(canvas);
  return canvas;
});

/** The drawing and its hidden pixels, moved so that the ink's middle is where MNIST's digits have theirs. */
function centred() {
  let mass = 0, down = 0, across = 0;
  state.ink.forEach((ink, i) => {
    mass += ink;
    down += ink * Math.floor(i / SIDE);
    across += ink * (i % SIDE);
  });
  if (mass < 1) return { ink: state.ink, hidden: state.hidden };
  const middle = (SIDE - 1) / 2;
  const dy = Math.round(middle - down / mass), dx = Math.round(middle - across / mass);
  const ink = new Float32Array(PIXELS), hidden = new Uint8Array(PIXELS);
  const within = (place) => Math.min(Math.max(place, 0), SIDE - 1);
  for (let i = 0; i < PIXELS; i++) {
    const row = Math.floor(i / SIDE) - dy, column = (i % SIDE) - dx;
    const from = within(row) * SIDE + within(column);
    if (row === within(row) && column === within(column)) ink[i] = state.ink[from];
    hidden[i] = state.hidden[from];
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

/** Starts what the encoder makes of the drawing: all labels, and six samples of the chosen label. */
function follow() {
  const picture = centred();
  const labels = [...digitLabels];
  if (state.label !== null) labels.push(...Array(CHAINS).fill(state.label));
  const uniform = uniforms(state.seed + 7919);
  const partly = picture.hidden.some(Boolean);
  const rows = new Float32Array(labels.length * PIXELS);
  labels.forEach((_, row) => rows.set(picture.ink, row * PIXELS));
  state.chains = { picture, labels, uniform, rows, partly, round: 0 };
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
    const total = Math.round(chains.totals[label]);
    paint(canvas, rowOf(chains.rows, label));
    words.textContent = `${label}: ${total}${label === best && !empty ? " ★" : ""}`;
    button.ariaPressed = String(label === state.label);
    button.ariaLabel = `as a ${label}: ${total} nats`;
  });
  const what = chains.partly ? "the visible part" : "the drawing";
  element("labels-words").textContent = empty
    ? "Draw something first."
    : `What ${what} costs as each digit: reconstruction plus kl, in nats. ★ marks the lowest: the network reads a ` +
      `${best}. Choose a digit to see six ${chains.partly ? "completions" : "samples"}.`;
  const count = chains.labels.length - CLASSES;
  element("completions-title").textContent = count === 0 ? ""
    : chains.partly ? `Six completions as a ${state.label}` : `Six samples of its latents, as a ${state.label}`;
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
  for (let i = 0; i < PIXELS; i++) {
    const near = radius - Math.hypot((i % SIDE) + 0.5 - x, Math.floor(i / SIDE) + 0.5 - y);
    if (near <= 0) continue;
    if (state.tool === "draw") state.ink[i] = Math.max(state.ink[i], Math.min(near, 1));
    else if (state.tool === "erase") state.ink[i] = state.hidden[i] = 0;
    else state.hidden[i] = 1;
  }
}

function showExample() {
  const example = data.examples[state.example % data.examples.length];
  bytesOf(example.pixels).forEach((value, i) => { state.ink[i] = value / 255; });
  state.hidden.fill(0);
  state.label = example.label;
  drawn();
}

function drawn() {
  requestFrame("pad");
  follow();
}

function listenToPad(pad) {
  let last = null;
  const stroke = (event) => { // a fast pointer jumps: fill the way
    const box = pad.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * SIDE, y = ((event.clientY - box.top) / box.height) * SIDE;
    const [fromX, fromY] = last ?? [x, y];
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
    const at = state.cursor ?? (SIDE / 2) * SIDE + SIDE / 2, column = at % SIDE, row = Math.floor(at / SIDE);
    const move = { ArrowLeft: column > 0 && -1, ArrowRight: column < SIDE - 1 && 1, ArrowUp: row > 0 && -SIDE,
      ArrowDown: row < SIDE - 1 && SIDE }[event.key];
    if (move === undefined && event.key !== " ") return;
    event.preventDefault();
    if (event.key === " ") applyTool(column + 0.5, row + 0.5);
    state.cursor = at + Number(move ?? 0); // false, at an edge, is 0
    drawn();
  });
  pad.addEventListener("blur", () => { state.cursor = null; requestFrame("pad"); });
}
