"""What the page's scripts make of pictures, jobs and events, without a browser."""

import json
import zlib
from pathlib import Path
from typing import Any

import pytest

from disegno.core.told import told_of
from kit.scripts import run_script

pytestmark = pytest.mark.unit

PHOTO, EDGES, MASK = (f"data:image/png;base64,{name}" for name in ("cGhvdG8=", "ZWRnZXM=", "bWFzaw=="))


def _png(record: dict[str, Any]) -> list[int]:
    """Return a file's bytes that carries this record, as the page reads it."""
    body = b"disegno\0\1\0\0\0" + zlib.compress(json.dumps(record).encode())
    return list(b"\x89PNG\r\n\x1a\n" + len(body).to_bytes(4, "big") + b"iTXt" + body + bytes(4))


def _asked_again(folder: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Return what a desk holds of a record, and what it asks for, what was photos drawn meanwhile."""
    return run_script(
        folder,
        f"""
        const {{ readRecord }} = await load("png.js");
        const {{ deskOf, requestOf }} = await load("request.js");
        const {{ request, seed }} = await readRecord(new Uint8Array({_png(record)}).buffer);
        const desk = deskOf(request, seed);
        const shown = JSON.parse(JSON.stringify(desk.units));
        for (const unit of desk.units) unit.drawing ??= "data:drawn";
        return {{ units: shown, asked: requestOf(desk, null).controls }};
        """,
    )


def test_a_photo_that_an_annotator_drew_from_comes_back_as_a_photo(tmp_path: Path) -> None:
    """A command line's picture with a second pass holds the photo, and not what was drawn from it."""
    unit = {"name": "canny", "image": "photo.jpg", "annotate": None, "params": {"low": 50}, "strength": 0.8}
    request = {"prompt": "a car", "seed": 1, "hires": {"scale": 2}, "controls": [unit]}
    found = _asked_again(tmp_path, {"request": request, "image": 0, "conditions": [], "sources": {"photo.jpg": PHOTO}})
    (unit,) = found["units"]
    assert (unit["photo"], unit["drawing"], unit["annotate"]) == (PHOTO, None, None)
    assert (unit["params"], unit["edited"], unit["strength"]) == ({"low": 50}, False, 0.8)
    assert found["asked"][0]["image"] == "data:drawn" and found["asked"][0]["annotate"] == "none"


def test_a_control_without_a_picture_of_its_own_sees_the_one_that_is_changed(tmp_path: Path) -> None:
    request = {"prompt": "a car", "init": {"image": "a.png"}, "controls": [{"name": "canny", "image": None}]}
    found = _asked_again(tmp_path, {"request": request, "image": 0, "conditions": [], "sources": {"a.png": PHOTO}})
    assert found["units"][0]["photo"] == PHOTO


def test_a_drawing_comes_back_as_it_was_given_and_else_as_it_was_made(tmp_path: Path) -> None:
    drawn = {"name": "canny", "image": PHOTO, "annotate": "none"}
    made = {"name": "canny", "image": PHOTO, "annotate": "canny"}
    record = {"request": {"prompt": "", "controls": [drawn, made]}, "image": 0, "conditions": [EDGES, EDGES]}
    found = _asked_again(tmp_path, record)
    assert [unit["drawing"] for unit in found["units"]] == [PHOTO, EDGES]
    assert all(unit["edited"] and not unit["photo"] for unit in found["units"])


def test_what_was_cut_with_the_masked_part_is_not_cut_again(tmp_path: Path) -> None:
    init = {"image": PHOTO, "mask": MASK, "only_masked": True}
    request = {"prompt": "", "init": init, "controls": [{"name": "canny", "image": None, "annotate": "canny"}]}
    found = _asked_again(tmp_path, {"request": request, "image": 0, "conditions": [EDGES]})
    assert (found["asked"][0]["image"], found["asked"][0]["crop"]) == (EDGES, False)


def test_a_hole_comes_back_with_its_mask(tmp_path: Path) -> None:
    unit = {"name": "inpainting", "image": "a.png", "mask": "m.png", "annotate": "inpaint"}
    record = {"request": {"prompt": "", "controls": [unit]}, "image": 0, "sources": {"a.png": PHOTO, "m.png": MASK}}
    (asked,) = _asked_again(tmp_path, record)["asked"]
    assert (asked["image"], asked["mask"], asked["annotate"]) == (PHOTO, MASK, "inpaint")


JOBS = """
globalThis.streams = [];
globalThis.EventSource = class {
  static OPEN = 1;
  constructor() { Object.assign(this, { readyState: 1, heard: {} }); streams.push(this); }
  addEventListener(name, work) { this.heard[name] = work; }
  tell(name, data) { this.heard[name]({ data: JSON.stringify(data) }); }
  close() { this.readyState = 2; }
};
globalThis.fetch = async () => ({ ok: true, json: async () => ({ jobs: [], before: null }) });
const jobs = await load("jobs.js");
jobs.connect();
const [stream] = streams;
const job = (id, kind, state, more = {}) => stream.tell("job", { id, kind, state, created: 1, ...more });
const open = () => streams.filter(({ readyState }) => readyState === 1).length;
"""


def test_a_job_that_is_removed_elsewhere_is_not_waited_for(tmp_path: Path) -> None:
    found = run_script(
        tmp_path,
        JOBS
        + """
        job("a", "annotate", "running");
        const end = jobs.ended("a");
        stream.tell("gone", { id: "a" });
        return await end;
        """,
    )
    assert found["state"] == "cancelled"


def test_a_page_that_nobody_sees_gives_its_connection_back(tmp_path: Path) -> None:
    """A browser has six to a server, for all of its tabs. A training's losses are told once: they are listened to."""
    found = run_script(
        tmp_path,
        JOBS
        + """
        const later = [];
        globalThis.setTimeout = (work, ms) => later.push([work, ms]);
        const hide = (hidden) => { document.hidden = hidden; dispatch("visibilitychange"); };
        const pass = () => later.splice(0).map(([work, ms]) => { work(); return ms; });
        job("a", "teach", "running");
        hide(true);
        const seen = [pass(), open()];
        job("a", "teach", "done");
        seen.push(pass(), open());
        hide(false);
        seen.push(open(), streams.length);
        hide(true); hide(false);
        seen.push(pass(), open());
        return seen;
        """,
    )
    assert found == [[60_000], 1, [60_000], 0, 1, 2, [60_000], 1]


def test_what_was_seen_on_its_way_is_told_when_it_is_done(tmp_path: Path) -> None:
    found = run_script(
        tmp_path,
        JOBS
        + """
        const told = [];
        job("old", "teach", "done");
        jobs.whenDone("teach", () => told.push("done"));
        job("old", "teach", "done");
        job("a", "teach", "running");
        job("b", "download", "done");
        const before = told.length;
        job("a", "teach", "done");
        job("a", "teach", "done");
        return [before, told.length];
        """,
    )
    assert found == [0, 1]


def test_a_training_that_is_being_asked_for_outlives_a_reload(tmp_path: Path) -> None:
    found = run_script(
        tmp_path,
        JOBS
        + """
        document.createElement = () => ({ append() {}, setAttribute() {} });
        sessionStorage.setItem("disegno.teach", JSON.stringify({ toTeach: { name: "lines", steps: 40 } }));
        (await load("teach.js")).teachTab({ models: [] });
        sessionStorage.setItem("disegno.teach", "{}");
        dispatch("pagehide");
        return JSON.parse(sessionStorage.getItem("disegno.teach")).toTeach;
        """,
    )
    assert (found["name"], found["steps"], found["batch"]) == ("lines", 40, 4)


def test_losses_are_kept_while_nothing_is_drawn(tmp_path: Path) -> None:
    """A page that nobody sees is given no frames. A loss that is no number is none."""
    found = run_script(
        tmp_path,
        JOBS
        + """
        document.createElement = () => ({ append() {}, setAttribute() {} });
        globalThis.requestAnimationFrame = () => {};
        const { teachTab } = await load("teach.js");
        teachTab({ models: [] });
        job("a", "teach", "running");
        for (const [step, loss] of [[1, 0.5], [2, null], [3, 0.25]]) {
          stream.tell("progress", { id: "a", progress: { step, num_steps: 9, figures: { loss } } });
        }
        return JSON.parse(sessionStorage.getItem("disegno.curve.a"));
        """,
    )
    assert found == [[1, 0.5], [3, 0.25]]


PLAIN = "a car\nSteps: 20, Sampler: {sampler}, Seed: 7, Size: 64x64{more}, Version: v1.10.1"


@pytest.mark.parametrize(
    "sampler, more",
    [
        ("Euler a", ""),
        ("Euler a", ", RNG: CPU, Eta: 0.5, Eta DDIM: 0.25, Emphasis: No norm, ENSD: 31337"),
        ("DDIM", ", RNG: NV, Eta DDIM: 0.25, Variation seed: 3, Variation seed strength: 0.5"),
        ("Euler", ", Seed resize from: 32x64, Sigma churn: 1.5, NGMS: 2, Skip Early CFG: 0.2, Pad conds: True"),
    ],
)
def test_a1111s_text_decides_the_noise_as_it_does_on_the_command_line(sampler: str, more: str, tmp_path: Path) -> None:
    text = PLAIN.format(sampler=sampler, more=more)
    found = run_script(tmp_path, f"return (await load('png.js')).parametersOf({json.dumps(text)}).request;")
    told = {name: value for name, value in told_of(text).fields.items() if value not in ("", "original", "Automatic")}
    assert {name: found.get(name) for name in told} == told | {"clip_skip": found.get("clip_skip")}
    of_the_form = {"hires", "refiner", "guide", "freeu", "seamless", "negative"}
    assert set(found) - of_the_form <= set(told)
