// Two pictures, one over the other, with a line between them that can be moved.

import { button, h } from "./dom.js";
import { openDialog } from "./fields.js";
import { t } from "./i18n.js";

/** Show two pictures to be compared. */
export function compare(first, second) {
  const range = h("input", { type: "range", min: 0, max: 100, step: 0.5, value: 50, "aria-label": t("Where the one picture ends and the other begins") });
  const view = h("div", { class: "compare" },
    h("img", { src: first.file.url, alt: t("The first picture") }),
    h("img", { src: second.file.url, alt: t("The second picture"), class: "over-picture" }),
    h("div", { class: "handle" }), range);
  range.oninput = () => view.style.setProperty("--cut", `${range.value}%`);
  const head = h("div", { class: "dialog-head" }, h("h3", {}, t("Compare")), button("", { class: "bare", label: t("Close"), onclick: () => dialog.close() }, "close"));
  const dialog = openDialog(t("Compare"), h("div", {}, head, view));
}
