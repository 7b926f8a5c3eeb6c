// What a picture of this program carries: the request that made it, in PNG chunks; or A1111's text. Read here, in the
// browser: the file goes nowhere.

import { commentOf } from "./exif.js";
import { HOLE, isFileless } from "./request.js";
import { parsed, seedOf } from "./seed.js";

const SIGNATURE = [137, 80, 78, 71, 13, 10, 26, 10];
const MAX_TEXT = 16e6;
const MAX_STEPS = 1000; // of a request

function* chunksOf(data) {
  const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
  if (!SIGNATURE.every((byte, n) => data[n] === byte)) return;
  let at = 8;
  while (at + 12 <= data.length) {
    const length = view.getUint32(at);
    if (at + 12 + length > data.length) return;
    yield { type: latin(data.subarray(at + 4, at + 8)), body: data.subarray(at + 8, at + 8 + length) };
    at += 12 + length;
  }
}

const latin = (some) => [...some].map((byte) => String.fromCharCode(byte)).join("");
const utf8 = (some) => new TextDecoder().decode(some);

async function inflated(some) {
  const reader = new Blob([some]).stream().pipeThrough(new DecompressionStream("deflate")).getReader();
  const parts = [];
  for (let size = 0; ; ) {
    const { done, value } = await reader.read();
    if (done) break;
    size += value.length;
    if (size > MAX_TEXT) throw new Error("too long");
    parts.push(value);
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

function cut(body, from) {
  const end = body.indexOf(0, from);
  return [body.subarray(from, end), end + 1];
}

async function textOf({ type, body }) {
  const [name, after] = cut(body, 0);
  if (type === "tEXt") return [latin(name), latin(body.subarray(after))];
  if (type === "zTXt") return [latin(name), latin(await inflated(body.subarray(after + 1)))];
  const packed = body[after] === 1;
  const [, translated] = cut(body, after + 2);
  const [, begin] = cut(body, translated);
  const text = body.subarray(begin);
  return [latin(name), utf8(packed ? await inflated(text) : text)];
}

function uriOf(body) {
  const [head, after] = cut(body, 0);
  let text = "";
  for (let at = after; at < body.length; at += 0x8000) text += String.fromCharCode(...body.subarray(at, at + 0x8000));
  return `${latin(head)},${btoa(text)}`;
}

/** Put pictures that lie in chunks of their own back into their places. */
function unstowed(value, pictures) {
  if (Array.isArray(value)) return value.map((each) => unstowed(each, pictures));
  if (value && typeof value === "object") {
    return Object.fromEntries(Object.entries(value).map(([key, each]) => [key, unstowed(each, pictures)]));
  }
  const found = typeof value === "string" && /^picture:(\d+)$/.exec(value);
  return found ? pictures[Number(found[1])] ?? null : value;
}

/** Return { request, seed, from } of a picture file's bytes, or null where it carries nothing that is known. */
export async function readRecord(buffer) {
  const texts = {};
  const pictures = [];
  try {
    for (const chunk of chunksOf(new Uint8Array(buffer))) {
      if (["tEXt", "zTXt", "iTXt"].includes(chunk.type)) {
        const [name, text] = await textOf(chunk);
        texts[name] ??= text;
      } else if (chunk.type === "dgPc") pictures.push(uriOf(chunk.body));
    }
    if (texts.disegno) return ours(unstowed(parsed(texts.disegno), pictures));
    if (texts.parameters) return parametersOf(texts.parameters);
    const comment = commentOf(new Uint8Array(buffer));
    if (/(^|\n)Steps: \d/.test(comment)) return parametersOf(comment);
  } catch {
    return null;
  }
  return null;
}

/** Return what is one image's own in its batch: its texts and its seeds. Where there is a variation, only that counts up. */
function ownOf({ request, image = 0, prompts = [], negatives = [] }) {
  const { seed, subseed, subseed_strength: strength = 0 } = request;
  return {
    prompt: prompts[image] ?? request.prompts?.[image] ?? request.prompt,
    negative: negatives[image] ?? request.negatives?.[image] ?? request.negative,
    ...(seed >= 0 && { seed: seedOf(seed, strength > 0 ? 0 : image) }),
    ...(subseed >= 0 && { subseed: seedOf(subseed, image) }),
    ...(request.hires && { hires: hiresOf(request.hires, image) }),
  };
}

/** Return a hires pass with one image's own texts, in full. */
function hiresOf({ prompts = [], negatives = [], ...hires }, image) {
  return { ...hires, prompt: prompts[image] ?? hires.prompt, negative: negatives[image] ?? hires.negative };
}

/** Return what a unit's control is shown: its drawing as it was given, or as it was made; where neither is inside, its photo. */
function shownTo({ name, image, annotate, params }, condition, inside, init) {
  const given = inside(image ?? init?.image ?? null);
  if (annotate === HOLE) return { image: given ?? condition, annotate, params: {} };
  if (isFileless(name)) return { image: condition ?? given, annotate: "none", params };
  if (annotate === "none" && image) return { image: given ?? condition, annotate, params: {} }; // a second pass sees it larger
  if (!condition) return { image: given, annotate, params };
  return { image: condition, annotate: "none", params: {}, ...(init?.only_masked && { crop: false }) }; // it has been cut
}

/** Every control is given what it was really shown; files that were named are inside the record. */
function ours(record) {
  const { request, conditions = [], sources = {} } = record;
  const inside = (path) => (path && !path.startsWith("data:") ? sources[path] ?? null : path);
  const units = (request.controls ?? []).map((unit, n) => ({
    ...unit, ...shownTo(unit, conditions[n], inside, request.init), region: inside(unit.region), mask: inside(unit.mask),
  }));
  const init = request.init && { ...request.init, image: inside(request.init.image), mask: inside(request.init.mask) };
  const own = ownOf(record);
  const words = ({ prompt, prompts = [] }) => prompts[record.image ?? 0] ?? prompt;
  const regions = (request.regions ?? []).map((region) => ({ ...region, prompt: words(region), prompts: [], mask: inside(region.mask) }));
  const fixed = { ...request, ...own, prompts: [], negatives: [], styles: [], controls: units, regions, init, depth: inside(request.depth) };
  return { request: fixed, seed: own.seed ?? null, from: "disegno" };
}

/** Return a file's name without its hash and its ending, as the library names it. */
function nameOf(file) {
  return file.replace(/ \[\w+\]$/, "").replace(/\.(safetensors|ckpt|pth?|bin|gguf)$/i, "");
}

const claim = (text) => text === "True";
const EMPHASES = { "No norm": "no-norm", Ignore: "ignore", None: "none" };
const NAMES = {
  steps: ["Steps", Number], sampler: ["Sampler", String], schedule: ["Schedule type", String], model: ["Model", nameOf], vae: ["VAE", nameOf],
  cfg: ["CFG scale", Number], seed: ["Seed", seedOf], clip_skip: ["Clip skip", Number],
  subseed: ["Variation seed", seedOf], subseed_strength: ["Variation seed strength", Number], seed_delta: ["ENSD", Number],
  churn: ["Sigma churn", Number], churn_min: ["Sigma tmin", Number], churn_max: ["Sigma tmax", Number], churn_noise: ["Sigma noise", Number],
  negative_min: ["NGMS", Number], negative_min_all: ["NGMS all steps", claim], cfg_start: ["Skip Early CFG", Number],
  emphasis: ["Emphasis", (text) => EMPHASES[text] ?? "original"], pad_texts: ["Pad conds", claim], old_timelines: ["Old prompt editing timelines", claim],
};
const HIRES_NAMES = {
  scale: ["Hires upscale", Number], upscaler: ["Hires upscaler", String], denoise: ["Denoising strength", Number], steps: ["Hires steps", Number],
  cfg: ["Hires CFG Scale", Number], sampler: ["Hires sampler", String], schedule: ["Hires schedule type", String], model: ["Hires checkpoint", nameOf],
  prompt: ["Hires prompt", String], negative: ["Hires negative prompt", String],
};
const GUIDE_NAMES = {
  pag: ["PAG Scale", Number], pag_start: ["PAG Start", Number], pag_end: ["PAG End", Number],
  slg: ["SLG Scale", Number], slg_layers: ["SLG Layers", (text) => text.split(" ").map(Number)], slg_start: ["SLG Start", Number], slg_end: ["SLG End", Number],
  apg: ["APG", claim], apg_norm: ["APG Norm", Number], apg_momentum: ["APG Momentum", Number], apg_parallel: ["APG Parallel", Number],
  zero_star: ["CFG Zero Star", claim], zero_steps: ["CFG Zero Steps", Number],
};
const FREEU_NAMES = {
  b1: ["freeu_b1", Number], b2: ["freeu_b2", Number], s1: ["freeu_s1", Number], s2: ["freeu_s2", Number],
  start: ["freeu_start", Number], end: ["freeu_end", Number], version: ["freeu_version", Number],
};
const REFINED = { "first pass": "first", "both passes": "both" };

/** Return the fields that a picture's values name. */
function readBy(names, values) {
  return Object.fromEntries(Object.entries(names).filter(([, [name]]) => values[name]).map(([field, [name, read]]) => [field, read(values[name])]));
}

/** Return the two sides that a value such as 512x768 names, or null. */
function sidesOf(value) {
  const found = /^(\d+)x(\d+)$/.exec(value ?? "");
  return found && { width: Number(found[1]) || null, height: Number(found[2]) || null };
}

/** Return the second pass of a picture's values, or null. */
function secondOf(values) {
  const sides = sidesOf(values["Hires resize"]);
  return sides || values["Hires upscale"] || values["Hires upscaler"] ? { ...readBy(HIRES_NAMES, values), ...sides } : null;
}

/** Return the refiner of a picture's values, or null. A1111 before 1.8 counted the steps. */
function refinerOf(values, hires) {
  if (!values.Refiner) return null;
  const bySteps = values["Refiner switch by sampling steps"] === "True" || /^v1\.[67]\./.test(values.Version ?? "");
  const at = Number(values["Refiner switch at"] ?? 0.8);
  return { model: nameOf(values.Refiner), at, share: bySteps ? "steps" : "noise", passes: REFINED[values["Hires refiner"]] ?? (hires ? "hires" : "both") };
}

/** Return the guidance beside the scale of a picture's values, or null. */
function guideOf(values, hires) {
  const said = readBy(GUIDE_NAMES, values);
  return Object.keys(said).length ? said : forgeGuideOf(values, hires);
}

/** Return the guidance that Forge tells: there step k of N acts where start <= k / (N - 1) <= end, here where start < k / N < end. */
function forgeGuideOf(values, hires) {
  const [scale, start, end] = [values.pagi_scale ?? 0, values.pagi_start_step ?? 0, values.pagi_end_step ?? 1].map(Number);
  const changed = !hires && values["Denoising strength"];
  const count = changed ? Math.floor(Math.min(Number(changed), 0.999) * Number(values.Steps)) + 1 : Number(values.Steps);
  const acting = [...Array(Math.min(count, MAX_STEPS) || 0).keys()].filter((k) => start <= k / Math.max(count - 1, 1) && k / Math.max(count - 1, 1) <= end);
  if (!(scale > 0) || !acting.length) return null;
  const [first, last] = [acting[0], acting.at(-1)];
  const share = (step) => Math.round((step / count) * 1e6) / 1e6;
  return { pag: scale, pag_start: first ? share(first - 0.5) : 0, pag_end: last < count - 1 ? share(last + 0.5) : 1 };
}

/** Return a value as it was before it was quoted. */
function unquoted(value) {
  if (!value.startsWith('"')) return value;
  try {
    return JSON.parse(value);
  } catch {
    return value;
  }
}

/** Return what else decides the noise. A1111 draws it on the graphics card where nothing is said, and has two settings of eta. */
function noiseOf(values) {
  if (!values.Steps) return {};
  const eta = values[values.Sampler?.startsWith("DDIM") ? "Eta DDIM" : "Eta"];
  const from = sidesOf(values["Seed resize from"]);
  return {
    noise_source: values.RNG === "CPU" ? "cpu" : "nv",
    ...(eta && { eta: Number(eta) }), ...(from && { seed_width: from.width ?? 0, seed_height: from.height ?? 0 }),
  };
}

/** Return what A1111's text of a picture says of a request. */
export function parametersOf(text) {
  const lines = text.trim().split("\n");
  const last = /^Steps: \d/.test(lines.at(-1)) ? lines.pop() : "";
  const at = lines.findIndex((line) => line.startsWith("Negative prompt:"));
  const values = Object.fromEntries([...last.matchAll(/\s*([\w ]+):\s*("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)/g)].map((found) => [found[1].trim(), unquoted(found[2].trim())]));
  const request = {
    prompt: (at < 0 ? lines : lines.slice(0, at)).join("\n").trim(),
    negative: at < 0 ? "" : lines.slice(at).join("\n").slice("Negative prompt:".length).trim(),
  };
  const hires = secondOf(values);
  const freeu = values.freeu_enabled === "True" ? readBy(FREEU_NAMES, values) : null;
  const own = { hires, refiner: refinerOf(values, hires), guide: guideOf(values, hires), freeu, seamless: values.Tiling === "True" };
  Object.assign(request, readBy(NAMES, values), sidesOf(values.Size), noiseOf(values), own);
  return { request, seed: request.seed ?? null, from: "A1111" };
}
