// What the server has: models, controls, annotators, samplers. Asked for once; the page is there before the answer.

import { list } from "./api.js";

const UNKNOWN = { width: 512, height: 512, steps: 20, cfg: 7, sampler: "", schedule: "" };

/** Return the lists, once the server has told them. */
export async function openHouse() {
  await list("models"); // alone first: it is refused until the model's process has started
  const names = ["models", "controls", "annotators", "samplers", "schedules", "files"];
  const lists = await Promise.all(names.map((name) => list(name)));
  return Object.fromEntries(names.map((name, n) => [name, lists[n]]));
}

/** Return the model of a name. */
export function modelOf(house, name) {
  return house.models.find((each) => each.id === name) ?? null;
}

/** Return what a model draws by itself: size, steps, guidance, sampler, schedule. */
export function ownOf(house, name) {
  return { ...UNKNOWN, ...modelOf(house, name)?.defaults };
}
