"""What the page's scripts make of pictures, jobs and events, without a browser."""

import json
import zlib
from pathlib import Path
from typing import Any

import pytest

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
