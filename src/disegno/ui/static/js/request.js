// What a desk holds, and the request that it stands for; and back, from the request that a picture carries.

import { t } from "./i18n.js";
import { uniqueId } from "./dom.js";
import { emptySheet } from "./sheet.js";

export const BASE_WEIGHT = 0.2; // a request's own

/** Return an empty desk. What is null is left to the model. */
export function emptyDesk() {
  return {
    prompt: "", negative: "", model: "diorama", width: null, height: null, seed: null, batch: 1, steps: null, cfg: null,
    sampler: null, schedule: null, vae: null, refiner: null, hires: null, guide: null, freeu: null, few: false, seamless: false, units: [], live: false, depth: null, depthBy: null,
    regions: [], baseWeight: BASE_WEIGHT,
    source: null, way: "change", denoise: 0.6, repaint: 0.9, grow: 1, mask: null, blur: 4, fill: "original", only: false,
    extend: { left: 0, right: 0, top: 0, bottom: 0 }, inner: null, initOthers: {}, factor: 2, upscaler: "Lanczos", sheet: emptySheet(), others: {},
  };
}

const FIDELITY = 0.5; // a reference's own
const FIX = { variation: 8, sharpness: 0 }; // a colour fix's own

export const HOLE = "inpaint"; // as an annotator's name: the picture as it is, with a hole

/** Return whether a control is a reference: the picture as it is, everywhere, and no file. */
export const isReference = (name) => ["reference-only", "reference-adain", "reference-adain-attn"].includes(name);

/** Return whether a control is the colour fix: the picture as it is, on both prompts alike, and no file. */
export const isColourFix = (name) => name === "tile-colorfix";

/** Return whether a control is there without a file: its parameters are its own, and no annotator's. */
export const isFileless = (name) => isReference(name) || isColourFix(name);

/** Return an empty control unit. */
export function emptyUnit(name) {
  return {
    id: uniqueId(`unit${Date.now()}`), name, on: true, photo: null, annotate: null, params: {}, drawing: null, edited: false,
    strength: 1, curve: "", start: 0, end: 1, mode: "balanced", resize: "crop", region: null, fidelity: FIDELITY, fix: { ...FIX }, others: {},
  };
}

/** Return a region without words: all of the canvas. */
export function emptyRegion() {
  return { prompt: "", mask: null, x: 0, y: 0, w: 1, h: 1, weight: 1 };
}

/** Return the part of a request that regions stand for. Throws an Error that says what is missing. */
function regionsOf({ regions, baseWeight }) {
  const asked = regions.map(({ prompt, mask, x, y, w, h, weight }, at) => {
    if (!prompt.trim()) throw new Error(t("Region {number} has no words yet. Write some, or remove it.", { number: at + 1 }));
    return mask ? { prompt, mask, weight } : { prompt, x, y, w, h, weight };
  });
  return asked.length ? { regions: asked, base_weight: baseWeight } : {};
}

/** Return a region as the form shows it. */
function regionOf({ prompt, mask, x = 0, y = 0, w = null, h = null, weight = 1 }) {
  return { prompt, mask: pictureIn(mask), x, y, w: w ?? 1 - x, h: h ?? 1 - y, weight };
}

/** Return what a unit says that only controls of its kind know. */
function ownOf({ name, fidelity, fix }, region) {
  if (isReference(name)) return { region: null, params: { fidelity: fidelity ?? FIDELITY } };
  return isColourFix(name) ? { region, mode: "balanced", params: { ...FIX, ...fix } } : { region };
}

/** Return the part of a request that its control units stand for. Throws an Error that says what is missing. */
function controlsOf(desk) {
  return desk.units.filter((unit) => unit.on).map((unit) => {
    if (!unit.drawing) {
      throw new Error(t("The control “{name}” has no drawing yet. Draw one, give a picture, or switch it off.", { name: unit.name }));
    }
    const { name, strength, curve = "", start, end, mode, resize, region = null } = unit;
    const own = ownOf(unit, region);
    return { annotate: "none", ...unit.others, name, image: unit.drawing, strength, curve, start, end, mode, resize, ...own };
  });
}

