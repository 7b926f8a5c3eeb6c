// The rest of a desk's form: model, size, steps, guidance, seed, how many, sampler, schedule.

import { button, fill, h } from "./dom.js";
import { choice, more, numberField, slider, toggle } from "./fields.js";
import { guideFields } from "./guide.js";
import { hiresFields } from "./hires.js";
import { modelOf, ownOf } from "./house.js";
import { t } from "./i18n.js";
import { refinerFields } from "./refiner.js";
import { seedOf } from "./seed.js";
import { sizeOf } from "./request.js";
import { misfit } from "./unit.js";

const USUAL = { // of what the form has no field for: what a picture need not be told to bring
  clip_skip: 1, emphasis: "original", comma_backtrack: 20, churn_noise: 1, noise_source: "cpu", image_cfg: 1.5, beauty: 6, plainness: 2.5,
  pag_end: 1, slg_layers: [7, 8, 9], slg_start: 0.01, slg_end: 0.2, apg_norm: 15, apg_momentum: -0.5, b1: 1.3, b2: 1.4, s1: 0.9, s2: 0.2, version: 2, end: 1,
  noise: 1, resize: "crop", mask_mode: "binary", padding: 32, mask_weight: 1, share: "noise", passes: "both",
};
const SHOWN = { hires: ["scale", "width", "height", "upscaler", "denoise"], refiner: ["model", "at"], guide: ["pag", "slg", "apg"], freeu: ["strength"] };
const LONGEST = 30; // of a value that is told with its name

function sizeFields({ desk, house, changed }) {
  const own = () => ownOf(house, desk.model);
  const unsaid = (name) => String(sizeOf({ ...desk, [name]: null }, own())[name]);
  const side = (name, label) => numberField(label, { value: desk[name], min: 64, max: 2048, step: 8, placeholder: unsaid(name), change: (value) => {
    desk[name] = value;
    element.refresh(); // the other side may follow from the picture's shape
    changed();
  } });
  const width = side("width", t("Width"));
  const height = side("height", t("Height"));
  const swap = () => {
    const { width: w, height: h2 } = sizeOf(desk, own());
    [desk.width, desk.height] = [h2, w];
    width.set(h2);
    height.set(w);
    changed();
  };
  const element = h("div", { class: "sizes" }, width, button("", { class: "bare", label: t("Swap width and height"), onclick: swap }, "swap"), height);
  element.refresh = () => {
    width.placeholder(unsaid("width"));
    height.placeholder(unsaid("height"));
    width.set(desk.width);
    height.set(desk.height);
  };
  return element;
}

function seedField({ desk, changed }) {
  const seed = numberField(t("Seed"), { value: desk.seed, min: 0, read: seedOf, placeholder: t("another each time"), change: (value) => {
    desk.seed = value;
    changed();
  } });
  const free = () => {
    desk.seed = null;
    seed.set(null);
    changed();
  };
  const element = h("div", { class: "row" }, h("div", { class: "grow" }, seed), button("", { class: "bare", label: t("Another seed each time"), onclick: free }, "dice"));
  element.style.alignItems = "end";
  element.refresh = () => seed.set(desk.seed);
  return element;
}

/** Return whether a desk draws in the few steps of its model: as it is asked to, or by the LoRA of a picture's request. */
function isFew(desk, few) {
  return Boolean(few) && (desk.few || (few.lora && (desk.others.loras ?? []).some((use) => use.name === few.lora)));
}

/** Return the switch of few steps, which is there only where the model has them. `refresh()`: shows what they want. */
function fewSwitch({ desk, few, changed, refresh }) {
  const element = toggle(t("Few steps"), { value: false, change: (value) => {
    desk.few = value;
    if (!value) desk.others = { ...desk.others, loras: (desk.others.loras ?? []).filter((use) => use.name !== few().lora) };
    for (const name of ["steps", "cfg", "sampler", "schedule"]) desk[name] = null;
    refresh();
    changed();
  } });
  element.title = t("Draw in the few steps that this model was taught");
  element.refresh = () => {
    element.hidden = !few();
    element.set(isFew(desk, few()));
  };
  return element;
}

/** Return the choice of a VAE, which is there only where the library has one. `refresh()`: for another model. */
function vaeChoice({ desk, house, changed }) {
  const own = [["", t("the model's own")]];
  const element = choice("VAE", { value: desk.vae ?? "", options: own, change: (value) => {
    desk.vae = value || null;
    changed();
  } });
  element.refresh = () => {
    const there = house.files.filter((each) => each.kind === "vae").map((each) => [each.name, each.name, misfit(each, modelOf(house, desk.model))]);
    element.hidden = !there.length && !desk.vae;
    element.offer([...own, ...there], desk.vae ?? "");
  };
  return element;
}

/** Return the parts of an object that are shown, or those that are not. */
function partsOf(some, shown, are) {
  return some && Object.fromEntries(Object.entries(some).filter(([name]) => shown.includes(name) === are));
}

