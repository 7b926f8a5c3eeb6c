"""What every annotator must do, over the registry."""

from typing import cast

import numpy as np
import pytest

from disegno.annotators import ANNOTATORS
from disegno.annotators.base import ParamSpec, Picture, annotate_at, describe, make_params, read
from disegno.core.errors import BadImage, RequestError

pytestmark = pytest.mark.contract

NAMES = ANNOTATORS.names()
SIZES = [(1, 1), (1, 2), (3, 1), (7, 513), (33, 65), (64, 64)]
BOUNDED = [(name, spec) for name in NAMES for spec in describe(ANNOTATORS.load(name)) if spec.minimum is not None]


def pictures(height: int, width: int) -> dict[str, Picture]:
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    grey = np.repeat(noise[:, :, :1], 3, axis=2)
    return {"noise": noise, "grey": grey, "black": np.zeros_like(noise), "white": np.full_like(noise, 255)}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_keeps_the_size_and_leaves_the_picture_alone_and_says_the_same_again(
    name: str, height: int, width: int
) -> None:
    module = ANNOTATORS.load(name)
    params = make_params(module, {})
    for kind, picture in pictures(height, width).items():
        before = picture.copy()
        drawing = read(module).run(picture, params)
        assert drawing.dtype == np.uint8 and drawing.shape == picture.shape, kind
        assert not np.shares_memory(drawing, picture), kind
        assert np.array_equal(picture, before), kind
        assert np.array_equal(drawing, read(module).run(picture, params)), kind


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_that_may_not_be_written_to_is_enough(name: str) -> None:
    picture = pictures(33, 65)["noise"]
    picture.setflags(write=False)
    module = ANNOTATORS.load(name)
    read(module).run(picture, make_params(module, {}))[:] = 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("resolution", [64, 100])
def test_annotating_at_a_resolution_comes_back_to_the_size(name: str, resolution: int) -> None:
    module = ANNOTATORS.load(name)
    picture = pictures(48, 80)["noise"]
    params = make_params(module, {})
    assert annotate_at(module, picture, params, resolution).shape == picture.shape
    there = annotate_at(module, picture, params, resolution, back=False)
    assert min(there.shape[:2]) == (48 if read(module).sizing == "own" else resolution)


@pytest.mark.parametrize("name", NAMES)
def test_randomness_is_only_in_a_seed(name: str) -> None:
    module = ANNOTATORS.load(name)
    picture = pictures(64, 64)["noise"]
    np.random.seed(1)
    first = read(module).run(picture, make_params(module, {}))
    np.random.seed(2)
    assert np.array_equal(first, read(module).run(picture, make_params(module, {})))
    if any(spec.name == "seed" for spec in describe(module)):
        others = [read(module).run(picture, make_params(module, {"seed": seed})) for seed in (3, 4)]
        assert name == "pixelate" or not np.array_equal(*others)  # k-means may find the same colours from two starts


@pytest.mark.parametrize("name", NAMES)
def test_says_what_it_is(name: str) -> None:
    annotator = read(ANNOTATORS.load(name))
    assert annotator.name == name
    assert annotator.title and annotator.summary.endswith(".")
    assert annotator.sizing in ("own", "short-side", "padded")
    specs = {spec.name: spec for spec in describe(ANNOTATORS.load(name))}
    assert set(annotator.a1111_sliders) <= set(specs)
    for spec in specs.values():
        assert spec.help.endswith((".", "?")), f"{name}.{spec.name} wants a sentence of help"
        assert spec.kind not in ("float", "int") or None not in (spec.minimum, spec.maximum), f"{name}.{spec.name}"


@pytest.mark.parametrize(("name", "spec"), BOUNDED, ids=lambda value: getattr(value, "name", value))
def test_bounds_are_kept(name: str, spec: ParamSpec) -> None:
    module = ANNOTATORS.load(name)
    low, high = cast("float", spec.minimum), cast("float", spec.maximum)
    assert low <= float(spec.default) <= high
    for outside in (low - 1, high + 1, "many", float("nan"), float("inf")):
        with pytest.raises(RequestError, match=rf"(?s){name}.*{spec.name}"):
            make_params(module, {spec.name: outside})


@pytest.mark.parametrize(("name", "spec"), BOUNDED, ids=lambda value: getattr(value, "name", value))
def test_the_ends_of_the_range_work(name: str, spec: ParamSpec) -> None:
    module = ANNOTATORS.load(name)
    pairs = {"illusion": {"dark": 0, "light": 255}, "inpainting-brush": {"fewest": 0, "most": 50}}
    for value in (spec.minimum, spec.maximum):
        given = {spec.name: cast("float", value)}
        if spec.name == "kernel":
            given = {"kernel": 255}
        params = make_params(module, pairs.get(name, {}) | given)
        assert read(module).run(pictures(24, 40)["noise"], params).shape == (24, 40, 3)


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_parameter_is_an_error(name: str) -> None:
    with pytest.raises(RequestError, match="no parameter 'colour_of_the_sky'"):
        make_params(ANNOTATORS.load(name), {"colour_of_the_sky": 1})


@pytest.mark.parametrize(
    "bad",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)],
)
def test_what_is_no_picture_is_an_error(bad: Picture) -> None:
    module = ANNOTATORS.load("canny")
    with pytest.raises(BadImage, match="uint8 RGB"):
        annotate_at(module, bad, make_params(module, {}))
