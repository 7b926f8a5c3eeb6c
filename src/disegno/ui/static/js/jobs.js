// The jobs as this page knows them, kept up to date by one stream of events. Whoever wants to know subscribes.

import { act, forget, get, submit } from "./api.js";

const known = new Map(); // id -> job, with `progress` and the last `preview`
const listeners = new Set();
const forJob = new Map(); // id -> Set of listeners
const heard = new Map(); // id -> how often the stream has told of a job
const state = { online: true, locked: false, before: null, loaded: false };

export const ENDED = ["done", "failed", "cancelled"];
const WAIT_MS = [500, 1000, 2000, 4000, 8000];
const HELLO_MS = 1500;
const UNSEEN_MS = 60_000; // so long a page that nobody sees keeps its stream

/** Be told `(job or null)` at every change; null: many things changed, or the connection did. Returns how to stop. */
export function subscribe(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

/** Be told of one job; null: it was removed. Returns how to stop. */
export function follow(id, listener) {
  if (!forJob.has(id)) forJob.set(id, new Set());
  forJob.get(id).add(listener);
  return () => forJob.get(id)?.delete(listener);
}

function tell(job) {
  for (const listener of listeners) listener(job);
  for (const listener of (job && forJob.get(job.id)) ?? []) listener(job);
}

/** Begin to ask. Returns what says of a job whether the stream has told of it since: then the answer is the older news. */
function asking() {
  const before = new Map(heard);
  return (id) => heard.get(id) !== before.get(id);
}

function learn(job) {
  const old = known.get(job.id);
  const preview = job.progress?.preview ?? old?.preview ?? null;
  const next = { ...job, look: job.look ?? old?.look ?? null, preview: ENDED.includes(job.state) ? null : preview };
  known.set(job.id, next);
  return next;
}

/** Return all known jobs, the newest first. */
export function all() {
  return [...known.values()].sort((a, b) => b.created - a.created);
}

/** Return whether the server is there, and wants a name first; whether the first list has come; whether there are older jobs. */
export function status() {
  return { online: state.online, locked: state.locked, loaded: state.loaded, more: state.before !== null };
}

/** Submit a job; everybody who subscribed sees it at once. */
export async function start(kind, request) {
  const overtaken = asking();
  const answer = await submit(kind, request);
  const job = (overtaken(answer.id) && known.get(answer.id)) || learn(answer);
  tell(job);
  return job;
}

/** Return the job when it has ended; where it is removed before that is heard, it was cancelled. */
export function ended(id) {
  return new Promise((resolve) => {
    const look = (job) => {
      if (job && !ENDED.includes(job.state)) return;
      stop();
      resolve(job ?? { id, state: "cancelled" });
    };
    const stop = follow(id, look);
    if (known.has(id)) look(known.get(id));
  });
}

/** Do some work whenever jobs of a kind are done that were seen on their way. */
export function whenDone(kind, work) {
  const seen = new Map(); // id -> its state
  subscribe((job) => {
    if (job && job.kind !== kind) return;
    const some = all().filter((each) => each.kind === kind);
    const came = some.some(({ id, state: now }) => now === "done" && seen.has(id) && seen.get(id) !== "done");
    for (const each of some) seen.set(each.id, each.state);
    if (came) work();
  });
}

/** Carry out a short job, hand its files and facts to `take`, and leave no trace of it. */
export async function briefly(kind, request, take) {
  const job = await ended((await start(kind, request)).id);
  try {
    if (job.state === "failed") throw new Error(job.failure.message);
    return job.state === "done" ? await take(job) : null;
  } finally {
    remove(job.id).catch(() => {});
  }
}

/** Cancel, finish, pause, resume, or move a job. */
export async function change(id, action) {
  const overtaken = asking();
  const job = await act(id, action);
  if (!overtaken(id)) tell(learn(job));
}

/** Remove an ended job with its pictures. */
export async function remove(id) {
  await forget(id);
  drop(id);
}

function drop(id) {
  heard.delete(id);
  if (known.delete(id)) tell(null);
  for (const listener of forJob.get(id) ?? []) listener(null);
}

/** Learn of older jobs. */
export async function older() {
  if (state.before === null) return;
  const overtaken = asking();
  const page = await get(`/v1/jobs?limit=100&before=${state.before}`);
  state.before = page.before;
  page.jobs.filter((job) => !overtaken(job.id)).forEach(learn);
  tell(null);
}

async function reload() {
  const overtaken = asking();
  const had = new Set(known.keys());
  const page = await get("/v1/jobs?limit=100");
  const oldest = page.before ?? 0;
  const there = new Set(page.jobs.map((job) => job.id));
  const gone = [...had].filter((id) => known.get(id)?.created >= oldest && !there.has(id) && !overtaken(id));
  // where nothing was known of a whole page, there may be more between it and what was: it is asked for as older ones are
  if (!state.loaded || (page.before !== null && !page.jobs.some((job) => had.has(job.id)))) state.before = page.before;
  state.loaded = true;
  const jobs = page.jobs.filter((job) => !overtaken(job.id));
  jobs.forEach(learn);
  gone.forEach(drop);
  tell(null);
  for (const job of jobs) for (const listener of forJob.get(job.id) ?? []) listener(known.get(job.id));
  // a training may have begun long before these, and have ended while the stream was away
  for (const { id, state: was } of [...known.values()]) {
    if (ENDED.includes(was) || there.has(id) || !had.has(id)) continue;
    get(`/v1/jobs/${id}`).then((job) => overtaken(id) || tell(learn(job)), (error) => error.status === 404 && drop(id));
  }
}

let tries = 0;
let source = null; // the stream that is open
let timer = null; // of the next try, or until a page that nobody sees lets go of its stream

/** Say that the stream has ended: because the server is away, or because it does not know this browser any more. */
async function missed() {
  // without credentials: a browser that is told to ask for them leaves the answer open until it has some
  const locked = await fetch("/v1/jobs?limit=1", { credentials: "omit" }).then(({ status }) => status === 401, () => false);
  if (!tries || (!state.online && state.locked === locked)) return;
  Object.assign(state, { online: false, locked });
  tell(null);
}

/** Watch the server from now on; after a lost connection, again and again. */
export function connect() {
  clearTimeout(timer);
  source?.close();
  const mine = new EventSource("/v1/events");
  source = mine;
  if (tries > 1) setTimeout(() => tries && missed(), HELLO_MS); // it says nothing while the browser asks for a name
  const on = (name, work) => mine.addEventListener(name, (event) => work(JSON.parse(event.data)));
  on("hello", () => {
    tries = 0;
    state.online = true;
    state.locked = false;
    reload().catch(() => {});
    if (document.hidden) timer = setTimeout(rest, UNSEEN_MS);
  });
  on("job", (job) => {
    heard.set(job.id, (heard.get(job.id) ?? 0) + 1);
    tell(learn(job));
  });
  on("progress", ({ id, progress }) => {
    const old = known.get(id);
    // a step of a job that was paused meanwhile is old news
    if (old?.state === "running" || old?.state === "queued") tell(learn({ ...old, state: "running", progress }));
  });
  on("look", ({ id, look }) => {
    const old = known.get(id);
    if (old) tell(learn({ ...old, look }));
  });
  on("gone", ({ id }) => drop(id));
  mine.onerror = () => {
    mine.close();
    if (source !== mine) return;
    timer = setTimeout(connect, WAIT_MS[Math.min(tries, WAIT_MS.length - 1)]);
    tries += 1;
    if (tries > 1) missed();
  };
}

// A browser has six connections to a server, for all of its tabs: with as many streams open, no page could ask for anything.
function rest() {
  if (!document.hidden || !source) return;
  if ([...known.values()].some((job) => job.kind === "teach" && job.state === "running")) { // its losses are told once
    timer = setTimeout(rest, UNSEEN_MS);
    return;
  }
  source.close();
  source = null;
}

document.addEventListener("visibilitychange", () => {
  if (!document.hidden && !source) connect();
  else if (document.hidden && source?.readyState === EventSource.OPEN) timer = setTimeout(rest, UNSEEN_MS);
});
