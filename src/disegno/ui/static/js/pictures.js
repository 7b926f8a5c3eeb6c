// "From pictures": change a picture, paint over a part of it, extend it, or enlarge it.

import { button, fill, h, toast } from "./dom.js";
import { board } from "./board.js";
import { makeDesk } from "./desk.js";
import { becomes, choice, numberField, segmented, slider, toggle } from "./fields.js";
import { upscalersOf } from "./hires.js";
import { ownOf } from "./house.js";
import { t } from "./i18n.js";
import { briefly } from "./jobs.js";
import { seeThrough } from "./layers.js";
import { keptSize, requestOf, sizeOf } from "./request.js";
import { loadImage, readPicture, sourceButtons, takesPictures } from "./source.js";

const WAYS = [["change", "Change"], ["paint", "Paint over"], ["extend", "Extend"], ["enlarge", "Enlarge"]];
const HELP = {
  change: "The whole picture is drawn anew, from itself.",
  paint: "What you paint over is drawn anew; the rest stays.",
  extend: "The picture grows; what lies around it is drawn.",
  enlarge: "The picture becomes larger. Nothing is invented but what the upscaler invents.",
};
const SIDES = [["left", "Left"], ["right", "Right"], ["top", "Top"], ["bottom", "Bottom"]];
const ANEW = { mask: null, grow: 1, inner: null, initOthers: {} }; // of another picture nothing is known

function needSource(desk) {
  if (!desk.source) throw new Error(t("Give a picture first: upload one, paste one, or send one from the gallery."));
}

const OF_A_MASK = ["mask", "invert", "mask_mode", "mask_blur_y", "padding", "mask_weight", "fill"];

/** Return what the form does not show of a picture that is changed, without what would be said of a mask that is not there. */
function othersOf({ initOthers, way }) {
  const not = way === "change" ? OF_A_MASK : way === "extend" && !initOthers.mask ? ["invert"] : [];
  return Object.fromEntries(Object.entries(initOthers).filter(([name]) => !not.includes(name)));
}

function initOf(desk) {
  const { source: image, denoise, repaint, grow, blur: mask_blur, fill: start, only: only_masked, mask, extend } = desk;
  const others = othersOf(desk);
  if (desk.way === "change") return { ...others, image, denoise };
  if (desk.way === "paint") {
    if (!mask) throw new Error(t("Paint over what shall be drawn anew first."));
    return { ...others, image, denoise: repaint, mask, mask_blur, fill: start, only_masked };
  }
  if (!Object.values(extend).some(Boolean)) throw new Error(t("Say first to which side the picture shall grow."));
  return { ...others, image, denoise: grow, mask_blur, outpaint: extend };
}

/** Return what the tab asks the server for. `own`: the model's size. Throws an Error that says what is missing. */
function toRequest(desk, model, own) {
  needSource(desk);
  if (desk.way === "enlarge") {
    return { kind: "upscale", request: { image: desk.source, ...enlargedSize(desk), upscaler: desk.upscaler } };
  }
  const size = model?.defaults || desk.way === "extend" ? sizeOf(desk, own) : {}; // else the server knows better what the model draws
  return { kind: "generate", request: { ...requestOf(desk, model), init: initOf(desk), ...size } };
}

function enlargedSize({ sourceSize, factor }) {
  return { width: Math.round(sourceSize.width * factor), height: Math.round(sourceSize.height * factor) };
}

// ---- what each way is asked for

function paintFields({ desk, changed, paint }) {
  return [
    button(desk.mask ? t("Go on painting") : t("Paint over a part"), { onclick: paint }, "pen"),
    slider(t("How much is drawn anew"), { value: desk.repaint, min: 0.05, max: 1, step: 0.05, change: (value) => { desk.repaint = value; changed(); } }),
    slider(t("Soft edge"), { value: desk.blur, min: 0, max: 64, step: 1, help: t("In pixels"), change: (value) => { desk.blur = value; delete desk.initOthers.mask_blur_y; changed(); } }),
    choice(t("It starts from"), {
      value: desk.fill, change: (value) => { desk.fill = value; changed(); },
      options: [["original", t("what is there")], ["fill", t("the colours around it")], ["noise", t("noise")], ["nothing", t("nothing")]],
    }),
    toggle(t("Draw only this part, at the full size"), { value: desk.only, change: (value) => { desk.only = value; changed(); } }),
  ];
}

function extendFields({ desk, changed, size: drawnSize, sized }) {
  const field = ([side, text]) => numberField(t(text), { value: desk.extend[side], min: 0, max: 1024, step: 8, placeholder: "0", change: (value) => {
    desk.extend = { ...desk.extend, [side]: value ?? 0 };
    changed();
    sized();
  } });
  const size = becomes(drawnSize);
  return [h("div", { class: "two" }, SIDES.map(field)), h("p", { class: "help" }, t("In pixels, multiples of 8.")), size,
    slider(t("How much is drawn anew"), { value: desk.grow, min: 0.05, max: 1, step: 0.05, change: (value) => { desk.grow = value; changed(); } })];
}

