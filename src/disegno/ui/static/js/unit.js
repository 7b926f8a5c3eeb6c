// A control unit: which control, what it is shown, how strong, and when.

import { button, fill, h, icon, toast } from "./dom.js";
import { annotatorForm } from "./annotate.js";
import { choice, more, segmented, slider, toggle } from "./fields.js";
import { t } from "./i18n.js";
import { isColourFix, isReference } from "./request.js";
import { stepsField } from "./steps.js";
import { readPicture, sourceButtons, takesPictures } from "./source.js";

/** Return why a control does not fit a model, or "" where it does. */
export function misfit(control, model) {
  if (control.problem) return control.problem;
  if (control.mechanism === "ctrlora-base") return t("a base for conditions, not a condition");
  if (model?.family && control.family && control.family !== model.family) {
    return t("for {family}, and the model is {other}", { family: control.family, other: model.family });
  }
  if (control.mechanism === "reference" && model?.family === "sd3") return t("for models with a UNet");
  return "";
}

function spanFields(unit, changed) {
  const both = h("div", { class: "two" });
  const start = slider(t("From"), { value: unit.start, min: 0, max: 1, step: 0.01, help: t("The share of the steps after which the control begins."), change: (value) => {
    unit.start = Math.min(value, unit.end);
    start.set(unit.start);
    changed();
  } });
  const end = slider(t("To"), { value: unit.end, min: 0, max: 1, step: 0.01, help: t("The share of the steps after which the control stops."), change: (value) => {
    unit.end = Math.max(value, unit.start);
    end.set(unit.end);
    changed();
  } });
  both.append(start, end);
  return both;
}

function fixFields(unit, changed) {
  unit.fix ??= { variation: 8, sharpness: 0 };
  const set = (key) => (value) => { unit.fix[key] = value; changed(); };
  return h("div", { class: "two" },
    slider(t("Variation"), { value: unit.fix.variation, min: 1, max: 64, step: 1, help: t("How far around the colours are averaged, in cells of 8 pixels: what is finer is free."), change: set("variation") }),
    slider(t("Sharpness"), { value: unit.fix.sharpness, min: 0, max: 2, step: 0.05, help: t("How far guidance drives away from blur."), change: set("sharpness") }));
}

function regionFields({ unit, openRegion, changed }) {
  const place = h("div", { class: "row wrap" });
  const show = () => fill(place,
    button(unit.region ? t("Paint on, where it acts") : t("Paint where it acts"), { class: "small", onclick: openRegion }, "pen"),
    unit.region && h("img", { class: "mini-mask", src: unit.region, alt: t("Where the control acts: white") }),
    unit.region && button("", { class: "bare", label: t("It acts everywhere"), onclick: () => set(null) }, "trash"),
    h("span", { class: "small-text muted" }, unit.region ? t("It acts where you painted.") : t("It acts everywhere.")));
  const set = (uri) => {
    unit.region = uri;
    show();
    changed();
  };
  show();
  return { place, set };
}

/**
 * Return the card of a unit. `house`: the lists of the server and the model; `size()`: of the picture; `changed()`;
 * `drop()`; `openBoard()`: draw on this unit's drawing; `openRegion()`: paint where it acts; `otherControl()`: it is
 * another control's from now on; `redrawn()`: its drawing is another one, which was not drawn on the board.
 */
