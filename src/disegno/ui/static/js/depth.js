// The depth map of a model that draws by depth: uploaded, drawn by an annotator, or estimated by the model itself.

import { button, fill, h, icon, toast } from "./dom.js";
import { choice } from "./fields.js";
import { t } from "./i18n.js";
import { readPicture, sourceButtons, takesPictures } from "./source.js";

/** Return the card; it is there only while the model sees depth. `pictures`: the desk has a picture that is changed. */
export function depthCard({ desk, house, model, changed, pictures }) {
  const thumb = h("div", { class: "thumb" });
  const dropPlace = h("span");
  const by = choice(t("Depth map"), { value: "", options: [["", ""]], change: (value) => { desk.depthBy = value || null; changed(); } });
  const offer = () => {
    const own = desk.depth || !pictures ? t("the picture itself") : t("estimated by the model");
    const annotators = house.annotators.filter((each) => each.name !== "none").map((each) => [each.name, t("drawn by {name}", { name: each.title })]);
    by.offer([["", own], ...annotators], desk.depthBy ?? "");
    fill(thumb, desk.depth ? h("img", { src: desk.depth, alt: t("The depth map, or what it is drawn from") }) : icon("photo", 26));
    fill(dropPlace, desk.depth && button(t("Remove"), { class: "small", onclick: () => give(null) }, "trash"));
    element.hidden = !model()?.sees_depth;
  };
  const give = (uri) => {
    desk.depth = uri;
    offer();
    changed();
  };
  const take = (file) => readPicture(file).then(({ uri }) => give(uri)).catch((error) => toast(error.message, "bad"));
  const element = h("section", { class: "card panel", "aria-label": t("Depth") }, h("h3", {}, t("Depth")),
    h("p", { class: "help" }, pictures ? t("This model draws by depth: that of the picture, unless you give a map.") : t("This model draws by depth: give a map. What is near is white.")),
    h("div", { class: "unit-body" }, thumb, h("div", { class: "sources" }, sourceButtons(take), dropPlace)), by);
  takesPictures(element, take);
  offer();
  return { element, offer };
}
