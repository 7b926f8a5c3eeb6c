// What can be done with a file of the library: verify it, download it with its card, as it is or in another form.

import { fill, h, icon, toast } from "./dom.js";
import { menu } from "./fields.js";
import { bytes, t } from "./i18n.js";
import { ENDED, follow, remove, start } from "./jobs.js";
import { progressBar, progressText } from "./stage.js";

const LAYOUTS = { ldm: "diffusers", diffusers: "ldm" }; // the other one
const RENAMED = ["model", "control", "vae", "unet", "text"];
const asked = new Map(); // file -> the job that was last asked about it

function soundness({ facts }) {
  const hashes = facts.parts.map((part) => h("p", { class: "small-text muted hash" }, facts.parts.length > 1 && `${part.file} `, `SHA-256 ${part.sha256}`));
  return [h("p", {}, h("span", { class: "tag good" }, t("Sound")), " ", t("every weight is a finite number")), hashes.slice(0, 4)];
}

function gifts({ files, warnings }) {
  const links = files.map((file) => h("a", { class: "button small", href: file.url, download: file.name }, icon("download"), file.role === "card" ? t("Its card") : `${file.name} · ${bytes(file.num_bytes)}`));
  return [h("div", { class: "row wrap" }, links), warnings.map((each) => h("p", { class: "note" }, each))];
}

/** Return { place, more }: where what came of it is shown, and the menu of what can be done. `kind`: of the file. */
export function fileWork(weights, kind) {
  const name = weights.file ?? weights.name ?? weights.id;
  const key = `${kind}/${name}`;
  const place = h("div", { class: "stack file-work", role: "status" });
  let stop = () => {};

  const show = (job) => {
    if (!job || asked.get(key)?.id !== job.id) return;
    asked.set(key, job);
    if (!ENDED.includes(job.state)) fill(place, progressBar(job), h("span", { class: "small-text muted" }, progressText(job)));
    else if (job.state === "failed") fill(place, h("p", { class: "note bad" }, job.failure.message));
    else if (job.state === "done") fill(place, job.kind === "verify" ? soundness(job.result) : gifts(job.result));
    else fill(place);
  };
  const watch = (job) => {
    stop();
    asked.set(key, job);
    stop = follow(job.id, show);
    show(job);
  };
  const ask = async (what, more = {}) => {
    const old = asked.get(key);
    try {
      watch(await start(what, { name, kind, ...more }));
    } catch (error) {
      return toast(error.message, "bad");
    }
    if (old && ENDED.includes(old.state)) remove(old.id).catch(() => {}); // a copy of gigabytes, perhaps
    return undefined;
  };
  if (asked.has(key)) watch(asked.get(key));
  const other = RENAMED.includes(kind) && LAYOUTS[weights.layout];
  const items = () => [
    [t("Verify"), "check", () => ask("verify")],
    [t("Download with its card"), "download", () => ask("export")],
    other && [t("Convert: names of {layout}", { layout: other }), "swap", () => ask("export", { layout: other })],
    /\.(ckpt|pth?|bin|gguf)$/.test(name) && [t("Convert to safetensors"), "swap", () => ask("export", { format: "safetensors" })],
    /\.safetensors$/.test(name) && [t("Convert to a checkpoint"), "swap", () => ask("export", { format: "ckpt" })],
  ].filter(Boolean);
  return { place, more: menu("", "more", items, { class: "bare", label: t("More about {name}", { name }) }) };
}