export function unitCard({ unit, house, size, changed, drop, openBoard, openRegion, otherControl, redrawn }) {
  const thumb = button("", { class: "thumb", label: t("Draw on it"), onclick: () => looks() || openBoard() });
  const draw = button(t("Draw"), { class: "small", onclick: openBoard }, "pen");
  const photoForm = h("div");
  const element = h("section", { class: "unit", "aria-label": t("Control") });

  const showThumb = () => fill(thumb, unit.drawing ? h("img", { src: unit.drawing, alt: t("What the control is shown") }) : icon("pen", 26));
  const drawn = (uri, edited = false) => {
    unit.drawing = uri;
    unit.edited = edited;
    showThumb();
    changed();
  };
  /** Take what an annotator drew. What a person drew can be had back. */
  const annotated = (uri, { width, height }) => {
    const { drawing, edited } = unit;
    unit.drawnAt = `${width}x${height}`;
    const take = (some, byHand) => { drawn(some, byHand); redrawn(); };
    take(uri, false);
    if (drawing && edited) toast(t("Your drawing was replaced."), "info", [[t("Undo"), () => take(drawing, true)]]);
  };
  const control = () => house.controls.find((each) => each.name === unit.name);
  /** Whether the control looks at a picture itself: there is no drawing, and it need not fit the canvas. */
  const looks = () => control()?.mechanism === "ip-adapter";
  const taught = () => (unit.annotate === control()?.annotator ? control().params : {});
  const ownAnnotator = () => {
    const own = control()?.annotator;
    return house.annotators.some((each) => each.name === own) ? own : "none";
  };
  let form = null; // of the photo
  const showPhoto = () => {
    fill(photoForm);
    form?.stop(); // what it has yet to draw would come after what is shown from now on
    form = null;
    draw.hidden = looks();
    if (looks() && unit.photo && unit.drawing !== unit.photo) {
      drawn(unit.photo);
      redrawn();
    }
    if (looks() || !unit.photo) return null;
    unit.annotate ??= ownAnnotator();
    form = annotatorForm({ unit, annotators: house.annotators, taught, size, drawn: annotated, changed, busy: (is) => thumb.classList.toggle("busy", is) });
    fill(photoForm, form.element);
    return form;
  };
  /** Let the annotator draw what it has not drawn yet, or anew where the picture has another size now: another part of the photo is seen. */
  const sized = () => {
    const { width, height } = size();
    const isOther = !unit.edited && unit.drawnAt && unit.drawnAt !== `${width}x${height}`;
    if (form && (!unit.drawing || isOther)) form.draw();
  };
  /** Forget what was said of a picture that is no longer shown: its hole, and that it was cut. */
  const forgetPicture = () => {
    for (const name of ["annotate", "mask", "crop"]) delete unit.others?.[name];
  };
  /** Take a photo; `anew`: the control's own annotator draws it, whichever drew the last one. */
  const take = async (file, anew = false) => {
    try {
      const { uri } = await readPicture(file);
      unit.photo = uri;
      forgetPicture();
      const by = anew ? ownAnnotator() : unit.annotate ?? ownAnnotator();
      if (by !== unit.annotate) Object.assign(unit, { annotate: by, params: {} }); // another one's parameters mean nothing to it
      showPhoto()?.draw();
    } catch (error) {
      toast(error.message, "bad");
    }
  };

  const options = () => house.controls.map((each) => [each.name, each.name, misfit(each, house.model())]);
  const select = choice(t("Control"), { value: unit.name, options: options(), bare: true, change: (value) => {
    unit.name = value;
    unit.annotate = unit.photo ? ownAnnotator() : null;
    unit.params = {};
    forgetPicture();
    showPhoto()?.draw();
    showOwn();
    otherControl();
    changed();
  } });
  const onOff = toggle(t("On"), { value: unit.on, hide: true, change: (value) => {
    unit.on = value;
    element.classList.toggle("off", !value);
    changed();
  } });
  const modes = segmented(t("What counts more"), {
    value: unit.mode, options: [["balanced", t("Balanced")], ["prompt", t("Prompt")], ["control", t("Control")]],
    change: (value) => { unit.mode = value; changed(); },
  });
  const region = regionFields({ unit, openRegion, changed });
  const fidelity = slider(t("Style fidelity"), {
    value: unit.fidelity ?? 0.5, min: 0, max: 1, step: 0.05, help: t("Balanced: how far guidance strengthens what the result takes up of the picture."),
    change: (value) => { unit.fidelity = value; changed(); },
  });
  const fix = fixFields(unit, changed);
  const where = more(t("Where"), Boolean(unit.region), region.place);
  const showOwn = () => {
    fidelity.hidden = !isReference(unit.name);
    where.hidden = isReference(unit.name);
    fix.hidden = !isColourFix(unit.name);
    modes.hidden = isColourFix(unit.name);
  };
  const steps = stepsField({ value: unit.curve ?? "", change: (value) => { unit.curve = value; changed(); } });
  element.append(
    h("div", { class: "unit-head" }, onOff, select, button("", { class: "bare", label: t("Remove the control"), onclick: drop }, "close")),
    h("div", { class: "unit-body" }, thumb,
      h("div", { class: "sources" }, draw, sourceButtons((file) => take(file, true)))),
    photoForm,
    slider(t("Strength"), { value: unit.strength, min: 0, max: 2, step: 0.05, change: (value) => { unit.strength = value; changed(); } }),
    fidelity,
    fix,
    more(t("When, and against the prompt"), Boolean(unit.curve), spanFields(unit, changed), steps, modes),
    where);
  element.classList.toggle("off", !unit.on);
  takesPictures(element, (file) => take(file, true));
  showThumb();
  showPhoto();
  showOwn();
  return { element, unit, drawn, take, ready: () => form?.ready(), regionPainted: region.set, sized, offer: () => select.offer(options(), unit.name) };
}
