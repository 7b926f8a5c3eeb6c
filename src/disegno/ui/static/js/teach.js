// "Teach": a new kind of control from pairs, or a style from pictures. A data set is chosen or made, a training is started, watched,
// and used.

import { get, list } from "./api.js";
import { button, fill, h, icon, isPressed, refill, toast } from "./dom.js";
import { on, say } from "./bus.js";
import { estimate, examine, makeForm, sendForm, textField } from "./dataset.js";
import { curve, record } from "./curve.js";
import { choice, more, numberField, slider, sure } from "./fields.js";
import { moment, t } from "./i18n.js";
import { all, change, ENDED, remove, start, subscribe } from "./jobs.js";
import { modelOf, ownOf } from "./house.js";
import { progressBar, progressText } from "./stage.js";

const KINDS = ["teach", "dataset"];
const KEPT = "disegno.teach";
const RECIPES = [["ctrlora", "A kind of drawing: a condition LoRA on a Base ControlNet"], ["controlnet", "A kind of drawing: a whole ControlNet"], ["lora", "A style: a LoRA of the pictures and their captions"]];
const VERDICTS = { early: "Too early to say", learning: "It is learning", converged: "It has learned what it can", "not-learning": "It does not learn" };

/** Return the training that the form stands for. */
function trainingOf({ data, rate, side, ...request }) {
  if (rate !== null) request.rate = rate;
  if (side !== null) request.width = request.height = side;
  return { ...request, data: [data] };
}

/** Return the learning rate that a text says, as it was written, or null where it says none. The browser itself goes on `by` steps. */
function rateOf(text, by = 0) {
  const rate = by ? 0 : Number(text);
  return rate > 0 ? Math.min(1, rate) : null;
}

function teachForm(house, names, asked, started) {
  if (!names.includes(asked.data)) asked.data = names[0];
  asked.model ??= house.models[0]?.id;
  const set = (name) => (value) => { asked[name] = value; };
  const doctor = h("div", { role: "status" });
  const costs = h("div", { role: "status" });
  const go = async ({ currentTarget }) => {
    currentTarget.disabled = true; // a second click would be a second training of the same
    try {
      started(await start("teach", trainingOf(asked)));
    } catch (error) {
      toast(error.message, "bad");
    } finally {
      currentTarget.disabled = false;
    }
  };
  const built = modelOf(house, asked.model);
  return [
    choice(t("What is taught"), { value: asked.recipe, options: RECIPES.map(([value, text]) => [value, t(text)]), change: set("recipe") }),
    textField(t("Its name"), { value: asked.name, placeholder: "my-lines", change: set("name") }),
    choice(t("Pairs"), { value: asked.data, options: names.map((name) => [name, name]), change: (value) => { asked.data = value; fill(doctor); fill(costs); } }),
    button(t("Examine the pairs"), { class: "small", onclick: () => examine(doctor, { ...asked, side: asked.side ?? ownOf(house, asked.model).width }) }, "eye"), doctor,
    house.models.length > 1 || !built ? choice(t("Model"), { value: asked.model, options: house.models.map((each) => [each.id, each.id]), change: set("model") }) : null,
    slider(t("Steps"), { value: asked.steps, min: 20, max: 10_000, step: 20, change: set("steps") }),
    more(t("More"), false,
      slider(t("Pairs in one step"), { value: asked.batch, min: 1, max: 32, step: 1, change: set("batch") }),
      slider(t("Rank"), { value: asked.rank, min: 4, max: 128, step: 4, help: t("How much a LoRA can hold."), change: set("rank") }),
      slider(t("Steps between two looks"), { value: asked.validate_every, min: 10, max: 1000, step: 10, change: set("validate_every") }),
      numberField(t("Side of the pictures, in pixels"), { value: asked.side, min: 64, max: 2048, step: 8, placeholder: t("the model's own"), change: set("side") }),
      numberField(t("Learning rate"), { value: asked.rate, min: 0, max: 1, step: 0.000001, placeholder: t("the recipe's own"), read: rateOf, change: set("rate") })),
    button(t("What will it take?"), { class: "small", onclick: () => estimate(costs, { ...trainingOf(asked), name: asked.name || "new" }) }, "auto"), costs,
    button(t("Teach"), { class: "primary", onclick: go }),
  ];
}

