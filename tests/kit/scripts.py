"""The page's scripts without a browser: run by the Node that Playwright brings."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import playwright

import disegno.ui

STATIC = Path(disegno.ui.__file__).parent / "static" / "js"
NODE = Path(playwright.__file__).parent / "driver" / ("node.exe" if os.name == "nt" else "node")
_BROWSER = """
const kept = () => {
  const all = new Map();
  return { getItem: (name) => all.get(name) ?? null, setItem: (name, value) => all.set(name, String(value)) };
};
globalThis.heard = {};
globalThis.addEventListener = (name, work) => { (heard[name] ??= []).push(work); };
globalThis.dispatch = (name) => (heard[name] ?? []).forEach((work) => work({}));
globalThis.localStorage = kept();
globalThis.sessionStorage = kept();
globalThis.document = { documentElement: {}, hidden: false, addEventListener };
Object.defineProperty(globalThis, "navigator", { value: { language: "en" }, configurable: true });
"""


def run_script(folder: Path, script: str) -> Any:
    """Return what `script` returns, which may `await load("png.js")` and other scripts of the page.

    `folder`: an empty one, to which the page's scripts are copied.
    """
    shutil.copytree(STATIC, folder / "js")
    (folder / "package.json").write_text('{"type": "module"}')
    load = "const load = (name) => import(new URL(`js/${name}`, import.meta.url));"
    body = f"const done = await (async () => {{ {script} }})();"
    say = "console.log(JSON.stringify(done ?? null));\nprocess.exit(0);"  # a stream or a timer would hold it
    (folder / "test.js").write_text("\n".join((_BROWSER, load, body, say)))
    done = subprocess.run([str(NODE), str(folder / "test.js")], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
