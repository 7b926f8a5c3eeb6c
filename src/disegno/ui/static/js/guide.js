// Guidance beside the prompt's: away from what a weakened net says, without what only adds contrast; and FreeU.

import { h } from "./dom.js";
import { slider, toggle } from "./fields.js";
import { modelOf } from "./house.js";
import { t } from "./i18n.js";

const WAYS = ["pag", "slg", "apg", "zero_star"]; // of guiding: without any of them the rest says nothing
const UNFITTED = { zero_star: false, zero_steps: 0 }; // the form has no field for it: a picture that was made so brings it

/** Return what a model of this family can be weakened by: its attention (pag), or blocks left out (slg). */
const weakness = (family) => (family === "sd3" ? "slg" : "pag");

/** Return the fields of a desk's `guide` and `freeu`. `refresh()`: for another model. */
export function guideFields({ desk, house, changed }) {
  const family = () => modelOf(house, desk.model)?.family;
  const set = (values) => {
    const guide = { ...desk.guide, ...values };
    desk.guide = WAYS.some((name) => guide[name]) ? guide : null;
    changed();
  };
  const away = slider(t("Away from a weakened net"), {
    value: 0, min: 0, max: 10, step: 0.1, help: t("0 is off. About 3 makes shapes firmer, for half as much time again."),
    change: (value) => set({ [weakness(family())]: value }),
  });
  const apg = toggle(t("Guide without glare"), { value: false, change: (value) => set({ apg: value, ...(value && UNFITTED) }) });
  apg.title = t("For strong guidance: without what only adds contrast and colour");
  const freeu = slider(t("Clearer shapes (FreeU)"), {
    value: 0, min: 0, max: 1, step: 0.1, help: t("0 is off. The net listens more to its own features than to details, for next to no time."),
    change: (value) => {
      desk.freeu = value ? { ...desk.freeu, strength: value } : null;
      changed();
    },
  });
  const element = h("div", { class: "stack" }, away, apg, freeu);
  element.refresh = () => {
    const other = weakness(family()) === "pag" ? "slg" : "pag";
    if (family() && desk.guide?.[other]) set({ [other]: 0 }); // of another model: this one cannot be weakened so
    if (family() && family() !== "sd3" && desk.guide?.zero_star) set(UNFITTED); // it is no flow model
    away.set(desk.guide?.[weakness(family())] ?? 0);
    apg.set(Boolean(desk.guide?.apg));
    freeu.hidden = family() === "sd3" && !desk.freeu; // it has no UNet
    freeu.set(desk.freeu ? (desk.freeu.strength ?? 1) : 0);
  };
  return element;
}