// ---- what is on its way, and what was learned

function metricsOf(metrics) {
  const rows = Object.entries(metrics ?? {}).slice(0, 8);
  return rows.length ? h("dl", { class: "facts" }, rows.map(([name, value]) => [h("dt", {}, name.replaceAll("_", " ")), h("dd", {}, Number.isFinite(value) ? value.toPrecision(3) : "–")])) : null;
}

function verdictOf(state, words, reasons = []) {
  if (!state) return null;
  return [
    h("div", { class: "row wrap" }, h("span", { class: state === "not-learning" ? "tag bad" : state === "converged" ? "tag good" : "tag" }, t(VERDICTS[state] ?? state)), h("span", { class: "small-text muted" }, words)),
    reasons.map((each) => h("p", { class: "note" }, each)),
  ];
}

function actionsOf(job, use) {
  const act = (action) => () => change(job.id, action).catch((error) => toast(error.message, "bad"));
  const teaching = job.kind === "teach";
  const weights = job.result?.files.find((file) => file.role === "weights");
  const drop = async () => {
    if (teaching && !(await sure(t("Remove this training with what it has learned, for good?"), t("Remove")))) return;
    remove(job.id).catch((error) => toast(error.message, "bad"));
  };
  return h("div", { class: "row wrap" },
    job.state === "running" && teaching && button(t("Stop, and use it"), { class: "small", onclick: act("finish") }, "stop"),
    job.state === "running" && teaching && button(t("Pause"), { class: "small", title: t("It is saved, and waits until it is resumed."), onclick: act("pause") }, "pause"),
    job.state === "paused" && button(t("Resume"), { class: "small", onclick: act("resume") }, "refresh"),
    !ENDED.includes(job.state) && button(t("Cancel"), { class: "small", onclick: act("cancel") }, "close"),
    teaching && ["cancelled", "failed"].includes(job.state) && button(t("Go on"), { class: "small", onclick: act("resume") }, "refresh"),
    weights && button(t("Draw with it now"), { class: "small primary", onclick: () => use(job) }, "pen"),
    weights && h("a", { class: "button small", href: weights.url, download: weights.name }, icon("download"), t("Download")),
    job.result?.files.filter((file) => file.media_type === "text/html").map((file) => h("a", { class: "button small", href: file.url, download: file.name }, icon("download"), t("Report"))),
    ENDED.includes(job.state) && button("", { class: "bare", label: t("Remove"), onclick: drop }, "trash"));
}

function trainingCard(job, title, use) {
  const { facts = {}, files = [] } = job.result ?? {};
  const look = job.look ?? null;
  const sheet = look?.sheet ?? files.find((file) => file.role === "sheet")?.url;
  return h("article", { class: "card panel training", data: { job: job.id, state: job.state } },
    h("div", { class: "row spread wrap" }, h("h3", {}, title), actionsOf(job, use)),
    !ENDED.includes(job.state) && [progressBar(job), h("span", { class: "small-text muted" }, progressText(job))],
    job.failure && h("p", { class: "note bad" }, job.failure.message),
    job.state === "cancelled" && h("p", { class: "note" }, job.kind === "teach" ? t("Cancelled, and saved: it can go on from there.") : t("Cancelled.")),
    verdictOf(look?.verdict ?? facts.verdict, look?.words ?? facts.words, look?.reasons),
    job.kind === "dataset" && job.state === "done" && h("p", { class: "small-text muted" }, t("{pairs} pairs", { pairs: facts.pairs })),
    h("div", { class: "training-body" }, job.kind === "teach" && curve(job), metricsOf(look?.metrics ?? facts.metrics)),
    sheet && h("img", { class: "sheet", src: sheet, alt: t("Condition, drawn, drawn without it, and the real picture: a row each"), loading: "lazy" }),
    h("span", { class: "small-text muted" }, moment(job.created)));
}

