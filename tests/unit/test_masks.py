"""Masks and sizes of pictures from pictures, as A1111's own code made them (golden vectors)."""

import base64
import json
from io import BytesIO
from pathlib import Path
from time import perf_counter
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from disegno.core.request import InitResizeMode
from disegno.engine.masks import (
    Box,
    blur,
    box_around,
    filled,
    grown_to_shape,
    laid_over,
    latent_mask,
    mask_of,
    widened,
)
from disegno.engine.resize import fitted

pytestmark = pytest.mark.unit

VECTORS = Path(__file__).parent.parent / "golden" / "vectors"
MODES: tuple[InitResizeMode, ...] = ("stretch", "crop", "fill")
LEVELS = 2  # of 255: another Pillow's and OpenCV's rounding


def cases(name: str) -> list[dict[str, Any]]:
    return json.loads((VECTORS / f"{name}.json").read_text("utf-8"))["cases"]


def picture(text: str) -> np.ndarray:
    return np.array(Image.open(BytesIO(base64.b64decode(text))))


def apart(a: np.ndarray, b: np.ndarray) -> int:
    assert a.shape == b.shape
    return int(np.abs(a.astype(int) - b).max())


@pytest.mark.parametrize("case", cases("img2img_resize"), ids=lambda c: f"{c['resize_mode']}-{c['width']}")
def test_fits_as_a1111(case: dict[str, Any]) -> None:
    found = fitted(picture(case["input_png"]), case["width"], case["height"], MODES[case["resize_mode"]])
    assert apart(found, picture(case["expected_png"])) <= LEVELS


@pytest.mark.parametrize("case", cases("binary_mask"), ids=lambda c: c["mode"])
def test_reads_masks_as_a1111(case: dict[str, Any]) -> None:
    given = picture(case["input_png"])
    given = np.repeat(given[:, :, None], 3, axis=2) if given.ndim == 2 else given
    assert apart(mask_of(given, case["round"]), picture(case["expected_png"])) == 0


@pytest.mark.parametrize("case", cases("mask_blur"), ids=lambda c: f"{c['mask_blur_x']}-{c['mask_blur_y']}")
def test_blurs_as_a1111(case: dict[str, Any]) -> None:
    found = blur(picture(case["input_png"]), case["mask_blur_x"], case["mask_blur_y"])
    assert apart(found, picture(case["expected_png"])) <= LEVELS


@pytest.mark.parametrize("case", cases("latent_mask"), ids=lambda c: f"{c['latent_hw']}-{c['mask_round']}")
def test_latent_masks_as_a1111(case: dict[str, Any]) -> None:
    found = latent_mask(picture(case["mask_png"]), *case["latent_hw"], binary=case["mask_round"])
    assert np.allclose(found[0, 0].numpy(), np.array(case["latmask"]), atol=1e-6)  # written with 6 digits


@pytest.mark.parametrize("case", cases("inpaint_crop_region"), ids=lambda c: str(c["mask_box"]))
def test_boxes_as_a1111(case: dict[str, Any]) -> None:
    (width, height), (left, top, right, bottom) = case["mask_size"], case["mask_box"]
    mask = np.zeros((height, width), np.uint8)
    mask[top:bottom, left:right] = 255
    box = box_around(mask, case["padding"])
    assert box == Box(*case["crop_region"])
    assert grown_to_shape(box, *case["processing"], width, height) == Box(*case["expanded"])


@pytest.mark.parametrize("case", cases("inpaint_fill"))
def test_fills_as_a1111(case: dict[str, Any]) -> None:
    assert apart(filled(picture(case["image_png"]), picture(case["mask_png"])), picture(case["expected_png"])) <= LEVELS


def test_a_black_mask_has_no_box() -> None:
    assert box_around(np.zeros((8, 8), np.uint8), 4) is None


@given(st.integers(1, 60), st.integers(1, 60), st.integers(8, 96), st.integers(8, 96), st.integers(0, 40))
def test_a_box_lies_in_the_picture_and_holds_the_mask(x: int, y: int, width: int, height: int, padding: int) -> None:
    mask = np.zeros((61, 61), np.uint8)
    mask[y, x] = 255
    box = box_around(mask, padding)
    assert box is not None
    box = grown_to_shape(box, width, height, 61, 61)
    assert 0 <= box.left <= x < box.right <= 61 and 0 <= box.top <= y < box.bottom <= 61


def test_black_keeps_the_original_and_white_takes_the_drawing_bit_for_bit() -> None:
    rng = np.random.default_rng(0)
    drawn, original = rng.integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    mask = rng.integers(0, 256, (16, 16), dtype=np.uint8)
    mask[:4], mask[4:8] = 0, 255
    found = laid_over(drawn, original, mask)
    assert np.array_equal(found[:4], original[:4]) and np.array_equal(found[4:8], drawn[4:8])
    assert widened(mask).max() == 255 and not widened(mask)[:4].any()


@pytest.mark.parametrize("x, y", [(0, 0), (3, 0), (0, 7), (5, 9), (40, 2)])
def test_a_mask_is_blurred_as_if_all_of_it_were(x: int, y: int) -> None:
    mask = np.zeros((90, 130), np.uint8)
    mask[3:9, 60:65] = 255
    mask[70, 129] = 200
    whole = mask
    for sigma, kernel in ((x, (2 * int(2.5 * x + 0.5) + 1, 1)), (y, (1, 2 * int(2.5 * y + 0.5) + 1))):
        whole = cv2.GaussianBlur(whole, kernel, sigma) if sigma else whole
    assert np.array_equal(blur(mask, x, y), whole)
    assert not blur(np.zeros_like(mask), x, y).any()


def test_a_small_hole_in_a_huge_picture_is_softened_in_a_moment() -> None:
    mask = np.zeros((6000, 6000), np.uint8)
    mask[2990:3010, 2990:3010] = 255
    began = perf_counter()
    assert 0 < blur(mask, 64, 64).max() < 255
    assert perf_counter() - began < 5  # measured: 0.4 s; 12 s where all of it is worked through
