// Live: after each change the picture is drawn anew, in few steps and from one seed; what was overtaken leaves no trace.

import { debounced, toast } from "./dom.js";
import { change, ENDED, ended, remove, start } from "./jobs.js";

export const LIVE_STEPS = 8;

/** Return how a desk draws live. `request()`: what it asks for; `show(job)`. */
export function liveDrawing({ isOn, request, seed, show }) {
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
      const mine = await start("generate", { ...asked, seed: seed() ?? own, batch: 1, steps: LIVE_STEPS });
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
  return { changed: debounced(draw, 120) };
}
