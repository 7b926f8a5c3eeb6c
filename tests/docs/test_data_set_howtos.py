"""The how-tos about data sets are followed to the letter: their files are written, their commands run."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from disegno.cli.main import main
from disegno.training.data import open_pairs

pytestmark = pytest.mark.docs

HOWTO = Path(__file__).parent.parent.parent / "docs" / "howto"


def commands(page: str) -> list[list[str]]:
    lines = re.findall(r"^    disegno (dataset .+)$", (HOWTO / page).read_text("utf-8"), re.M)
    return [shlex.split(line) for line in lines]


def photos(folder: Path, num: int = 4) -> None:
    folder.mkdir()
    for i in range(num):
        coarse = np.random.default_rng(i).integers(0, 256, (5, 7, 3), np.uint8)
        Image.fromarray(coarse).resize((700, 600), Image.Resampling.BICUBIC).save(folder / f"red_house-{i}.jpg")
        (folder / f"red_house-{i}.txt").write_text("a red house")


def test_a_condition_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = (HOWTO / "a-condition-of-your-own.md").read_text("utf-8")
    for name, text in re.findall(r"^`([\w./]+)`:\n\n```python\n(.*?)^```", page, re.M | re.S):
        Path(name).write_text(text, "utf-8")
    photos(tmp_path / "photos")
    build, check = commands("a-condition-of-your-own.md")
    done = CliRunner().invoke(main, build)
    assert done.exit_code == 0 and "4 pairs, 4 of them new, 0 pictures left out" in done.output, done.output
    pairs = open_pairs("pairs")
    sample = pairs.read(0)
    assert pairs.script == "my_condition.py" and sample.caption == "red house"
    assert set(np.unique(sample.condition)) == {0, 255} and abs((sample.condition > 0).mean() - 0.5) < 0.05
    assert np.argmin([sample.target[sample.condition[..., 0] == value].mean() for value in (0, 255)]) == 1
    assert CliRunner().invoke(main, check).exit_code == 0
    Path("my_condition.py").write_text("def condition(image): return image")
    refused = CliRunner().invoke(main, build)
    assert refused.exit_code == 2 and "made otherwise (script: " in refused.output


def test_make_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    photos(tmp_path / "photos")
    build, check, pack, by_url = commands("make-a-data-set.md")
    assert CliRunner().invoke(main, build).exit_code == 0
    assert sorted(path.name for path in Path("pairs").iterdir()) == [
        "dataset.json", "problems.jsonl", "prompt.json", "source", "target",
    ]  # fmt: skip
    done = CliRunner().invoke(main, [*check, "--json"])
    assert done.exit_code == 0 and json.loads(done.output)["usable"] == 4
    assert CliRunner().invoke(main, pack).output == "tars: 4 pairs, 0 left out\n"
    assert by_url[:2] == ["dataset", "check"] and re.fullmatch(r"https://\S+-\{\d+\.\.\d+\}\.tar", by_url[2])


def test_every_form_is_in_the_how_to() -> None:
    page = (HOWTO / "make-a-data-set.md").read_text("utf-8")
    for word in ("prompt.json", "metadata.jsonl", "conditioning_images/", "image_dir", ".cond.png"):
        assert word in page
