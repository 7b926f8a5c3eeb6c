// The gallery: what is on its way, and every picture that was made, the newest first.

import { get } from "./api.js";
import { button, h, icon, isPressed, refill, toast } from "./dom.js";
import { compare } from "./compare.js";
import { t } from "./i18n.js";
import { all, change, ENDED, older, remove, status, subscribe } from "./jobs.js";
import { on } from "./bus.js";
import { filesOf, imageAt, progressBar, progressText } from "./stage.js";
import { openViewer } from "./viewer.js";

export const SHOWN_KINDS = ["generate", "sheet", "upscale"]; // trainings have a tab, and what an annotator tries is seen where it is tried
const MOVES = [["Make it the next one", "first", "first"], ["Earlier", "earlier", "up"], ["Later", "later", "down"]];
const asked = new Map(); // id -> what a waiting job was asked, as a line

function lineOf(job, redraw) {
  if (!asked.has(job.id)) {
    asked.set(job.id, "");
    get(`/v1/jobs/${job.id}/request`).then(({ request }) => {
      asked.set(job.id, (request.request ?? request).prompt || t("without a prompt"));
      redraw();
    }, () => {});
  }
  return job.kind === "upscale" ? t("Enlarge a picture") : asked.get(job.id) || "…";
}

function jobRow(job, redraw) {
  const act = (action) => () => change(job.id, action).catch((error) => toast(error.message, "bad"));
  const waits = job.state === "queued" || job.state === "paused";
  return h("article", { class: "card job", data: { job: job.id, state: job.state } },
    h("div", { class: "mini" }, job.preview ? h("img", { src: job.preview, alt: t("Preview") }) : icon("photo")),
    h("div", { class: "what" }, h("span", { class: "ellipsis" }, lineOf(job, redraw)), progressBar(job), h("span", { class: "small-text muted" }, progressText(job))),
    h("div", { class: "row job-actions" },
      waits && MOVES.map(([label, action, picture]) =>
        button("", { class: "bare", label: t(label), data: { action }, onclick: act(action) }, picture)),
      job.state === "queued" && button(t("Pause"), { class: "small", onclick: act("pause") }),
      job.state === "paused" && button(t("Resume"), { class: "small", onclick: act("resume") }),
      job.state === "running" && job.kind === "generate" && button(t("Stop here"), { class: "small", title: t("End now, with the picture as it stands"), onclick: act("finish") }),
      button(t("Cancel"), { class: "small", onclick: act("cancel") }, "close")));
}

function failedRow(job) {
  return h("article", { class: "card job", data: { job: job.id, state: job.state } },
    h("div", { class: "mini" }, icon("close")),
    h("div", { class: "what" }, h("span", {}, t("This could not be drawn")), h("span", { class: "small-text muted" }, job.failure?.message ?? "")),
    button(t("Remove"), { class: "small", onclick: () => remove(job.id).catch((error) => toast(error.message, "bad")) }, "trash"));
}

/** Return every finished picture: { job, file, at }; `at`: which of its job's images it is, -1 for a sheet. */
function picturesOf(jobs) {
  return jobs.filter((job) => job.state === "done" && SHOWN_KINDS.includes(job.kind))
    .flatMap((job) => filesOf(job).filter((file) => file.role !== "condition").map((file) => ({ job, file, at: imageAt(job, file) })));
}

const beyond = { more: () => status().more, older: () => older().then(() => picturesOf(all())) };

