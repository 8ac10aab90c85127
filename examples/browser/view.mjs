// What the page shows: pictures, answers and figures. It computes nothing but how things look.

const byId = (id) => document.getElementById(id);
const percent = (share) => `${(100 * share).toFixed(1)} %`;

/** Shows one network on a set of pictures. */
export class View {
  /**
   * @param {Engine} engine that is shown.
   * @param {{pictures: Float32Array[], labels: number[]}} digits to show.
   */
  constructor(engine, digits) {
    this.engine = engine;
    this.labels = digits.labels;
    this.names = [...engine.positions, "output"];
    byId("digits-title").textContent = `${digits.labels.length} digits it was not trained on`;
    this.cells = digits.pictures.map((picture) => this.#cell(picture));
    byId("digits").replaceChildren(...this.cells.map((cell) => cell.item));
    this.bars = new Map(engine.leaving.map((position) => [position, this.#bar(position)]));
    byId("shares").replaceChildren(...[...this.bars.values()].map((bar) => bar.item));
    byId("cost-note").textContent = `of the full model's ${engine.unit === "macs" ? "MACs" : engine.unit}`;
    byId("of-positions").textContent = `0 is the input, ${engine.positions.length} the full model`;
  }

  /** Name of an answer. */
  className(answer) {
    return this.engine.classes?.[answer] ?? String(answer);
  }

  /** Say which configuration is in use. */
  configuration(index) {
    const config = this.engine.configs[index];
    const last = this.engine.configs.length - 1;
    byId("which").textContent = index === last ? "full model" : `${index + 1} of ${last + 1}`;
    byId("choices").textContent = config.choices.length
      ? `Leaves ${config.choices.map(described).join(", ")}.`
      : "No exits: every digit goes all the way.";
    const { expected } = config;
    const spoken = expected === null ? "full model" : `${percent(expected.cost / expected.full_cost)} of the cost expected`;
    byId("slider").setAttribute("aria-valuetext", `${index + 1} of ${last + 1}, ${spoken}`);
  }

  /** Show an answer under its digit. */
  answer(i, { answer, position, confidence }) {
    const { item, text, chip } = this.cells[i];
    const right = answer === this.labels[i];
    const name = this.className(answer);
    text.textContent = right ? name : `${name}≠${this.className(this.labels[i])}`;
    chip.textContent = position;
    item.classList.toggle("wrong", !right);
    this.#tint(item, position);
    item.dataset.answer = answer;
    item.dataset.confidence = confidence;
    const verdict = right ? "right" : `wrong, it is ${this.className(this.labels[i])}`;
    const told = `${name}, ${verdict}; left at ${this.names[position]}, ${percent(confidence)} sure`;
    item.setAttribute("aria-label", `digit ${i + 1}: ${told}`);
    item.title = told;
  }

  /** Show the figures of all digits under one configuration. */
  figures({ meanPosition, cost, right, milliseconds, fullMilliseconds, fullRight, counts, passes }) {
    const count = this.labels.length;
    byId("mean-position").textContent = meanPosition.toFixed(2);
    byId("cost").textContent = percent(cost / this.engine.fullCost);
    byId("right").textContent = `${right} of ${count}`;
    byId("full-right").textContent = fullRight === null ? "" : `full model ${fullRight}`;
    byId("milliseconds").textContent = `${milliseconds.toFixed(3)} ms`;
    byId("full-milliseconds").textContent = fullMilliseconds === null
      ? "measuring the full model"
      : `full model ${fullMilliseconds.toFixed(3)} ms (${(fullMilliseconds / milliseconds).toFixed(1)}×)`;
    byId("progress").textContent =
      `Medians of ${passes} ${passes === 1 ? "pass" : "passes"} over the digits, in turns with the full model.`;
    for (const [position, bar] of this.bars) {
      const here = counts[position] ?? 0;
      bar.count.textContent = here;
      bar.length.style.setProperty("--share", here / count);
    }
  }

  /** Say the figures once to those who listen instead of look. */
  speak({ meanPosition, right, milliseconds }) {
    byId("spoken").textContent =
      `Mean exit position ${meanPosition.toFixed(2)}, ${right} of ${this.labels.length} right, ` +
      `${milliseconds.toFixed(3)} milliseconds for a digit`;
  }

  #cell(picture) {
    const item = document.createElement("li");
    const canvas = document.createElement("canvas");
    const [, , height, width] = this.engine.shape;
    paint(canvas, picture, width, height);
    const row = document.createElement("div");
    const [text, chip] = [document.createElement("b"), document.createElement("i")];
    row.append(text, chip);
    item.append(canvas, row);
    return { item, text, chip };
  }

  #bar(position) {
    const item = document.createElement("li");
    const [chip, name, length, count] = ["i", "div", "span", "b"].map((tag) => document.createElement(tag));
    chip.textContent = position;
    name.textContent = this.names[position];
    this.#tint(item, position);
    item.append(chip, name, length, count);
    return { item, length, count };
  }

  #tint(element, position) {
    element.dataset.position = position;
    element.style.setProperty("--at", position / this.engine.positions.length);
  }
}

/**
 * Paint a picture of one channel.
 *
 * @param {HTMLCanvasElement} canvas takes the picture's size.
 * @param {Float32Array} picture 0 to 1, row by row.
 */
export function paint(canvas, picture, width, height) {
  Object.assign(canvas, { width, height });
  const image = new ImageData(width, height);
  picture.forEach((value, i) => image.data.set([255 * value, 255 * value, 255 * value, 255], 4 * i));
  canvas.getContext("2d").putImageData(image, 0, 0);
}

/** Show what went wrong instead of the page. */
export function showTrouble(error) {
  byId("trouble-what").textContent = error.message;
  byId("trouble").hidden = false;
  byId("page").hidden = byId("starting").hidden = true;
}

function described({ position, head, threshold }) {
  return `at ${position} (${head}) above ${percent(Number(threshold))}`;
}