/** Return the request of a desk. `model`: its card, or null. Throws an Error that says what is missing. */
export function requestOf(desk, model) {
  const request = { ...desk.others, prompt: desk.prompt, negative: desk.negative, model: desk.model, batch: desk.batch, controls: controlsOf(desk) };
  for (const name of ["width", "height", "steps", "cfg", "sampler", "schedule", "vae", "refiner", "hires", "guide", "freeu"]) {
    if (desk[name] !== null && desk[name] !== undefined) request[name] = desk[name];
  }
  Object.assign(request, regionsOf(desk));
  if (desk.seed !== null) request.seed = desk.seed;
  if (desk.few && model?.few_steps) request.few_steps = true;
  if (desk.seamless) request.seamless = true;
  if (model?.sees_depth) Object.assign(request, depthOf(desk));
  return request;
}

/** Return the part of a request that a desk's depth card stands for. */
function depthOf({ depth, depthBy }) {
  return { ...(depth && { depth }), ...(depthBy && { depth_annotate: depthBy }) };
}

const MAX_SIDE = 2048; // of what is drawn

/** Return a picture's size, so many times larger, in whole cells of 8 pixels. */
function cells({ width, height }, by, rounded = Math.round) {
  const [w, h] = [width, height].map((side) => Math.min(MAX_SIDE, Math.max(64, rounded((side * by) / 8) * 8)));
  return { width: w, height: h };
}

/** Return the size that a picture is drawn at where it keeps its own. */
export function keptSize(size) {
  return cells(size, Math.min(1, MAX_SIDE / Math.max(size.width, size.height)));
}

/** Return the size that the picture of a desk is drawn at: as is said; else in its shape, with at most the model's own area. */
function changedSize({ width, height, sourceSize }, own) {
  const times = Math.min(1, Math.sqrt((own.width * own.height) / (sourceSize.width * sourceSize.height)));
  const found = cells(sourceSize, width ? width / sourceSize.width : height ? height / sourceSize.height : times);
  return { width: width ?? found.width, height: height ?? found.height };
}

/** Return the size of a desk's picture with what is drawn around it; the picture is made smaller where both have no room. */
function extendedSize(desk, own) {
  const { left, right, top, bottom } = desk.extend;
  const inner = desk.inner ?? (desk.width && desk.height ? keptSize(desk.sourceSize) : changedSize(desk, own));
  const room = Math.min((MAX_SIDE - left - right) / inner.width, (MAX_SIDE - top - bottom) / inner.height);
  const { width, height } = room < 1 && room > 0.25 ? cells(inner, room, Math.floor) : inner; // less than a quarter is refused
  return { width: width + left + right, height: height + top + bottom };
}

/** Return the size that a desk draws at. `own`: the model's. */
export function sizeOf(desk, own) {
  if (!desk.source || !desk.sourceSize) return { width: desk.width ?? own.width, height: desk.height ?? own.height };
  return desk.way === "extend" ? extendedSize(desk, own) : changedSize(desk, own);
}

const WHOLE = 1024 * 1024; // up to so many pixels the server's VAE works at once, and else in parts
const PART = 512;

/** Return in which parts the VAE works by itself, as the server fills it in. */
function tileOf({ width, height, hires, seamless }) {
  if (seamless) return 0;
  const { scale = 1, width: wide, height: high } = hires ?? {};
  const covered = wide && high ? Math.max(wide / width, high / height) : wide ? wide / width : high ? high / height : scale;
  return Math.floor(width * covered) * Math.floor(height * covered) > WHOLE ? PART : 0;
}

/** Return a second pass without what is as in the first, where the same model draws both. */
function followingHires(hires, request) {
  if (hires.model && hires.model !== request.model) return hires;
  const same = (name) => hires[name] === request[name];
  const not = ["steps", "cfg"].filter(same);
  if (same("sampler") && same("schedule")) not.push("sampler", "schedule");
  return Object.fromEntries(Object.entries(hires).filter(([name]) => !not.includes(name)));
}

