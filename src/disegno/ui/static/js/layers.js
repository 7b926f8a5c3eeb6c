// A drawing in layers: what is painted where, undone and redone. No buttons here: see `board.js`.

import { canvasOf, loadImage } from "./source.js";

const MAX_UNDO = 40;
const MAX_UNDO_BYTES = 400e6;

/**
 * Return a drawing. `background`: a colour, or null where what is not painted stays see-through. `crisp`: colours mean
 * something, so that none is mixed when a drawing is made larger.
 */
export function drawing(width, height, background, crisp = false) {
  const layers = [];
  const past = [];
  const future = [];
  const most = Math.max(8, Math.min(MAX_UNDO, Math.floor(MAX_UNDO_BYTES / (width * height * 4))));
  let number = 0;

  const add = (name, { guide = false, image = null, cut = guide } = {}) => {
    const canvas = canvasOf(width, height);
    number += 1;
    const layer = { id: number, name, canvas, context: canvas.getContext("2d", { willReadFrequently: true }), shown: true, guide };
    layer.context.imageSmoothingEnabled = guide || !crisp;
    if (image) layer.context.drawImage(image, ...fitted(image, width, height, cut));
    layers.push(layer);
    return layer;
  };

  const note = (change) => {
    past.push(change);
    if (past.length > most) past.shift();
    future.length = 0;
  };
  const pixelsOf = (layer) => layer.context.getImageData(0, 0, width, height);

  /** Remember a layer as it is, before it is changed. */
  const remember = (layer) => note({ layer, pixels: pixelsOf(layer) });

  /** Take a change back; return what brings it back. `at`: where a layer was that was removed. */
  const reversed = ({ layer, pixels, at }) => {
    if (pixels) {
      const now = pixelsOf(layer);
      layer.context.putImageData(pixels, 0, 0);
      return { layer, pixels: now };
    }
    const place = layers.indexOf(layer);
    if (place < 0) layers.splice(at, 0, layer);
    else layers.splice(place, 1);
    return { layer, at: place < 0 ? at : place };
  };
  const step = (from, to) => {
    const last = from.pop();
    if (!last) return false;
    to.push(reversed(last));
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
    width, height, layers, add, remember, paint, ground: background,
    undo: () => step(past, future),
    redo: () => step(future, past),
    canUndo: () => past.length > 0,
    canRedo: () => future.length > 0,
    drop: (layer) => {
      const at = layers.indexOf(layer);
      layers.splice(at, 1);
      note({ layer, at });
    },
    move: (layer, by) => {
      const at = layers.indexOf(layer);
      if (at + by < 0 || at + by >= layers.length) return;
      layers.splice(at, 1);
      layers.splice(at + by, 0, layer);
    },
  };
}

/** Return where an image goes on a canvas: it fills it, or is cut, as the engine cuts it. */
function fitted(image, width, height, cut) {
  if (!cut) return [0, 0, width, height];
  const by = Math.max(width / image.width, height / image.height);
  const [w, h] = [image.width * by, image.height * by];
  return [(width - w) / 2, (height - h) / 2, w, h];
}

/** Fill the area of one colour around a point of what is seen, on the layer. */
export function floodFill(seen, layer, x, y, colour) {
  const { width, height } = seen;
  const pixels = layer.context.getImageData(0, 0, width, height);
  const to = new Uint32Array(pixels.data.buffer);
  const [r, g, b] = rgb(colour);
  const ink = (255 << 24) | (b << 16) | (g << 8) | r;
  spread(seen, y * width + x, (at) => {
    to[at] = ink;
  });
  layer.context.putImageData(pixels, 0, 0);
}

/**
 * Lift the patch of one colour around a point off the topmost layer that has something there. Returns { layer, patch }: a
 * canvas with the patch in its place; null where nothing but the ground is there. The layer is left without it.
 */
export function liftPatch(sheet, x, y, before) {
  const layer = [...sheet.layers].reverse().find((each) => each.shown && !each.guide && each.context.getImageData(x, y, 1, 1).data[3] > 0);
  if (!layer) return null;
  const { width, height } = sheet;
  const pixels = layer.context.getImageData(0, 0, width, height);
  const from = new Uint32Array(pixels.data.buffer);
  const start = y * width + x;
  if (sheet.ground && [0, 1, 2].every((n) => pixels.data[start * 4 + n] === rgb(sheet.ground)[n])) return null;
  before(layer);
  const patch = canvasOf(width, height);
  const lifted = patch.getContext("2d").createImageData(width, height);
  const to = new Uint32Array(lifted.data.buffer);
  spread(pixels, start, (at) => {
    to[at] = from[at];
    from[at] = 0;
  });
  patch.getContext("2d").putImageData(lifted, 0, 0);
  layer.context.putImageData(pixels, 0, 0);
  return { layer, patch };
}

/** Call `reach(at)` for every pixel that has nearly the colour of the one at `start`, and is joined to it by such. */
function spread({ width, height, data }, start, reach) {
  const [r0, g0, b0, a0] = data.slice(start * 4, start * 4 + 4);
  const same = (at) => Math.abs(data[at * 4] - r0) + Math.abs(data[at * 4 + 1] - g0) + Math.abs(data[at * 4 + 2] - b0) + Math.abs(data[at * 4 + 3] - a0) < 90;
  const seen = new Uint8Array(width * height);
  const found = [];
  const stack = [start];
  while (stack.length) {
    const at = stack.pop();
    if (seen[at] || !same(at)) continue;
    seen[at] = 1;
    found.push(at);
    if (at % width) stack.push(at - 1);
    if (at % width < width - 1) stack.push(at + 1);
    if (at >= width) stack.push(at - width);
    if (at < width * (height - 1)) stack.push(at + width);
  }
  found.forEach(reach);
}

/** Return the three numbers of a colour such as #a0b1c2. */
function rgb(colour) {
  return [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
}

/** Return a mask of white on black as white on nothing, to go on painting. `inverted`: it is black on white. */
export async function seeThrough(uri, inverted = false) {
  const image = await loadImage(uri);
  const canvas = canvasOf(image.naturalWidth, image.naturalHeight);
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0);
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height);
  for (let n = 0; n < pixels.data.length; n += 4) {
    pixels.data[n + 3] = inverted ? 255 - pixels.data[n] : pixels.data[n];
    pixels.data.fill(255, n, n + 3); // grey is white that is seen through
  }
  context.putImageData(pixels, 0, 0);
  return canvas;
}
