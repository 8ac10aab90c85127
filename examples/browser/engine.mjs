// An exported network in the browser: the engine's switch and answers on ONNX Runtime Web, one sample a call.
//
//     const engine = await Engine.load("model/");      // of kind onnx or onnx-single
//     await engine.use(12);                            // engine.configs, cheapest first, the full model last
//     const { outputs, position, confidence } = await engine.run(pixels);
//
// With a bundler, import "onnxruntime-web/wasm" instead of the path.

import * as ort from "./node_modules/onnxruntime-web/dist/ort.wasm.min.mjs";
import { ExportError, fetchExport } from "./manifest.mjs";

export { ExportError };

/** ONNX Runtime Web itself does not start. */
export class RuntimeMissingError extends Error {
  name = "RuntimeMissingError";
}

/** Runs an export under a configuration that can be switched between any two calls. */
export class Engine {
  #build;
  #plans = new Map();
  #inUse = null;
  #switches = 0;

  /**
   * @param {string | URL} url of the folder, relative to the page.
   * @returns {Promise<Engine>} ready to run the full model.
   * @throws {ExportError} the export is missing, damaged, of an unknown version, or takes other inputs.
   * @throws {RuntimeMissingError} the WebAssembly files are missing.
   */
  static async load(url) {
    const folder = new URL(url, document.baseURI);
    if (!folder.pathname.endsWith("/")) folder.pathname += "/";
    const { manifest, files } = await fetchExport(folder);
    const engine = new Engine(manifest, files);
    await engine.use(engine.configs.length - 1);
    return engine;
  }

  constructor(manifest, files) {
    /** "onnx" or "onnx-single". */
    this.kind = manifest.kind;
    /** P names, "input" first; position P is the model's own output. */
    this.positions = manifest.positions;
    this.heads = manifest.heads;
    this.classes = manifest.classes;
    /** Of one input: [1, ...]. */
    this.shape = [1, ...inputOf(manifest).shape.slice(1)];
    /** Choices and expected figures of each configuration, cheapest first; the full model, without choices, last. */
    this.configs = withFullModel(manifest.frontier.configs);
    /** Positions where a configuration may leave, P included. */
    this.leaving = [...new Set([...manifest.exits.map((each) => each.position), this.positions.length])];
    /** Of costs: "macs", "seconds" or another. */
    this.unit = manifest.costs.unit;
    /** Of the full model, in that unit. */
    this.fullCost = manifest.costs.backbone.at(-1);
    const build = manifest.kind === "onnx" ? chainPlan : singlePlan;
    const graphs = new Graphs(files);
    this.#build = (config) => build(manifest, graphs, config);
  }

  /** Index in `configs` that the next call will use. */
  get index() {
    return this.#inUse.index;
  }

  /**
   * Make a configuration ready, so that `use` has nothing left to do.
   *
   * @param {number} index in `configs`.
   */
  async prepare(index) {
    return this.#plan(index);
  }

  /**
   * Switch; calls under way finish under theirs. Of several switches the last one asked for holds.
   *
   * @param {number} index in `configs`.
   */
  async use(index) {
    const switched = ++this.#switches;
    const plan = await this.#plan(index);
    if (switched === this.#switches) this.#inUse = plan;
  }

  /**
   * Answer one sample.
   *
   * @param {Float32Array} values of the input, row by row.
   * @param {number} [index] of another configuration, for this call only.
   * @returns {Promise<{outputs: Float32Array, position: number, confidence: number, cost: number}>} where it
   *   left (P for the model's output), how sure it was there, and the cost of what was computed.
   */
  async run(values, index = this.index) {
    const size = this.shape.reduce((product, each) => product * each, 1);
    if (!(values instanceof Float32Array) || values.length !== size) {
      throw new TypeError(`expected a Float32Array of ${size} values, got ${values?.constructor?.name} of ${values?.length}`);
    }
    const plan = index === this.index ? this.#inUse : await this.#plan(index);
    return plan.run(new ort.Tensor("float32", values, this.shape));
  }

  async #plan(index) {
    const config = this.configs[index];
    if (config === undefined) {
      throw new RangeError(`expected a configuration from 0 to ${this.configs.length - 1}, got ${index}`);
    }
    if (!this.#plans.has(index)) {
      const plan = this.#build(config).then((run) => ({ index, run }));
      plan.catch(() => this.#plans.delete(index)); // another call may try again
      this.#plans.set(index, plan);
    }
    return this.#plans.get(index);
  }
}

/** Loaded graphs: each once, for all configurations. */
class Graphs {
  #files;
  #loaded = new Map();

  constructor(files) {
    this.#files = files;
    this.weights = [...files].filter(([name]) => !name.endsWith(".onnx")).map(([path, data]) => ({ path, data }));
  }

