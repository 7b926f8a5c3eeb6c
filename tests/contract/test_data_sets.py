"""Broken data sets: every fault is found before a training, named, and costs no more than its own pair."""

import importlib.util
import json
import os
import re
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
from PIL import Image

from disegno.core.errors import BadData
from disegno.training.data.doctor import examine
from disegno.training.data.formats.listing import Options
from disegno.training.data.making import Annotate
from disegno.training.data.opening import open_rows
from disegno.training.data.report import Report, as_json, as_text

pytestmark = pytest.mark.contract


def _folders() -> ModuleType:
    spec = importlib.util.spec_from_file_location("folders", Path(__file__).parents[1] / "corpus" / "folders.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["folders"] = module
    spec.loader.exec_module(module)
    return module


folders = _folders()
picture, png, triples = folders.picture, folders.png, folders.triples
A = png(picture(900))
TURNED = Image.Exif()
TURNED[0x0112] = 6
LINE = {"source": "condition/0.png", "target": "image/0.png", "prompt": "a"}


@dataclass(frozen=True)
class Case:
    """Files, and what the doctor must say: pairs that can be used, problems by kind, the exit code."""

    files: dict[str, object]
    usable: int
    kinds: dict[str, int]
    code: int = 1


def without(files: dict[str, object], name: str) -> dict[str, object]:
    return {key: value for key, value in files.items() if key != name}


CASES = {
    "sound": Case(triples(4), 4, {}, 0),
    "cut off": Case(triples(4) | {"image/2.png": A[:900]}, 3, {"broken": 1}),
    "empty file": Case(triples(4) | {"condition/1.png": b""}, 3, {"broken": 1}),
    "a web page": Case(triples(2) | {"image/9.jpg": "<p>", "condition/9.png": A, "image/9.txt": ""}, 2, {"broken": 1}),
    "no caption": Case(without(triples(4), "image/1.txt"), 3, {"missing_caption": 1}),
    "empty caption": Case(triples(2) | {"image/1.txt": ""}, 2, {"empty_caption": 1}, 0),
    "no captions at all": Case({k: v for k, v in triples(3).items() if not k.endswith("txt")}, 3, {}, 0),
    "one caption without words": Case({k: v for k, v in triples(3).items() if not k.endswith("txt")}
                                      | {"image/1.txt": "\n"}, 3, {}, 0),
    "binary caption": Case(triples(2) | {"image/0.txt": bytes(range(256))}, 1, {"bad_caption": 1}),
    "control characters": Case(triples(2) | {"image/0.txt": "a\x1b[2Jcat"}, 1, {"bad_caption": 1}),
    "UTF-16 caption": Case(triples(2) | {"image/0.txt": "a cat".encode("utf-16")}, 2, {}, 0),
    "a megabyte of caption": Case(triples(2) | {"image/0.txt": "word " * 200_000}, 1, {"long_caption": 1}),
    "300 words": Case(triples(2) | {"image/0.txt": "word " * 300}, 2, {"cut_caption": 1}, 0),
    "prompt syntax": Case(triples(1) | {"image/0.txt": "<lora:x:1> {a|b} BREAK [c:d:0.5]"}, 1, {}, 0),
    "no condition": Case(without(triples(4), "condition/3.png"), 3, {"missing_condition": 1}),
    "no target": Case(triples(2) | {"condition/99.png": A}, 2, {"orphan": 1}),
    "other size": Case(triples(2) | {"condition/0.png": png(picture(0, 64, 64))}, 2, {"other_size": 1}, 0),
    "other shape": Case(triples(2) | {"condition/0.png": png(picture(0, 128, 64))}, 1, {"other_shape": 1}),
    "by name, not by order": Case({f"{f}/{n}.png": A for f in ("image", "condition") for n in ("a1", "a10", "a2")},
                                  3, {"same": 3, "duplicate": 2}, 0),
    "tiny": Case(triples(2, width=32, height=32), 2, {"too_small": 2}, 0),
    "100 to 1": Case(triples(2) | {f"{f}/7.png": png(picture(7, 3000, 30)) for f in ("image", "condition")}
                     | {"image/7.txt": "x"}, 2, {"extreme_shape": 1}),
    "turned by EXIF": Case({"image/0.jpg": png(picture(0, 256, 128), "JPEG", exif=TURNED),
                            "condition/0.png": png(picture(1, 128, 256))}, 1, {}, 0),
    "bomb": Case(triples(2) | {f"{f}/5.png": folders.bomb() for f in ("image", "condition")} | {"image/5.txt": "x"},
                 2, {"broken": 1}),
    "one name twice": Case(triples(1) | {"image/0.jpg": A}, 1, {"duplicate_stem": 1}),
    "upper case": Case({"image/A.PNG": A, "condition/a.png": png(picture(1)), "image/A.TXT": "x"}, 1, {}, 0),
    "composed and not": Case({"image/gar\u00e7on.png": A, "condition/garc\u0327on.png": png(picture(1))}, 1, {}, 0),
    "odd names": Case({f"{f}/{n}.png": png(picture(i)) for i, f in enumerate(("image", "condition"))
                       for n in ("猫", "a 'b' \"c\" & d", "-x", "n" * 240)}, 4, {"duplicate": 3}, 0),
    "others' leavings": Case(triples(1) | {"image/.hidden.png": A, "image/._0.png": b"\0", "image/Thumbs.db": b"x"},
                             1, {}, 0),
    "a link out": Case(triples(1) | {"image/p.png": lambda path: path.symlink_to("/etc/passwd")}, 1, {"unsafe": 1}),
    "a link in circles": Case(triples(1) | {"image/loop": lambda path: path.symlink_to(".")}, 1, {"unsafe": 1}),
    "a pipe": Case(triples(1) | {"image/f.png": os.mkfifo}, 1, {"unsafe": 1}),
    "a folder called x.png": Case(triples(1) | {"image/x.png/keep": ""}, 1, {}, 0),
    "one colour": Case(triples(2) | {"condition/0.png": png(Image.new("RGB", (128, 128)))}, 2, {"blank": 1}, 0),
    "numbers of classes": Case(triples(3) | {
        "condition/0.png": png(Image.fromarray(np.arange(128 * 128, dtype=np.uint8).reshape(128, 128) % 3)),
        "condition/1.png": png(Image.fromarray(np.arange(128 * 128, dtype=np.uint16).reshape(128, 128) % 5)),
        }, 3, {"faint": 1, "blank": 1}, 0),
    "colours of classes": Case(triples(2) | {"condition/0.png": png(
        Image.fromarray(np.arange(128 * 128, dtype=np.uint8).reshape(128, 128) % 3 * 90).convert("P"))}, 2, {}, 0),
    "four times one picture": Case(triples(4) | {f"image/{i}.png": A for i in range(4)}, 4, {"duplicate": 3}, 0),
    "the target as its condition": Case(triples(2) | {"condition/0.png": png(picture(0))}, 2, {"same": 1}, 0),
    "swapped": Case(triples(1) | {"image/0.png": png(Image.linear_gradient("L").point(lambda v: v // 86 * 86))
                                  , "condition/0.png": png(picture(1, 256, 256))}, 1, {"swapped": 1}, 0),
    "bad lines": Case(triples(2) | {"prompt.json": json.dumps(LINE) + '\nno\n{"source": 5}\n' + json.dumps(
        LINE | {"source": "../../../../etc/passwd"})}, 1, {"bad_line": 3}),
    "lines of Windows": Case(triples(1) | {"prompt.json": b"\xef\xbb\xbf" + json.dumps(
        {k: v.replace("/", "\\") for k, v in LINE.items()}).encode() + b"\r\n\r\n"}, 1, {}, 0),
    "a line without its file": Case(triples(1) | {"prompt.json": json.dumps(LINE) + "\n" + json.dumps(
        LINE | {"source": "condition/7.png"})}, 1, {"missing_condition": 1}),
    "a link in a list": Case(triples(1) | {"out.png": lambda path: path.symlink_to("/etc/passwd"),
        "prompt.json": json.dumps(LINE) + "\n" + json.dumps(LINE | {"source": "out.png"})}, 1, {"bad_line": 1}),
    "old caches": Case(triples(2) | {"cache/0.npz": b"PK\x03\x04", "cache/meta.json": "{}"}, 2, {}, 0),
}  # fmt: skip


def report_on(folder: Path) -> Report:
    report = list(examine(open_rows(str(folder), Options()), (128, 128)))[-1]
    assert isinstance(report, Report)
    return report


@pytest.mark.parametrize("name", CASES)
def test_the_doctor_names_what_is_wrong(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    begin = time.monotonic()
    report = report_on(folders.write(tmp_path, case.files))
    assert time.monotonic() - begin < 10
    assert len(report.usable) == case.usable
    assert Counter(problem.kind for problem in report.problems) == case.kinds
    assert report.exit_code == case.code
    text, fields = as_text(report, every_name=True), json.loads(as_json(report))
    assert fields["usable"] == case.usable and fields["counts"] == case.kinds and fields["exit_code"] == case.code
    for problem in report.problems:
        assert problem.name[:200] in text or problem.detail[:200] in text
    assert "\x1b" not in text and str(tmp_path) not in text


def test_faults_have_names_and_lines(tmp_path: Path) -> None:
    broken = report_on(folders.write(tmp_path / "a", CASES["cut off"].files)).problems
    assert [problem.name for problem in broken] == ["image/2.png"]
    condition = report_on(folders.write(tmp_path / "b", CASES["empty file"].files)).problems
    assert "condition/1.png" in condition[0].detail
    lines = report_on(folders.write(tmp_path / "c", CASES["bad lines"].files)).problems
    assert [problem.line for problem in lines] == [2, 3, 4]
    pairs = report_on(folders.write(tmp_path / "d", CASES["by name, not by order"].files))
    assert "image/a10.png" in as_text(pairs)


@pytest.mark.parametrize("files", [{".keep": ""}, {"notes.txt": "x"}, {"image/0.png": A, "condition/1.png": A}])
def test_what_holds_no_pair_is_refused(files: dict[str, bytes], tmp_path: Path) -> None:
    with pytest.raises(BadData, match=r"no data set|no pair"):
        open_rows(str(folders.write(tmp_path, files)), Options())


def test_pictures_of_the_test_split_among_the_pairs_are_found(tmp_path: Path) -> None:
    from disegno.training.data.opening import open_siblings

    lines = "".join(json.dumps({"file_name": f"{i}.png", "conditioning_image": f"c{i}.png", "text": "x"}) + "\n"
                    for i in range(3))  # fmt: skip
    for part, first in (("train", 0), ("test", 2)):
        images = {f"{i}.png": png(picture(first + i)) for i in range(3)}
        images |= {f"c{i}.png": png(picture(100 + i)) for i in range(3)}
        folders.write(tmp_path / part, images | {"metadata.jsonl": lines})
    report = list(examine(open_rows(str(tmp_path), Options()), (128, 128), others=open_siblings(str(tmp_path))))[-1]
    assert isinstance(report, Report)
    assert [(p.kind, p.name, p.detail) for p in report.problems] == [
        ("leak", "2.png", "the same picture as test/0.png")
    ]


def drawn(folder: Path, annotator: str, moved: dict[int, int]) -> Report:
    """Return the report on twelve pictures with crossing bars and their drawings, some of them another's."""
    pictures = [crossing(i) for i in range(12)]
    draw = Annotate.of(annotator, {})
    files = {f"image/{i}.png": png(pictures[i]) for i in range(12)}
    files |= {f"condition/{i}.png": png(draw(pictures[moved.get(i, i)])) for i in range(12)}
    return report_on(folders.write(folder, files))


def crossing(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    across, down = np.meshgrid(np.arange(160), np.arange(128))  # many colours, as photographs have
    image = np.stack([across, down, across // 2 + down // 2], axis=2).astype(np.uint8)
    for _ in range(6):
        at = [(int(x), int(y)) for x, y in rng.integers(0, (160, 128), (2, 2))]
        cv2.line(image, *at, [int(c) for c in rng.integers(0, 256, 3)], int(rng.integers(4, 12)))
    return image


@pytest.mark.parametrize("annotator", ["canny", "scribble", "grayscale"])
def test_drawings_of_other_pictures_are_found(tmp_path: Path, annotator: str) -> None:
    assert not drawn(tmp_path / "sound", annotator, {}).problems
    found = drawn(tmp_path / "mixed", annotator, {3: 4, 4: 3}).problems
    assert [(problem.kind, problem.name) for problem in found] == [
        ("foreign", "image/3.png"), ("foreign", "image/4.png"),
    ]  # fmt: skip


def test_a_drawing_that_lies_beside_its_picture_is_found(tmp_path: Path) -> None:
    drawn(tmp_path, "canny", {})
    path = tmp_path / "condition/5.png"
    Image.fromarray(np.roll(np.array(Image.open(path)), (12, -20), (0, 1))).save(path)
    found = report_on(tmp_path).problems
    assert [(problem.kind, problem.name) for problem in found] == [("shifted", "image/5.png")]
    right, down = (int(n) for n in re.findall(r"-?\d+", found[0].detail))
    assert abs(right + 20) <= 2 and abs(down - 12) <= 2


def test_drawings_that_all_lie_beside_their_pictures_are_found(tmp_path: Path) -> None:
    drawn(tmp_path, "canny", {})
    for path in (tmp_path / "condition").iterdir():
        Image.fromarray(np.roll(np.array(Image.open(path)), 16, 1)).save(path)
    assert Counter(problem.kind for problem in report_on(tmp_path).problems) == {"shifted": 12}


def test_lines_that_are_all_mixed_up_are_found_and_palettes_are_left_alone(tmp_path: Path) -> None:
    mixed = {i: (i + 1) % 12 for i in range(12)}
    assert Counter(problem.kind for problem in drawn(tmp_path / "lines", "canny", mixed).problems) == {"foreign": 12}
    assert not drawn(tmp_path / "palette", "palette", mixed).problems


def test_many_rows_are_looked_at_in_several_processes(tmp_path: Path) -> None:
    folder = folders.write(tmp_path, triples(8, width=128, height=128) | {"image/3.png": A[:500]})
    here = report_on(folder)
    there = list(examine(open_rows(str(folder), Options()), (128, 128), workers=2))[-1]
    assert here == there
