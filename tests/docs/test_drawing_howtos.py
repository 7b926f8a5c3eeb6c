"""The how-tos about drawing are followed to the letter: every command runs, at few steps, with the built-in model."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from PIL import Image, ImageDraw

from disegno.cli.main import main
from disegno.core.settings import load_settings
from disegno.engine.studio import Studio
from disegno.weights.save import save_safetensors

pytestmark = pytest.mark.docs

ROOT = Path(__file__).parent.parent.parent
PAGES = ("write-prompts", "change-pictures", "compare-settings", "regions")
CAR = ROOT / "src/disegno/data/diorama/examples/car.png"


def commands(page: str) -> list[str]:
    return re.findall(r"^    disegno (generate .+)$", (ROOT / f"docs/howto/{page}.md").read_text("utf-8"), re.M)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the files that the pages name; every command is run in it, with one open studio."""
    folder = tmp_path_factory.mktemp("drawing")
    with Image.open(CAR) as car:
        for name in ("photo.png", "photo.jpg"):
            car.convert("RGB").save(folder / name)
        (folder / "photos").mkdir()
        for name in ("one.png", "two.jpg"):
            car.convert("RGB").save(folder / "photos" / name)
    mask = Image.new("L", (128, 128))
    ImageDraw.Draw(mask).rectangle([16, 40, 112, 100], fill=255)
    mask.save(folder / "car.png")
    mask.save(folder / "left.png")
    Image.linear_gradient("L").save(folder / "ramp.png")
    (folder / "wildcards").mkdir()
    (folder / "wildcards" / "colour.txt").write_text("red\ngreen\n")
    (folder / "styles.csv").write_text('name,prompt,negative_prompt\nStreet,"{prompt} on a street",night\n')
    place = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    lora = {f"{place}.lora_down.weight": torch.ones(2, 384) / 9, f"{place}.lora_up.weight": torch.ones(64, 2)}
    save_safetensors(folder / "ink.safetensors", lora, {})
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MODEL_DIRS", "PROMPT_DIRS", "CACHE_DIR"):
            patch.setenv(f"DISEGNO_{name}", str(folder))
        studio = Studio(load_settings())
        for module in ("disegno.engine.generate", "disegno.engine.plot"):
            patch.setattr(f"{module}.Studio", lambda _settings=None: studio)
        patch.chdir(folder)
        yield folder


@pytest.mark.parametrize("command", [line for page in PAGES for line in commands(page)])
def test_every_command_draws(command: str, folder: Path) -> None:
    few = [] if "--again" in command or "steps=" in command else ["--steps", "2"]
    given = re.findall(r" -o (\S+)", command)
    before = set(folder.rglob("*.png"))
    done = CliRunner().invoke(main, [*shlex.split(command), *few])
    assert done.exit_code == 0, done.output
    made = set(folder.rglob("*.png")) - before
    assert {folder / name for name in given if "." in name} <= made and made


def test_the_python_of_the_sheets_runs(folder: Path) -> None:
    page = (ROOT / "docs/howto/compare-settings.md").read_text("utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)
    exec(compile(code, "compare-settings.md", "exec"), {})
    with Image.open(folder / "sheet.png") as sheet:
        assert sheet.width > 2 * 128


def test_the_python_of_the_regions_runs(folder: Path) -> None:
    page = (ROOT / "docs/howto/regions.md").read_text("utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)
    exec(compile(code, "regions.md", "exec"), {})
    with Image.open(folder / "halves.png") as picture:
        assert picture.size == (128, 128)


def test_the_pages_name_every_flag_as_it_is() -> None:
    shown = CliRunner().invoke(main, ["generate", "--help"]).output
    for page in PAGES:
        for flag in re.findall(r"(?<![\w-])(--[a-z][a-z-]*)", (ROOT / f"docs/howto/{page}.md").read_text("utf-8")):
            assert f"{flag} " in shown.replace(",", " ") + " ", f"{page}: there is no {flag}"
