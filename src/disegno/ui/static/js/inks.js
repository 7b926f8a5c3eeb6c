// What each kind of condition is drawn with: its ground, its inks, its pens. By annotator, since controls are taught on
// what annotators draw.

import { BOXES } from "./coco.js";

const WHITE_ON_BLACK = { ground: "#000000", inks: [["", "#ffffff"]], pen: 1.2 };
const GREYS = { ground: "#000000", inks: [["", "#ffffff"], ["", "#bfbfbf"], ["", "#808080"], ["", "#404040"], ["", "#000000"]], pen: 14, free: true };
const COLOURS = {
  ground: "#ffffff",
  inks: ["#d8423a", "#e88a35", "#f2cf4b", "#5aa44c", "#3f83c7", "#7a55b5", "#e794b8", "#8a5a3a", "#ffffff", "#8c8c8c", "#1c1c1c"].map((colour) => ["", colour]),
  pen: 14, free: true,
};

// The built-in model's classes, as its model.json says them.
export const CLASSES = [
  ["sky", "#f23d3d"], ["hill", "#1942a6"], ["grass", "#bfe68a"], ["sand", "#f23ddc"], ["snow", "#19a68e"], ["water", "#e6bb8a"],
  ["skyline", "#6a3df2"], ["pavement", "#1fa619"], ["road", "#e68aa8"], ["table", "#3daef2"], ["wall", "#9aa619"], ["backdrop", "#d28ae6"],
  ["vehicle", "#3df297"], ["boat", "#a63619"], ["building", "#8a92e6"], ["tree", "#81f23d"], ["animal", "#a61977"], ["sea animal", "#8ae2e6"],
  ["flyer", "#f2c43d"], ["aircraft", "#5919a6"], ["celestial", "#8ae699"], ["food", "#f23d54"], ["tableware", "#1954a6"], ["object", "#cbe68a"],
  ["furniture", "#f23df2"], ["character", "#19a67c"], ["flower", "#e6b08a"], ["insect", "#533df2"], ["sport", "#31a619"], ["clothing", "#e68ab4"],
  ["person", "#3dc6f2"], ["face", "#a69f19"], ["sign", "#c78ae6"], ["nature", "#3df280"], ["forest", "#a62419"], ["mountain", "#8a9de6"],
  ["floor", "#98f23d"], ["window", "#a61989"], ["space", "#8ae6dd"],
];
const SEGMENTS = { ground: "#f23d3d", inks: CLASSES, pen: 18, crisp: true };

// Which way a surface faces: x in red, y (up) in green, z (to the viewer) in blue, each from -1 to 1.
// To you, left, right, up, down, and the ground.
const NORMALS = {
  ground: "#8080ff", pen: 14, free: true,
  inks: [["", "#8080ff"], ["", "#2680d9"], ["", "#d980d9"], ["", "#80d9d9"], ["", "#8026d9"], ["", "#80faa3"]],
};

const BY_ANNOTATOR = {
  canny: WHITE_ON_BLACK, "line-art": WHITE_ON_BLACK, "soft-edge": { ...WHITE_ON_BLACK, pen: 2 }, scribble: { ...WHITE_ON_BLACK, pen: 2.5 },
  "scribble-xdog": { ...WHITE_ON_BLACK, pen: 2.5 }, "straight-lines": WHITE_ON_BLACK, segmentation: SEGMENTS,
  boxes: { ground: "#000000", inks: BOXES, pen: 14, crisp: true, tool: "box" }, segments: { ...COLOURS, crisp: true },
  normal: NORMALS, grayscale: GREYS, depth: GREYS, "depth-order": GREYS, threshold: GREYS, illusion: GREYS, "recolor-luminance": GREYS, "recolor-intensity": GREYS,
};

/** Return what a condition of this annotator is drawn with. `pen`: in pixels of a canvas of 128; `crisp`: colours are names. */
export function inksOf(annotator) {
  return BY_ANNOTATOR[annotator] ?? COLOURS;
}
