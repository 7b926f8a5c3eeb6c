// A drawing from a photo: the annotator's own sliders, and what it draws, at once.

import { dataUri } from "./api.js";
import { debounced, fill, h, toast } from "./dom.js";
import { choice, slider, toggle } from "./fields.js";
import { t } from "./i18n.js";
import { briefly } from "./jobs.js";

const LARGE = 1e6; // a bound beyond which a slider is no use: seeds

function paramField(param, value, change) {
  const label = param.name.replaceAll("_", " ");
  if (param.kind === "bool") return toggle(label, { value: Boolean(value), change });
  if (param.choices.length) return choice(label, { value, options: param.choices.map((each) => [each, each]), change });
  const bounded = param.minimum !== null && param.maximum !== null && param.maximum < LARGE;
  if (bounded) {
    const step = param.kind === "int" ? 1 : param.maximum <= 2 ? 0.01 : 0.1;
    return slider(label, { value: Number(value), min: param.minimum, max: param.maximum, step, help: param.help, change });
  }
  const input = h("input", { value: String(value), "aria-label": label, title: param.help });
  input.onchange = () => change(param.kind === "text" ? input.value : Number(input.value));
  return h("div", { class: "field" }, h("span", { class: "label" }, label), input);
}

/**
 * Return the form of a unit's photo: which annotator, its sliders. `taught()`: the parameters of the drawings that the
 * unit's control was taught with; `size()`: of the picture that is drawn; `drawn(uri, size)`: is told what the annotator drew;
 * `busy(is)`: while it works. Of what it returns, `ready()` is waited for where the drawing is used, and after `stop()` nothing
 * is told any more.
 */
export function annotatorForm({ unit, annotators, taught, size, drawn, busy, changed }) {
  const sliders = h("div", { class: "stack" });
  const help = h("p", { class: "help" });
  let turn = 0;
  let late = false; // something was changed, and is about to be drawn
  let last = null; // the work on the drawing

  const begin = async () => {
    turn += 1;
    late = false;
    const mine = turn;
    const { width, height } = size();
    busy(true);
    try {
      const request = { name: unit.annotate, image: unit.photo, params: { ...taught(), ...unit.params }, width, height, resize: unit.resize };
      const uri = await briefly("annotate", request, (job) => dataUri(job.result.files[0].url));
      if (mine === turn && uri) drawn(uri, { width, height });
    } catch (error) {
      if (mine === turn) toast(error.message, "bad");
    } finally {
      if (mine === turn) busy(false);
    }
  };
  const draw = () => (last = begin());
  const soon = debounced(() => late && draw(), 180);
  const ready = () => (late ? draw() : last);
  const stop = () => {
    turn += 1;
    late = false;
    busy(false);
  };

  const show = () => {
    const card = annotators.find((each) => each.name === unit.annotate);
    help.textContent = card ? card.summary : "";
    fill(sliders, (card?.params ?? []).map((param) =>
      paramField(param, unit.params[param.name] ?? taught()[param.name] ?? param.default, (value) => {
        unit.params = { ...unit.params, [param.name]: value };
        late = true;
        changed();
        soon();
      })));
  };
  const options = [["none", t("as it is")], ...annotators.filter((each) => each.name !== "none").map((each) => [each.name, each.title])];
  const select = choice(t("Drawn by"), { value: unit.annotate, options, change: (value) => {
    unit.annotate = value;
    unit.params = {};
    show();
    changed();
    draw();
  } });
  show();
  return { element: h("div", { class: "stack" }, select, help, sliders), draw, ready, stop };
}
