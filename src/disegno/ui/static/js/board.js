// The drawing board: pen, eraser, line, box and filling on layers, with undo. The drawing is made at a multiple of the
// picture's size, so that lines are smooth.

import { append, button, h, refill } from "./dom.js";
import { choice } from "./fields.js";
import { t } from "./i18n.js";
import { inksOf } from "./inks.js";
import { drawing, floodFill, liftPatch } from "./layers.js";
import { chooseFile, loadImage, readPicture } from "./source.js";

const MANY_INKS = 40; // more of them are a list
const TOOLS = [
  ["pen", "Pen", "b"], ["eraser", "Eraser", "e"], ["line", "Line", "l"], ["box", "Box", "r"], ["fill", "Fill", "g"], ["move", "Move", "m"],
];

/**
 * Return a board. `width`, `height`: the picture's; `image`: a drawing to go on with, which is cut where it has another
 * shape and `cut` says so; `guide`: a picture to trace; `changed()`: after each stroke. It has `element`, `uri()` (the drawing as a PNG data URI) and `addGuide(image)`.
 */
export function board({ width, height, annotator, image = null, cut = false, guide = null, changed = () => {}, mask = false }) {
  const scale = Math.max(1, Math.min(4, Math.round(512 / Math.min(width, height))));
  const inks = mask ? { ground: null, inks: [["", "#ffffff"]], pen: 14 } : inksOf(annotator);
  const sheet = drawing(width * scale, height * scale, inks.ground, inks.crisp);
  const unit = (scale * Math.min(width, height)) / 128;
  const state = { tool: inks.tool ?? "pen", colour: inks.inks[0][1], size: Math.max(1, Math.round(inks.pen * unit)), layer: null };

  if (guide) sheet.add(t("Picture"), { guide: true, image: guide }).shown = mask || !image;
  state.layer = sheet.add(t("Drawing"), { image, cut });
  if (image && !mask) state.layer = sheet.add(t("Strokes"));

  const view = h("canvas", { width: sheet.width, height: sheet.height, tabindex: "0", "aria-label": t("Drawing board") });
  const context = view.getContext("2d");
  const frame = h("div", { class: "board-frame" }, view);
  const tools = h("div", { class: "tools", role: "toolbar", "aria-label": t("Tools") });
  const swatches = h("div", { class: "swatches", role: "group", "aria-label": t("Colours") });
  const layerList = h("div", { class: "layers" });
  let overlay = null; // a line or a box that is being drawn

  const render = () => {
    sheet.paint(context, true);
    if (mask) tint(context, sheet);
    if (overlay) overlay(context);
  };
  const done = () => {
    render();
    showTools();
    changed();
  };

  // ---- drawing

  const place = (event) => {
    const box = view.getBoundingClientRect();
    return [((event.clientX - box.left) / box.width) * sheet.width, ((event.clientY - box.top) / box.height) * sheet.height];
  };
  const inked = (on, pressure = 1) => {
    on.globalCompositeOperation = state.tool === "eraser" ? "destination-out" : "source-over";
    on.strokeStyle = on.fillStyle = state.colour;
    on.lineCap = on.lineJoin = "round";
    on.lineWidth = Math.max(1, state.size * pressure);
  };
  const segment = (on, [x0, y0], [x1, y1], pressure) => {
    on.save();
    inked(on, pressure);
    on.beginPath();
    on.moveTo(x0, y0);
    on.lineTo(x1 + 0.01, y1);
    on.stroke();
    on.restore();
  };
  const shape = (on, from, to) => {
    if (state.tool === "line") return segment(on, from, to);
    on.save();
    inked(on);
    on.fillRect(Math.min(from[0], to[0]), Math.min(from[1], to[1]), Math.abs(to[0] - from[0]), Math.abs(to[1] - from[1]));
    on.restore();
    return undefined;
  };
  const strokeFrom = (event) => {
    let last = place(event);
    const from = last;
    const target = state.layer.context;
    const free = state.tool === "pen" || state.tool === "eraser";
    const pressed = (each) => (each.pointerType === "pen" && each.pressure ? 0.4 + 1.2 * each.pressure : 1);
    const move = (each) => {
      if (each.pointerId !== event.pointerId) return;
      for (const point of each.getCoalescedEvents?.() ?? [each]) {
        if (free) segment(target, last, place(point), pressed(point));
        last = place(point);
      }
      if (!free) overlay = (on) => shape(on, from, last);
      render();
    };
    const up = (each) => {
      if (each.pointerId !== event.pointerId) return;
      view.removeEventListener("pointermove", move);
      view.removeEventListener("pointerup", up);
      view.removeEventListener("pointercancel", up);
      overlay = null;
      if (!free && each.type === "pointerup") shape(target, from, place(each));
      done();
    };
    if (free) segment(target, last, last, pressed(event));
    render();
    view.addEventListener("pointermove", move);
    view.addEventListener("pointerup", up);
    view.addEventListener("pointercancel", up);
  };
  /** Take the patch of one colour under the pointer along, until it is let go. */
  const carry = (event) => {
    const [x0, y0] = place(event).map(Math.floor);
    const held = liftPatch(sheet, x0, y0, sheet.remember);
    if (!held) return;
    let by = [0, 0];
    const move = (each) => {
      if (each.pointerId !== event.pointerId) return;
      const [x, y] = place(each).map(Math.floor);
      by = [x - x0, y - y0];
      overlay = (on) => on.drawImage(held.patch, ...by);
      render();
    };
    const up = (each) => {
      if (each.pointerId !== event.pointerId) return;
      view.removeEventListener("pointermove", move);
      view.removeEventListener("pointerup", up);
      view.removeEventListener("pointercancel", up);
      overlay = null;
      held.layer.context.drawImage(held.patch, ...by);
      done();
    };
    move(event);
    view.setPointerCapture(event.pointerId);
    view.addEventListener("pointermove", move);
    view.addEventListener("pointerup", up);
    view.addEventListener("pointercancel", up);
  };
  view.onpointerdown = (event) => {
    if (event.button !== 0 || !event.isPrimary) return; // a second finger, or the palm beside the pen
    event.preventDefault();
    view.focus({ preventScroll: true });
    if (state.tool === "move") return carry(event);
    sheet.remember(state.layer);
    if (!state.layer.shown) {
      state.layer.shown = true;
      showLayers();
    }
    if (state.tool !== "fill") {
      view.setPointerCapture(event.pointerId);
      return strokeFrom(event);
    }
    const [x, y] = place(event).map(Math.floor);
    sheet.paint(context, false);
    floodFill(context.getImageData(0, 0, sheet.width, sheet.height), state.layer, x, y, state.colour);
    return done();
  };

  // ---- the tools

  const pick = (tool) => {
    state.tool = tool;
    showTools();
  };
  const size = h("input", { type: "range", min: 1, max: Math.round(40 * unit), step: 1, value: state.size, "aria-label": t("Brush size"), title: t("Brush size") });
  const showSize = () => size.style.setProperty("--at", `${((size.value - 1) / (size.max - 1)) * 100}%`);
  size.oninput = () => {
    state.size = Number(size.value);
    showSize();
  };
  const stepped = () => {
    if (!sheet.layers.includes(state.layer)) state.layer = sheet.layers.filter((each) => !each.guide).at(-1);
    showLayers();
    done();
  };
  const undo = () => sheet.undo() && stepped();
  const redo = () => sheet.redo() && stepped();
  const clear = () => {
    sheet.remember(state.layer);
    state.layer.context.clearRect(0, 0, sheet.width, sheet.height);
    done();
  };
  const toolButtons = TOOLS.map(([name, label, key]) => button("", { class: "bare", label: `${t(label)} (${key.toUpperCase()})`, data: { tool: name }, onclick: () => pick(name) }, name));
  const undoButton = button("", { class: "bare", label: t("Undo (Ctrl+Z)"), onclick: undo }, "undo");
  const redoButton = button("", { class: "bare", label: t("Redo (Ctrl+Y)"), onclick: redo }, "redo");
  append(tools, [toolButtons, h("span", { class: "brush-size" }, size), undoButton, redoButton, button("", { class: "bare", label: t("Clear the layer"), onclick: clear }, "trash")]);
  const showTools = () => {
    for (const each of toolButtons) each.setAttribute("aria-pressed", String(each.dataset.tool === state.tool));
    undoButton.disabled = !sheet.canUndo();
    redoButton.disabled = !sheet.canRedo();
    if (document.activeElement?.disabled && tools.contains(document.activeElement)) view.focus({ preventScroll: true });
  };
  const showColour = () => {
    for (const each of swatches.querySelectorAll("button")) each.setAttribute("aria-pressed", String(each.dataset.colour === state.colour));
    swatches.querySelector(".ink")?.style.setProperty("--colour", state.colour);
  };
  const paintWith = (colour) => {
    state.colour = colour;
    if (state.tool === "eraser") pick("pen");
    showColour();
  };
  const swatch = ([name, colour]) => {
    const each = button(name && t(name), { class: name ? "swatch" : "swatch plain", "aria-label": name ? t(name) : colour, data: { colour }, onclick: () => paintWith(colour) });
    each.prepend(h("i", { style: { "--colour": colour } }));
    return each;
  };
  const buildSwatches = () => {
    const [{ length }, options] = [inks.inks, inks.inks.map(([name, colour]) => [colour, t(name)])];
    if (length > MANY_INKS) append(swatches, [h("i", { class: "ink" }), choice(t("Class"), { value: state.colour, options, bare: true, change: paintWith })]);
    else if (length > 1) append(swatches, [inks.inks.map(swatch), inks.free && h("input", { type: "color", value: state.colour, "aria-label": t("Another colour"), oninput: (event) => paintWith(event.target.value) })]);
    showColour();
  };

  // ---- layers

  const guideFromFile = () => chooseFile(async (file) => addGuide(await loadImage((await readPicture(file)).uri)));
  const addGuide = (picture) => {
    const layer = sheet.add(t("Picture"), { guide: true, image: picture });
    sheet.move(layer, 1 - sheet.layers.length);
    showLayers();
    render();
  };
  const layerRow = (layer) => {
    const mine = layer === state.layer;
    const again = (work) => () => { work(); showLayers(); done(); };
    const drop = () => {
      sheet.drop(layer);
      if (mine) state.layer = sheet.layers.filter((each) => !each.guide).at(-1);
    };
    const others = sheet.layers.filter((each) => !each.guide && each !== layer).length;
    return h("div", { class: mine ? "layer active" : "layer", data: { layer: layer.id } },
      button("", { class: "bare", label: layer.shown ? t("Hide {name}", { name: layer.name }) : t("Show {name}", { name: layer.name }), data: { action: "show" }, onclick: again(() => { layer.shown = !layer.shown; }) }, layer.shown ? "eye" : "hidden"),
      button(layer.name, { class: "name", disabled: layer.guide, "aria-pressed": mine ? "true" : null, onclick: () => { state.layer = layer; showLayers(); } }),
      layer.guide && h("span", { class: "tag" }, t("to trace")),
      button("", { class: "bare", label: t("Up"), onclick: again(() => sheet.move(layer, 1)) }, "up"),
      button("", { class: "bare", label: t("Down"), onclick: again(() => sheet.move(layer, -1)) }, "down"),
      button("", { class: "bare", label: t("Remove {name}", { name: layer.name }), disabled: !layer.guide && !others, onclick: again(drop) }, "trash"));
  };
  const showLayers = () => refill(layerList, [...sheet.layers].reverse().map(layerRow),
    h("div", { class: "row wrap" },
      button(t("Layer"), { class: "small", onclick: () => { state.layer = sheet.add(t("Layer {n}", { n: sheet.layers.length })); showLayers(); } }, "plus"),
      button(t("Picture to trace"), { class: "small", onclick: guideFromFile }, "guide")));

  const keys = Object.fromEntries(TOOLS.map(([name, , key]) => [key, name]));
  const element = h("div", { class: "board" }, tools, swatches, frame, mask ? null : layerList);
  element.onkeydown = (event) => {
    const command = event.ctrlKey || event.metaKey;
    if (command && event.key.toLowerCase() === "z") (event.shiftKey ? redo : undo)();
    else if (command && event.key.toLowerCase() === "y") redo();
    else if (command || event.altKey || event.target.matches("select, input")) return;
    else if (event.key in keys) pick(keys[event.key]);
    else if ("[]".includes(event.key)) {
      size.value = state.size = Math.max(1, Math.round(state.size * (event.key === "]" ? 1.25 : 0.8)) + (event.key === "]" ? 1 : 0));
      showSize();
    } else return;
    event.preventDefault();
  };

  showTools();
  buildSwatches();
  showLayers();
  showSize();
  render();
  const exported = () => {
    const canvas = h("canvas", { width: sheet.width, height: sheet.height });
    sheet.paint(canvas.getContext("2d"), false);
    return canvas;
  };
  return { element, addGuide, uri: () => (mask ? maskUri(exported()) : exported().toDataURL("image/png")), isEmpty: () => isEmpty(exported()) };
}

