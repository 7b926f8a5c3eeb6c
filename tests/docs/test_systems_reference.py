"""The page of systems names every mechanism and every task that there is."""

import re
from pathlib import Path

import pytest

from disegno.controls import CONTROLS
from disegno.training.recipes import RECIPES
from disegno.weights import union_files
from disegno.weights.uni_controlnet_files import CONDITIONS, CONTENT
from disegno.weights.unicontrol_files import TASKS

pytestmark = pytest.mark.docs

PAGE = (Path(__file__).parent.parent.parent / "docs" / "reference" / "systems.md").read_text("utf-8")


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


@pytest.mark.parametrize("name", list(CONTROLS))
def test_every_mechanism_has_a_row(name: str) -> None:
    rows = [line.split("|")[1] for line in PAGE.splitlines() if line.startswith("| ")]
    assert any(_plain(row.partition("(")[0].replace(" for ", " ")).startswith(_plain(name)) for row in rows), name


@pytest.mark.parametrize(
    ("system", "tasks"),
    [
        ("UniControl", list(TASKS)),
        ("Uni-ControlNet", [*CONDITIONS, CONTENT]),
        ("ControlNet-Union", [*union_files.TASKS]),
    ],
)
def test_the_tasks_are_those_that_there_are(system: str, tasks: list[str]) -> None:
    line = next(line for line in PAGE.splitlines() if line.startswith(f"| {system} |"))
    assert re.findall(r"\w+", line.split("|")[2].replace(", and", "").replace(" in promax", "")) == tasks


def test_every_recipe_of_a_control_is_named() -> None:
    line = next(line for line in PAGE.splitlines() if line.startswith("`disegno teach NAME --recipe"))
    named = re.findall(r"[a-z0-9-]+", line.partition("--recipe")[2].partition("`")[0])
    about = {name: RECIPES.load(name).ABOUT for name in RECIPES}
    controls = [name for name, its in about.items() if its.saves == "file" and its.makes == "control"]
    assert set(controls) <= set(named), set(controls) - set(named)