/** Return the names of what is not as usual, with short values. `of`: whose it is. */
function namesOf(some, of = "") {
  const said = ([name, value]) => value && String(value) !== String(USUAL[name]) && !(Array.isArray(value) && !value.length);
  const short = (value) => (value === true || typeof value === "object" || String(value).length > LONGEST ? "" : value);
  return Object.entries(some ?? {}).filter(said).map(([name, value]) => `${of} ${name} ${short(value)}`.replaceAll("_", " ").trim());
}

/** Return the line that names what a picture brought along and the form has no field for; a button leaves it out. */
function othersNote({ desk, few, changed, refresh }) {
  const element = h("div", { class: "note row spread" });
  const own = (use) => use.name === few()?.lora;
  const drop = () => {
    Object.assign(desk, { others: { loras: (desk.others.loras ?? []).filter(own) }, initOthers: {} });
    for (const [name, shown] of Object.entries(SHOWN)) desk[name] = partsOf(desk[name], shown, true);
    refresh();
    changed();
  };
  element.refresh = () => {
    const { loras = [], subseed, ...rest } = desk.others;
    if (rest.subseed_strength) rest.subseed = subseed;
    const uses = loras.filter((use) => !own(use)).map((use) => `LoRA ${use.name}`);
    const parts = Object.entries(SHOWN).flatMap(([name, shown]) => namesOf(partsOf(desk[name], shown, false), name));
    const names = [...uses, ...namesOf(rest), ...namesOf(desk.initOthers), ...parts];
    element.hidden = !names.length;
    fill(element, h("span", {}, t("As that picture was made: {names}", { names: names.join(", ") })), button(t("Leave out"), { class: "small", onclick: drop }));
  };
  return element;
}

/** Return the card of settings. `modelChanged()`: another model is chosen; `pictures`: the desk changes pictures. */
export function settingsCard({ desk, house, changed, modelChanged, sized, pictures }) {
  const few = () => modelOf(house, desk.model)?.few_steps ?? null;
  const own = () => ({ ...ownOf(house, desk.model), ...(isFew(desk, few()) && few()) });
  const set = (name) => (value) => {
    desk[name] = value;
    changed();
  };
  const models = () => house.models.map((each) => [each.id, each.id === "diorama" ? t("Diorama (built in)") : each.id]);
  const model = choice(t("Model"), { value: desk.model, options: models(), change: (value) => {
    desk.model = value;
    for (const name of ["steps", "cfg"]) desk[name] = null;
    refresh();
    modelChanged();
    changed();
  } });
  const size = sizeFields({ desk, house, changed: () => { hires.sized(); changed(); sized(); } });
  size.hidden = desk.way === "extend"; // there the picture and what is added say it
  const steps = slider(t("Steps"), { value: desk.steps ?? own().steps, min: 1, max: 100, step: 1, change: set("steps") });
  const cfg = slider(t("Guidance"), { value: desk.cfg ?? own().cfg, min: 1, max: 20, step: 0.1, help: t("How closely the picture keeps to the prompt."), change: set("cfg") });
  const batch = slider(t("Pictures"), { value: desk.batch, min: 1, max: 16, step: 1, change: set("batch") });
  const seed = seedField({ desk, changed });
  const auto = ["", t("the model's own")];
  const sampler = choice(t("Sampler"), { value: desk.sampler ?? "", options: [auto, ...house.samplers.map((each) => [each.name, each.name])], change: (value) => set("sampler")(value || null) });
  const schedule = choice(t("Schedule"), { value: desk.schedule ?? "", options: [auto, ...house.schedules.map((each) => [each.label, each.label])], change: (value) => set("schedule")(value || null) });
  const seamless = toggle(t("Without a seam"), { value: desk.seamless, change: set("seamless") });
  seamless.title = t("The picture can be laid beside itself, as a texture is");
  const vae = vaeChoice({ desk, house, changed });
  const refiner = refinerFields({ desk, house, changed });
  const guide = guideFields({ desk, house, changed });
  const refresh = () => {
    fewer.refresh();
    vae.refresh();
    refiner.refresh();
    guide.refresh();
    seamless.set(desk.seamless);
    sampler.set(desk.sampler ?? "");
    schedule.set(desk.schedule ?? "");
    model.offer(models(), desk.model);
    model.hidden = house.models.length < 2 && Boolean(modelOf(house, desk.model));
    steps.set(desk.steps ?? own().steps);
    cfg.set(desk.cfg ?? own().cfg);
    size.refresh();
    seed.refresh();
    hires.refresh();
    hires.hidden = pictures && !desk.hires;
    others.refresh();
  };
  const hires = hiresFields({ desk, house, changed, size: () => sizeOf(desk, ownOf(house, desk.model)) });
  const others = othersNote({ desk, few, changed, refresh: () => refresh() });
  const fewer = fewSwitch({ desk, few, changed, refresh });
  refresh();
  const element = h("div", { class: "card panel" }, model, size, fewer, steps, batch, hires,
    more(t("Guidance, seed, sampler"), desk.seed !== null, cfg, guide, seed, h("div", { class: "two" }, sampler, schedule), vae, refiner, seamless), others);
  return { element, refresh };
}
