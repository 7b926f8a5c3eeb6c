// A drawing in layers: what is painted where, undone and redone. No buttons here: see `board.js`.

import { canvasOf, loadImage } from "./source.js";

const MAX_UNDO = 40;

/** Return a drawing. `background`: a colour, or null where what is not painted stays see-through. */
export function drawing(width, height, background) {
  const layers = [];
  const past = [];
  const future = [];
  let number = 0;

  const add = (name, { guide = false, image = null } = {}) => {
    const canvas = canvasOf(width, height);
    number += 1;
    const layer = { id: number, name, canvas, context: canvas.getContext("2d", { willReadFrequently: true }), shown: true, guide };
    if (image) layer.context.drawImage(image, ...fitted(image, width, height, guide));
    layers.push(layer);
    return layer;
  };

  /** Remember a layer as it is, before it is changed. */
  const remember = (layer) => {
    past.push({ layer, pixels: layer.context.getImageData(0, 0, width, height) });
    if (past.length > MAX_UNDO) past.shift();
    future.length = 0;
  };

  const step = (from, to) => {
    const last = from.pop();
    if (!last) return false;
    to.push({ layer: last.layer, pixels: last.layer.context.getImageData(0, 0, width, height) });
    last.layer.context.putImageData(last.pixels, 0, 0);
    return true;
  };

  /** Paint everything that is shown; with `guides`, the pictures to trace too. */
  const paint = (context, guides) => {
    context.clearRect(0, 0, width, height);
    if (background) {
      context.fillStyle = background;
      context.fillRect(0, 0, width, height);
    }
    const shown = layers.filter((layer) => layer.shown);
    for (const layer of shown.filter((each) => !each.guide)) context.drawImage(layer.canvas, 0, 0);
    context.globalAlpha = 0.4;
    for (const layer of shown.filter((each) => guides && each.guide)) context.drawImage(layer.canvas, 0, 0);
    context.globalAlpha = 1;
  };

  return {
    width, height, layers, add, remember, paint,
    undo: () => step(past, future),
    redo: () => step(future, past),
    canUndo: () => past.length > 0,
    canRedo: () => future.length > 0,
    drop: (layer) => {
      layers.splice(layers.indexOf(layer), 1);
      for (const list of [past, future]) list.splice(0, list.length, ...list.filter((each) => each.layer !== layer));
    },
    move: (layer, by) => {
      const at = layers.indexOf(layer);
      if (at + by < 0 || at + by >= layers.length) return;
      layers.splice(at, 1);
      layers.splice(at + by, 0, layer);
    },
  };
}

/** Return where an image goes on a canvas: a drawing fills it; a picture to trace is cut, as the engine cuts it. */
function fitted(image, width, height, cut) {
  if (!cut) return [0, 0, width, height];
  const by = Math.max(width / image.width, height / image.height);
  const [w, h] = [image.width * by, image.height * by];
  return [(width - w) / 2, (height - h) / 2, w, h];
}

/** Fill the area of one colour around a point of what is seen, on the layer. */
export function floodFill(seen, layer, x, y, colour) {
  const { width, height } = seen;
  const from = new Uint32Array(seen.data.buffer);
  const pixels = layer.context.getImageData(0, 0, width, height);
  const to = new Uint32Array(pixels.data.buffer);
  const [r, g, b] = rgb(colour);
  const ink = (255 << 24) | (b << 16) | (g << 8) | r;
  const start = y * width + x;
  const [r0, g0, b0] = [seen.data[start * 4], seen.data[start * 4 + 1], seen.data[start * 4 + 2]];
  const same = (at) => {
    const value = from[at];
    return Math.abs((value & 255) - r0) + Math.abs(((value >> 8) & 255) - g0) + Math.abs(((value >> 16) & 255) - b0) < 90;
  };
  const done = new Uint8Array(width * height);
  const stack = [start];
  while (stack.length) {
    const at = stack.pop();
    if (done[at] || !same(at)) continue;
    done[at] = 1;
    to[at] = ink;
    if (at % width) stack.push(at - 1);
    if (at % width < width - 1) stack.push(at + 1);
    if (at >= width) stack.push(at - width);
    if (at < width * (height - 1)) stack.push(at + width);
  }
  layer.context.putImageData(pixels, 0, 0);
}

/** Return the three numbers of a colour such as #a0b1c2. */
function rgb(colour) {
  return [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
}

/** Return a mask of white on black as white on nothing, to go on painting. */
export async function seeThrough(uri) {
  const image = await loadImage(uri);
  const canvas = canvasOf(image.naturalWidth, image.naturalHeight);
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0);
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height);
  for (let n = 0; n < pixels.data.length; n += 4) pixels.data[n + 3] = pixels.data[n];
  context.putImageData(pixels, 0, 0);
  return canvas;
}
