// A second pass: the drawn picture is made larger, and drawn over at the new size.

import { fill, h } from "./dom.js";
import { becomes, choice, slider, toggle } from "./fields.js";
import { t } from "./i18n.js";

const LATENT = "Latent"; // the numbers of the picture themselves are made larger
const FIRST = { scale: 2, denoise: 0.7, upscaler: LATENT };

/** Return the ways to enlarge a picture: those that are always there, and the files of the library. */
export function upscalersOf(house) {
  return ["Lanczos", "Nearest", ...house.files.filter((file) => file.kind === "upscaler").map((file) => file.name)];
}

/** Return how large the second pass makes a picture: `scale` times, or one or both of its sides; whole cells of 8 pixels. */
function largerSize({ width, height }, { scale, width: wide, height: high }) {
  const sides = wide || high ? [wide || Math.floor((high * width) / height), high || Math.floor((wide * height) / width)] : [width * scale, height * scale];
  const [w, h2] = sides.map((side) => Math.floor(side / 8) * 8);
  return { width: w, height: h2 };
}

/** Return the switch of the second pass and its fields. `size()`: of the first; `refresh()`: the desk holds another one; `sized()`. */
export function hiresFields({ desk, house, changed, size }) {
  const fields = h("div", { class: "stack" });
  const larger = () => largerSize(size(), { ...FIRST, ...desk.hires });
  const line = becomes(larger);
  let last = FIRST;
  const set = (name) => (value) => {
    desk.hires = { ...desk.hires, [name]: value, ...(name === "scale" && { width: null, height: null }) };
    line.show();
    changed();
  };
  const show = () => {
    if (!desk.hires) return fill(fields);
    const { scale, denoise, upscaler, width, height } = { ...FIRST, ...desk.hires };
    const times = width || height ? Number((larger().width / size().width).toFixed(2)) : scale;
    line.show();
    return fill(fields,
      slider(t("How many times larger"), { value: times, min: 1, max: 4, step: 0.25, change: set("scale") }), line,
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
  element.sized = line.show;
  element.refresh = () => {
    onOff.set(Boolean(desk.hires));
    show();
  };
  return element;
}
