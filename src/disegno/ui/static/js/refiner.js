// A refiner: another model of the same family, which takes over on the way.

import { fill, h } from "./dom.js";
import { choice, slider } from "./fields.js";
import { modelOf } from "./house.js";
import { t } from "./i18n.js";
import { misfit } from "./unit.js";

const FIRST = { at: 0.8 };

/** Return the choice of a refiner, which is there only where the library has one, and when it takes over. `refresh()`: for another model. */
export function refinerFields({ desk, house, changed }) {
  const none = [["", t("none")]];
  const when = h("div");
  const set = (some) => {
    desk.refiner = some;
    changed();
  };
  const model = choice(t("Refiner"), { value: "", options: none, change: (value) => {
    set(value ? { ...(desk.refiner ?? FIRST), model: value } : null);
    showWhen();
  } });
  const showWhen = () => fill(when, desk.refiner && slider(t("It takes over at"), {
    value: desk.refiner.at ?? FIRST.at, min: 0, max: 1, step: 0.05, help: t("How much of the way is done when the refiner goes on with it."),
    change: (value) => set({ ...desk.refiner, at: value }),
  }));
  const element = h("div", { class: "stack" }, model, when);
  element.refresh = () => {
    const own = modelOf(house, desk.model);
    const chosen = desk.refiner?.model ?? "";
    const fits = (each) => each.id === chosen || (each.id !== desk.model && each.family && each.family === own?.family);
    const there = house.models.filter(fits).map((each) => [each.id, each.id, misfit(each, own)]);
    element.hidden = !there.length && !chosen;
    model.offer([...none, ...there], chosen);
    showWhen();
  };
  return element;
}
