// Pictures from a person: a file, the clipboard, a drop, the camera. What comes out is a data URI and a size.

import { blobToUri } from "./api.js";
import { button, h, toast } from "./dom.js";
import { openDialog } from "./fields.js";
import { t } from "./i18n.js";

const KEPT_TYPES = ["image/png", "image/jpeg", "image/webp"];
const MAX_SIDE = 2048;
const MAX_BYTES = 8e6;

/** Return { uri, width, height } of a picture file; one that is large, or of another kind, is written anew. */
export async function readPicture(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new Error(t("“{name}” cannot be read as a picture. Give a PNG, a JPEG or a WebP.", { name: file.name ?? file.type }));
  }
  try {
    return await fitting(file, bitmap);
  } finally {
    bitmap.close(); // of a camera's picture it holds hundreds of megabytes
  }
}

/** Return the picture as `readPicture` does. `bitmap`: what it shows. */
async function fitting(file, bitmap) {
  const { width, height } = bitmap;
  if (KEPT_TYPES.includes(file.type) && Math.max(width, height) <= MAX_SIDE && file.size <= MAX_BYTES) {
    return { uri: await blobToUri(file), width, height };
  }
  const by = Math.min(1, MAX_SIDE / Math.max(width, height));
  const canvas = canvasOf(...[width, height].map((side) => Math.max(1, Math.round(side * by))));
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return { uri: written(canvas, file.type), width: canvas.width, height: canvas.height };
}

/** Return a canvas as a data URI: whole, as a drawing's colours must be; as a JPEG where the file was one, or it is too large. */
function written(canvas, type) {
  const whole = type === "image/jpeg" ? null : canvas.toDataURL("image/png");
  if (whole && whole.length * 0.75 <= MAX_BYTES) return whole;
  const context = canvas.getContext("2d");
  context.globalCompositeOperation = "destination-over"; // what is see-through is white, as the server has it
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/jpeg", 0.95);
}

/** Return a data URI as a blob. */
export function uriToBlob(uri) {
  const [head, body] = uri.split(",", 2);
  const bytes = Uint8Array.from(atob(body), (letter) => letter.charCodeAt(0));
  return new Blob([bytes], { type: head.slice(5).split(";")[0] });
}

/** Return a picture of this page's own as one that a request has room for: as it is, or, where its file is large, made smaller. */
export async function sendable(uri) {
  const file = uriToBlob(uri);
  return file.size <= MAX_BYTES ? uri : (await readPicture(file)).uri;
}

/** Return an empty canvas. */
export function canvasOf(width, height) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  return canvas;
}

/** Return the picture of a data URI or an address, loaded. */
export function loadImage(uri) {
  return new Promise((resolve, reject) => {
    const image = new Image();
    image.onload = () => resolve(image);
    image.onerror = () => reject(new Error(t("A picture could not be loaded.")));
    image.src = uri;
  });
}

/** Let a person choose a file. */
export function chooseFile(take, accept = "image/*") {
  const input = h("input", { type: "file", accept });
  input.onchange = () => input.files[0] && take(input.files[0]);
  input.click();
}

/** Return the picture in the clipboard as a file, or say why there is none. */
export async function fromClipboard() {
  if (!navigator.clipboard?.read) {
    throw new Error(t("This browser lets pages paste with Ctrl+V only: point at the place, then press it."));
  }
  for (const item of await navigator.clipboard.read()) {
    const type = item.types.find((each) => each.startsWith("image/"));
    if (type) return item.getType(type);
  }
  throw new Error(t("There is no picture in the clipboard."));
}

const files = (list) => [...(list ?? [])].find((file) => file.type.startsWith("image/"));
const takers = new WeakMap(); // element -> what takes its pictures

// A pasted picture goes where the pointer is, or else where the cursor is, or else to the tab that is shown.
document.addEventListener("paste", (event) => {
  const file = files(event.clipboardData.files);
  const typing = event.target.matches("input, textarea") && event.clipboardData.types.includes("text/plain"); // a copied table is both
  if (!file || typing || document.querySelector("dialog[open]")) return;
  const places = [...document.querySelectorAll(".takes-pictures")].filter((each) => each.offsetParent);
  const place = places.findLast((each) => each.matches(":hover")) ?? event.target.closest(".takes-pictures") ?? places[0];
  if (!place) return;
  event.preventDefault();
  takers.get(place)(file);
});

/** Let an element take pictures that are dropped on it, or pasted while the pointer is over it. */
export function takesPictures(element, take) {
  element.classList.add("takes-pictures");
  takers.set(element, take);
  element.addEventListener("dragover", (event) => {
    if (![...event.dataTransfer.types].includes("Files")) return;
    event.preventDefault();
    event.stopPropagation();
    element.classList.add("over");
  });
  element.addEventListener("dragleave", (event) => !element.contains(event.relatedTarget) && element.classList.remove("over"));
  element.addEventListener("drop", (event) => {
    event.preventDefault();
    event.stopPropagation();
    element.classList.remove("over");
    const file = files(event.dataTransfer.files);
    if (file) take(file);
    else toast(t("That is no picture."), "bad");
  });
}

/** Let a person take a picture with the camera. */
export async function fromCamera(take) {
  if (!navigator.mediaDevices?.getUserMedia) {
    return toast(t("The camera cannot be used: {why}.", { why: t("this page is not on a secure address") }), "bad");
  }
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { width: 1280, height: 1280 } });
  } catch (error) {
    return toast(t("The camera cannot be used: {why}.", { why: error.message }), "bad");
  }
  const video = h("video", { autoplay: true, playsinline: true, muted: true, srcObject: stream, "aria-label": t("Camera") });
  const stop = () => stream.getTracks().forEach((track) => track.stop());
  const snap = () => {
    const canvas = canvasOf(video.videoWidth, video.videoHeight);
    canvas.getContext("2d").drawImage(video, 0, 0);
    canvas.toBlob((blob) => blob && take(blob), "image/png");
    dialog.close();
  };
  const body = h("div", { class: "dialog-body stack" }, video,
    h("div", { class: "row" }, button(t("Take the picture"), { class: "primary grow", onclick: snap }, "camera"), button(t("Close"), { onclick: () => dialog.close() })));
  const dialog = openDialog(t("Camera"), body, { closed: stop });
  return undefined;
}

/** Return the buttons that give a picture. `take(file)`. */
export function sourceButtons(take, size = "small") {
  const paste = () => fromClipboard().then(take, (error) => toast(error.message, "bad"));
  return [
    button(t("Upload"), { class: size, onclick: () => chooseFile(take) }, "photo"),
    button(t("Paste"), { class: size, onclick: paste }, "paste"),
    button(t("Camera"), { class: size, onclick: () => fromCamera(take) }, "camera"),
  ];
}
