// One picture, large: what it was made of, and what can be done with it.

import { button, fill, h, icon, toast } from "./dom.js";
import { menu, openDialog, sure } from "./fields.js";
import { get } from "./api.js";
import { bytes, moment, seconds, t } from "./i18n.js";
import { remove } from "./jobs.js";
import { say } from "./bus.js";
import { sendItems } from "./send.js";
import { sizeText } from "./stage.js";
import { readRecord } from "./png.js";
import { seedOf } from "./seed.js";

function hiresText({ scale, width, height, upscaler, denoise }) {
  return `${width || height ? `${width ?? "–"} × ${height ?? "–"}` : `× ${scale}`}, ${upscaler}, ${denoise}`;
}

function factsOf({ job, file, at }, picture) {
  const { request = {}, seeds = [], timing } = job.result.facts;
  const { hires, refiner } = request;
  const rows = [
    [t("Prompt"), job.result.facts.prompts?.[at] ?? request.prompt], [t("Negative prompt"), request.negative], [t("Model"), request.model], ["VAE", request.vae],
    [t("Size"), sizeText(picture)], [t("Seed"), seeds[at]], [t("Steps"), request.steps],
    [t("Guidance"), request.cfg], [t("Sampler"), request.sampler && `${request.sampler}, ${request.schedule}`],
    [t("Larger, in a second pass"), hires && hiresText(hires)], [t("Refiner"), refiner && `${refiner.model}, ${refiner.at}`],
    [t("Controls"), request.controls?.map((unit) => `${unit.name} × ${unit.strength}`).join(", ")],
    [t("Made"), moment(job.created)], [t("Took"), timing && seconds(Object.values(timing).reduce((sum, each) => sum + each, 0))],
    [t("File"), bytes(file.num_bytes)],
  ];
  return h("dl", { class: "facts" }, rows.filter(([, value]) => value).map(([name, value]) => [h("dt", {}, name), h("dd", {}, String(value))]));
}

async function restore({ job, file, at }) {
  const answer = await fetch(file.url);
  const found = answer.ok && (await readRecord(await answer.arrayBuffer()));
  if (found) return say("restore", found.request, found.seed);
  const { request } = await get(`/v1/jobs/${job.id}/request`);
  return say("restore", request, seedOf(job.result.facts.seeds?.[at]));
}

/**
 * Show the picture at `url`, one of `pictures`; the arrow keys go on to the others. `more()`: whether there are older ones
 * that are not known yet; `older()`: all of them, once some of those are.
 */
export function openViewer(pictures, url, { more, older }) {
  let at = Math.max(0, pictures.findIndex(({ file }) => file.url === url));
  const place = h("div", { class: "viewer-picture" });
  const side = h("div", { class: "viewer-side" });
  const body = h("div", { style: { display: "contents" } }, place, side);
  const dialog = openDialog(t("Picture"), body, { className: "viewer" });

  let going = false;
  const reach = async () => {
    const here = pictures[at].file.url;
    while (at === pictures.length - 1 && more()) {
      pictures = await older();
      at = Math.max(0, pictures.findIndex(({ file }) => file.url === here));
    }
  };
  const go = async (by) => {
    if (going) return;
    going = true;
    if (by > 0) await reach().catch((error) => toast(error.message, "bad"));
    going = false;
    if (at + by < 0 || !pictures.length || !dialog.open) return;
    at = Math.min(pictures.length - 1, at + by);
    show();
  };
  const drop = async (num) => {
    const { id } = pictures[at].job;
    const question = num > 1 ? t("Remove these {n} pictures for good?", { n: num }) : t("Remove this picture for good?");
    if (!(await sure(question, t("Remove")))) return;
    try {
      await remove(id);
      pictures = pictures.filter(({ job }) => job.id !== id);
      at = Math.min(at, pictures.length - 1);
      if (pictures.length) show();
      else dialog.close();
    } catch (error) {
      toast(error.message, "bad");
    }
  };
  const show = () => {
    const each = pictures[at];
    const { file, job, at: which } = each;
    const images = job.result.files.filter((one) => one.role === "image").length;
    const leave = (items) => items.map(([text, picture, work]) => [text, picture, () => { dialog.close(); work(); }]);
    const picture = h("img", { src: file.url, alt: job.result.facts.request?.prompt || t("Picture") });
    const facts = h("div");
    const tell = () => fill(facts, factsOf(each, picture));
    picture.addEventListener("load", tell);
    tell();
    fill(place, picture,
      at > 0 && button("", { class: "viewer-nav before", label: t("Newer"), onclick: () => go(-1) }, "left"),
      (at < pictures.length - 1 || more()) && button("", { class: "viewer-nav after", label: t("Older"), onclick: () => go(1) }, "right"));
    fill(side,
      h("div", { class: "row spread" }, h("h3", {}, t("{n} of {all}", { n: at + 1, all: `${pictures.length}${more() ? "+" : ""}` })), button("", { class: "bare", label: t("Close"), onclick: () => dialog.close() }, "close")),
      h("div", { class: "row wrap" },
        h("a", { class: "button small", href: file.url, download: `disegno-${job.id.slice(0, 8)}-${file.name}` }, icon("download"), t("Download")),
        menu(t("Send to"), "send", () => leave(sendItems(file.url)), { class: "small" }),
        which >= 0 && ["generate", "sheet"].includes(job.kind) && button(t("Draw this again"), { class: "small", onclick: () => { dialog.close(); restore(each).catch((error) => toast(error.message, "bad")); } }, "refresh"),
        button(images > 1 ? t("Remove these {n}", { n: images }) : t("Remove"), { class: "small", onclick: () => drop(images) }, "trash")),
      facts, job.result.warnings.map((one) => h("p", { class: "note" }, one)));
    if (!dialog.contains(document.activeElement)) dialog.focus(); // the button that led here is gone
  };
  dialog.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (by && !event.target.closest(".menu")) go(by);
  });
  dialog.tabIndex = -1;
  show();
}
