"""The how-to is followed to the letter: its files are written, its commands run, its test passes."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.docs

PAGE = Path(__file__).parent.parent.parent / "docs" / "howto" / "add-an-annotator.md"


def python(*args: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(folder)}
    return subprocess.run([sys.executable, *args], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that holds the page's files, with the metadata that installing them would write."""
    folder = tmp_path_factory.mktemp("tulip")
    for name, text in re.findall(
        r"^`([\w./]+)`:\n\n```\w+\n(.*?)^```", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, "utf-8")
    project = tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))["project"]
    metadata = folder / f"{project['name']}-{project['version']}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    lines = [
        f"[{group}]\n" + "\n".join(f"{k} = {v}" for k, v in points.items())
        for group, points in project["entry-points"].items()
    ]
    (metadata / "entry_points.txt").write_text("\n".join(lines))
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)).save(folder / "photo.png")
    return folder


def test_its_commands_run(package: Path) -> None:
    commands = re.findall(r"^    disegno (.+)$", PAGE.read_text("utf-8"), re.MULTILINE)
    done = [python("-m", "disegno.cli.main", *command.split(), folder=package) for command in commands]
    listing, card, sheet, refused = done
    assert [run.returncode for run in done] == [0, 0, 0, 2], [run.stderr for run in done]
    assert re.search(r"^posterize +The picture in a few flat tones\.$", listing.stdout, re.MULTILINE)
    assert "levels=4  (2 to 16)  Tones in each channel." in card.stdout
    assert (package / "look.png").is_file() and sheet.stdout == "look.png\n"
    assert "levels can be 2 to 16" in refused.stderr and "Traceback" not in refused.stderr


def test_its_test_passes(package: Path) -> None:
    done = python("-m", "pytest", "-q", "-p", "no:cacheprovider", "test_posterize.py", folder=package)
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout
