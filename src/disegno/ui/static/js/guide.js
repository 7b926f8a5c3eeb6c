// Guidance beside the prompt's: away from what a weakened net says, without what only adds contrast; and FreeU.

import { h } from "./dom.js";
import { slider, toggle } from "./fields.js";
import { modelOf } from "./house.js";
import { t } from "./i18n.js";

/** Return what a model of this family can be weakened by: its attention (pag), or blocks left out (slg). */
const weakness = (family) => (family === "sd3" ? "slg" : "pag");

/** Return the fields of a desk's `guide` and `freeu`. `refresh()`: for another model. */
export function guideFields({ desk, house, changed }) {
  const family = () => modelOf(house, desk.model)?.family;
  const set = (name, value) => {
    const guide = { ...desk.guide, [name]: value };
    desk.guide = Object.values(guide).some(Boolean) ? guide : null;
    changed();
  };
  const away = slider(t("Away from a weakened net"), {
    value: 0, min: 0, max: 10, step: 0.1, help: t("0 is off. About 3 makes shapes firmer, for half as much time again."),
    change: (value) => set(weakness(family()), value),
  });
  const apg = toggle(t("Guide without glare"), { value: false, change: (value) => set("apg", value) });
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
    if (family() && desk.guide?.[other]) set(other, 0); // of another model: this one cannot be weakened so
    away.set(desk.guide?.[weakness(family())] ?? 0);
    apg.set(Boolean(desk.guide?.apg));
    freeu.hidden = family() === "sd3" && !desk.freeu; // it has no UNet
    freeu.set(desk.freeu ? (desk.freeu.strength ?? 1) : 0);
  };
  return element;
}
