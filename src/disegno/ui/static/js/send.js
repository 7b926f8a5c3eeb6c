// Where a picture can go from here.

import { toast } from "./dom.js";
import { t } from "./i18n.js";
import { dataUri } from "./api.js";
import { say } from "./bus.js";

const PLACES = [
  ["Change it", "swap", "change"], ["Paint over a part", "pen", "paint"], ["Extend it", "box", "extend"], ["Enlarge it", "up", "enlarge"],
];

/** Return the items of a "send to" menu for the picture at this address. */
export function sendItems(url) {
  const given = (work) => () => dataUri(url).then(work).catch((error) => toast(error.message, "bad"));
  return [
    ...PLACES.map(([text, picture, way]) => [t(text), picture, given((uri) => say("picture", uri, way))]),
    [t("A control's picture"), "layers", given((uri) => say("control picture", uri))],
  ];
}
