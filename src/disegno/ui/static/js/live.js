// Live: after each change the picture is drawn anew, in few steps and from one seed; what was overtaken leaves no trace.
// A model that was taught few steps draws in those.

import { debounced, toast } from "./dom.js";
import { change, ENDED, ended, remove, start } from "./jobs.js";

const LIVE_STEPS = 8; // of a model that was not taught fewer
const WAIT_MS = 60; // so that a drag of a slider is one change, not a hundred

/** Return a request that is drawn in few steps. `few`: how the model does that, or null. */
function quickly({ hires, ...request }, few) {
  if (!few) return { ...request, steps: LIVE_STEPS };
  const { steps, cfg, sampler, schedule, ...asked } = request;
  return { ...asked, few_steps: true };
}

/** Return how a desk draws live. `request()`: what it asks for; `few()`: its model's few steps; `show(job)`. */
export function liveDrawing({ isOn, request, few, seed, show }) {
  const own = Math.floor(Math.random() * 2 ** 32);
  let running = null; // the job on its way
  let shown = null; // the id of the last picture

  const draw = async () => {
    if (!isOn()) return;
    let asked;
    try {
      asked = request();
    } catch {
      return; // a control without a drawing: its first stroke will come
    }
    if (running && !ENDED.includes(running.state)) change(running.id, "cancel").catch(() => {});
    try {
      const mine = await start("generate", { ...quickly(asked, few()), seed: seed() ?? own, batch: 1 });
      running = mine;
      show(mine);
      const job = await ended(mine.id);
      if (job.state === "done") {
        if (shown) remove(shown).catch(() => {});
        shown = job.id;
      } else if (job.state === "cancelled") remove(job.id).catch(() => {});
    } catch (error) {
      toast(error.message, "bad");
    }
  };
  return { changed: debounced(draw, WAIT_MS) };
}
