// A training's loss, as it was told while this browser watched; it outlives a reload.

import { h } from "./dom.js";
import { t } from "./i18n.js";

const MAX_POINTS = 400;
const SVG = "http://www.w3.org/2000/svg";
const points = new Map(); // id of a job -> [[step, loss], ...]

function pointsOf(id) {
  if (!points.has(id)) points.set(id, JSON.parse(sessionStorage.getItem(`disegno.curve.${id}`) ?? "[]"));
  return points.get(id);
}

/** Remember what a job's progress says of its loss. */
export function record(job) {
  const { step, figures } = job.progress ?? {};
  if (job.kind !== "teach" || !Number.isFinite(figures?.loss)) return;
  const some = pointsOf(job.id);
  if (some.length && some.at(-1)[0] >= step) return;
  some.push([step, figures.loss]);
  if (some.length > MAX_POINTS) points.set(job.id, some.filter((_, n) => n % 2 === 0));
  sessionStorage.setItem(`disegno.curve.${job.id}`, JSON.stringify(pointsOf(job.id)));
}

function line(some, [x0, x1], [y0, y1], name) {
  const path = document.createElementNS(SVG, "polyline");
  const place = ([x, y]) => `${(((x - x0) / (x1 - x0 || 1)) * 320).toFixed(1)},${(90 - ((y - y0) / (y1 - y0 || 1)) * 80).toFixed(1)}`;
  path.setAttribute("points", some.map(place).join(" "));
  path.setAttribute("class", name);
  return path;
}

/** Return the losses averaged over their neighbours, since one step's says little. */
function smooth(some) {
  const reach = Math.max(1, Math.round(some.length / 20));
  return some.map(([x], n) => {
    const near = some.slice(Math.max(0, n - reach), n + reach + 1);
    return [x, near.reduce((sum, [, y]) => sum + y, 0) / near.length];
  });
}

/** Return the curve of a job, or null where there is nothing to draw. */
export function curve(job) {
  const looks = (job.result?.facts.looks ?? []).filter((look) => look.loss !== null).map((look) => [look.step, look.loss]);
  const trained = smooth(pointsOf(job.id));
  const both = [...trained, ...looks];
  if (both.length < 2) return null;
  const range = (n) => [Math.min(...both.map((each) => each[n])), Math.max(...both.map((each) => each[n]))];
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 320 100");
  svg.setAttribute("class", "curve");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", t("The loss, from {first} to {last}", { first: both[0][1].toFixed(3), last: both.at(-1)[1].toFixed(3) }));
  if (trained.length > 1) svg.append(line(trained, range(0), range(1), "trained"));
  if (looks.length > 1) svg.append(line(looks, range(0), range(1), "held-out"));
  const legend = h("figcaption", { class: "small-text muted" }, t("Loss {loss} at step {step}", { loss: both.at(-1)[1].toFixed(4), step: both.at(-1)[0] }));
  return h("figure", {}, svg, legend);
}
