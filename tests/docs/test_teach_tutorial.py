"""The tutorial's commands run, one after the other as it gives them, on few and tiny pictures."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from disegno.cli.main import main
from kit.pairs import write_pairs

pytestmark = pytest.mark.docs

TUTORIAL = Path(__file__).parents[2] / "docs/tutorials/teach-a-control.md"
SHORTER = {"--steps": "2", "--batch": "2", "--rank": "2", "--num": "3", "--size": "64x64"}
SMALLER = {
    "teach": ("--width", "64", "--height", "64", "--quiet"),
    "evaluate": ("--size", "64x64", "--steps", "2"),
    "generate": ("--size", "64x64", "--steps", "2"),
}


def _commands() -> list[list[str]]:
    lines = re.findall(r"^    disegno (.+)$", TUTORIAL.read_text("utf-8"), re.MULTILINE)
    return [shlex.split(line) for line in lines]


def _shortened(words: list[str]) -> list[str]:
    before = ["", *words]
    shorter = [SHORTER.get(option, word) for option, word in zip(before, words, strict=False)]
    looks = ["--validate-every", "2"] if words[0] == "teach" else []
    return [*shorter, *SMALLER.get(words[0], ()), *looks]


def _scenes(folder: Path) -> None:
    """Write what `compose` writes, in small."""
    pairs = write_pairs(folder, 20, 64)  # a tenth is held out
    for part in ("source", "target"):
        for n in range(20):
            (pairs / part / f"{n}.png").rename(pairs / part / f"{n:06d}.png")
    lines = pairs / "prompt.json"
    lines.write_text(re.sub(r"/(\d+)\.png", lambda n: f"/{int(n[1]):06d}.png", lines.read_text("utf-8")), "utf-8")


def test_its_commands_build_teach_draw_and_measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DISEGNO_MODEL_DIRS", str(tmp_path / "models"))
    monkeypatch.setenv("DISEGNO_CACHE_DIR", str(tmp_path / "cache"))
    _scenes(tmp_path / "scenes")
    [(name, function)] = re.findall(r"`([\w./]+)`:\n\n```python\n(.*?)^```", TUTORIAL.read_text("utf-8"), re.M | re.S)
    Path(name).write_text(function, "utf-8")
    Path("docs/tutorials").mkdir(parents=True)
    for drawing in TUTORIAL.parent.glob("*.png"):
        shutil.copy(drawing, "docs/tutorials")
    commands = _commands()
    assert [words[0] for words in commands] == ["dataset", "dataset", "teach", "generate", "evaluate"]
    for words in commands:
        done = CliRunner().invoke(main, _shortened(words))
        assert done.exit_code == 0, (words, done.output)
    assert "data:image/jpeg;base64," in (tmp_path / "runs/colours/report.html").read_text("utf-8")
    assert (tmp_path / "evaluation/evaluation.html").is_file()
    with Image.open(tmp_path / "tree.png") as picture:
        assert picture.size == (64, 64)


def test_the_pictures_of_the_tutorial_can_be_composed() -> None:
    text = TUTORIAL.read_text("utf-8")
    for module in re.findall(r"python -m (recipes[\w.]+)", text):
        source = (TUTORIAL.parents[2] / module.replace(".", "/")).with_suffix(".py").read_text("utf-8")
        for flag in re.findall(rf"{re.escape(module)}.*", text):
            for option in re.findall(r" (--[a-z-]+)", flag):
                assert f'"{option}"' in source, option
