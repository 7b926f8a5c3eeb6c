// A second pass: the drawn picture is made larger, and drawn over at the new size.

import { fill, h } from "./dom.js";
import { choice, slider, toggle } from "./fields.js";
import { t } from "./i18n.js";

const LATENT = "Latent"; // the numbers of the picture themselves are made larger
const FIRST = { scale: 2, denoise: 0.7, upscaler: LATENT };

/** Return the ways to enlarge a picture: those that are always there, and the files of the library. */
export function upscalersOf(house) {
  return ["Lanczos", "Nearest", ...house.files.filter((file) => file.kind === "upscaler").map((file) => file.name)];
}

/** Return the switch of the second pass and its fields. `refresh()`: the desk holds another one. */
export function hiresFields({ desk, house, changed }) {
  const fields = h("div", { class: "stack" });
  let last = FIRST;
  const set = (name) => (value) => {
    desk.hires = { ...desk.hires, [name]: value, ...(name === "scale" && { width: null, height: null }) };
    changed();
  };
  const show = () => {
    if (!desk.hires) return fill(fields);
    const { scale, denoise, upscaler } = { ...FIRST, ...desk.hires };
    return fill(fields,
      slider(t("How many times larger"), { value: scale, min: 1, max: 4, step: 0.25, change: set("scale") }),
      slider(t("How much is drawn anew"), { value: denoise, min: 0, max: 1, step: 0.05, change: set("denoise") }),
      choice(t("Upscaler"), { value: upscaler, options: [LATENT, ...upscalersOf(house)].map((name) => [name, name]), change: set("upscaler") }));
  };
  const onOff = toggle(t("Larger, in a second pass"), { value: false, change: (value) => {
    last = desk.hires ?? last;
    desk.hires = value ? last : null;
    show();
    changed();
  } });
  const element = h("div", { class: "stack" }, onOff, fields);
  element.refresh = () => {
    onOff.set(Boolean(desk.hires));
    show();
  };
  return element;
}
