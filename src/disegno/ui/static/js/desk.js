// A desk: the form on the left, the stage on the right. Two tabs have one: "Draw", and "From pictures".

import { button, fill, h, refill, toast } from "./dom.js";
import { board } from "./board.js";
import { depthCard } from "./depth.js";
import { on, say } from "./bus.js";
import { debounced } from "./dom.js";
import { toggle } from "./fields.js";
import { modelOf, ownOf } from "./house.js";
import { t } from "./i18n.js";
import { all, start } from "./jobs.js";
import { keep, kept, leave } from "./keep.js";
import { seeThrough } from "./layers.js";
import { liveDrawing } from "./live.js";
import { readRecord } from "./png.js";
import { promptCard } from "./prompt.js";
import { regionsCard } from "./regions.js";
import { deskOf, emptyDesk, emptyUnit, requestOf, sizeOf } from "./request.js";
import { settingsCard } from "./settings.js";
import { sheetCard, sheetOf } from "./sheet.js";
import { loadImage, takesPictures } from "./source.js";
import { stage } from "./stage.js";
import { misfit, unitCard } from "./unit.js";

/**
 * Return a desk. `name`: under which it is kept; `hint`: what an empty stage says; `top(tools)`: what comes above the
 * prompt, or null; `toRequest(desk, model)`: { kind, request }; `plain(desk)`: whether the form's other cards are of no use.
 */
