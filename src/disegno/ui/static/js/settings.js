// The rest of a desk's form: model, size, steps, guidance, seed, how many, sampler, schedule.

import { button, h } from "./dom.js";
import { choice, more, numberField, slider } from "./fields.js";
import { modelOf, ownOf } from "./house.js";
import { t } from "./i18n.js";

const MAX_SEED = 2 ** 32 - 1;

function sizeFields({ desk, house, changed }) {
  const own = () => ownOf(house, desk.model);
  const side = (name, label) => numberField(label, { value: desk[name], min: 64, max: 2048, step: 8, placeholder: String(own()[name]), change: (value) => {
    desk[name] = value;
    changed();
  } });
  const width = side("width", t("Width"));
  const height = side("height", t("Height"));
  const swap = () => {
    const { width: w, height: h2 } = { ...own(), ...Object.fromEntries(["width", "height"].filter((name) => desk[name] !== null).map((name) => [name, desk[name]])) };
    [desk.width, desk.height] = [h2, w];
    width.set(h2);
    height.set(w);
    changed();
  };
  const element = h("div", { class: "sizes" }, width, button("", { class: "bare", label: t("Swap width and height"), onclick: swap }, "swap"), height);
  element.refresh = () => {
    width.placeholder(String(own().width));
    height.placeholder(String(own().height));
    width.set(desk.width);
    height.set(desk.height);
  };
  return element;
}

function seedField({ desk, changed }) {
  const seed = numberField(t("Seed"), { value: desk.seed, min: 0, max: MAX_SEED, placeholder: t("another each time"), change: (value) => {
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

/** Return the card of settings. `modelChanged()`: another model is chosen. */
export function settingsCard({ desk, house, changed, modelChanged, sized }) {
  const own = () => ownOf(house, desk.model);
  const set = (name) => (value) => {
    desk[name] = value;
    changed();
  };
  const models = house.models.map((each) => [each.id, each.id === "diorama" ? t("Diorama (built in)") : each.id]);
  const model = choice(t("Model"), { value: desk.model, options: models, change: (value) => {
    desk.model = value;
    for (const name of ["steps", "cfg"]) desk[name] = null;
    refresh();
    modelChanged();
    changed();
  } });
  const size = sizeFields({ desk, house, changed: () => { changed(); sized(); } });
  const steps = slider(t("Steps"), { value: desk.steps ?? own().steps, min: 1, max: 100, step: 1, change: set("steps") });
  const cfg = slider(t("Guidance"), { value: desk.cfg ?? own().cfg, min: 1, max: 20, step: 0.1, help: t("How closely the picture keeps to the prompt."), change: set("cfg") });
  const batch = slider(t("Pictures"), { value: desk.batch, min: 1, max: 16, step: 1, change: set("batch") });
  const seed = seedField({ desk, changed });
  const auto = ["", t("the model's own")];
  const sampler = choice(t("Sampler"), { value: desk.sampler ?? "", options: [auto, ...house.samplers.map((each) => [each.name, each.name])], change: (value) => set("sampler")(value || null) });
  const schedule = choice(t("Schedule"), { value: desk.schedule ?? "", options: [auto, ...house.schedules.map((each) => [each.label, each.label])], change: (value) => set("schedule")(value || null) });
  const refresh = () => {
    model.set(desk.model);
    steps.set(desk.steps ?? own().steps);
    cfg.set(desk.cfg ?? own().cfg);
    size.refresh();
    seed.refresh();
  };
  const element = h("div", { class: "card panel" }, house.models.length > 1 || !modelOf(house, desk.model) ? model : null, size, steps, batch,
    more(t("Guidance, seed, sampler"), desk.seed !== null, cfg, seed, h("div", { class: "two" }, sampler, schedule)));
  return { element, refresh };
}
