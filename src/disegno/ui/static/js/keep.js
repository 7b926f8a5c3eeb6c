// What a person has typed and drawn outlives a reload: IndexedDB, since drawings are large.

const NAME = "disegno";

function opened() {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open(NAME, 1);
    request.onupgradeneeded = () => request.result.createObjectStore("kept");
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

async function within(mode, work) {
  const database = await opened();
  try {
    return await new Promise((resolve, reject) => {
      const transaction = database.transaction("kept", mode);
      const request = work(transaction.objectStore("kept"));
      transaction.oncomplete = () => resolve(request.result);
      transaction.onerror = () => reject(transaction.error);
    });
  } finally {
    database.close();
  }
}

/** Return what was kept under a name, or null; a browser that keeps nothing is no error. */
export async function kept(name) {
  try {
    return (await within("readonly", (store) => store.get(name))) ?? null;
  } catch {
    return null;
  }
}

/** Keep a value under a name. */
export async function keep(name, value) {
  try {
    await within("readwrite", (store) => store.put(value, name));
  } catch {
    // a private window: the page works, and forgets
  }
}
