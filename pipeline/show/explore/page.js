"use strict";
// The page's frames and its controls.

let pending = false;
const changed = { digits: true, pad: true };

/** Whatever changed is drawn once, in the next frame. */
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

function showWeight() {
  const text = short(state.weight);
  element("weight-value").textContent = text;
  element("weight").ariaValueText = `beta ${text}`;
  requestFrame("digits");
  follow();
}

/** What changes with the sampler and not with the weight: the curves, and the marks on the slider. */
function showSampler() {
  const words = [], interval = data.intervals[state.sampler];
  const share = (weight) => 100 * Math.min(Math.max(shareOfTrack(weight), 0), 1);
  element("marks").replaceChildren();
  const mark = (className, from, to = from) => {
    const part = make("div", { className });
    part.style.left = `${share(from)}%`;
    if (to > from) part.style.width = `${share(to) - share(from)}%`;
    element("marks").append(part);
  };
  if (interval) {
    mark("band", ...interval);
    words.push(`Shaded on the slider: ${short(interval[0])} to ${short(interval[1])}. With this sampler, the study finds ` +
      "these weights best, and can't tell them apart.");
  }
  if (data.collapse) {
    const beyond = data.collapse > HIGH;
    mark(beyond ? "beyond" : "tick", data.collapse);
    words.push(`Above ${short(data.collapse)}, ${beyond ? "beyond the slider's end" : "the dark mark"}, all latents ` +
      "are unused: the spectrum of the data says so.");
  }
  element("marks-words").textContent = words.join(" ");
  drawCurves();
  requestFrame("digits");
}

function buildScale() {
  for (const weight of [0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100]) {
    if (weight < LOW * 0.999 || weight > HIGH * 1.001) continue;
    const label = make("span", { textContent: weight });
    label.style.left = `${100 * shareOfTrack(weight)}%`;
    element("scale").append(label);
  }
}

function buildLatents() {
  for (let i = 0; i < LATENTS; i++) {
    const slider = make("input", { type: "range", min: -3, max: 3, step: 0.05, value: 0, ariaLabel: `latent ${i}` });
    slider.addEventListener("input", () => { state.moved[i] = Number(slider.value); requestFrame("digits"); });
    element("latents").append(make("label", {}, `z${i}`, slider));
  }
}

function buildRuns() {
  element("runs-section").hidden = data.runs.length === 0;
  const every = Math.ceil(data.runs.length / 4);
  data.runs.forEach((run, index) => {
    const box = make("input", { type: "checkbox", checked: run.given || index % every === 0 });
    const image = make("img", { src: `data:image/png;base64,${run.png}`, alt: `samples of ${run.name}` });
    const caption = make("figcaption", { textContent: [run.name, run.words].filter(Boolean).join(" · ") });
    const figure = make("figure", { hidden: !box.checked }, caption, image);
    box.addEventListener("change", () => { figure.hidden = !box.checked; });
    element("run-choices").append(make("label", {}, box, ` ${run.name}`));
    element("runs").append(figure);
  });
}

function listen() {
  const on = (id, event, action) => element(id).addEventListener(event, action);
  const choose = (name, action) => {
    for (const radio of document.getElementsByName(name)) radio.addEventListener("change", () => action(radio.value));
  };
  element("weight").value = 1000 * shareOfTrack(state.weight);
  on("weight", "input", (event) => { state.weight = weightAt(event.target.value / 1000); showWeight(); });
  choose("sampler", (value) => { state.sampler = value; showSampler(); });
  on("seed", "input", (event) => {
    state.seed = Math.min(Math.max(Math.trunc(Number(event.target.value)) || 0, 0), 99999);
    requestFrame("digits");
  });
  on("new-seed", "click", () => {
    element("seed").value = state.seed = (state.seed + 1) % 100000;
    requestFrame("digits");
  });
  on("same-style", "change", (event) => { state.sameStyle = event.target.checked; requestFrame("digits"); });
  on("reset-latents", "click", () => {
    state.moved.fill(0);
    for (const slider of element("latents").querySelectorAll("input")) slider.value = 0;
    requestFrame("digits");
  });
  choose("tool", (value) => { state.tool = value; });
  on("clear", "click", () => {
    state.ink.fill(0);
    state.hidden.fill(0);
    state.label = null;
    drawn();
  });
  on("example", "click", () => { state.example += 1; showExample(); });
  on("hide-half", "click", () => { state.hidden.fill(1, PIXELS / 2); drawn(); });
  on("show-all", "click", () => { state.hidden.fill(0); drawn(); });
  listenToPad(element("pad"));
}

element("lowest").textContent = short(LOW);
element("highest").textContent = short(HIGH);
element("about").textContent = data.about;
element("figures-words").textContent = data.figures_words;
buildScale();
buildLatents();
buildRuns();
listen();
showSampler();
showExample();
showWeight();
