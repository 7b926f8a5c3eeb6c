// Data sets: sent as a zip, made from pictures, examined before a training; and what a training will take.

import { upload } from "./api.js";
import { button, fill, h, icon, toast } from "./dom.js";
import { choice } from "./fields.js";
import { bytes, seconds, t } from "./i18n.js";
import { briefly, start } from "./jobs.js";
import { chooseFile } from "./source.js";

const COSTS = { pair: "Left out", file: "Not used", nothing: "Noticed" };

/** Return an input for a line of text. */
export function textField(label, { value, placeholder = "", change: changed }) {
  const input = h("input", { value, placeholder, "aria-label": label, autocomplete: "off" });
  input.oninput = () => changed(input.value.trim());
  const element = h("div", { class: "field" }, h("span", { class: "label" }, label), input);
  element.set = (text) => {
    input.value = text;
  };
  return element;
}

function bar(share) {
  return h("div", { class: "bar", role: "progressbar", "aria-valuenow": Math.round(share * 100), "aria-valuemin": 0, "aria-valuemax": 100, "aria-label": t("Progress") },
    h("i", { style: { "--at": `${share * 100}%` } }));
}

// ---- sent as a zip

/** Return the form that sends a zip. `made(name)`: there is a new data set. */
export function sendForm(asked, made) {
  const place = h("div", { class: "stack", role: "status" });
  const name = textField(t("Name of the data set that is sent"), { value: asked.name, placeholder: "my-pairs", change: (value) => { asked.name = value; } });
  const send = async (file) => {
    if (!asked.name) {
      asked.name = file.name.replace(/\.zip$/i, "").replace(/[^\w.+-]+/g, "-").replace(/^[^\w]+/, "").slice(0, 60);
      name.set(asked.name);
    }
    try {
      fill(place, bar(0));
      const id = await upload(file, (share) => fill(place, bar(share), h("span", { class: "small-text muted" }, t("Sending {name}, {size}", { name: file.name, size: bytes(file.size) }))));
      fill(place, h("div", { class: "bar waiting" }, h("i")), h("span", { class: "small-text muted" }, t("Unpacking")));
      await briefly("unpack", { upload: id, name: asked.name }, (job) => {
        fill(place, h("p", { class: "note" }, t("{n} files are there as “{name}”.", { n: job.result.facts.files, name: job.result.facts.name })), job.result.warnings.map((each) => h("p", { class: "note" }, each)));
        made(job.result.facts.name);
      });
    } catch (error) {
      fill(place);
      toast(error.message, "bad");
    }
  };
  return [
    h("p", { class: "help" }, t("A zip of a folder: pictures with NAME.txt beside them; or pairs, as two folders of equal names (image, condition), or as a prompt.json.")),
    name, button(t("Send a zip"), { onclick: () => chooseFile(send, ".zip,application/zip") }, "up"), place,
  ];
}

// ---- made from pictures

/** Return the form that makes pairs. `made(job)`. */
export function makeForm(house, names, asked, made) {
  if (!names.includes(asked.pictures)) asked.pictures = names[0];
  const options = house.annotators.filter((each) => each.name !== "none").map((each) => [each.name, each.title]);
  const go = async () => {
    const request = { name: asked.name, pictures: asked.pictures, annotator: asked.annotator };
    if (asked.caption) request.caption = asked.caption;
    try {
      made(await start("dataset", request));
    } catch (error) {
      toast(error.message, "bad");
    }
  };
  return [
    h("p", { class: "help" }, t("An annotator draws the condition of every picture. Captions lie beside the pictures, as NAME.txt.")),
    choice(t("Folder of pictures"), { value: asked.pictures, options: names.map((name) => [name, name]), change: (value) => { asked.pictures = value; } }),
    choice(t("Drawn by"), { value: asked.annotator, options, change: (value) => { asked.annotator = value; } }),
    textField(t("Caption of those without one"), { value: asked.caption, change: (value) => { asked.caption = value; } }),
    textField(t("Name of the new data set"), { value: asked.name, placeholder: "pairs-canny", change: (value) => { asked.name = value; } }),
    button(t("Make the pairs"), { onclick: go }, "plus"),
  ];
}

// ---- examined

function problem({ cost, title, advice, count, some }) {
  return h("details", { class: "more" }, h("summary", {}, h("span", { class: cost === "pair" ? "tag bad" : "tag" }, `${t(COSTS[cost])} ${count}`), " ", t(title)),
    h("div", {}, h("p", { class: "help" }, t(advice)), some.map((line) => h("p", { class: "small-text muted ellipsis", title: line }, line))));
}

function report({ usable, left_out: lost, paired, captioned, canvases, kinds }, recipe) {
  return h("div", { class: "stack report" },
    h("p", {}, h("span", { class: usable ? "tag good" : "tag bad" }, t("{n} can be used", { n: usable })), " ", lost > 0 && h("span", { class: "tag bad" }, t("{n} cannot", { n: lost }))),
    usable > 0 && !paired && recipe !== "lora" && h("p", { class: "note" }, t("There are no conditions yet: make pairs from these pictures.")),
    usable > 0 && !captioned && h("p", { class: "note" }, t("There are no captions: it will be taught without words.")),
    h("p", { class: "small-text muted" }, t("Canvases: {sizes}", { sizes: Object.entries(canvases).map(([size, n]) => `${size} (${n})`).join(", ") || "–" })),
    kinds.map(problem));
}

/** Ask a short question, show in `place` that it is worked on, and then what `told(job)` makes of its answer. */
async function answered(place, kind, request, told) {
  fill(place, h("div", { class: "bar waiting", role: "progressbar", "aria-label": t("Progress") }, h("i")));
  try {
    fill(place, await briefly(kind, request, told));
  } catch (error) {
    fill(place, h("p", { class: "note bad" }, error.message));
  }
}

/** Show the doctor's report of a data set in `place`. `side`: of the training's canvas; `recipe`: a style wants no conditions. */
export function examine(place, { data, side, recipe }) {
  return answered(place, "check", { data, width: side, height: side }, (job) => report(job.result.facts, recipe));
}

// ---- what a training will take

function cost({ total, available, fits, seconds: one, seconds_in_all: whole, steps, words }) {
  if (!fits) return h("p", { class: "note bad" }, words);
  const share = available ? Math.min(1, total / available) : 0;
  return h("div", { class: "stack report" },
    h("p", {}, icon("check", 16), " ", available ? t("{size} of memory, of {free} that are free", { size: bytes(total), free: bytes(available) }) : t("{size} of memory", { size: bytes(total) })),
    available ? bar(share) : null,
    whole !== null && h("p", {}, t("About {time} for {steps} steps of {one}, looks aside", { time: seconds(whole), steps, one: seconds(one) })));
}

/** Show what a training will take in `place`. */
export function estimate(place, training) {
  return answered(place, "estimate", { training }, (job) => [cost(job.result.facts), job.result.warnings.map((each) => h("p", { class: "note" }, each))].flat());
}
