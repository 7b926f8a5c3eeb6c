// Words for parts of the canvas: a box in numbers, or what is painted.

import { button, fill, h, toast } from "./dom.js";
import { weighsWords } from "./emphasis.js";
import { more, numberField, slider } from "./fields.js";
import { t } from "./i18n.js";
import { BASE_WEIGHT, emptyRegion } from "./request.js";

const MOST = 8; // that a server takes

const percent = (share) => Number((share * 100).toFixed(2));

/** Return the four numbers of a box, in percent of the canvas; none of them leads beyond it. */
function boxFields({ region, changed }) {
  const field = (name, label, min, max) => numberField(label, { value: percent(region[name]), min, max, change: (value) => {
    region[name] = (value ?? min) / 100;
    const [start, length] = "xw".includes(name) ? ["x", "w"] : ["y", "h"];
    if (name === start) region[length] = Math.min(region[length], 1 - region[start]);
    else region[length] = value === null ? 1 - region[start] : Math.min(region[length], 1 - region[start]);
    for (const each of [start, length]) fields[each].set(percent(region[each]));
    changed();
  } });
  const fields = {
    x: field("x", t("From the left, %"), 0, 99), w: field("w", t("Width, %"), 1, 100),
    y: field("y", t("From the top, %"), 0, 99), h: field("h", t("Height, %"), 1, 100),
  };
  return h("div", { class: "two" }, Object.values(fields));
}

/** Return the card of a region. `number`: from 1; `paint(card)`: open the board on its mask; `drop()`. */
function regionCard({ region, number, changed, paint, drop }) {
  const label = t("Region {number}", { number });
  const words = h("textarea", { rows: 2, placeholder: t("What shall be drawn there? A green tree"), "aria-label": t("Words of region {number}", { number }), spellcheck: "true", value: region.prompt });
  words.oninput = () => {
    region.prompt = words.value;
    changed();
  };
  weighsWords(words);
  const place = h("div", { class: "stack" });
  const card = { region, number };
  card.painted = (uri) => {
    region.mask = uri;
    show();
    changed();
  };
  const show = () => fill(place,
    !region.mask && boxFields({ region, changed }),
    h("div", { class: "row wrap" },
      button(region.mask ? t("Paint on, where it holds") : t("Paint where it holds"), { class: "small", onclick: () => paint(card) }, "pen"),
      region.mask && h("img", { class: "mini-mask", src: region.mask, alt: t("Where the words hold: white") }),
      region.mask && button("", { class: "bare", label: t("A box again"), onclick: () => card.painted(null) }, "trash")));
  show();
  card.element = h("section", { class: "unit", "aria-label": label },
    h("div", { class: "unit-head row spread" }, h("strong", {}, label), button("", { class: "bare", label: t("Remove region {number}", { number }), onclick: drop }, "close")),
    words, place,
    slider(t("Weight"), { value: region.weight, min: 0.1, max: 4, step: 0.1, help: t("How much the words count there, beside other regions and the prompt."), change: (value) => { region.weight = value; changed(); } }));
  return card;
}

/** Return the card of all regions. `openMask({ title, mask, painted })`: paint a mask on the board; `closeBoard()`. */
export function regionsCard({ desk, changed, openMask, closeBoard }) {
  const list = h("div", { class: "stack" });
  const paint = ({ region, number, painted }) => openMask({ title: t("Where region {number} holds", { number }), mask: region.mask, painted });
  const dropAt = (at) => {
    const [region] = desk.regions.splice(at, 1);
    const back = () => { desk.regions.splice(at, 0, region); show(); changed(); };
    if (region.prompt) toast(t("The region was removed."), "info", [[t("Undo"), back]]);
    closeBoard();
    show();
    changed();
  };
  const base = slider(t("The prompt's weight in regions"), {
    value: desk.baseWeight, min: 0, max: 2, step: 0.05, help: t("How much the prompt counts where regions are. Where none is, it holds alone."),
    change: (value) => { desk.baseWeight = value; changed(); },
  });
  const add = button(t("Add a region"), { onclick: () => {
    desk.regions.push(emptyRegion());
    show();
    changed();
    list.lastElementChild.querySelector("textarea").focus();
  } }, "plus");
  const show = () => {
    fill(list, desk.regions.map((region, at) => regionCard({ region, number: at + 1, changed, paint, drop: () => dropAt(at) }).element));
    base.hidden = !desk.regions.length;
    add.hidden = desk.regions.length >= MOST;
  };
  desk.baseWeight ??= BASE_WEIGHT;
  show();
  return h("div", { class: "card panel" }, more(t("Regions"), Boolean(desk.regions.length),
    h("p", { class: "help" }, t("Words for parts of the picture. The prompt holds everywhere.")), list, base, add));
}
