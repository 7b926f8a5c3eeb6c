// Where a job becomes a picture: waiting, progress with its preview, the result and what can be done with it.

import { button, fill, h, icon, toast } from "./dom.js";
import { menu } from "./fields.js";
import { seconds, t } from "./i18n.js";
import { change, ENDED, follow } from "./jobs.js";
import { seedOf } from "./seed.js";
import { sendItems } from "./send.js";

const ROLES = ["sheet", "image", "condition"];

/** Return a job's pictures: a sheet of them first, then the images, then what the controls were shown. */
export function filesOf(job) {
  const files = job.result?.files ?? [];
  return ROLES.flatMap((role) => files.filter((file) => file.role === role));
}

/** Return which of a job's images a file is, from 0; -1 where it is none. */
export function imageAt(job, file) {
  return (job.result?.files ?? []).filter((each) => each.role === "image").indexOf(file);
}

function nameOf(job, file) {
  if (file.role === "condition") return t("What the control was shown");
  return file.role === "sheet" ? t("The whole sheet") : t("Picture {n}", { n: imageAt(job, file) + 1 });
}

/** Return how far a job is, in words. */
export function progressText(job) {
  if (job.state === "queued") return t("Waiting for its turn");
  if (job.state === "paused") return t("Paused");
  const { step = 0, num_steps: all = 0, seconds_left: left = null } = job.progress ?? {};
  const said = all ? t("Step {step} of {all}", { step, all }) : t("Beginning");
  return left === null ? said : `${said} · ${t("{time} left", { time: seconds(left) })}`;
}

/** Return a bar of a job's progress; `show(job)` moves it on. */
export function progressBar(job) {
  const done = h("i");
  const element = h("div", { role: "progressbar", "aria-valuemin": 0, "aria-valuemax": 100, "aria-label": t("Progress") }, done);
  element.show = ({ state, progress }) => {
    const { step = 0, num_steps: all = 0 } = progress ?? {};
    const share = all ? (step / all) * 100 : 0;
    element.className = state !== "running" || !all ? "bar waiting" : "bar";
    element.setAttribute("aria-valuenow", Math.round(share));
    done.style.setProperty("--at", `${share}%`);
  };
  element.show(job);
  return element;
}

/** Return how large a picture is, once it is there. */
export function sizeText({ naturalWidth: width, naturalHeight: height }) {
  return width ? `${width} × ${height}` : "";
}

function emptyText(hint) {
  return h("div", { class: "stage-empty" }, icon("photo", 44), h("p", {}, hint));
}

/** Return a stage. `seed(value)`: the person wants to keep this seed. */
export function stage({ hint, seed }) {
  const frame = h("div", { class: "stage-frame" });
  const strip = h("div", { class: "strip", role: "group", "aria-label": t("What was drawn") });
  const below = h("div", { class: "stack" });
  const news = h("p", { class: "visually-hidden", role: "status" });
  const element = h("div", { class: "stack" }, frame, strip, below, news);
  let stop = () => {};
  let current = null;
  let at = 0;
  let last = null; // the picture that was shown before
  let running = null; // { id, show() }: the view of a job on its way

  const showPicture = () => {
    const files = filesOf(current);
    const file = files[at] ?? files[0];
    if (!file) return fill(frame, emptyText(hint));
    last = file.url;
    const picture = h("img", { src: file.url, alt: file.role === "condition" ? nameOf(current, file) : current.result.facts.request?.prompt || t("Result") });
    fill(frame, picture);
    fill(strip, files.length > 1 && files.map((each, n) =>
      button("", { label: nameOf(current, each), "aria-pressed": String(n === at), onclick: () => { at = n; showPicture(); } }, null)));
    [...strip.children].forEach((each, n) => each.append(h("img", { src: files[n].thumbnail ?? files[n].url, alt: "" })));
    return showActions(file, picture);
  };
  const showActions = (file, picture) => {
    const { facts, warnings } = current.result;
    const own = facts.seeds?.[imageAt(current, file)];
    const told = h("span", { class: "stage-facts grow" });
    const tell = () => {
      const took = facts.timing && seconds(Object.values(facts.timing).reduce((sum, each) => sum + each, 0));
      told.textContent = [own !== undefined && `${t("Seed")} ${own}`, sizeText(picture), took].filter(Boolean).join(" · ");
    };
    picture.addEventListener("load", tell);
    tell();
    fill(below,
      h("div", { class: "stage-actions" },
        h("a", { class: "button", href: file.url, download: `disegno-${own ?? current.id.slice(0, 8)}-${file.name}` }, icon("download"), t("Download")),
        menu(t("Send to"), "send", () => sendItems(file.url)),
        own !== undefined && button(t("Keep this seed"), { onclick: () => seed(seedOf(own)) }, "dice"),
        told),
      warnings.map((each) => h("p", { class: "note" }, each)));
  };
  /** Show a job on its way: its elements are made once, so that a step takes neither a click nor the focus from them. */
  const runningView = ({ id, kind }) => {
    const picture = h("img", { alt: t("Preview"), class: "preview" });
    const nothing = emptyText("");
    const bar = progressBar(current);
    const said = h("span", { class: "stage-facts" });
    const act = (action) => () => change(id, action).catch((error) => toast(error.message, "bad"));
    const stopHere = button(t("Stop here"), { class: "small", title: t("End now, with the picture as it stands"), onclick: act("finish") });
    fill(frame, picture, nothing, h("div", { class: "stage-progress" }, bar,
      h("div", { class: "row spread" }, said, h("div", { class: "row" }, stopHere, button(t("Cancel"), { class: "small", onclick: act("cancel") }, "close")))));
    const show = () => {
      const preview = current.preview ?? last;
      picture.hidden = !preview;
      nothing.hidden = Boolean(preview);
      nothing.lastElementChild.textContent = current.state === "running" ? t("The first steps show nothing yet.") : "";
      if (preview && picture.getAttribute("src") !== preview) picture.src = preview;
      bar.show(current);
      said.textContent = progressText(current);
      stopHere.hidden = current.state !== "running" || kind !== "generate";
    };
    return { id, show };
  };
  const showRunning = () => {
    below.style.visibility = "hidden"; // what is said there is of the picture before
    if (running?.id !== current.id) running = runningView(current);
    running.show();
  };
  const clear = () => {
    current = last = running = null;
    fill(frame, emptyText(hint));
    fill(strip);
    fill(below);
  };
  const show = (job) => {
    if (!job) return clear(); // it was removed
    const fresh = current?.id !== job.id;
    if (fresh) at = 0;
    current = job;
    below.style.visibility = "";
    if (!ENDED.includes(job.state)) {
      news.textContent = progressText({ state: job.state });
      return showRunning();
    }
    running = null;
    news.textContent = { done: t("Done"), cancelled: t("Cancelled.") }[job.state] ?? "";
    if (job.state === "done") showPicture();
    else if (job.state === "failed") {
      fill(frame, h("div", { class: "stage-empty" }, h("p", { class: "note bad", role: "alert" }, job.failure.message)));
      fill(below);
    } else fill(frame, last ? h("img", { src: last, alt: t("Result") }) : emptyText(t("Cancelled.")));
    return undefined;
  };
  fill(frame, emptyText(hint));
  return {
    element,
    /** Show this job from now on. */
    watch: (job) => {
      stop();
      stop = follow(job.id, show);
      if (!ENDED.includes(job.state) && strip.childElementCount) fill(strip);
      show(job);
    },
  };
}
