// A control's strength over the steps: points on a line, moved with the mouse or the arrow keys, or written as a text.

import { button, h } from "./dom.js";
import { t } from "./i18n.js";

const SVG = "http://www.w3.org/2000/svg";
const [WIDTH, HEIGHT, MARGIN, MOST] = [300, 100, 8, 2];
const MAX_POINTS = 64;
const LARGEST = 4; // of what a curve may say
const PRESETS = [["Fading out", "1@0,0@1"], ["Fading in", "0@0,1@1"], ["At first only", "1@0.5,0@0.5"]];

/** Return the points [share, value] of a text such as 0.2@0.1,0.5@0.3, or null where it is none. */
export function readCurve(text) {
  if (!text.trim()) return [];
  const points = text.split(",").map((part) => /^\s*(\d+(?:\.\d*)?|\.\d+)\s*@\s*(\d+(?:\.\d*)?|\.\d+)\s*$/.exec(part));
  if (points.some((found) => !found) || points.length > MAX_POINTS) return null;
  const read = points.map((found) => [Number(found[2]), Number(found[1])]);
  const fine = read.every(([share, value], n) => share <= 1 && value <= LARGEST && (!n || share >= read[n - 1][0]));
  return fine ? read : null;
}

function written(points) {
  return points.map(([share, value]) => `${Number(value.toFixed(2))}@${Number(share.toFixed(2))}`).join(",");
}

function svg(name, attributes) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

const placeX = (share) => MARGIN + share * (WIDTH - 2 * MARGIN);
const placeY = (value) => HEIGHT - MARGIN - (Math.min(value, MOST) / MOST) * (HEIGHT - 2 * MARGIN);

/** Return the editor of a curve. `value`: its text; `change(text)`. */
export function stepsField({ value, change }) {
  let points = readCurve(value) ?? [];
  const drawing = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, class: "steps-curve", role: "group" });
  drawing.setAttribute("aria-label", t("Strength over the steps"));
  const text = h("input", { value, "aria-label": t("Strength over the steps, as a text"), placeholder: "0.2@0.1,0.5@0.3", spellcheck: "false" });
  const wrong = h("p", { class: "note bad", hidden: true }, t("A curve is written as value@share, as in 0.2@0.1,0.5@0.3; shares from 0 to 1, in order."));

  const told = (keep = null) => {
    text.value = written(points);
    wrong.hidden = true;
    show(keep);
    change(text.value);
  };
  /** Move a point between its neighbours. */
  const move = (n, share, strength) => {
    const [before, after] = [points[n - 1]?.[0] ?? 0, points[n + 1]?.[0] ?? 1];
    points[n] = [Math.min(after, Math.max(before, share)), Math.min(MOST, Math.max(0, strength))];
    told(n);
  };
  const drop = (n) => {
    points.splice(n, 1);
    told(Math.min(n, points.length - 1));
  };
  const at = (event) => {
    const box = drawing.getBoundingClientRect();
    const [x, y] = [((event.clientX - box.left) / box.width) * WIDTH, ((event.clientY - box.top) / box.height) * HEIGHT];
    const share = (x - MARGIN) / (WIDTH - 2 * MARGIN);
    return [Math.min(1, Math.max(0, share)), Math.min(MOST, Math.max(0, ((HEIGHT - MARGIN - y) / (HEIGHT - 2 * MARGIN)) * MOST))];
  };
  const drag = (n, { pointerId }) => {
    const follow = (event) => event.pointerId === pointerId && move(n, ...at(event));
    const end = (event) => {
      if (event.pointerId !== pointerId) return;
      window.removeEventListener("pointermove", follow);
      for (const name of ["pointerup", "pointercancel"]) window.removeEventListener(name, end);
    };
    window.addEventListener("pointermove", follow);
    for (const name of ["pointerup", "pointercancel"]) window.addEventListener(name, end);
  };
  const keys = (n) => (event) => {
    const by = { ArrowLeft: [-0.05, 0], ArrowRight: [0.05, 0], ArrowUp: [0, 0.05], ArrowDown: [0, -0.05] }[event.key];
    if (by) move(n, points[n][0] + by[0], points[n][1] + by[1]);
    else if (event.key === "Delete" || event.key === "Backspace") drop(n);
    else return;
    event.preventDefault();
  };
  const dot = ([share, strength], n) => {
    const circle = svg("circle", {
      cx: placeX(share), cy: placeY(strength), r: 6, tabindex: 0, role: "slider", "aria-valuemin": 0, "aria-valuemax": MOST, "aria-valuenow": strength,
      "aria-label": t("Point {n}: strength {value} at {share} of the steps", { n: n + 1, value: Number(strength.toFixed(2)), share: Number(share.toFixed(2)) }),
    });
    circle.addEventListener("keydown", keys(n));
    circle.addEventListener("dblclick", () => drop(n));
    circle.addEventListener("pointerdown", (event) => {
      event.preventDefault();
      event.stopPropagation();
      circle.focus({ preventScroll: true }); // Delete is of this one
      drag(n, event);
    });
    return circle;
  };
  const show = (focused = null) => {
    const all = points.length ? [[0, points[0][1]], ...points, [1, points.at(-1)[1]]] : [[0, 1], [1, 1]];
    const line = svg("polyline", { points: all.map(([share, strength]) => `${placeX(share)},${placeY(strength)}`).join(" "), class: points.length ? "" : "plain" });
    const middle = svg("line", { x1: MARGIN, x2: WIDTH - MARGIN, y1: placeY(1), y2: placeY(1), class: "one" });
    drawing.replaceChildren(middle, line, ...points.map(dot));
    if (focused !== null) drawing.querySelectorAll("circle")[focused]?.focus({ preventScroll: true });
  };
  drawing.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || points.length >= MAX_POINTS) return;
    event.preventDefault();
    const place = at(event);
    const n = points.filter(([share]) => share <= place[0]).length;
    points.splice(n, 0, place);
    told(n);
    drag(n, event);
  });
  text.onchange = () => {
    const read = readCurve(text.value);
    wrong.hidden = read !== null;
    if (read === null) return;
    points = read;
    show();
    change(text.value.trim());
  };
  text.onkeydown = (event) => {
    if (event.key !== "Enter" || event.ctrlKey || event.metaKey) return;
    event.preventDefault(); // the form is not sent by it
    text.onchange();
  };
  const presets = PRESETS.map(([name, curve]) => button(t(name), { class: "small", onclick: () => { points = readCurve(curve); told(); } }));
  const element = h("div", { class: "field" }, h("span", { class: "label" }, t("Strength over the steps")), drawing, text, wrong,
    h("div", { class: "row wrap" }, presets, button("", { class: "bare", label: t("The same strength throughout"), onclick: () => { points = []; told(); } }, "trash")),
    h("p", { class: "help" }, t("Click to set a point, drag it, press Delete to take it away. It multiplies the strength above.")));
  show();
  return element;
}
