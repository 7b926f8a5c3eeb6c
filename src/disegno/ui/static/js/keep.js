// What a person has typed and drawn outlives a reload: IndexedDB, since drawings are large.

const NAME = "disegno";
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
  try {
    database ??= await opened();
    return (await within("readonly", (store) => store.get(name))) ?? null;
  } catch {
    database = null; // it may have been closed: the next use opens it anew
    return null;
  }
}

/** Keep a value under a name. */
export async function keep(name, value) {
  try {
    database ??= await opened();
    await within("readwrite", (store) => store.put(value, name));
  } catch {
    database = null; // closed by the browser; or a private window: the page works, and forgets
  }
}