  /** A graph as a function from its tensors, in order, to those it gives. */
  async load({ file, inputs, outputs }) {
    if (!this.#loaded.has(file)) this.#loaded.set(file, this.#open(file));
    const session = await this.#loaded.get(file);
    const given = inputs.map((port) => port.name);
    const wanted = outputs.map((port) => port.name);
    return async (tensors) => {
      const found = await session.run(Object.fromEntries(given.map((name, i) => [name, tensors[i]])), wanted);
      return wanted.map((name) => found[name]);
    };
  }

  async #open(file) {
    ort.env.wasm.numThreads = 1; // spans of one sample are short; threads would cost more than they save
    ort.env.logLevel = "error";
    const options = { executionProviders: ["wasm"], externalData: this.weights };
    try {
      return await ort.InferenceSession.create(this.#files.get(file), options);
    } catch (error) {
      if (/no available backend/i.test(error.message)) {
        throw new RuntimeMissingError(`ONNX Runtime Web does not start: ${error.message}`);
      }
      throw new ExportError(`ONNX Runtime Web refuses ${file} (${error.message}); export it again`);
    }
  }
}

/** A graph per span and exit: what lies behind the exit taken is never asked for. */
async function chainPlan(manifest, graphs, config) {
  const { costs, positions, exits } = manifest;
  const steps = [];
  let at = 0;
  for (const { position, head, threshold } of choicesOf(manifest, config)) {
    const exit = exits.find((each) => each.position === position && each.head === head);
    steps.push({
      spans: await spansBetween(manifest, graphs, at, position),
      exit: await graphs.load(exit),
      arity: exit.inputs.length,
      threshold,
      position,
      cost: costs.backbone[position] - costs.backbone[at] + costs.heads[position][head],
    });
    at = position;
  }
  const last = positions.length;
  const rest = await spansBetween(manifest, graphs, at, last);
  steps.push({ spans: rest, exit: null, position: last, cost: costs.backbone[last] - costs.backbone[at] });
  return (input) => walk(steps, input);
}

async function walk(steps, input) {
  let handed = [input];
  let cost = 0;
  for (const { spans, exit, arity, threshold, position, cost: own } of steps) {
    for (const span of spans) handed = await span(handed);
    cost += own;
    const [outputs, confidence] = exit === null ? handed : await exit(handed.slice(0, arity));
    const sure = confidence.data[0];
    if (exit === null || (sure > threshold && sure < Infinity)) {
      return { outputs: outputs.data, position, confidence: sure, cost };
    }
  }
}

/** One graph with thresholds as inputs; it finds the way itself. */
async function singlePlan(manifest, graphs, config) {
  const { costs, exits } = manifest;
  const thresholds = new Float32Array(exits.length).fill(Infinity);
  const spent = [...costs.backbone];
  for (const { position, head, threshold } of choicesOf(manifest, config)) {
    thresholds[exits.findIndex((each) => each.position === position && each.head === head)] = threshold;
    if (threshold === Infinity) continue; // one that is off is not computed
    for (let later = position; later < spent.length; later++) spent[later] += costs.heads[position][head];
  }
  const network = await graphs.load(manifest.spans[0]);
  const given = new ort.Tensor("float32", thresholds, [thresholds.length]);
  return async (input) => {
    const [outputs, position, confidence] = await network([input, given]);
    const at = position.data[0];
    return { outputs: outputs.data, position: at, confidence: confidence.data[0], cost: spent[at] };
  };
}

/** The span from one position to another as few graphs as there are: one if it was exported fused. */
async function spansBetween(manifest, graphs, start, stop) {
  const fused = manifest.fused.filter((each) => each.from === start && each.to === stop);
  const within = manifest.spans.filter((each) => start <= each.from && each.to <= stop);
  return Promise.all((fused.length ? fused : within).map((span) => graphs.load(span)));
}

/** Choices by index, with thresholds rounded to float32 as the engine compares them. */
function choicesOf(manifest, config) {
  return config.choices.map((choice) => ({
    position: manifest.positions.indexOf(choice.position),
    head: manifest.heads.indexOf(choice.head),
    threshold: Math.fround(numberOf(choice.threshold)),
  }));
}

function numberOf(threshold) {
  return { inf: Infinity, "-inf": -Infinity }[threshold] ?? threshold;
}

function inputOf({ inputs, keyword, mask_input: mask }) {
  if (inputs.length !== 1 || inputs[0].dtype !== "float32" || keyword || mask !== null) {
    const found = inputs.map((each) => `${each.name} ${each.dtype}`).join(", ");
    throw new ExportError(`expected a network with one float32 input, got ${found}; this engine runs no other`);
  }
  return inputs[0];
}

function withFullModel(configs) {
  return configs.at(-1)?.choices.length === 0 ? configs : [...configs, { choices: [], expected: null }];
}
