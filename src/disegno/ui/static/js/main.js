// The page: its tabs, and what is at its top.

import { all, connect, ENDED, status, subscribe } from "./jobs.js";
import { button, fill, h, icon, toast } from "./dom.js";
import { on, say } from "./bus.js";
import { makeDesk } from "./desk.js";
import { menu } from "./fields.js";
import { galleryTab, SHOWN_KINDS } from "./gallery.js";
import { openHouse } from "./house.js";
import { language, languages, speak, t } from "./i18n.js";
import { libraryTab } from "./library.js";
import { picturesTab } from "./pictures.js";
import { sendable, uriToBlob } from "./source.js";
import { teachTab } from "./teach.js";

const TABS = [
  ["draw", "Draw"], ["pictures", "From pictures"], ["gallery", "Gallery"], ["teach", "Teach"], ["library", "Library"],
];
const THEMES = [["auto", "As the system", "auto"], ["light", "Light", "sun"], ["dark", "Dark", "moon"]];
const main = document.getElementById("main");
const sections = {};
const places = {}; // how far each tab was scrolled
let shown = null; // the name of the tab

// ---- the top

function showTheme() {
  const kept = localStorage.getItem("disegno.theme") ?? "auto";
  if (kept === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = kept;
}

function topRight() {
  const themes = menu("", "sun", () => THEMES.map(([value, text, picture]) => [t(text), picture, () => {
    localStorage.setItem("disegno.theme", value);
    showTheme();
  }]), { class: "bare", label: t("Light and dark") });
  const other = languages.find(([code]) => code !== language);
  const lost = h("span", { class: "lost", role: "status" });
  fill(document.getElementById("top-right"), lost, button(other[1], { class: "bare", lang: other[0], onclick: () => speak(other[0]) }), themes);
  let said = "";
  subscribe(() => {
    const { online, locked } = status();
    const now = online ? "" : locked ? t("Sign in again") : t("The server is away");
    if (now !== said) fill(lost, locked && !online ? button(now, { class: "small", onclick: () => location.reload() }, "refresh") : now && [icon("refresh", 16), now]);
    said = now;
  });
}

function tabs() {
  const badge = h("span", { class: "badge", hidden: true });
  const links = TABS.map(([name, text]) => h("a", { href: `#${name}`, data: { tab: name } }, t(text), name === "gallery" && badge));
  fill(document.getElementById("tabs"), links);
  document.getElementById("tabs").setAttribute("aria-label", t("Tabs"));
  subscribe(() => {
    const num = all().filter((job) => !ENDED.includes(job.state) && SHOWN_KINDS.includes(job.kind)).length;
    badge.hidden = !num;
    badge.textContent = String(num);
    badge.setAttribute("aria-label", t("{n} jobs on their way", { n: num }));
  });
}

function show() {
  const wanted = location.hash.slice(1);
  const name = TABS.some(([each]) => each === wanted) ? wanted : shown ?? "draw";
  if (name === shown) return; // #main: past the top
  places[shown] = scrollY;
  for (const [each] of TABS) if (sections[each]) sections[each].hidden = each !== name;
  for (const link of document.querySelectorAll("#tabs a")) {
    if (link.dataset.tab === name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = name === "draw" ? "Disegno" : `${t(TABS.find(([each]) => each === name)[1])} · Disegno`;
  shown = name;
  scrollTo(0, places[name] ?? 0);
  say("shown", name);
}

// ---- the tabs

function section(name, element) {
  sections[name] = h("section", { id: `tab-${name}`, hidden: true, "aria-label": t(TABS.find(([each]) => each === name)[1]) }, element);
  main.append(sections[name]);
}

function wire(draw, pictures) {
  const go = (name) => {
    if (name !== shown) places[name] = 0;
    location.hash = name;
  };
  on("picture", async (uri, way) => {
    go("pictures");
    pictures.top().give(await sendable(uri), way, true);
  });
  on("control picture", (uri) => {
    go("draw");
    draw.newUnit()?.take(uriToBlob(uri));
  });
  on("restore", (request, seed) => {
    const where = request.init ? pictures : draw;
    go(request.init ? "pictures" : "draw");
    where.restore(request, seed);
  });
  on("use model", (id) => {
    go("draw");
    draw.useModel(id);
  });
  on("use control", (name) => {
    go("draw");
    draw.newUnit(name);
  });
  on("use lora", (name) => {
    go("draw");
    draw.insert(`<lora:${name}:1>`);
  });
}

async function begin() {
  document.querySelector(".skip").textContent = t("Skip to the page");
  showTheme();
  tabs();
  topRight();
  fill(main, h("p", { class: "empty", role: "status" }, t("The model's process is starting …")));
  connect();
  let house = null;
  while (!house) {
    try {
      house = await openHouse();
    } catch (error) {
      fill(main, h("p", { class: "empty", role: "status" }, error.message));
      await new Promise((resolve) => setTimeout(resolve, 1500));
    }
  }
  const draw = await makeDesk({ name: "draw", house, hint: t("Write what you want to see, and press “Draw”. Add a control to draw its edges or colours yourself. A picture that is dropped here brings its settings back.") });
  const pictures = await picturesTab(house);
  fill(main);
  section("draw", draw.element);
  section("pictures", pictures.element);
  section("gallery", galleryTab());
  section("teach", teachTab(house));
  section("library", libraryTab(house));
  wire(draw, pictures);
  window.addEventListener("hashchange", show);
  show();
  let resumed = false;
  const resume = () => {
    if (resumed || !status().loaded) return;
    resumed = true;
    draw.resume();
    pictures.resume();
  };
  subscribe(resume);
  resume();
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => event.preventDefault()); // beside a place for it: not a new page
}

window.addEventListener("unhandledrejection", (event) => toast(event.reason?.message ?? String(event.reason), "bad"));
begin();
