"""Every command of the first tutorial runs, in its order, and leaves what it says."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from disegno.cli.main import main

pytestmark = pytest.mark.docs

ROOT = Path(__file__).parent.parent.parent
TUTORIAL = ROOT / "docs/tutorials/first-picture.md"
EXAMPLES = "src/disegno/data/diorama/examples"
STEPS = "4"  # the tutorial's pictures take 20; what is tested is that the commands work


def commands() -> list[list[str]]:
    return [
        shlex.split(line)[1:] for line in re.findall(r"^    (disegno .+)$", TUTORIAL.read_text("utf-8"), re.MULTILINE)
    ]


def test_every_command_of_the_tutorial_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(ROOT / EXAMPLES, tmp_path / EXAMPLES)
    monkeypatch.chdir(tmp_path)
    assert len(commands()) >= 7
    for command in commands():
        fast = ["--steps", STEPS] if command[0] == "generate" and "--again" not in command else []
        done = CliRunner().invoke(main, [*command, *fast], catch_exceptions=False)
        assert done.exit_code == 0, (command, done.output)
        path = tmp_path / command[command.index("-o") + 1]
        with Image.open(path) as picture:
            assert min(picture.size) >= 128, path
    with Image.open("out/car.png") as first, Image.open("out/car-again.png") as again:
        assert first.tobytes() == again.tobytes()


def test_what_the_tutorial_links_to_exists() -> None:
    for path in re.findall(r"\]\(([^)#:]+)\)", TUTORIAL.read_text("utf-8")):
        assert (TUTORIAL.parent / path).exists(), path
