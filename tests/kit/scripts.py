"""The page's scripts without a browser: run by Node, where this machine has it."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import disegno.ui

STATIC = Path(disegno.ui.__file__).parent / "static" / "js"
NODE = shutil.which("node")
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
    """Return what `script` returns, which may `await load("png.js")` and other scripts of the page. Skips without Node.

    `folder`: an empty one, to which the page's scripts are copied.
    """
    if NODE is None:
        pytest.skip("there is no node on this machine: apt-get install nodejs")
    shutil.copytree(STATIC, folder / "js")
    (folder / "package.json").write_text('{"type": "module"}')
    load = "const load = (name) => import(new URL(`js/${name}`, import.meta.url));"
    body = f"const done = await (async () => {{ {script} }})();"
    say = "console.log(JSON.stringify(done ?? null));\nprocess.exit(0);"  # a stream or a timer would hold it
    (folder / "test.js").write_text("\n".join((_BROWSER, load, body, say)))
    done = subprocess.run([NODE, str(folder / "test.js")], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
