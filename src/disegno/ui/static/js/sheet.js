// A sheet: many pictures of one request side by side, over the values of its fields or the choices of its prompt.

import { h } from "./dom.js";
import { choice, more, segmented } from "./fields.js";
import { t } from "./i18n.js";

const WAYS = [["none", "One picture"], ["axes", "Values"], ["matrix", "Words"]];
const AXES = [["x", "Columns"], ["y", "Rows"], ["z", "Tables"]];
const FIELDS = [ // field, its name, values as an example
  ["", "Nothing", ""], ["steps", "Steps", "10-30(+10)"], ["cfg", "Guidance", "2, 4, 6"], ["seed", "Seed", "1-4"], ["sampler", "Sampler", "Euler, DDIM"],
  ["schedule", "Schedule", "Karras, Exponential"], ["replace", "Words of the prompt", "red, blue, green"], ["size", "Size", "128x128, 192x128"],
  ["model", "Model", "diorama, NAME"], ["vae", "VAE", "own, NAME"], ["controls.0.strength", "Strength of the first control", "0-1[3]"], ["controls.0.end", "End of the first control", "0.4, 0.7, 1"],
  ["init.denoise", "How much is drawn anew", "0.4, 0.6, 0.8"], ["hires.denoise", "Drawn anew in the second pass", "0.4, 0.6, 0.8"], ["refiner.at", "The refiner takes over at", "0.5-0.9[3]"],
];

/** Return what a desk holds of a sheet that nobody has asked for. */
export function emptySheet() {
  return { way: "none", x: { field: "seed", values: "" }, y: { field: "", values: "" }, z: { field: "", values: "" } };
}

/** Return what is asked of the server: the job itself, or a sheet of it. Throws an Error that says what is missing. */
export function sheetOf({ sheet }, asked) {
  if (!sheet || sheet.way === "none" || asked.kind !== "generate") return asked;
  if (sheet.way === "matrix") {
    if (!asked.request.prompt.includes("|")) throw new Error(t("Write the prompt in parts, as in: a car on a street | red | at night."));
    return { kind: "sheet", request: { request: asked.request, matrix: true } };
  }
  const axes = AXES.map(([name]) => [name, sheet[name]]).filter(([, axis]) => axis.field && axis.values.trim());
  if (!axes.length) throw new Error(t("Say first which values the sheet shows, as in: 2, 4, 6."));
  return { kind: "sheet", request: { request: asked.request, ...Object.fromEntries(axes.map(([name, { field, values }]) => [name, `${field}=${values}`])) } };
}

function axisFields({ desk, changed }, [name, label]) {
  const axis = desk.sheet[name];
  const values = h("input", { value: axis.values, "aria-label": t("{axis}: values", { axis: t(label) }), autocomplete: "off", spellcheck: "false" });
  const hint = () => {
    values.placeholder = FIELDS.find(([field]) => field === axis.field)?.[2] ?? "";
    values.disabled = !axis.field;
  };
  values.oninput = () => {
    axis.values = values.value;
    changed();
  };
  const field = choice(t(label), { value: axis.field, options: FIELDS.map(([each, text]) => [each, t(text)]), change: (value) => {
    axis.field = value;
    hint();
    changed();
  } });
  hint();
  return h("div", { class: "two axis" }, field, h("div", { class: "field" }, h("span", { class: "label" }, t("Values")), values));
}

/** Return the card. */
export function sheetCard({ desk, changed }) {
  desk.sheet ??= emptySheet();
  const axes = h("div", { class: "stack" }, AXES.map((axis) => axisFields({ desk, changed }, axis)),
    h("p", { class: "help" }, t("Values with commas in between; 1-4 is 1, 2, 3, 4; 10-30(+10) is 10, 20, 30; 0-1[3] is 0, 0.5, 1.")));
  const words = h("p", { class: "help" }, t("Write the prompt in parts, as in: a car on a street | red | at night. Every choice of the parts after the first is drawn."));
  const show = () => {
    axes.hidden = desk.sheet.way !== "axes";
    words.hidden = desk.sheet.way !== "matrix";
  };
  const way = segmented(t("A sheet of many pictures"), { value: desk.sheet.way, options: WAYS.map(([name, text]) => [name, t(text)]), change: (value) => {
    desk.sheet.way = value;
    show();
    changed();
  } });
  show();
  return h("div", { class: "card panel" }, more(t("A sheet of many pictures"), desk.sheet.way !== "none", way, axes, words));
}
