// A pad to draw a digit on. Strokes are kept as lines, so the drawing can be scaled to the size of the digits
// the network knows: about 8 pixels high in the middle of a larger canvas, lines about one pixel wide.

import { paint } from "./view.mjs";

const HEIGHT = 8; // of a digit, in pixels of the network's input
const THICK = 1.1; // of a line, likewise
const FINE = 8; // times finer the drawing is made before it is averaged

/** Calls back with a picture after every stroke. */
export class Sketch {
  #strokes = [];
  #drawing = false;

  /**
   * @param {number} width of the network's input.
   * @param {number} height of the network's input.
   * @param {(picture: Float32Array | null) => void} changed gets (height * width,) from 0 to 1; null when cleared.
   */
  constructor(width, height, changed) {
    Object.assign(this, { width, height, changed });
    this.pad = document.getElementById("pad");
    this.seen = document.getElementById("seen");
    this.pad.addEventListener("pointerdown", (event) => this.#start(event));
    this.pad.addEventListener("pointermove", (event) => this.#move(event));
    for (const end of ["pointerup", "pointercancel"]) this.pad.addEventListener(end, () => this.#end());
    document.getElementById("clear").addEventListener("click", () => this.clear());
    this.clear();
  }

  /** Start anew. */
  clear() {
    this.#strokes = [];
    this.#show();
    paint(this.seen, new Float32Array(this.width * this.height), this.width, this.height);
    this.changed(null);
  }

  #start(event) {
    this.pad.setPointerCapture(event.pointerId);
    this.#drawing = true;
    this.#strokes.push([]);
    this.#move(event);
  }

  #move(event) {
    if (!this.#drawing) return;
    const scale = this.pad.width / this.pad.clientWidth;
    this.#strokes.at(-1).push([event.offsetX * scale, event.offsetY * scale]);
    this.#show();
  }

  #end() {
    if (!this.#drawing) return;
    this.#drawing = false;
    const picture = this.#picture();
    paint(this.seen, picture, this.width, this.height);
    this.changed(picture);
  }

  #show() {
    const context = this.pad.getContext("2d");
    context.clearRect(0, 0, this.pad.width, this.pad.height);
    draw(context, this.#strokes, this.pad.width / 14);
  }

  /** The drawing at the network's size: moved to the middle, scaled to the height of a digit, averaged. */
  #picture() {
    const [xs, ys] = [0, 1].map((axis) => this.#strokes.flat().map((point) => point[axis]));
    const middle = [xs, ys].map((values) => (Math.min(...values) + Math.max(...values)) / 2);
    const extent = Math.max(...[xs, ys].map((values) => Math.max(...values) - Math.min(...values)));
    const scale = Math.min((HEIGHT - THICK) / extent, 1); // a dot stays a dot
    const canvas = new OffscreenCanvas(this.width * FINE, this.height * FINE);
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.scale(FINE, FINE);
    context.translate(this.width / 2, this.height / 2);
    context.scale(scale, scale);
    context.translate(-middle[0], -middle[1]);
    draw(context, this.#strokes, THICK / scale);
    const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
    return averaged(data, this.width, this.height);
  }
}

function draw(context, strokes, thick) {
  Object.assign(context, { lineWidth: thick, lineCap: "round", lineJoin: "round", strokeStyle: "#fff" });
  for (const stroke of strokes) {
    context.beginPath();
    for (const point of stroke) context.lineTo(...point);
    if (stroke.length === 1) context.lineTo(...stroke[0]); // a tap is a dot
    context.stroke();
  }
}

/** Opacity in blocks of FINE x FINE, 0 to 1. */
function averaged(data, width, height) {
  const picture = new Float32Array(width * height);
  for (let i = 3; i < data.length; i += 4) {
    const pixel = (i - 3) / 4;
    const row = Math.floor(pixel / (width * FINE) / FINE);
    const column = Math.floor((pixel % (width * FINE)) / FINE);
    picture[row * width + column] += data[i] / 255 / FINE ** 2;
  }
  return picture;
}
