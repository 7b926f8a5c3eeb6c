// What a person has typed and drawn outlives a reload: IndexedDB, since drawings are large. A new tab begins with what was
// kept last; one that is loaded anew has its own again, whatever other tabs have kept meanwhile.

const NAME = "disegno";
const TABS = "disegno.tabs"; // when each tab was left
const DAY_MS = 24 * 3600 * 1000; // so long what a tab left is there for it
const TAB = sessionStorage.getItem("disegno.tab") ?? Math.random().toString(36).slice(2);
sessionStorage.setItem("disegno.tab", TAB);
let database = null; // open from the first use on: a page that is left has no time to open it

function opened() {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open(NAME, 1);
    request.onupgradeneeded = () => request.result.createObjectStore("kept");
    request.onsuccess = () => {
      request.result.onclose = () => { database = null; }; // a person cleared the browser's data
      resolve(request.result);
    };
    request.onerror = () => reject(request.error);
  });
}

function within(mode, work) {
  return new Promise((resolve, reject) => {
    const transaction = database.transaction("kept", mode);
    const request = work(transaction.objectStore("kept"));
    transaction.oncomplete = () => resolve(request.result);
    transaction.onerror = transaction.onabort = () => reject(transaction.error);
    transaction.commit();
  });
}

/** Return what was kept under a name, or null; a browser that keeps nothing is no error. */
export async function kept(name) {
  const get = (key) => within("readonly", (store) => store.get(key));
  try {
    database ??= await opened();
    await swept(name).catch(() => {});
    const left = (await get(`${name}@by`)) === TAB ? null : await get(`${name}@${TAB}`);
    return left ?? (await get(name)) ?? null;
  } catch {
    database = null; // it may have been closed: the next use opens it anew
    return null;
  }
}

/** Remove what tabs have left that were left long ago. */
async function swept(name) {
  const old = Object.entries(tabs()).filter(([tab, at]) => tab !== TAB && at < Date.now() - DAY_MS);
  for (const [tab] of old) await within("readwrite", (store) => store.delete(`${name}@${tab}`));
}

function tabs() {
  return JSON.parse(localStorage.getItem(TABS) ?? "{}");
}

/** Keep a value under a name for this tab alone, at once: the page is being left. */
export function leave(name, value) {
  const others = Object.entries(tabs()).filter(([, at]) => at > Date.now() - 2 * DAY_MS);
  localStorage.setItem(TABS, JSON.stringify({ ...Object.fromEntries(others), [TAB]: Date.now() }));
  within("readwrite", (store) => store.put(value, `${name}@${TAB}`)).catch(() => {});
}

/** Keep a value under a name. */
export async function keep(name, value) {
  try {
    database ??= await opened();
    await within("readwrite", (store) => {
      store.put(TAB, `${name}@by`);
      return store.put(value, name);
    });
  } catch {
    database = null; // closed by the browser; or a private window: the page works, and forgets
  }
}