/** Show what is masked in the accent's colour over the picture. */
function tint(context, sheet) {
  const layer = h("canvas", { width: sheet.width, height: sheet.height });
  const on = layer.getContext("2d");
  for (const each of sheet.layers) if (!each.guide) on.drawImage(each.canvas, 0, 0);
  on.globalCompositeOperation = "source-in";
  on.fillStyle = "#d9523a";
  on.fillRect(0, 0, sheet.width, sheet.height);
  context.clearRect(0, 0, sheet.width, sheet.height);
  for (const each of sheet.layers) if (each.guide && each.shown) context.drawImage(each.canvas, 0, 0);
  context.globalAlpha = 0.6;
  context.drawImage(layer, 0, 0);
  context.globalAlpha = 1;
}

/** Return a mask as white on black. */
function maskUri(canvas) {
  const out = h("canvas", { width: canvas.width, height: canvas.height });
  const on = out.getContext("2d");
  on.fillStyle = "#000";
  on.fillRect(0, 0, out.width, out.height);
  on.drawImage(canvas, 0, 0);
  return out.toDataURL("image/png");
}

/** Return whether nothing is painted on a canvas: one that is white all over is no empty mask. */
function isEmpty(canvas) {
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  return new Uint32Array(data.buffer).every((pixel) => pixel === 0);
}
