// Models by address: fetched into the server's model folder, seen on their way, and used when they are there.

import { get, list } from "./api.js";
import { button, fill, h, isPressed, refill, toast } from "./dom.js";
import { say } from "./bus.js";
import { textField } from "./dataset.js";
import { more, toggle } from "./fields.js";
import { bytes, t } from "./i18n.js";
import { all, change, ENDED, remove, start, subscribe, whenDone } from "./jobs.js";
import { progressBar } from "./stage.js";

const MIB = 2 ** 20;
const USES = { model: ["models", "use model", "id"], control: ["controls", "use control", "name"], lora: ["files", "use lora", "name"] };

function wordsOf({ state, progress }) {
  if (state === "queued") return t("Waiting for its turn");
  if (state === "paused") return t("Paused: what has come is kept.");
  const { step = 0, num_steps: of = 0 } = progress ?? {};
  if (of) return t("{done} of {all}", { done: bytes(step * MIB), all: bytes(of * MIB) });
  return step ? bytes(step * MIB) : t("Asking for it");
}

async function use({ kind, file }) {
  const [name, what, key] = USES[kind];
  for (let n = 0; n < 20; n += 1) {
    const found = (await list(name, true)).find((each) => each.file === file && !each.problem); // the drawing process looks at the folders by itself
    if (found) return say(what, found[key]);
    await new Promise((resolve) => setTimeout(resolve, 100 * n));
  }
  return toast(t("It is not in the list yet. Press “Look again”."), "bad");
}

function cardOf(job, source) {
  const act = (action) => () => change(job.id, action).catch((error) => toast(error.message, "bad"));
  const facts = job.result?.facts;
  const actions = [
    job.state === "running" && button(t("Pause"), { class: "small", onclick: act("pause") }, "pause"),
    job.state === "paused" && button(t("Resume"), { class: "small", onclick: act("resume") }, "refresh"),
    !ENDED.includes(job.state) && button(t("Cancel"), { class: "small", onclick: act("cancel") }, "close"),
    ["cancelled", "failed"].includes(job.state) && button(t("Go on"), { class: "small", onclick: act("resume") }, "refresh"),
    facts && facts.kind in USES && button(t("Use"), { class: "small primary", onclick: () => use(facts).catch((error) => toast(error.message, "bad")) }),
    ENDED.includes(job.state) && button("", { class: "bare", label: t("Remove from this list"), onclick: () => remove(job.id).catch((error) => toast(error.message, "bad")) }, "trash"),
  ];
  const tags = facts ? [facts.kind, facts.family, facts.mechanism, bytes(facts.bytes)].filter(Boolean) : [];
  return h("article", { class: "card panel stack download", data: { job: job.id, state: job.state } },
    h("div", { class: "row spread wrap" }, h("h3", {}, facts?.file ?? source), h("div", { class: "row" }, actions)),
    !ENDED.includes(job.state) && [progressBar(job), h("span", { class: "small-text muted" }, wordsOf(job))],
    job.failure && h("p", { class: "note bad" }, job.failure.message),
    job.state === "cancelled" && h("p", { class: "note" }, t("Cancelled. What has come is kept until this is removed.")),
    tags.length > 0 && h("div", { class: "row wrap" }, tags.map((each) => h("span", { class: "tag" }, each))),
    facts && h("span", { class: "small-text muted" }, source));
}

/** Return the part of the library that fetches; `arrived()`: there is a new file. Empty where the server fetches nothing. */
export function downloads(arrived) {
  const asked = { source: "", name: "", half: false };
  const cards = h("div", { class: "stack" });
  const form = h("div", { class: "downloads" });
  const titles = new Map(); // job -> what was asked for

  const titleOf = (job) => {
    if (!titles.has(job.id)) {
      titles.set(job.id, "…");
      get(`/v1/jobs/${job.id}/request`).then(({ request }) => {
        titles.set(job.id, request.source);
        show();
      }, () => {});
    }
    return titles.get(job.id);
  };
  const show = () => {
    if (isPressed(cards)) return void setTimeout(show, 100);
    refill(cards, all().filter((job) => job.kind === "download").map((job) => cardOf(job, titleOf(job))));
  };
  const address = textField(t("Address"), { value: "", placeholder: "civitai:NUMBER, hf:ORG/REPO/FILE", change: (value) => { asked.source = value; } });
  const name = textField(t("Its name here, where it shall have another"), { value: "", change: (value) => { asked.name = value; } });
  const go = async () => {
    try {
      const job = await start("download", { source: asked.source, half: asked.half, ...(asked.name && { name: asked.name }) });
      titles.set(job.id, asked.source);
      Object.assign(asked, { source: "", name: "" });
      address.set("");
      name.set("");
    } catch (error) {
      toast(error.message, "bad");
    }
  };
  address.addEventListener("keydown", (event) => event.key === "Enter" && asked.source && go());
  list("downloads").then((hosts) => {
    if (!hosts.length) return;
    fill(form, more(t("Get a model from the web"), false,
      h("p", { class: "help" }, t("A model, LoRA or control: the address of its page or file, from {hosts}.", { hosts: hosts.join(", ") })),
      address, name, toggle(t("Half precision, where there are both"), { value: asked.half, change: (value) => { asked.half = value; } }),
      h("div", { class: "row" }, button(t("Get it"), { class: "primary", onclick: go }, "download"))), cards);
  }, () => {}); // the lists say that the server is away
  subscribe((job) => (!job || job.kind === "download") && show());
  whenDone("download", arrived);
  return form;
}
