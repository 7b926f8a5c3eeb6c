"""Pairs built from pictures: the same bytes from any number of processes, after any kill; a bad picture costs one."""

import importlib.util
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from click.testing import CliRunner
from filelock import FileLock

from disegno.annotators.canny import Params
from disegno.annotators.canny import annotate as canny
from disegno.cli.main import main
from disegno.core.errors import BadData, DisegnoError, RequestError, ResourceError
from disegno.training.data import open_pairs
from disegno.training.data.align import resize_photo
from disegno.training.data.build import BuildProgress, BuildResult, Plan, build
from disegno.training.data.formats.listing import Options
from disegno.training.data.making import Annotate, Script
from disegno.training.data.opening import open_rows
from disegno.training.data.pack import PackProgress, pack

pytestmark = pytest.mark.unit


def _folders() -> ModuleType:
    spec = importlib.util.spec_from_file_location("folders", Path(__file__).parents[1] / "corpus" / "folders.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["folders"] = module
    spec.loader.exec_module(module)
    return module


folders = _folders()
write, png, picture = folders.write, folders.png, folders.picture

INVERT = """
import numpy as np

def condition(image):
    image[:] = 255 - image
    return image
"""


def photos(folder: Path, num: int = 6) -> Path:
    """Write pictures with captions, three of every kind of size."""
    files = {}
    for i in range(num):
        width, height = ((128, 128), (192, 128), (96, 160))[i % 3]
        files |= {f"{i}.png": png(picture(i, width, height)), f"{i}.txt": f"picture {i}"}
    return write(folder, files)


def plan(pictures: Path, out: Path, **more: object) -> Plan:
    fields = {"maker": Annotate.of("canny", {"low": 50}), "size": (64, 64), "workers": 1} | more
    return Plan(pictures=str(pictures), out=out, **fields)


def made(a_plan: Plan) -> BuildResult:
    *steps, result = build(a_plan)
    assert isinstance(result, BuildResult) and all(isinstance(step, BuildProgress) for step in steps)
    assert [step.done for step in steps] == list(range(1, len(steps) + 1)) and steps[-1].seconds_left == 0
    return result


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def script(folder: Path, text: str) -> Script:
    return Script.of(write(folder, {"mine.py": text}) / "mine.py")


def test_pairs_are_the_fitted_picture_and_its_drawing(tmp_path: Path) -> None:
    result = made(plan(photos(tmp_path / "photos"), tmp_path / "pairs"))
    assert (result.num_pairs, result.num_new, result.problems) == (6, 6, ())
    pairs = open_pairs(str(tmp_path / "pairs"))
    assert (pairs.annotator, pairs.params) == ("canny", {"low": 50, "high": 200})
    assert [pairs.caption(i) for i in range(6)] == [f"picture {i}" for i in range(6)]
    sample = pairs.read(1)
    assert np.array_equal(sample.target, resize_photo(picture(1, 192, 128), 96, 64)[:, 16:80])
    assert np.array_equal(sample.condition, canny(sample.target, Params(low=50)))


def test_any_number_of_processes_and_any_order_give_the_same_bytes(tmp_path: Path) -> None:
    pictures = photos(tmp_path / "photos")
    made(plan(pictures, tmp_path / "one"))
    made(plan(pictures, tmp_path / "four", workers=4))
    assert content(tmp_path / "one") == content(tmp_path / "four")


def test_a_build_that_was_killed_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    pictures = photos(tmp_path / "photos", 40)
    out = tmp_path / "pairs"
    made(plan(pictures, tmp_path / "reference"))
    command = [sys.executable, "-m", "disegno.cli.main", "dataset", "build", str(pictures), str(out), "--annotator",
               "canny", "--set", "low=50", "--size", "64x64", "--workers", "1"]  # fmt: skip
    rng = random.Random(0)
    for number in range(1, 4):
        child = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
        wanted = number * 10
        while child.poll() is None and len(list(out.glob("target/*"))) < wanted:
            time.sleep(0.001)
        time.sleep(rng.random() * 0.01)
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        assert not (out / "prompt.json").exists()
        with pytest.raises(BadData, match="not finished"):
            open_pairs(str(out))
    result = made(plan(pictures, out))
    assert 0 < result.num_new <= 11 and content(out) == content(tmp_path / "reference")


def test_a_bad_picture_costs_one_and_is_listed(tmp_path: Path) -> None:
    pictures = photos(tmp_path / "photos")
    write(pictures, {
        "0.png": png(picture(0))[:800], "7.png": folders.bomb(), "7.txt": "x", "8.jpg": "<html>", "8.txt": "x",
        "9.png": os.mkfifo, "a.png": lambda path: path.symlink_to("/etc/passwd"), "b.png": png(picture(40)),
        "2.txt": b"\xff\xfe\xff", "c.png": png(picture(1, 192, 128)), "c.txt": "again",
        "d.png": png(picture(50, 32, 32)), "d.txt": "small",
    })  # fmt: skip
    result = made(plan(pictures, tmp_path / "pairs"))
    assert result.num_pairs == 5
    listed = [json.loads(line) for line in (tmp_path / "pairs/problems.jsonl").read_text().splitlines()]
    assert {(line["image"], line["problem"]) for line in listed} == {
        ("0.png", "broken"), ("7.png", "broken"), ("8.jpg", "broken"), ("9.png", "unsafe"), ("a.png", "unsafe"),
        ("b.png", "missing_caption"), ("2.png", "bad_caption"), ("c.png", "duplicate"), ("d.png", "too_small"),
    }  # fmt: skip
    text = (tmp_path / "pairs/problems.jsonl").read_text()
    assert str(tmp_path) not in text and " at 0x" not in text


def test_a_condition_of_ones_own(tmp_path: Path) -> None:
    result = made(plan(photos(tmp_path / "photos"), tmp_path / "pairs", maker=script(tmp_path, INVERT)))
    pairs = open_pairs(str(tmp_path / "pairs"))
    sample = pairs.read(0)
    assert np.array_equal(sample.condition, 255 - sample.target) and result.num_pairs == 6
    assert pairs.annotator is None and pairs.script == "mine.py"
    assert not (tmp_path / "__pycache__").exists()


def test_a_script_that_fails_hangs_or_dies_costs_its_pictures(tmp_path: Path) -> None:
    text = """
import os, time
def condition(image):
    match image.shape[:2]:
        case 128, 128: raise ValueError("no \\x1b[2J idea")
        case 128, 192: time.sleep(60)
        case 160, 96: os.abort()
        case 64, 64: return image[:10]
        case 64, 80: return image / 2
    return image[:, :, 0] > 9
"""
    pictures = photos(tmp_path / "photos", 3)
    more = {"3.png": png(picture(3, 64, 64)), "4.png": png(picture(4, 80, 64)), "5.png": png(picture(5, 64, 48))}
    write(pictures, more | {f"{i}.txt": "x" for i in (3, 4, 5)})
    result = made(plan(pictures, tmp_path / "pairs", maker=script(tmp_path, text), size=None, workers=2, seconds=3))
    reasons = {problem.name: problem.detail for problem in result.problems}
    assert result.num_pairs == 1 and {problem.kind for problem in result.problems} == {"failed"}
    assert "ValueError: no" in reasons["0.png"] and "(line 5)" in reasons["0.png"]
    assert "too long" in reasons["1.png"] and "ended with code" in reasons["2.png"]
    assert "(10, 64, 3)" in reasons["3.png"] and "float64" in reasons["4.png"]
    assert set(np.unique(open_pairs(str(tmp_path / "pairs")).read(0).condition)) == {0, 255}


def test_a_script_that_never_gets_ready_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("disegno.training.data.pool._START_SECONDS", 0.0)
    text = "import time\ntime.sleep(60)\ndef condition(image): return image"
    with pytest.raises(RequestError, match="does not get ready"):
        made(plan(photos(tmp_path / "photos", 1), tmp_path / "pairs", maker=script(tmp_path, text), seconds=3))


@pytest.mark.parametrize(
    ("text", "says"),
    [("def condition(image:", "not Python"), ("x = 1", "no function"), ("\0", "not Python"),
     ("import not_there\ndef condition(image): return image", "cannot be loaded: ModuleNotFoundError.*line 1")],
)  # fmt: skip
def test_a_script_that_is_none_is_refused(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(RequestError, match=says):
        made(plan(photos(tmp_path / "photos", 1), tmp_path / "pairs", maker=script(tmp_path, text)))


def test_pictures_that_came_or_went_are_followed(tmp_path: Path) -> None:
    pictures = photos(tmp_path / "photos")
    made(plan(pictures, tmp_path / "pairs"))
    (pictures / "3.png").unlink()
    write(pictures, {"9.png": png(picture(9)), "9.txt": "new", "4.txt": "another caption"})
    write(tmp_path / "pairs", {"target/notes.txt": "the person's own"})
    assert made(plan(pictures, tmp_path / "pairs")).num_new == 1
    (tmp_path / "pairs/target/notes.txt").unlink()
    made(plan(pictures, tmp_path / "fresh"))
    assert content(tmp_path / "pairs") == content(tmp_path / "fresh")


def test_buckets_and_own_sizes(tmp_path: Path) -> None:
    pictures = photos(tmp_path / "photos", 3)
    write(pictures, {"z.png": png(picture(3, 1000, 10)), "z.txt": "x"})
    result = made(plan(pictures, tmp_path / "buckets", size=(128, 128), buckets=True))
    pairs = open_pairs(str(tmp_path / "buckets"))
    assert [pairs.size(i) for i in range(3)] == [(128, 128), (160, 96), (96, 160)]
    assert [(problem.kind, problem.name) for problem in result.problems] == [("extreme_shape", "z.png")]
    made(plan(pictures, tmp_path / "own", size=None))
    assert open_pairs(str(tmp_path / "own")).size(1) == (192, 128)
    with pytest.raises(RequestError, match="share an area"):
        made(plan(pictures, tmp_path / "none", size=None, buckets=True))


def test_captions(tmp_path: Path) -> None:
    pictures = write(tmp_path / "photos", {f"{name}.png": png(picture(i)) for i, name in
                                           enumerate(("red_car-01", "007", "blue bus"))})  # fmt: skip

    def captions(**more: str) -> list[str]:
        shutil.rmtree(tmp_path / "pairs", ignore_errors=True)
        made(plan(pictures, tmp_path / "pairs", **more))
        pairs = open_pairs(str(tmp_path / "pairs"))
        return [pairs.caption(i) for i in range(len(pairs))]

    assert captions() == ["", "", ""]
    assert captions(captions="names", caption="a car") == ["a car", "blue bus", "red car"]
    assert captions(caption="a car") == ["a car"] * 3
    write(pictures, {"007.txt": "a spy"})
    assert captions() == ["a spy"]
    assert captions(captions="none") == ["", "", ""]


def test_pairs_packed_into_tars_are_the_same_pairs(tmp_path: Path) -> None:
    pictures = photos(tmp_path / "photos", 5)
    made(plan(pictures, tmp_path / "pairs"))
    pairs = open_pairs(str(tmp_path / "pairs"))
    *_, last = pack(pairs, tmp_path / "tars", 2)
    packed = open_pairs(str(tmp_path / "tars"))
    assert last == PackProgress(5, 5, 0) and sorted(path.name for path in (tmp_path / "tars").iterdir()) == [
        "dataset.json", "pairs-000000.tar", "pairs-000001.tar", "pairs-000002.tar",
    ]  # fmt: skip
    assert [packed.digest(i) for i in range(5)] == [pairs.digest(i) for i in range(5)]
    assert (packed.annotator, packed.params) == ("canny", {"low": 50, "high": 200})
    list(pack(pairs, tmp_path / "again", 2))
    assert content(tmp_path / "again") == content(tmp_path / "tars")
    next(iter((tmp_path / "pairs/target").iterdir())).unlink()
    assert list(pack(pairs, tmp_path / "less"))[-1].num_lost == 1
    with pytest.raises(RequestError, match="not empty"):
        next(pack(pairs, tmp_path / "less"))
    with pytest.raises(BadData, match="no pairs"):
        next(pack(open_rows(str(pictures), Options()), tmp_path / "none"))


def test_what_cannot_begin_is_said_and_nothing_is_touched(tmp_path: Path) -> None:
    pictures = photos(tmp_path / "photos")
    out = tmp_path / "pairs"
    made(plan(pictures, out))
    before = content(out)
    with pytest.raises(RequestError, match=r"made otherwise \(params: .*; width: 64, now 128; height: 64, now 128\)"):
        made(plan(pictures, out, size=(128, 128), maker=Annotate.of("canny", {})))
    with pytest.raises(RequestError, match="lie within each other"):
        made(plan(pictures, pictures / "pairs"))
    with pytest.raises(RequestError, match="lie within each other"):
        made(plan(out / "target", out))
    with pytest.raises(RequestError, match="is not empty"):
        made(plan(out, write(tmp_path / "home", {"letter.txt": "dear"})))
    with pytest.raises(ResourceError, match="as a folder"):
        made(plan(pictures, tmp_path / "home/letter.txt"))
    with FileLock(out / ".lock"), pytest.raises(RequestError, match="Another process"):
        made(plan(pictures, out))
    (out / ".lock").unlink()
    with pytest.raises(DisegnoError, match="None of the 1 pictures"):
        made(plan(write(tmp_path / "bad", {"0.png": b"x"}), tmp_path / "none"))
    assert content(out) == before and not (tmp_path / "photos/pairs").exists()


def test_the_command_line_builds_and_checks(tmp_path: Path) -> None:
    pictures, out = photos(tmp_path / "photos"), tmp_path / "pairs"
    write(pictures, {"6.png": b"\x89PNG", "6.txt": "x"})

    def run(*args: str) -> tuple[int, str]:
        done = CliRunner().invoke(main, ["dataset", *args])
        return done.exit_code, done.output

    code, output = run("build", str(pictures), str(out), "--annotator", "canny", "--size", "64x64", "--workers", "1")
    assert code == 0 and "6.png cannot be read" in output and "6 pairs, 6 of them new, 1 pictures left out" in output
    code, output = run("check", str(out), "--size", "64x64")
    assert code == 0 and output.startswith(
        "pairs: 6 pairs can be used, 0 cannot (controlnet)\nconditions made by canny"
    )
    code, output = run("check", str(pictures), "--json", "--size", "128x128")
    assert code == 1 and json.loads(output)["counts"]["broken"] == 1
    assert "photos: 6 pictures can be used, 1 cannot" in run("check", str(pictures), "--size", "128x128")[1]
    assert run("check", str(tmp_path / "none"))[0] == 2
    assert "either --annotator NAME or --script FILE" in run("build", str(pictures), str(out))[1]
    assert "--set and --resolution" in run("build", str(pictures), str(out), "--script", "x.py", "--set", "a=1")[1]


@pytest.mark.parametrize("command", ["build", "pack"])
def test_a_folder_that_cannot_be_written_has_the_exit_code_of_it(command: str, tmp_path: Path) -> None:
    """As `generate --out` has: 4. What cannot be: below a file; and where a folder stands in the lock's place."""
    pictures = photos(tmp_path / "photos", 1)
    outs = [write(tmp_path / "home", {"letter.txt": "dear"}) / "letter.txt" / "pairs"]
    if command == "build":
        (tmp_path / "locked" / ".lock").mkdir(parents=True)
        outs.append(tmp_path / "locked")
    for out in outs:
        words = ["dataset", "build", str(pictures), str(out), "--annotator", "canny"]
        if command == "pack":
            made(plan(pictures, tmp_path / "pairs"))
            words = ["dataset", "pack", str(tmp_path / "pairs"), str(out)]
        done = CliRunner().invoke(main, words)
        assert done.exit_code == 4 and str(out) in done.output.replace("\n", ""), done.output
