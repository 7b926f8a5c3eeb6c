// Elements. Text always goes in as text, never as HTML, so nothing that a person or a file says can become code.

import { t } from "./i18n.js";

const SVG = "http://www.w3.org/2000/svg";

function apply(element, name, value) {
  if (value === null || value === undefined || value === false) return;
  if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
  else if (name === "class") element.className = value;
  else if (name === "data") Object.assign(element.dataset, value);
  else if (name === "style") for (const [key, each] of Object.entries(value)) element.style.setProperty(key, each);
  else if (["value", "checked", "disabled", "hidden", "indeterminate", "srcObject", "selected"].includes(name)) element[name] = value;
  else element.setAttribute(name, value === true ? "" : value);
}

/** Return a new element: properties by name (`onclick`, `class`, `data`, `style`, attributes), then its children. */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties ?? {})) apply(element, name, value);
  append(element, children);
  return element;
}

/** Put children (elements, texts, lists of them, nothing) at the end of an element. */
export function append(element, children) {
  for (const child of [children].flat(5)) {
    if (child !== null && child !== undefined && child !== false) element.append(child);
  }
  return element;
}

/** Replace everything in an element. */
export function fill(element, ...children) {
  element.replaceChildren();
  return append(element, children);
}

/** Return what a button of a list is: its row and its name. */
function markOf(element) {
  const row = element.closest("[data-job], [data-layer]")?.dataset ?? {};
  return [row.job ?? row.layer, element.dataset.action ?? element.getAttribute("aria-label") ?? element.textContent].join(" ");
}

/** Replace everything in an element; a button that had the focus, and is there again, has it again. */
export function refill(element, ...children) {
  const had = document.activeElement;
  const focused = element.contains(had) && had.matches("button, a, summary") ? markOf(had) : null;
  fill(element, ...children);
  if (focused !== null) [...element.querySelectorAll("button, a, summary")].find((each) => markOf(each) === focused)?.focus({ preventScroll: true });
}

let pressedOn = null;
addEventListener("pointerdown", ({ target }) => { pressedOn = target; }, true);
for (const end of ["pointerup", "pointercancel"]) addEventListener(end, () => setTimeout(() => { pressedOn = null; }), true);

/** Whether something in an element is being pressed: drawn anew between press and release, a button loses its click. */
export const isPressed = (element) => pressedOn !== null && element.contains(pressedOn);

