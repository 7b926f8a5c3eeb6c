"""The same module, the same numbers: against maps that A1111's ControlNet extension made."""

import base64
import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from disegno.annotators import ANNOTATORS, tile
from disegno.annotators.base import Picture, annotate_at, describe, find_a1111, make_params, params_from_a1111, read
from disegno.core.errors import UnknownName

pytestmark = pytest.mark.parity

VECTORS = Path(__file__).parent.parent / "golden" / "vectors"
NOT_ANNOTATORS = (
    "tile_colorfix",
    "tile_colorfix+sharp",
    "reference_only",
    "inpaint_only",
)  # they show the picture as it is


def load(name: str) -> list[dict[str, Any]]:
    return json.loads((VECTORS / f"{name}.json").read_text("utf-8"))["cases"]


def png(text: str) -> Picture:
    return np.array(Image.open(BytesIO(base64.b64decode(text))))


CASES = [case for case in load("controlnet_preprocessors_modelfree") if case["module"] not in NOT_ANNOTATORS]


@pytest.mark.parametrize(
    "case", CASES, ids=lambda c: f"{c['module']}-{c['image']}-{c['processor_res']}-{c['threshold_a']}"
)
def test_draws_what_a1111_draws(case: dict[str, Any]) -> None:
    picture, expected = png(case["input_png"]), png(case["expected_png"])
    module = find_a1111(case["module"])
    params = params_from_a1111(module, case["threshold_a"], case["threshold_b"])
    drawing = annotate_at(module, picture, make_params(module, params), case["processor_res"], back=False)
    if case["module"] == "tile_resample":  # A1111 leaves it small; ours comes back to its size
        drawing = tile.shrink(picture, case["threshold_a"])
    # the numbers are A1111's, computed by the same OpenCV: equal; 2 levels for another build's interpolation
    assert np.abs(drawing.astype(int) - expected).max() <= (0 if set(np.unique(expected)) <= {0, 255} else 2)


def test_every_weightless_module_that_draws_is_answered() -> None:
    answered = {alias for name in ANNOTATORS for alias in read(ANNOTATORS.load(name)).a1111_names}
    assert answered >= {
        "none", "canny", "invert", "threshold", "blur_gaussian", "scribble_xdog", "shuffle", "tile_resample",
        "recolor_luminance", "recolor_intensity", "color", "lineart_standard", "t2ia_color_grid",
    }  # fmt: skip
    with pytest.raises(UnknownName, match="canny"):
        find_a1111("cany")


@pytest.mark.parametrize("case", load("controlnet_modules"), ids=lambda case: case["name"])
def test_sliders_have_a1111s_bounds_and_defaults(case: dict[str, Any]) -> None:
    try:
        module = find_a1111(case["name"])
    except UnknownName:
        return
    specs = {spec.name: spec for spec in describe(module)}
    sliders = [slider for slider in case["detail"]["sliders"] if slider["name"] != "Resolution"]
    assert len(sliders) == len(read(module).a1111_sliders)
    for slider, name in zip(sliders, read(module).a1111_sliders, strict=True):
        assert (specs[name].minimum, specs[name].maximum, specs[name].default) == (
            slider["min"],
            slider["max"],
            slider["value"],
        )


def test_a_threshold_outside_its_slider_leaves_the_default() -> None:
    assert params_from_a1111(ANNOTATORS.load("canny"), -1, 300) == {}
    assert params_from_a1111(ANNOTATORS.load("canny"), 64.9, 64) == {"low": 64, "high": 64}
    assert params_from_a1111(ANNOTATORS.load("invert"), 64.9, 64) == {}


def test_lineart_standard_sets_a_typical_line_to_half() -> None:
    picture = np.full((128, 128, 3), 255, np.uint8)
    picture[60:62] = 0
    module = ANNOTATORS.load("line-art")
    drawing = read(module).run(picture, make_params(module, {}))
    darkest, background = int(drawing[60:62].max()), drawing[:20]
    assert darkest in (127, 126) and not background.any()