const SHOWN = ["prompt", "negative", "model", "width", "height", "seed", "batch", "steps", "cfg", "sampler", "schedule", "vae", "refiner", "hires", "guide", "freeu", "seamless"];
const ELSEWHERE = ["few_steps", "depth", "depth_annotate", "regions", "base_weight"]; // shown under another name
const UNIT_KEPT = ["name", "strength", "curve", "start", "end", "mode", "resize"];
const UNIT_SHOWN = [...UNIT_KEPT, "image", "annotate", "params", "region"];

function pictureIn(given) {
  return given?.startsWith("data:") ? given : null;
}

function fixIn(params) {
  return Object.fromEntries(Object.entries(FIX).map(([key, own]) => [key, params?.[key] ?? own]));
}

/** Return a unit as the form shows it. What an annotator has yet to draw is a photo. */
function unitOf(unit) {
  const { image, annotate = null, params, ...asked } = unit;
  const shown = Object.fromEntries(UNIT_KEPT.filter((key) => key in asked).map((key) => [key, asked[key]]));
  const others = Object.fromEntries(Object.entries(asked).filter(([key]) => !UNIT_SHOWN.includes(key)));
  if (annotate === HOLE) others.annotate = HOLE;
  const asItIs = annotate === "none" || annotate === HOLE || isFileless(unit.name);
  const seen = asItIs ? { drawing: pictureIn(image), edited: true } : { photo: pictureIn(image), annotate, params: params ?? {} };
  return { ...emptyUnit(unit.name), ...shown, ...seen, region: pictureIn(asked.region), fidelity: params?.fidelity ?? FIDELITY, fix: fixIn(params), others };
}

/** Return the part of a desk that a request's picture to change stands for. What the form does not show: `initOthers`. */
function changedOf({ init, width, height }) {
  const { image, denoise, mask = null, mask_blur: blur = 4, mask_blur_y: blurY, fill = null, only_masked: only = false, outpaint, ...others } = init;
  if (typeof blurY === "number" && blurY !== blur) others.mask_blur_y = blurY;
  if (outpaint) {
    const extend = { ...emptyDesk().extend, ...outpaint };
    const inner = width && height ? { width: width - extend.left - extend.right, height: height - extend.top - extend.bottom } : null;
    return { source: image, way: "extend", grow: denoise, blur, extend, inner, initOthers: { ...others, fill, ...(mask && { mask }) } };
  }
  const shown = { source: image, denoise, mask, blur, fill: fill ?? "original", only, initOthers: others };
  return mask ? { ...shown, way: "paint", repaint: denoise } : { ...shown, way: "change" };
}

/** Return a desk that makes the request's picture again: what the form does not show goes on in `others`. */
export function deskOf(request, seed) {
  const desk = emptyDesk();
  for (const name of SHOWN) if (request[name] !== undefined && request[name] !== null) desk[name] = request[name];
  const { controls = [], init = null, ...rest } = request;
  desk.units = controls.map(unitOf);
  desk.others = Object.fromEntries(Object.entries(rest).filter(([key]) => ![...SHOWN, ...ELSEWHERE].includes(key)));
  // what is filled in with the same, nobody said: it follows what is changed
  if (desk.others.vae_tile === tileOf(request)) delete desk.others.vae_tile;
  if (desk.hires) desk.hires = followingHires(desk.hires, request);
  Object.assign(desk, { few: request.few_steps ?? false, depth: pictureIn(request.depth), depthBy: request.depth_annotate ?? null });
  Object.assign(desk, { regions: (request.regions ?? []).map(regionOf), baseWeight: request.base_weight ?? BASE_WEIGHT });
  desk.seed = seed ?? (desk.seed >= 0 ? desk.seed : null);
  desk.batch = 1;
  return init ? Object.assign(desk, changedOf(request)) : desk;
}