export async function makeDesk({ name, house, hint, top = null, toRequest = (desk, model) => ({ kind: "generate", request: requestOf(desk, model) }), plain = () => false, goText = () => t("Draw") }) {
  const desk = { ...emptyDesk(), ...(await kept(name)) };
  const element = h("div", { class: "desk" });
  const form = h("form", { class: "desk-form", autocomplete: "off", novalidate: true, onsubmit: (event) => { event.preventDefault(); go(); } });
  const easels = h("div", { class: "easels" });
  const boardPlace = h("div", { class: "stack", hidden: true });
  const units = h("div", { class: "stack" });
  let cards = [];
  let settings = null;
  let prompt = null;
  let topCard = null;
  let unsaved = false;
  let touched = false; // since the page was loaded
  let goButton = null;
  let boardOf = null; // the card whose drawing is on the board
  let boardSize = ""; // of the picture that it is for

  const saveNow = () => {
    unsaved = false;
    keep(name, { ...desk });
  };
  const soon = debounced(saveNow, 400);
  const save = () => {
    unsaved = touched = true;
    soon();
  };
  const remember = (job) => {
    for (const store of [localStorage, sessionStorage]) store.setItem(`disegno.job.${name}`, job.id); // at once: a reload may come before the rest is kept
    saveNow();
  };
  const model = () => modelOf(house, desk.model);
  const size = () => sizeOf(desk, ownOf(house, desk.model));
  const sizeName = () => Object.values(size()).join("x");
  const changed = () => {
    save();
    live.changed();
  };
  const theStage = stage({ hint, seed: (value) => { desk.seed = value; settings.refresh(); changed(); toast(t("The seed {seed} is kept.", { seed: value })); } });
  const live = liveDrawing({ isOn: () => desk.live, request: () => requestOf(desk, model()), few: () => model()?.few_steps, seed: () => desk.seed, show: (job) => { remember(job); theStage.watch(job); } });

  const go = async () => {
    const pressed = goButton;
    try {
      pressed.setAttribute("aria-busy", "true"); // over a slow connection the answer takes a while
      await Promise.all(cards.filter(({ unit }) => unit.on).map((card) => card.ready())); // not with the drawing before
      const asked = sheetOf(desk, toRequest(desk, model()));
      const job = await start(asked.kind, asked.request);
      remember(job);
      theStage.watch(job);
      if (innerWidth <= 760) theStage.element.scrollIntoView({ behavior: "smooth", block: "center" });
    } catch (error) {
      toast(error.message, "bad");
    } finally {
      pressed.removeAttribute("aria-busy");
    }
  };

  // ---- the drawing board

  const closeBoard = () => {
    boardPlace.hidden = true;
    boardOf = null;
    easels.classList.remove("both");
    fill(boardPlace);
  };
  const showBoard = (title, theBoard, card = null) => {
    boardOf = card;
    fill(boardPlace, h("div", { class: "row spread" }, h("h3", {}, title), button(t("Done"), { class: "small", onclick: closeBoard }, "check")), theBoard.element);
    boardPlace.hidden = false;
    easels.classList.add("both");
    if (innerWidth <= 760) boardPlace.scrollIntoView({ behavior: "smooth" });
  };
  const openBoard = async (card) => {
    fill(boardPlace); // while pictures are read, nothing is drawn on the board that was there
    boardOf = card;
    boardSize = sizeName();
    const { unit } = card;
    const drawnBy = unit.photo && unit.annotate !== "none" ? unit.annotate : null;
    const annotator = drawnBy ?? house.controls.find((each) => each.name === unit.name)?.annotator ?? unit.annotate;
    const image = unit.drawing && (await loadImage(unit.drawing));
    const guide = unit.photo && unit.annotate !== "none" ? await loadImage(unit.photo) : null;
    if (boardOf !== card || boardSize !== sizeName()) return; // meanwhile it was closed, or opened anew
    const theBoard = board({ ...size(), annotator, image, cut: unit.resize === "crop", guide, changed: () => card.drawn(theBoard.uri(), true) });
    showBoard(t("The drawing for “{name}”", { name: unit.name }), theBoard, card);
  };

  const openMask = async ({ title, mask, painted, guide = null }) => {
    fill(boardPlace);
    boardOf = null;
    const theBoard = board({
      ...size(), mask: true, guide: guide && (await loadImage(guide)), image: mask && (await seeThrough(mask)),
      changed: () => painted(theBoard.isEmpty() ? null : theBoard.uri()),
    });
    showBoard(title, theBoard);
  };
  const openRegion = ({ unit, regionPainted }) =>
    openMask({ title: t("Where “{name}” acts", { name: unit.name }), mask: unit.region, painted: regionPainted, guide: unit.photo ?? unit.drawing });

  // ---- the control units

  const addUnit = (unit) => {
    desk.units.push(unit);
    const card = showUnit(unit);
    changed();
    return card;
  };
  const showUnit = (unit) => {
    const card = unitCard({
      unit, size, changed, house: { __proto__: house, model }, openBoard: () => openBoard(card), openRegion: () => openRegion(card), otherControl: closeBoard,
      redrawn: () => boardOf?.unit === unit && openBoard(boardOf),
      drop: () => {
        const at = desk.units.indexOf(unit);
        const back = () => { desk.units.splice(at, 0, unit); build(); changed(); };
        if (unit.drawing) toast(t("The control was removed."), "info", [[t("Undo"), back]]);
        desk.units.splice(at, 1);
        cards = cards.filter((each) => each !== card);
        card.element.remove();
        closeBoard();
        changed();
      },
    });
    cards.push(card);
    units.append(card.element);
    return card;
  };
  const fitting = () => house.controls.find((each) => !misfit(each, model()));
  const newUnit = (controlName = null) => {
    const control = controlName ?? fitting()?.name;
    if (!control) return toast(t("No control fits this model. The library tells which ones there are."), "bad");
    return addUnit(emptyUnit(control));
  };

  // ---- the form

  const build = () => {
    cards = [];
    fill(units);
    closeBoard();
    prompt = promptCard({ desk, changed });
    const sized = () => {
      cards.forEach((card) => card.sized());
      topCard?.sized();
      if (boardOf && boardSize !== sizeName()) openBoard(boardOf); // the drawing is cut to the picture's new shape, as it would be when it is used
    };
    settings = settingsCard({ desk, house, changed, sized, pictures: Boolean(top), modelChanged: () => { cards.forEach((card) => card.offer()); sized(); depth.offer(); prompt.count(); } });
    const depth = depthCard({ desk, house, model, changed, pictures: Boolean(top) });
    topCard = top?.({ desk, changed, size, sized, showBoard, closeBoard, rebuild: build, ownSize: (own) => { Object.assign(desk, own); settings.refresh(); } }) ?? null;
    desk.units.forEach(showUnit);
    sized();
    const controls = h("div", { class: "stack" }, units, button(t("Add a control"), { onclick: () => newUnit() }, "plus"));
    const regions = regionsCard({ desk, changed, openMask, closeBoard });
    const rest = plain(desk) ? [] : [prompt.element, regions, controls, depth.element, settings.element, sheetCard({ desk, changed })];
    const liveSwitch = !top && toggle(t("Live"), { value: desk.live, change: (value) => { desk.live = value; changed(); } });
    if (liveSwitch) liveSwitch.title = t("The picture follows each change, in few steps");
    goButton = h("button", { class: "primary", type: "submit", title: "Ctrl+Enter" }, goText(desk), h("kbd", { "aria-hidden": "true" }, "Ctrl+Enter"));
    refill(form, topCard?.element, rest, h("div", { class: "desk-go" }, goButton, liveSwitch));
  };
  const restore = async (request, seed) => {
    const next = deskOf(request, seed);
    if (next.source) {
      const { naturalWidth: width, naturalHeight: height } = await loadImage(next.source);
      next.sourceSize = { width, height };
    }
    const before = { ...desk };
    const show = (some) => {
      Object.assign(desk, some);
      build();
      save();
    };
    try {
      show({ ...next, live: false });
    } catch (error) { // a record that this program did not write
      show(before);
      throw error;
    }
    toast(t("Everything is as it was when this picture was made."), "good", [[t("Undo"), () => show(before)]]);
  };
  const load = async (file) => {
    const found = await readRecord(await file.arrayBuffer());
    if (!found) return false;
    const { request, from } = found;
    if (from === "A1111" && !modelOf(house, request.model)) request.model = desk.model; // its files are another machine's
    if (from === "disegno" && Boolean(request.init) !== Boolean(top)) say("restore", request, found.seed); // the other tab's
    else await restore(request, found.seed);
    return true;
  };

  on("looked", () => {
    settings.refresh();
    cards.forEach((card) => card.offer());
  });
  window.addEventListener("pagehide", () => {
    if (unsaved) saveNow(); // another tab may have kept more meanwhile
    if (touched) leave(name, { ...desk });
  });
  try {
    build();
  } catch (error) { // the page must open, whatever was kept
    Object.assign(desk, emptyDesk());
    build();
    toast(error.message, "bad");
  }
  append();
  function append() {
    easels.append(boardPlace, theStage.element);
    element.append(form, h("div", { class: "desk-stage" }, easels));
  }
  takesPictures(element, async (file) => {
    if (await load(file)) return;
    if (topCard?.take) topCard.take(file);
    else if (cards.length) cards.at(-1).take(file);
    else newUnit()?.take(file);
  });
  document.addEventListener("keydown", (event) => { // a click beside the form takes the focus out of the desk
    const elsewhere = !element.offsetParent || document.querySelector("dialog[open]") || (!element.contains(event.target) && event.target.closest("a, button"));
    if (elsewhere || event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
    event.preventDefault();
    if (event.target.matches("input")) { // what is typed there counts, as when it is left
      event.target.blur();
      event.target.focus({ preventScroll: true });
    }
    if (!event.repeat) go();
  });
  const resume = () => {
    const last = sessionStorage.getItem(`disegno.job.${name}`) ?? localStorage.getItem(`disegno.job.${name}`);
    const job = all().find((each) => each.id === last);
    if (job) theStage.watch(job);
  };
  return { element, desk, restore, load, newUnit, resume, insert: (text) => prompt.insert(text), useModel: (id) => { Object.assign(desk, { model: id, steps: null, cfg: null }); build(); save(); }, top: () => topCard };
}
