"""The how-to about teaching is followed as it is written, on a small model and with few steps."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from pydantic import TypeAdapter

from disegno.backbones import miniature
from disegno.cli.main import main
from disegno.core.teach import OptimiserName, RateSchedule, TeachRequest, TimeDraw
from disegno.training import rates
from disegno.training.miniature import write_base
from disegno.training.recipes import RECIPES

pytestmark = pytest.mark.docs

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs/howto/teach.md").read_text("utf-8")
LAUNCH = "accelerate launch"

# What makes a command of the page short: its own values of these are left out.
SMALL = {"--model": "mini", "--base": "minibase", "--steps": "1", "--rank": "2", "--batch": "1", "--accumulate": "1",
         "--width": "64", "--height": "64", "--validate-every": "0", "--workers": "0"}  # fmt: skip
IN_THE_PAST = {"--resume"}  # goes on as it was asked for


def commands() -> list[list[str]]:
    """Return the words of every command in the page, without `disegno`."""
    return [shlex.split(line) for line in re.findall(r"^    disegno (.+)$", PAGE, re.MULTILINE)]


def shortened(words: list[str]) -> list[str]:
    if words[0] != "teach" or IN_THE_PAST & set(words):
        return [*words, "--model", "mini", "--size", "64x64", "--steps", "1"] if words[0] == "generate" else words
    kept = [word for before, word in zip(["", *words], words, strict=False) if not {before, word} & SMALL.keys()]
    recipe = words[words.index("--recipe") + 1] if "--recipe" in words else "ctrlora"
    unused = RECIPES.load(recipe).ABOUT.unused
    small = SMALL | ({"--validate-every": "1"} if "--until-converged" in words else {})  # it goes by what a look says
    return [*kept, *(word for flag, value in small.items() if flag[2:] not in unused for word in (flag, value))]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    place = tmp_path_factory.mktemp("teach_howto")
    miniature.write_sd1_checkpoint(place / "models/mini.safetensors")
    write_base(place / "models/minibase.safetensors")
    (place / "photos").mkdir()
    for i in range(10):  # of ten pairs one can be held out
        coarse = np.random.default_rng(i).integers(0, 256, (5, 5, 3), np.uint8)
        Image.fromarray(coarse).resize((520, 520), Image.Resampling.BICUBIC).save(place / f"photos/{i}.jpg")
        (place / f"photos/{i}.txt").write_text("a red house")
    Image.open(place / "photos/0.jpg").save(place / "photo.jpg")
    other = run(["dataset", "build", str(place / "photos"), str(place / "other"), "--annotator", "palette"])
    assert other.exit_code == 0, other.output
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("DISEGNO_MODEL_DIRS", str(place / "models"))
        patch.setenv("DISEGNO_CACHE_DIR", str(place / "cache"))
        patch.setattr(rates, "SPAN", 1.0)
        patch.setattr(rates, "NUM_STEPS", 1)
        yield place


def run(words: list[str]) -> Result:
    return CliRunner().invoke(main, words)


def test_every_command_works_in_this_order(place: Path) -> None:
    done: set[tuple[str, ...]] = set()
    for words in commands():
        short = tuple(shortened(words))
        if short in done or "--estimate" in words:  # which is tested as a person uses it, in e2e
            continue
        done.add(short)
        result = run(list(short))
        assert result.exit_code == 0, f"{' '.join(short)}: {result.output}"
    assert {path.name for path in (place / "models/controls").iterdir()} >= {"edges.safetensors", "plain.safetensors"}
    assert (place / "exported.ckpt").exists()


def test_it_is_taught_from_python(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    model = '"model": "mini", "base": "minibase"'
    small = f'{model}, "steps": 1, "rank": 2, "width": 64, "height": 64, "validate_every": 0}}'
    exec(code.replace('"pairs"', '"other"').replace('"steps": 1000}', small), {})
    said = capsys.readouterr().out
    assert "teaching 1 1" in said and "again.safetensors steps" in said


def test_every_recipe_field_and_choice_is_named() -> None:
    assert all(f"`{name}`" in PAGE for name in RECIPES)
    fields = set(TypeAdapter(TeachRequest).json_schema()["properties"]) - {"name", "params", "steps", "data", "model"}
    assert not [name for name in fields if f"--{name.replace('_', '-')}" not in PAGE]
    choices = {*get_args(OptimiserName), *get_args(RateSchedule), *get_args(TimeDraw)} - {"auto"}
    assert not [choice for choice in choices if choice not in PAGE]


def test_what_accelerate_starts_takes_these_flags() -> None:
    shown = run(["teach", "--help"]).output
    lines = [line for line in PAGE.splitlines() if line.strip().startswith(LAUNCH)]
    assert lines and all("-m disegno.training edges --data pairs" in line for line in lines)
    for line in lines:
        for flag in re.findall(r" (--[a-z-]+)", line.partition("-m disegno.training")[2]):
            assert flag in shown