function enlargeFields({ desk, changed, upscalers }) {
  const size = becomes(() => enlargedSize(desk));
  return [
    slider(t("How many times larger"), { value: desk.factor, min: 1, max: 4, step: 0.5, change: (value) => { desk.factor = value; changed(); size.show(); } }), size,
    choice(t("Upscaler"), { value: desk.upscaler, options: upscalers.map((name) => [name, name]), change: (value) => { desk.upscaler = value; changed(); } }),
  ];
}

function changeFields({ desk, changed }) {
  return [slider(t("How much is drawn anew"), { value: desk.denoise, min: 0.05, max: 1, step: 0.05, help: t("0 leaves the picture as it is, 1 keeps nothing."), change: (value) => { desk.denoise = value; changed(); } })];
}

const FIELDS = { change: changeFields, paint: paintFields, extend: extendFields, enlarge: enlargeFields };

// ---- the card

function sourceCard(house) {
  return ({ desk, changed, size, sized, showBoard, closeBoard, rebuild, ownSize }) => {
    const place = h("div");
    const element = h("div", { class: "card panel" });

    /** Let what was painted over a picture be had back, when that is another one or none. */
    const canUndo = () => {
      const { source, sourceSize, way, mask, grow, inner, initOthers, width, height } = desk;
      const back = () => {
        Object.assign(desk, { source, sourceSize, way, mask, grow, inner, initOthers, width, height });
        rebuild();
        changed();
      };
      if (mask) toast(t("What was painted over is gone."), "info", [[t("Undo"), back]]);
    };
    /** Take a picture; `keeps`: it is drawn at its own size, and not at what the model draws best. */
    const give = async (uri, way = desk.way, keeps = false) => {
      const image = await loadImage(uri);
      canUndo();
      Object.assign(desk, { source: uri, sourceSize: { width: image.naturalWidth, height: image.naturalHeight }, way }, ANEW);
      ownSize(keeps ? keptSize(desk.sourceSize) : { width: null, height: null });
      rebuild();
      changed();
    };
    const take = (file) => readPicture(file).then(({ uri }) => give(uri)).catch((error) => toast(error.message, "bad"));
    const paint = async () => {
      const picture = await loadImage(desk.source);
      const theBoard = board({
        ...keptSize(desk.sourceSize), mask: true, guide: picture, image: desk.mask && (await seeThrough(desk.mask, desk.initOthers.invert)),
        changed: () => {
          desk.mask = theBoard.isEmpty() ? null : theBoard.uri();
          delete desk.initOthers.invert; // the board shows what is drawn anew in white
          changed();
        },
      });
      showBoard(t("Paint over what shall be drawn anew"), theBoard);
    };
    const describe = async ({ currentTarget }) => {
      const { source, prompt } = desk;
      const said = (text) => { desk.prompt = text; changed(); rebuild(); };
      currentTarget.disabled = true;
      try {
        const words = await briefly("caption", { image: source }, (job) => job.result.facts.caption);
        if (words === null || desk.source !== source) return;
        said(words);
        if (prompt.trim() && prompt !== words) toast(t("The prompt is what the picture shows."), "info", [[t("Undo"), () => said(prompt)]]);
      } catch (error) {
        toast(error.message, "bad");
      } finally {
        currentTarget.disabled = false;
      }
    };
    const showPlace = () => {
      if (!desk.source) {
        return fill(place, h("div", { class: "drop" }, h("p", {}, t("Drop a picture here, or")), h("div", { class: "row wrap" }, sourceButtons(take))));
      }
      const drop = () => { canUndo(); Object.assign(desk, { source: null }, ANEW); changed(); rebuild(); };
      return fill(place, h("div", { class: "unit-body" },
        h("div", { class: "thumb" }, h("img", { src: desk.source, alt: t("The picture that is changed") })),
        h("div", { class: "sources" }, sourceButtons(take),
          house.files.some((each) => each.kind === "captioner") && button(t("Describe"), { class: "small", title: t("Say what it shows, as the prompt"), onclick: describe }, "eye"),
          button(t("Remove"), { class: "small", onclick: drop }, "trash"))));
    };
    const ways = segmented(t("What to do"), { value: desk.way, options: WAYS.map(([name, text]) => [name, t(text)]), change: (value) => {
      desk.way = value;
      closeBoard();
      changed();
      rebuild();
    } });
    const fields = desk.source ? FIELDS[desk.way]({ desk, changed, size, sized, paint, upscalers: upscalersOf(house) }) : [];
    append();
    function append() {
      fill(element, ways, h("p", { class: "help" }, t(HELP[desk.way])), place, fields);
      showPlace();
    }
    takesPictures(place, take);
    const line = fields.find((each) => each.show); // that says how large the picture becomes
    return { element, take, give, sized: () => line?.show() };
  };
}

/** Return the tab's desk. */
export function picturesTab(house) {
  return makeDesk({
    name: "pictures", house, top: sourceCard(house), toRequest: (desk, model) => toRequest(desk, model, ownOf(house, desk.model)),
    hint: t("Give a picture, say what to do with it, and describe what shall be seen."),
    plain: (desk) => desk.way === "enlarge",
    goText: (desk) => t({ change: "Change it", paint: "Paint over", extend: "Extend", enlarge: "Enlarge" }[desk.way]),
  });
}
