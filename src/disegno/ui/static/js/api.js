// The server's `/v1`. Everything here throws a Problem that says in words what was wrong and what to do.

import { bytes, t } from "./i18n.js";

export class Problem extends Error {
  constructor(status, told) {
    super([told.message ?? t("The server answered {status}.", { status }), told.hint].filter(Boolean).join(" "));
    this.status = status;
    this.code = told.error;
    this.field = told.field;
  }
}

const TRIES_MS = [300, 1000, 3000];
const UPLOAD_TRIES_MS = [...TRIES_MS, 10_000, 30_000]; // an hour's upload outlives a connection that is lost for a while
const MAX_BODY_BYTES = 33_554_432; // the server's limit, said here: an answer that comes while a body is sent may not be read

function requireSendable(size) {
  if (size <= MAX_BODY_BYTES) return;
  const message = t("This is {size} with its pictures, and the server takes {most} at once.", { size: bytes(size), most: bytes(MAX_BODY_BYTES) });
  throw new Problem(413, { error: "too_large", message, hint: t("Send smaller or fewer pictures.") });
}

async function asked(method, path, body, headers) {
  const options = { method, headers: { ...headers } };
  if (body instanceof Blob) {
    options.headers["Content-Type"] = "application/octet-stream";
    options.body = body;
  } else if (body !== undefined) {
    options.headers["Content-Type"] = "application/json";
    options.body = JSON.stringify(body);
    requireSendable(new Blob([options.body]).size);
  }
  const answer = await fetch(path, options);
  if (answer.ok) return answer;
  throw new Problem(answer.status, await answer.json().catch(() => ({})));
}

/** Return the answer; what may be repeated without harm is repeated when the connection fails. */
async function call(method, path, { body, headers = {}, again = method === "GET", tries = TRIES_MS } = {}) {
  for (let n = 0; ; n += 1) {
    try {
      return await asked(method, path, body, headers);
    } catch (error) {
      const later = error instanceof Problem ? error.status === 503 && error.code === "starting" : true;
      if (!again || !later || n >= tries.length) {
        if (error instanceof Problem) throw error;
        throw new Problem(0, { message: t("The server cannot be reached.") });
      }
      await new Promise((resolve) => setTimeout(resolve, tries[n]));
    }
  }
}

/** Return the JSON at a path. */
export async function get(path) {
  return (await call("GET", path)).json();
}

/** Return the JSON that is answered to a question which changes nothing. */
export async function post(path, body) {
  return (await call("POST", path, { body, again: true })).json();
}

/** Return the id of an upload, once all of a file has been sent in parts. `told(share)`: how much of it has gone. */
export async function upload(file, told) {
  let { id, received, part_bytes: size } = await (await call("POST", "/v1/uploads", { body: { num_bytes: file.size } })).json();
  try {
    while (received < file.size) {
      told(received / file.size);
      const body = file.slice(received, received + size);
      ({ received } = await (await call("PUT", `/v1/uploads/${id}?at=${received}`, { body, again: true, tries: UPLOAD_TRIES_MS })).json());
    }
  } catch (error) {
    call("DELETE", `/v1/uploads/${id}`).catch(() => {});
    throw error;
  }
  return id;
}

/** Return the job: a lost answer is asked for again under the same key, so nothing is drawn twice. */
export async function submit(kind, request) {
  const key = [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  const options = { body: { kind, request }, headers: { "Idempotency-Key": key }, again: true };
  return (await call("POST", "/v1/jobs", options)).json();
}

/** Return the job after an action: cancel, finish, pause, resume, first, last, earlier, later. */
export async function act(id, action) {
  return (await call("POST", `/v1/jobs/${id}/${action}`)).json();
}

/** Remove an ended job with its files. */
export async function forget(id) {
  await call("DELETE", `/v1/jobs/${id}`);
}

/** Return a file of the server as a data URI. */
export async function dataUri(url) {
  return blobToUri(await (await call("GET", url)).blob());
}

/** Return a blob as a data URI. */
export function blobToUri(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

const lists = {};

/** Return one of the server's lists (models, controls, files, annotators, samplers, schedules ...), asked for once. */
export function list(name, anew = false) {
  if (anew || !(name in lists)) {
    lists[name] = get(`/v1/${name}`).then((found) => found.data ?? found);
    lists[name].catch(() => delete lists[name]);
  }
  return lists[name];
}

/** Let the server look at its folders again. */
export async function lookAgain() {
  await call("POST", "/v1/models/look");
  for (const name of Object.keys(lists)) delete lists[name];
}
