// Where a job becomes a picture: waiting, progress with its preview, the result and what can be done with it.

import { button, fill, h, icon, isPressed, toast } from "./dom.js";
import { menu } from "./fields.js";
import { seconds, t } from "./i18n.js";
import { change, ENDED, follow } from "./jobs.js";
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

/** Return a bar of a job's progress. */
export function progressBar(job) {
  const { step = 0, num_steps: all = 0 } = job.progress ?? {};
  const share = all ? (step / all) * 100 : 0;
  const waiting = job.state !== "running" || !all;
  return h("div", { class: waiting ? "bar waiting" : "bar", role: "progressbar", "aria-valuenow": Math.round(share), "aria-valuemin": 0, "aria-valuemax": 100, "aria-label": t("Progress") },
    h("i", { style: { "--at": `${share}%` } }));
}

function emptyText(hint) {
  return h("div", { class: "stage-empty" }, icon("photo", 44), h("p", {}, hint));
}

/** Return a stage. `seed(value)`: the person wants to keep this seed. */
export function stage({ hint, seed }) {
  const frame = h("div", { class: "stage-frame" });
  const strip = h("div", { class: "strip", role: "group", "aria-label": t("Pictures") });
  const below = h("div", { class: "stack" });
  const element = h("div", { class: "stack" }, frame, strip, below);
  let stop = () => {};
  let current = null;
  let at = 0;
  let last = null; // the picture that was shown before

  const showPicture = () => {
    const files = filesOf(current);
    const file = files[at] ?? files[0];
    if (!file) return fill(frame, emptyText(hint));
    last = file.url;
    fill(frame, h("img", { src: file.url, alt: file.role === "condition" ? nameOf(current, file) : current.result.facts.request?.prompt || t("Result") }));
    fill(strip, files.length > 1 && files.map((each, n) =>
      button("", { label: nameOf(current, each), "aria-pressed": String(n === at), onclick: () => { at = n; showPicture(); } }, null)));
    [...strip.children].forEach((each, n) => each.append(h("img", { src: files[n].thumbnail ?? files[n].url, alt: "" })));
    return showActions(file);
  };
  const showActions = (file) => {
    const { facts, warnings } = current.result;
    const own = facts.seeds?.[imageAt(current, file)];
    const said = [
      own !== undefined && `${t("Seed")} ${own}`,
      facts.request?.width && `${facts.request.width} × ${facts.request.height}`,
      facts.timing && seconds(Object.values(facts.timing).reduce((sum, each) => sum + each, 0)),
    ].filter(Boolean).join(" · ");
    fill(below,
      h("div", { class: "stage-actions" },
        h("a", { class: "button", href: file.url, download: `disegno-${own ?? current.id.slice(0, 8)}-${file.name}` }, icon("download"), t("Download")),
        menu(t("Send to"), "send", () => sendItems(file.url)),
        own !== undefined && button(t("Keep this seed"), { onclick: () => seed(Number(own)) }, "dice"),
        h("span", { class: "stage-facts grow" }, said)),
      warnings.map((each) => h("p", { class: "note" }, each)));
  };
  const showRunning = () => {
    if (isPressed(frame)) return; // the next step shows it
    const preview = current.preview ?? last;
    below.style.visibility = "hidden"; // what is said there is of the picture before
    const act = (action) => () => change(current.id, action).catch((error) => toast(error.message, "bad"));
    fill(frame,
      preview ? h("img", { src: preview, alt: t("Preview"), class: "preview" }) : emptyText(current.state === "running" ? t("The first steps show nothing yet.") : ""),
      h("div", { class: "stage-progress" }, progressBar(current),
        h("div", { class: "row spread" }, h("span", { class: "stage-facts" }, progressText(current)),
          h("div", { class: "row" },
            current.state === "running" && current.kind === "generate" && button(t("Stop here"), { class: "small", title: t("End now, with the picture as it stands"), onclick: act("finish") }),
            button(t("Cancel"), { class: "small", onclick: act("cancel") }, "close")))));
  };
  const show = (job) => {
    if (!job) return;
    const fresh = current?.id !== job.id;
    if (fresh) at = 0;
    current = job;
    below.style.visibility = "";
    if (job.state === "done") showPicture();
    else if (job.state === "failed") {
      fill(frame, h("div", { class: "stage-empty" }, h("p", { class: "note bad", role: "alert" }, job.failure.message)));
      fill(below);
    } else if (job.state === "cancelled") {
      fill(frame, last ? h("img", { src: last, alt: t("Result") }) : emptyText(t("Cancelled.")));
    } else showRunning();
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
