// The library: models, controls, LoRAs and the other files, with what their headers say, and what fits what.

import { list, lookAgain } from "./api.js";
import { button, fill, h, toast } from "./dom.js";
import { downloads } from "./download.js";
import { say } from "./bus.js";
import { choice } from "./fields.js";
import { bytes, t } from "./i18n.js";
import { whenDone } from "./jobs.js";
import { fileWork } from "./shelf.js";
import { misfit } from "./unit.js";

const GIVEN = ["lora", "embedding", "vae", "upscaler", "captioner"]; // kinds of files that can be verified and given away
const KINDS = { lora: "LoRAs", embedding: "Embeddings", vae: "VAEs", upscaler: "Upscalers", captioner: "Captioners", unknown: "Unknown", broken: "Broken" };

function card(weights, { why = "", actions = [], kind = null } = {}) {
  const tags = [weights.shipped && t("shipped"), weights.family, weights.mechanism, weights.few_steps && t("few steps"), weights.sees_depth && t("sees depth"), weights.annotator && t("drawn by {name}", { name: weights.annotator })].filter(Boolean);
  const details = [weights.file && weights.file !== weights.name && weights.file, weights.num_bytes && bytes(weights.num_bytes), weights.sha256 && `SHA-256 ${weights.sha256.slice(0, 10)}`].filter(Boolean).join(" · ");
  const work = kind && fileWork(weights, kind);
  return h("article", { class: why ? "card weights wrong" : "card weights" },
    weights.preview && h("img", { class: "preview-picture", src: weights.preview, alt: "", loading: "lazy" }),
    h("div", { class: "row spread" }, h("h3", {}, weights.title ?? weights.name ?? weights.id), h("div", { class: "row" }, actions, work && work.more)),
    h("div", { class: "row wrap" }, tags.map((each) => h("span", { class: "tag" }, each))),
    details && h("p", { class: "small-text muted" }, details),
    why && h("p", { class: "note" }, t("Does not fit: {why}.", { why })),
    weights.problem && h("p", { class: "note bad" }, weights.problem), work && work.place);
}

function part(title, cards) {
  return cards.length ? [h("h3", {}, `${title} `, h("span", { class: "muted" }, String(cards.length))), h("div", { class: "cards" }, cards)] : [];
}

const LOOK_MS = [1500, 3000, 6000, 12_000, 24_000]; // the worker reads the folders between two steps of what it draws, and tells the server

/** Return the tab. */
export function libraryTab(house) {
  const element = h("div");
  const state = { ...house, model: house.models[0]?.id };

  const usable = (weights) => {
    const model = state.models.find((each) => each.id === state.model);
    return weights.problem ? "" : misfit(weights, model);
  };
  const use = (name, what, why) => !why && button(t("Use"), { class: "small", onclick: () => say(what, name) });
  const show = () => {
    const models = state.models.map((each) => card({ ...each, title: each.id === "diorama" ? t("Diorama (built in)") : each.id }, { kind: each.file && "model", actions: [button(t("Use"), { class: "small", onclick: () => say("use model", each.id) })] }));
    const controls = state.controls.map((each) => card(each, { kind: !each.problem && !["reference", "tile-colorfix"].includes(each.mechanism) && "control", why: usable(each), actions: [!each.problem && use(each.name, "use control", usable(each))] }));
    const kinds = Object.entries(KINDS).map(([kind, title]) => {
      const files = state.files.filter((each) => each.kind === kind);
      return part(t(title), files.map((each) => card(each, kind === "lora" ? { kind, why: usable(each), actions: [use(each.name, "use lora", usable(each))] } : { kind: GIVEN.includes(kind) && kind })));
    });
    const others = state.files.filter((each) => !(each.kind in KINDS));
    const model = choice(t("What fits"), { value: state.model, options: state.models.map((each) => [each.id, each.id]), change: (value) => { state.model = value; show(); } });
    fill(element,
      h("div", { class: "toolbar" }, h("h2", {}, t("Library")), state.models.length > 1 && model, button(t("Look again"), { onclick: again }, "refresh")),
      fetching,
      part(t("Models"), models), part(t("Controls"), controls), kinds, part(t("Other files"), others.map((each) => card(each))),
      h("p", { class: "help" }, t("Files are found in the folders of DISEGNO_MODEL_DIRS. What a file is, is read from its header; nothing in it is executed.")));
  };
  let turn = 0;
  const again = async () => {
    turn += 1;
    const mine = turn;
    const lists = () => JSON.stringify([state.models, state.controls, state.files]);
    const before = lists();
    try {
      await lookAgain();
      for (const ms of LOOK_MS) {
        await new Promise((resolve) => setTimeout(resolve, ms));
        if (mine !== turn) return;
        for (const name of ["models", "controls", "files"]) state[name] = await list(name, true);
        if (lists() === before && ms !== LOOK_MS[0]) continue;
        Object.assign(house, { models: state.models, controls: state.controls, files: state.files });
        show();
        say("looked");
        if (lists() !== before) return;
      }
    } catch (error) {
      toast(error.message, "bad");
    }
  };
  const fetching = downloads(again);
  whenDone("teach", again); // what was taught is a file, too
  show();
  return element;
}