/** Return the tab. */
export function teachTab(house) {
  const form = h("div", { class: "desk-form" });
  const cards = h("div", { class: "stack" });
  const titles = new Map();
  const toSend = { name: "" };
  const toMake = { name: "", pictures: null, annotator: "canny", caption: "" };
  const toTeach = { name: "", data: null, model: null, recipe: "ctrlora", steps: 1000, batch: 4, rank: 32, rate: null, side: null, validate_every: 100 };
  const kept = JSON.parse(sessionStorage.getItem(KEPT) ?? "{}"); // what was chosen outlives a reload, and another language
  for (const [name, asked] of Object.entries({ toSend, toMake, toTeach })) Object.assign(asked, kept[name]);
  addEventListener("pagehide", () => sessionStorage.setItem(KEPT, JSON.stringify({ toSend, toMake, toTeach })));
  let visible = false;
  let pending = false;

  const titleOf = (job) => {
    if (!titles.has(job.id)) {
      titles.set(job.id, "…");
      get(`/v1/jobs/${job.id}/request`).then(({ request }) => {
        titles.set(job.id, job.kind === "teach" ? t("{name}, from {data}", { name: request.name, data: request.data.join(", ") }) : t("Pairs “{name}”, from {data}", { name: request.name, data: request.pictures }));
        soon();
      }, () => {});
    }
    return titles.get(job.id);
  };
  const use = async (job) => {
    try {
      const { request } = await get(`/v1/jobs/${job.id}/request`);
      if (request.recipe === "lora") {
        say("use model", request.model);
        return say("use lora", request.name);
      }
      const { name } = job.result.files.find((file) => file.role === "weights");
      const taught = () => house.controls.find((each) => each.file === name); // its name may be a shipped control's, too
      for (let n = 0; n < 20 && !taught(); n += 1) {
        house.controls = await list("controls", true); // the drawing process looks at the folders again by itself
        await new Promise((resolve) => setTimeout(resolve, 100 * n));
      }
      say("use model", request.model);
      say("use control", taught()?.name ?? request.name);
    } catch (error) {
      toast(error.message, "bad");
    }
    return undefined;
  };
  const draw = () => {
    pending = false;
    if (!visible) return;
    const jobs = all().filter((job) => KINDS.includes(job.kind));
    if (isPressed(cards)) return void setTimeout(soon, 100);
    refill(cards, jobs.length ? jobs.map((job) => trainingCard(job, titleOf(job), use)) : h("div", { class: "empty" }, h("p", {}, t("Nothing has been taught yet."))));
  };
  const soon = () => {
    if (pending) return;
    pending = true;
    requestAnimationFrame(draw);
  };
  let send = null; // its card, which says what has come and outlives the others
  let listed = null; // the data sets and models that the forms know
  const build = async (anew = false) => {
    const names = await list("datasets", true);
    const known = JSON.stringify([names, house.models.map(({ id }) => id)]);
    if (!anew && listed === known) return;
    listed = known;
    const focused = form.contains(document.activeElement) ? document.activeElement.getAttribute("aria-label") : null;
    const none = h("p", { class: "note" }, t("There are no data sets yet. The server is given them with --data-root FOLDER: each folder in it is one."));
    const sent = (name) => {
      toTeach.data = toMake.pictures = name;
      build(true).catch((error) => toast(error.message, "bad"));
    };
    send ??= h("div", { class: "card panel" }, h("h3", {}, t("Send a data set")), sendForm(toSend, sent));
    fill(form, names.length > 0 && h("div", { class: "card panel" }, h("h3", {}, t("Teach a control, or a style")), teachForm(house, names, toTeach, soon)),
      names.length > 0 && h("div", { class: "card panel" }, h("h3", {}, t("Make pairs from pictures")), makeForm(house, names, toMake, soon)),
      send, !names.length && none);
    if (focused !== null) [...form.querySelectorAll("input, select")].find((each) => each.getAttribute("aria-label") === focused)?.focus();
  };
  subscribe((job) => {
    (job ? [job] : all()).forEach(record); // here: a page that nobody sees draws nothing
    soon();
    if (job?.kind === "dataset" && job.state === "done" && visible) build().catch(() => {});
  });
  on("shown", (name) => {
    visible = name === "teach";
    if (!visible) return;
    draw();
    build().catch((error) => toast(error.message, "bad"));
  });
  on("looked", () => { if (visible) build().catch(() => {}); });
  addEventListener("focus", () => { if (visible) build().catch(() => {}); }); // whoever comes back may have added some
  return h("div", { class: "desk" }, form, cards);
}
