// How tabs speak to each other: "send" a picture to a tab, "restore" a request, "use" a model, a control or a LoRA; that the
// library has "looked" at its folders again.

const ears = new Map();

/** Be told of news by this name. */
export function on(name, work) {
  if (!ears.has(name)) ears.set(name, new Set());
  ears.get(name).add(work);
}

/** Tell news. */
export function say(name, ...given) {
  for (const work of ears.get(name) ?? []) work(...given);
}
