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
  ["furniture", "#f23df2"], ["character", "#19a67c"], ["flower", "#e6b08a"],
];
const SEGMENTS = { ground: "#f23d3d", inks: CLASSES, pen: 18, crisp: true };

const BY_ANNOTATOR = {
  canny: WHITE_ON_BLACK, "line-art": WHITE_ON_BLACK, "soft-edge": { ...WHITE_ON_BLACK, pen: 2 }, scribble: { ...WHITE_ON_BLACK, pen: 2.5 },
  "scribble-xdog": { ...WHITE_ON_BLACK, pen: 2.5 }, "straight-lines": WHITE_ON_BLACK, segmentation: SEGMENTS,
  boxes: { ground: "#000000", inks: BOXES, pen: 14, crisp: true, tool: "box" }, segments: { ...COLOURS, crisp: true },
  grayscale: GREYS, depth: GREYS, "depth-order": GREYS, threshold: GREYS, illusion: GREYS, "recolor-luminance": GREYS, "recolor-intensity": GREYS,
};

/** Return what a condition of this annotator is drawn with. `pen`: in pixels of a canvas of 128; `crisp`: colours are names. */
export function inksOf(annotator) {
  return BY_ANNOTATOR[annotator] ?? COLOURS;
}
