// Live: after each change the picture is drawn anew, in few steps and from one seed; what was overtaken leaves no trace.
// A model that was taught few steps draws in those.

import { debounced, toast } from "./dom.js";
import { change, ended, remove, start } from "./jobs.js";

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
  let turn = 0; // how often was asked
  let shown = { id: null, turn: 0 }; // the last picture
  let failed = null; // the id of what says on the stage why it could not be drawn

  const draw = async () => {
    if (!isOn()) return;
    let asked;
    try {
      asked = request();
    } catch {
      return; // a control without a drawing: its first stroke will come
    }
    turn += 1;
    const mine = turn;
    if (running) change(running.id, "cancel").catch(() => {});
    try {
      const begun = await start("generate", { ...quickly(asked, few()), seed: seed() ?? own, batch: 1 });
      if (mine === turn) {
        running = begun;
        show(begun);
        if (failed) remove(failed).catch(() => {});
        failed = null;
      } else change(begun.id, "cancel").catch(() => {}); // over a slow connection it was overtaken before its answer came
      const job = await ended(begun.id);
      if (running === begun) running = null;
      if (job.state === "failed" && mine === turn) {
        failed = job.id;
        return;
      }
      const last = shown;
      const older = job.state === "done" && mine > last.turn ? last.id : job.id;
      if (older !== job.id) shown = { id: job.id, turn: mine };
      if (older) remove(older).catch(() => {});
    } catch (error) {
      toast(error.message, "bad");
    }
  };
  return { changed: debounced(draw, WAIT_MS) };
}
