// The page: a slider over the configurations of an exported network, and what each does to fifty digits.
//
//     ?single          runs the one graph in model-single/ instead of the chain of graphs in model/
//     ?model=folder/   runs another export

import { Sketch } from "./sketch.mjs";
import { showTrouble, View } from "./view.mjs";

const ENOUGH = 10; // passes over the digits, after which the page rests
const KEPT = 50; // passes that medians are taken over
const SLICE = 12; // milliseconds of work before the page is painted again

/** Runs the digits over and over, in turns with the full model, and shows what comes out. */
class Measurement {
  #wake = () => {};

  constructor(engine, digits, view) {
    Object.assign(this, { engine, digits, view, keep: false, generation: 0, full: [], fullRight: null });
  }

  /** Use another configuration; takes effect at the next digit. */
  async use(index) {
    document.body.dataset.state = "running";
    this.view.configuration(index);
    await this.engine.use(index);
    if (this.engine.index !== index) return; // the slider has moved on
    this.generation += 1;
    this.passes = [];
    this.full = [];
    this.#wake();
  }

  /** Measure until told otherwise, or rest after enough passes. */
  keepRunning(keep) {
    this.keep = keep;
    this.#wake();
  }

  /** For ever. */
  async work() {
    const last = this.engine.configs.length - 1;
    for (;;) {
      if (!this.keep && this.full.length >= ENOUGH) await this.#rest();
      const { generation } = this;
      const own = await this.#pass(this.engine.index, (i, answer) => this.view.answer(i, answer));
      if (own === null) continue;
      keepLast(this.passes, own);
      this.#show();
      const full = await this.#pass(last, () => {});
      if (full === null || generation !== this.generation) continue;
      keepLast(this.full, full);
      this.#show();
    }
  }

  async #rest() {
    this.view.speak(this.#figures());
    document.body.dataset.index = this.engine.index;
    document.body.dataset.state = "rest";
    await new Promise((resolve) => { this.#wake = resolve; });
    document.body.dataset.state = "running";
  }

  /** All digits once; null where the configuration was changed on the way. */
  async #pass(index, seen) {
    const { generation } = this;
    const answers = [];
    let spent = 0;
    while (answers.length < this.digits.pictures.length) {
      const start = performance.now();
      const before = answers.length;
      while (answers.length < this.digits.pictures.length && performance.now() - start < SLICE) {
        answers.push(await this.engine.run(this.digits.pictures[answers.length], index));
      }
      spent += performance.now() - start;
      if (generation !== this.generation) return null;
      for (let i = before; i < answers.length; i++) {
        answers[i].answer = largest(answers[i].outputs);
        seen(i, answers[i]);
      }
      await painted();
      if (generation !== this.generation) return null;
    }
    return { answers, milliseconds: spent / answers.length };
  }

  #show() {
    this.view.figures(this.#figures());
  }

  #figures() {
    const { answers } = this.passes.at(-1);
    const right = (given) => given.filter(({ answer }, i) => answer === this.digits.labels[i]).length;
    const counts = {};
    for (const { position } of answers) counts[position] = (counts[position] ?? 0) + 1;
    return {
      meanPosition: mean(answers.map((each) => each.position)),
      cost: mean(answers.map((each) => each.cost)),
      right: right(answers),
      milliseconds: median(this.passes.map((pass) => pass.milliseconds)),
      fullMilliseconds: this.full.length ? median(this.full.map((pass) => pass.milliseconds)) : null,
      fullRight: this.full.length ? right(this.full.at(-1).answers) : null,
      counts,
      passes: this.passes.length,
    };
  }
}

async function start() {
  const asked = new URLSearchParams(location.search);
  const folder = asked.get("model") ?? (asked.has("single") ? "model-single/" : "model/");
  const { Engine, RuntimeMissingError } = await engineModule();
  let engine;
  try {
    engine = await Engine.load(folder);
  } catch (error) {
    if (error instanceof RuntimeMissingError) error.message += `\n${INSTALL}`;
    throw error;
  }
  const digits = await readDigits(engine.shape);
  const view = new View(engine, digits);
  const measurement = new Measurement(engine, digits, view);
  for (let index = 0; index < engine.configs.length; index++) await engine.prepare(index);
  const slider = document.getElementById("slider");
  slider.max = engine.configs.length - 1;
  slider.value = 0;
  await measurement.use(0);
  document.getElementById("starting").hidden = true;
  document.getElementById("page").hidden = false;
  const redraw = sketching(engine, view);
  slider.addEventListener("input", async () => {
    await measurement.use(Number(slider.value));
    redraw();
  });
  const keep = document.getElementById("keep");
  keep.addEventListener("click", () => {
    const pressed = keep.getAttribute("aria-pressed") !== "true";
    keep.setAttribute("aria-pressed", pressed);
    measurement.keepRunning(pressed);
  });
  await measurement.work();
}

const INSTALL = "Install it in this folder with: npm ci --ignore-scripts --omit=dev, then load the page again.";

async function engineModule() {
  try {
    return await import("./engine.mjs");
  } catch (error) {
    throw new Error(`ONNX Runtime Web is not here (${error.message}).\n${INSTALL}`);
  }
}

/** Pictures and labels of digits.json, checked against the network's input. */
async function readDigits(shape) {
  const size = shape.reduce((product, each) => product * each, 1);
  if (shape.length !== 4 || shape[1] !== 1) {
    throw new Error(`expected a network for pictures of one channel, [1, 1, height, width]; got [${shape}]`);
  }
  const response = await fetch("digits.json", { cache: "no-cache" });
  if (!response.ok) {
    throw new Error("expected digits.json beside the page; make it with: python make_model.py ARTIFACT");
  }
  const { images, labels } = await response.json();
  if (!images?.length || labels?.length !== images.length || images.some((image) => image.length !== size)) {
    throw new Error(`digits.json: expected images of ${size} values with a label each; make it again with make_model.py`);
  }
  return { pictures: images.map((image) => Float32Array.from(image)), labels };
}

/** Answers what is drawn; returns what to call when the configuration changes. */
function sketching(engine, view) {
  const told = document.getElementById("sketch-answer");
  let drawn = null;
  const answer = async () => {
    if (drawn === null) return told.replaceChildren("Draw a digit on the pad.");
    const { outputs, position, confidence } = await engine.run(drawn);
    const name = document.createElement("b");
    name.textContent = view.className(largest(outputs));
    return told.replaceChildren(name, `left at ${view.names[position]}, ${(100 * confidence).toFixed(1)} % sure`);
  };
  const [, , height, width] = engine.shape;
  new Sketch(width, height, (picture) => { drawn = picture; answer(); });
  return answer;
}

const painted = () => new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)));
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
const largest = (outputs) => outputs.indexOf(Math.max(...outputs));

function median(values) {
  const sorted = values.toSorted((a, b) => a - b);
  const half = sorted.length >> 1;
  return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
}

function keepLast(passes, pass) {
  passes.push(pass);
  if (passes.length > KEPT) passes.shift();
}

start().catch(showTrouble);
