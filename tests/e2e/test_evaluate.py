"""`disegno evaluate`: the shipped conditions, measured on pairs, through the command line."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from disegno.cli.main import main
from kit.pairs import write_pairs

pytestmark = pytest.mark.e2e

DIORAMA = Path(__file__).parents[2] / "src/disegno/data/diorama"
SMALL = ("--size", "64x64", "--steps", "4", "--num", "4")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("data") / "pairs", 8, 64)


def _evaluate(*words: str | Path) -> Result:
    return CliRunner().invoke(main, ["evaluate", *map(str, words)])


@pytest.fixture(scope="module")
def folder(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out")
    words = ("canny", "--data", data, "--annotator", "canny", "--against", "segmentation", *SMALL, "-o", out)
    done = _evaluate(*words)
    assert done.exit_code == 0, done.output
    assert "edge F1 ↑" in done.output and "segmentation" in done.output and "4 pairs in" in done.output
    return out


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "evaluation.json").read_text("utf-8"))


def test_every_figure_has_its_floor_and_ceiling(found: dict[str, Any]) -> None:
    scores = found["scores"]
    assert list(scores["edge-f1"]["ways"]) == ["control", "against", "without", "real"]
    f1 = {way: value["mean"] for way, value in scores["edge-f1"]["ways"].items()}
    assert f1["without"] < f1["real"] <= 1
    share = (f1["control"] - f1["without"]) / (f1["real"] - f1["without"])
    assert scores["controllability"]["ways"]["control"]["mean"] == pytest.approx(share)
    assert {"lpips-condition"} <= scores.keys() and found["agreement"] == pytest.approx(1.0, abs=1e-3)
    assert found["verdict"].startswith("Pictures drawn with canny")


def test_each_pair_is_listed_with_its_seed_and_values(found: dict[str, Any]) -> None:
    assert len(found["pairs"]) == 4 and len({pair["seed"] for pair in found["pairs"]}) == 4
    first = found["pairs"][0]
    assert first["caption"] and first["values"]["edge-f1"].keys() == {"control", "against", "without", "real"}


def test_what_was_not_measured_is_said(found: dict[str, Any]) -> None:
    assert any("--clip" in note for note in found["notes"])
    assert "clip-score" not in found["scores"] and "FD-EffLite0" not in found["scores"]  # of 4 pictures: nothing


def test_the_page_stands_by_itself_and_the_sheet_shows_the_pairs(folder: Path) -> None:
    page = (folder / "evaluation.html").read_text("utf-8")
    assert "Evaluating canny" in page and "data:image/jpeg;base64," in page and "<svg" in page
    assert "http" not in page.replace("http-equiv", "") and "<script" not in page
    with Image.open(folder / "pictures.png") as sheet:
        assert sheet.width > 8 * 64 and sheet.height > 4 * 64


def test_the_same_command_gives_the_same_figures(data: Path, found: dict[str, Any]) -> None:
    words = ["evaluate", "canny", "--data", str(data), "--annotator", "canny", "--json", *SMALL]
    done = subprocess.run([sys.executable, "-m", "disegno.cli.main", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    again = json.loads(done.stdout)
    for way in ("control", "without", "real"):
        assert again["scores"]["edge-f1"]["ways"][way] == found["scores"]["edge-f1"]["ways"][way]


def test_a_restoring_control_is_compared_with_the_truth(tmp_path: Path) -> None:
    data = write_pairs(tmp_path / "pairs", 4, 64, "blur", sigma=3)
    file = shutil.copy(DIORAMA / "control_canny.safetensors", tmp_path / "mend.safetensors")
    done = _evaluate(file, "--data", data, "--annotator", "blur", "--set", "sigma=3", "--restore", "--json", *SMALL)
    assert done.exit_code == 0, done.output
    found = json.loads(done.output[done.output.index("{") :])
    assert list(found["scores"])[:3] == ["psnr-to-real", "ssim-to-real", "lpips-to-real"]
    ways = found["scores"]["psnr-to-real"]["ways"]
    assert ways["given"]["mean"] > ways["without"]["mean"]  # the blurred picture is nearer than any other picture
    assert not found["works"] and "not nearer to the real ones" in found["verdict"]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("no-such-control",), 2, "no-such-control"),
        (("canny", "--num", "1"), 2, "num"),
        (("canny", "--measure", "fid"), 2, "edge-f1"),
        (("canny", "--script", "none.py"), 2, "none.py"),
        (("canny", "--clip", "."), 3, "config.json"),
        (("canny", "--holdout", "16"), 2, "too few pairs"),
        (("canny", "--set", "low"), 2, "KEY=VALUE"),
        (("canny", "--annotator", "canny", "--set", "lows=3"), 2, "low"),
    ],
)
def test_what_is_wrong_is_said_before_the_first_picture(
    words: tuple[str, ...], code: int, said: str, data: Path
) -> None:
    done = _evaluate(*words, "--data", data)
    assert done.exit_code == code and said in done.output and "Traceback" not in done.output


def test_no_data_is_no_evaluation(tmp_path: Path) -> None:
    assert _evaluate("canny").exit_code == 2
    done = _evaluate("canny", "--data", tmp_path)
    assert done.exit_code == 2 and str(tmp_path) in done.output