const ICONS = {
  plus: "M12 5v14M5 12h14",
  minus: "M5 12h14",
  close: "M6 6l12 12M18 6L6 18",
  trash: "M5 7h14M10 7V5h4v2M7 7l1 12h8l1-12M10 11v5M14 11v5",
  pen: "M4 20l1-4L16 5l3 3L8 19z M14 7l3 3",
  eraser: "M4 16l8-9 6 5-7 8H7z M9 10l6 6M11 20h9",
  fill: "M5 12l7-7 7 7-7 7z M5 12h14 M12 3v2",
  line: "M5 19L19 5",
  box: "M5 6h14v12H5z",
  undo: "M9 6L5 10l4 4M5 10h9a5 5 0 010 10h-3",
  redo: "M15 6l4 4-4 4M19 10h-9a5 5 0 000 10h3",
  photo: "M4 6h16v12H4z M4 15l4-4 4 4 3-3 5 5 M15 9.500h.01",
  paste: "M8 5h8v3H8z M7 6H5v14h14V6h-2 M9 13h6M9 16h4",
  camera: "M4 8h3l2-3h6l2 3h3v11H4z M12 10a3.500 3.500 0 100 7 3.500 3.500 0 000-7z",
  eye: "M2.500 12S6 6 12 6s9.500 6 9.500 6-3.500 6-9.500 6-9.500-6-9.500-6z M12 9.500a2.500 2.500 0 100 5 2.500 2.500 0 000-5z",
  hidden: "M4 4l16 16 M9.500 6.300C10.300 6.100 11.100 6 12 6c6 0 9.500 6 9.500 6-.700 1.200-1.700 2.400-3 3.400 M6 8c-2.200 1.600-3.500 4-3.500 4S6 18 12 18c1.300 0 2.500-.300 3.500-.700",
  up: "M12 19V6M6 11l6-6 6 6",
  down: "M12 5v13M6 13l6 6 6-6",
  left: "M15 6l-6 6 6 6",
  right: "M9 6l6 6-6 6",
  download: "M12 4v11M7 11l5 5 5-5M5 20h14",
  send: "M5 12h13M13 6l6 6-6 6",
  dice: "M5 5h14v14H5z M8.700 8.700h.600v.600h-.600zM14.700 8.700h.600v.600h-.600zM11.700 11.700h.600v.600h-.600zM8.700 14.700h.600v.600h-.600zM14.700 14.700h.600v.600h-.600z",
  swap: "M7 4L3 8l4 4M3 8h14M17 12l4 4-4 4M21 16H7",
  sun: "M12 8a4 4 0 100 8 4 4 0 000-8z M12 3v2M12 19v2M3 12h2M19 12h2M5.600 5.600L7 7M17 17l1.400 1.400M5.600 18.400L7 17M17 7l1.400-1.400",
  moon: "M19 14.500A7.500 7.500 0 019.500 5 7.500 7.500 0 1019 14.500z",
  auto: "M12 4a8 8 0 100 16z M12 4a8 8 0 010 16",
  compare: "M12 4v16 M4 6h5v12H4z M15 6h5v12h-5z",
  check: "M5 12.500l5 5L19 7",
  layers: "M12 4l8 4.500-8 4.500-8-4.500z M4 13l8 4.500 8-4.500",
  stop: "M7 7h10v10H7z",
  first: "M6 5h12M12 19V9M7 13l5-5 5 5",
  refresh: "M19 12a7 7 0 11-2-5l2 2M19 4v5h-5",
  guide: "M4 6h10v12H4z M9 9h11v12H9z",
  more: "M5.500 11.500h1v1h-1z M11.500 11.500h1v1h-1z M17.500 11.500h1v1h-1z",
  pause: "M8 6v12M16 6v12",
  move: "M12 3v18M3 12h18M9 6l3-3 3 3M9 18l3 3 3-3M6 9l-3 3 3 3M18 9l3 3-3 3",
};

/** Return an icon: decoration, which says nothing to a screen reader. */
export function icon(name, size = 18) {
  const svg = document.createElementNS(SVG, "svg");
  for (const [key, value] of Object.entries({ viewBox: "0 0 24 24", width: size, height: size, "aria-hidden": "true", class: "icon" })) {
    svg.setAttribute(key, value);
  }
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

/** Return a button with an icon, a text, or both; one without a text says `label` to a screen reader and on hovering. */
export function button(text, properties = {}, iconName = null) {
  const { label, ...others } = properties;
  const names = label ? { "aria-label": label, title: label } : {};
  return h("button", { type: "button", ...names, ...others }, iconName && icon(iconName), text && h("span", {}, text));
}

let count = 0;

/** Return an id that no other element has. */
export function uniqueId(prefix = "x") {
  count += 1;
  return `${prefix}-${count}`;
}

/** Return a function that calls `work` once nothing has called it for `ms`. */
export function debounced(work, ms) {
  let timer = null;
  return (...given) => {
    clearTimeout(timer);
    timer = setTimeout(() => work(...given), ms);
  };
}

/** Show a message for a while; `kind`: info, good or bad; `actions`: [text, work] each. What is bad or can be done stays longer. */
export function toast(text, kind = "info", actions = []) {
  const box = document.getElementById("toasts");
  const host = [...document.querySelectorAll("dialog[open]")].at(-1) ?? document.body;
  if (box.parentElement !== host) host.append(box); // a dialog lies over everything that is not in it
  const close = () => element.remove();
  const element = h("div", { class: `toast ${kind}`, role: kind === "bad" ? "alert" : null },
    h("p", {}, text), actions.map(([name, work]) => button(name, { class: "small", onclick: () => { close(); work(); } })),
    button("", { class: "bare", label: t("Close"), onclick: close }, "close"));
  box.append(element);
  while (box.childElementCount > 4) box.firstElementChild.remove();
  setTimeout(close, kind === "bad" || actions.length ? 15_000 : 6000);
}
