"""Everything that a request may ask for goes together with controls, in the built-in model: a control acts, and one of
strength 0 changes no bit."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from disegno import ControlUnit, Request, Result, Settings, Studio, generate
from disegno.core.guide import Guide
from disegno.core.request import Hires, InitImage, Outpaint, Tiles

pytestmark = pytest.mark.e2e

CAR = Path(__file__).parents[2] / "src/disegno/data/diorama/examples/car.png"


@pytest.fixture(scope="module")
def mask(tmp_path_factory: pytest.TempPathFactory) -> str:
    picture = Image.new("L", (128, 128))
    ImageDraw.Draw(picture).rectangle([20, 40, 110, 100], fill=255)
    path = tmp_path_factory.mktemp("masks") / "mask.png"
    picture.save(path)
    return str(path)


@pytest.fixture(scope="module")
def studio() -> Iterator[Studio]:
    yield Studio(Settings(dtype="fp32", device="cpu", model_dirs=()))


BASE = Request(prompt="a red car", seed=1, steps=2, width=128, height=128, sampler="Euler")
INIT = InitImage(image=str(CAR), denoise=0.8)
ASKED: dict[str, dict[str, object]] = {
    "emphasis": {"prompt": "a (red:1.4) car on a [street]"},
    "editing": {"prompt": "a [red:blue:0.5] car"},
    "alternation": {"prompt": "a [red|blue] car"},
    "parts": {"prompt": "a red car AND snow :0.5"},
    "chunks": {"prompt": "a red car BREAK on a street, " + "a small house, " * 30},
    "a negative prompt of another length": {"negative": "a small house, " * 30},
    "filled up": {"negative": "a small house, " * 30, "pad_texts": True},
    "a variation": {"subseed": 9, "subseed_strength": 0.3},
    "two calls a step": {"sampler": "Heun"},
    "rescaled guidance": {"cfg_rescale": 0.7},
    "no guidance": {"cfg": 1.0},
    "steps without guidance": {"negative_min": 3.0, "negative_min_all": True, "cfg_start": 0.1},
    "away from a weakened net": {"guide": Guide(pag=3.0)},
    "away from it, without a negative prompt": {"guide": Guide(pag=3.0, pag_end=0.6), "cfg": 1.0},
    "away from it, in parts": {"guide": Guide(pag=3.0), "prompt": "a red car AND snow :0.5", "batch": 2},
    "projected guidance": {"guide": Guide(apg=True), "cfg": 9.0, "sampler": "Heun"},
    "a prompt for each": {"batch": 2, "prompts": ("a red car", "a blue truck, " * 20)},
    "a changed picture": {"init": INIT},
    "a masked one": {"init": replace(INIT, mask="MASK")},
    "the masked part alone": {"init": replace(INIT, mask="MASK", only_masked=True, padding=8)},
    "a differential mask": {"init": replace(INIT, mask="MASK", mask_mode="differential")},
    "what lies around": {"init": replace(INIT, outpaint=Outpaint(left=32)), "width": 160},
    "no seam": {"seamless": True},
    "a second pass": {"hires": Hires(scale=1.5, denoise=0.5)},
    "parts of a canvas": {"width": 192, "tiles": Tiles(size=128)},
}


def _pixels(request: Request, studio: Studio) -> np.ndarray:
    *_, result = generate(request, studio=studio)
    assert isinstance(result, Result) and len(result.conditions) == len(request.controls)
    return np.stack([np.asarray(image).astype(int) for image in result.images])


@pytest.mark.parametrize("name", ASKED)
def test_controls_go_together_with(name: str, studio: Studio, mask: str) -> None:
    asked = replace(BASE, **ASKED[name])
    if asked.init is not None and asked.init.mask:
        asked = replace(asked, init=replace(asked.init, mask=mask))
    unit = ControlUnit(name="canny", image=str(CAR))
    free, still, held = (
        _pixels(replace(asked, controls=units), studio)
        for units in ((), (replace(unit, strength=0.0),), (replace(unit, strength=1.5),))
    )
    assert np.array_equal(free, still)
    assert np.abs(free - held).max() > 8


def test_a_region_and_a_curve_hold_where_and_when_they_say(studio: Studio, mask: str) -> None:
    def drawn(**fields: object) -> np.ndarray:
        unit = ControlUnit(name="canny", image=str(CAR), strength=1.5)
        return _pixels(replace(BASE, controls=(replace(unit, **fields),)), studio)

    free, held, inside = _pixels(BASE, studio), drawn(), drawn(region=mask)
    within, without = np.abs(inside - free)[:, 40:100, 20:110].mean(), np.abs(inside - free)[:, :16].mean()
    assert within > 3 * without  # measured: 31.9 and 6.3; the net's own attention carries some of it outside
    assert without < np.abs(held - free)[:, :16].mean()
    assert not np.array_equal(inside, held)
    assert np.array_equal(drawn(curve="0@0"), free) and np.array_equal(drawn(curve="1@0,1@1"), held)
    assert not np.array_equal(drawn(curve="1@0.5,0@0.5"), held)