/** Return the tab. */
export function galleryTab() {
  const queue = h("div", { class: "queue" });
  const grid = h("div", { class: "pictures" });
  const empty = h("div", { class: "empty", hidden: true }, icon("photo", 40), h("p", {}, t("Nothing has been drawn yet.")), h("a", { class: "button", href: "#draw" }, t("Draw something")));
  const end = h("div", { "aria-hidden": "true" }, "\u00a0");
  const cells = new Map(); // url -> its element
  const marked = [];
  let visible = false;
  let choosing = false;
  let pending = false;
  let asking = false; // for older ones

  const chooser = button(t("Compare two"), { "aria-pressed": "false", onclick: () => {
    choosing = !choosing;
    unmark();
    if (choosing) toast(t("Choose two pictures."));
  } }, "compare");
  const unmark = () => {
    marked.length = 0;
    chooser.setAttribute("aria-pressed", String(choosing));
    for (const each of grid.children) each.removeAttribute("aria-pressed");
    grid.querySelectorAll(".mark").forEach((each) => each.remove());
  };
  const mark = (each, cell) => {
    marked.push(each);
    cell.setAttribute("aria-pressed", "true");
    cell.append(h("span", { class: "mark" }, String(marked.length)));
    if (marked.length < 2) return;
    const [first, second] = marked;
    choosing = false;
    unmark();
    compare(first, second);
  };
  const cellOf = (each) => {
    const { job, file, at } = each;
    const said = job.result.facts.prompts?.[at] || job.result.facts.request?.prompt || (job.kind === "upscale" ? t("Enlarged") : t("Picture"));
    const cell = h("button", { type: "button", class: "picture", title: said },
      h("img", { src: file.thumbnail ?? file.url, alt: said, loading: "lazy", decoding: "async", draggable: "false" }), h("span", { class: "caption" }, said));
    cell.onclick = () => (choosing ? mark(each, cell) : openViewer(picturesOf(all()), file.url, beyond));
    return cell;
  };
  const showGrid = (jobs) => {
    const some = picturesOf(jobs);
    const urls = new Set(some.map(({ file }) => file.url));
    for (const [url, cell] of cells) if (!urls.has(url)) { cell.remove(); cells.delete(url); }
    let before = null;
    for (const each of some) {
      let cell = cells.get(each.file.url);
      if (!cell) cells.set(each.file.url, (cell = cellOf(each)));
      const place = before ? before.nextElementSibling : grid.firstElementChild;
      if (place !== cell) grid.insertBefore(cell, place);
      before = cell;
    }
    chooser.disabled = some.length < 2;
  };
  const draw = () => {
    pending = false;
    if (!visible) return;
    if (isPressed(queue)) return void setTimeout(soon, 100);
    const jobs = all().filter((job) => SHOWN_KINDS.includes(job.kind));
    const open = jobs.filter((job) => !ENDED.includes(job.state)).reverse().sort((a, b) => (a.position ?? 0) - (b.position ?? 0));
    const failed = jobs.filter((job) => job.state === "failed");
    const removeAll = () => Promise.all(failed.map(({ id }) => remove(id))).catch((error) => toast(error.message, "bad"));
    refill(queue, open.map((job) => jobRow(job, soon)), failed.map(failedRow),
      failed.length > 2 && h("div", { class: "row" }, button(t("Remove all that could not be drawn"), { class: "small", onclick: removeAll }, "trash")));
    queue.hidden = !queue.childElementCount;
    showGrid(jobs);
    empty.hidden = !status().loaded || Boolean(grid.childElementCount || queue.childElementCount);
  };
  const soon = () => {
    if (pending) return;
    pending = true;
    requestAnimationFrame(draw);
  };
  const observer = new IntersectionObserver((seen) => {
    if (asking || !visible || !seen.at(-1).isIntersecting || !status().more || !status().online) return;
    asking = true;
    older().catch((error) => toast(error.message, "bad")).finally(() => { asking = false; });
  }, { rootMargin: "800px" });
  observer.observe(end);
  subscribe((job) => {
    soon();
    if (job) return;
    observer.unobserve(end); // where little was added the end is as near as before, and nothing would be told
    observer.observe(end);
  });
  on("shown", (name) => {
    visible = name === "gallery";
    if (visible) draw();
  });
  return h("div", {}, h("div", { class: "toolbar" }, h("h2", {}, t("Gallery")), chooser), queue, grid, empty, end);
}
