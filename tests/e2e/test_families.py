"""Every family draws through the one door: a model of it in a folder, named on the command line and from Python."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from diffusers import SD3ControlNetModel
from PIL import Image

from disegno import ControlUnit, Request, Result, Settings, Studio, generate
from disegno.backbones import miniature_sd2, miniature_sd3
from disegno.backbones.miniature import draw
from disegno.cli.main import main
from disegno.core.errors import RequestError, WrongFamily
from disegno.core.request import InitImage
from disegno.weights.save import save_safetensors
from kit.vocabulary import trained

pytestmark = pytest.mark.e2e

STEPS = 4
WRITE = {
    "sd2.safetensors": lambda path: miniature_sd2.write_checkpoint(path),
    "sd2-inpainting.safetensors": lambda path: miniature_sd2.write_checkpoint(path, miniature_sd2.Sd2(in_channels=9)),
    "sd2-depth.safetensors": lambda path: miniature_sd2.write_checkpoint(path, miniature_sd2.Sd2(in_channels=5)),
    "sd2-folder": lambda path: miniature_sd2.write_folder(path),
    "sd3.safetensors": lambda path: miniature_sd3.write_file(path),
    "sd3-folder": lambda path: miniature_sd3.write_folder(path, tokenizer=trained()),
}
FAMILIES = {name: name[:3] for name in WRITE}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name, write in WRITE.items():
        write(folder / name)
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "photo.png")
    net = SD3ControlNetModel(**(miniature_sd3.SD3.net_config | {"num_layers": 2, "dual_attention_layers": ()}))
    fixed = {name: t for name, t in net.state_dict().items() if name.endswith("pos_embed.pos_embed")}
    save_safetensors(folder / "sd3-control.safetensors", draw(net, 5) | fixed, {})
    mask = np.zeros((64, 64), np.uint8)
    mask[:, 32:] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    return folder


@pytest.fixture(scope="module")
def studio(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Studio:
    cache = tmp_path_factory.mktemp("cache")
    return Studio(Settings(model_dirs=(folder,), cache_dir=cache, dtype="fp32", device="cpu"))


def _draw(studio: Studio, **fields: object) -> Result:
    given: dict[str, object] = {
        "prompt": "a cat",
        "negative": "blur",
        "seed": 1,
        "steps": STEPS,
        "width": 64,
        "height": 64,
    }
    last = list(generate(Request(**(given | fields)), studio=studio))[-1]
    assert isinstance(last, Result)
    return last


@pytest.mark.parametrize("name", [name for name in WRITE if not name.endswith("-depth.safetensors")])
def test_it_draws_changes_and_fills(studio: Studio, folder: Path, name: str) -> None:
    photo, mask = str(folder / "photo.png"), str(folder / "mask.png")
    drawn = _draw(studio, model=name)
    changed = _draw(studio, model=name, init=InitImage(image=photo, denoise=0.4))
    filled = _draw(studio, model=name, init=InitImage(image=photo, mask=mask, mask_blur=0, denoise=1.0))
    assert {picture.images[0].size for picture in (drawn, changed, filled)} == {(64, 64)}
    assert drawn.images[0].tobytes() != changed.images[0].tobytes()
    with Image.open(photo) as picture:
        kept = np.asarray(filled.images[0])[:, :28], np.asarray(picture)[:, :28]
    assert np.abs(kept[0].astype(int) - kept[1]).mean() < 1  # put back from the photo


def test_the_meaning_of_the_output_may_be_said(studio: Studio) -> None:
    found = _draw(studio, model="sd2")
    assert any("--prediction v" in warning for warning in found.warnings)
    said = _draw(studio, model="sd2", prediction="v")
    assert said.warnings == () and said.request.prediction == "v"
    assert said.images[0].tobytes() != found.images[0].tobytes()
    with pytest.raises(RequestError, match="levels of epsilon and v"):
        _draw(studio, model="sd2", prediction="flow")


def test_t5_is_said_to_be_missing_and_may_be_turned_off(studio: Studio, folder: Path, tmp_path: Path) -> None:
    assert any("vocabulary was not found" in warning for warning in _draw(studio, model="sd3").warnings)
    with_t5 = _draw(studio, model="sd3-folder")
    settings = Settings(model_dirs=(folder,), cache_dir=tmp_path, dtype="fp32", device="cpu", t5="off")
    without = _draw(Studio(settings), model="sd3-folder")
    assert with_t5.warnings == without.warnings == ()
    assert with_t5.images[0].tobytes() != without.images[0].tobytes()


def test_controls_of_the_family_steer_it_and_others_are_refused_at_once(studio: Studio, folder: Path) -> None:
    photo = str(folder / "photo.png")
    plain = _draw(studio, model="sd3-folder")

    def unit(strength: float) -> ControlUnit:
        return ControlUnit(name="sd3-control", image=photo, annotate="none", strength=strength)

    one, two = (_draw(studio, model="sd3-folder", controls=(unit(1.0),) * n) for n in (1, 2))
    assert len({picture.images[0].tobytes() for picture in (plain, one, two)}) == 3
    off = _draw(studio, model="sd3-folder", controls=(unit(0.0),))
    assert off.images[0].tobytes() == plain.images[0].tobytes()
    with pytest.raises(WrongFamily, match="is for sd3, the open model is sd2"):
        _draw(studio, model="sd2", controls=(unit(1.0),))


def test_a_depth_model_without_depth_says_what_it_lacks(studio: Studio) -> None:
    with pytest.raises(RequestError, match="draws by depth: give it a depth map"):
        _draw(studio, model="sd2-depth")


@pytest.mark.parametrize("name", list(WRITE))
def test_the_command_line_shows_and_draws_it(
    name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISEGNO_MODEL_DIRS", str(folder))
    monkeypatch.setenv("DISEGNO_CACHE_DIR", str(tmp_path))
    shown = CliRunner().invoke(main, ["models", "show", name])
    assert shown.exit_code == 0 and FAMILIES[name] in shown.output
    if name.endswith("-depth.safetensors"):
        return
    words = ["generate", "a cat", "--model", name, "--steps", "1", "--size", "64x64", "-o", str(tmp_path / "out.png")]
    drawn = CliRunner().invoke(main, words)
    assert drawn.exit_code == 0, drawn.output
    with Image.open(tmp_path / "out.png") as picture:
        assert picture.size == (64, 64)
