"""A pair's two pictures go through one affine map: no error for crops and flips, at most half a pixel for a resize."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from disegno.annotators.maps import Picture
from disegno.core.errors import BadImage
from disegno.engine.pictures import decode, size_of
from disegno.training.data.align import Fit, align, apply, cover, place
from disegno.training.pairs import Sample

pytestmark = pytest.mark.unit


def coordinates(width: int, height: int, unit: int) -> Picture:
    """Return a picture that says where each pixel is: x * unit in red, y * unit in green."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0], image[..., 1] = np.arange(width) * unit, np.arange(height)[:, None] * unit
    return image


def test_crops_and_flips_are_exact_and_resizes_within_half_a_pixel() -> None:
    """2,000 random pictures, canvases, cuts and flips; the pictures hold their own coordinates."""
    rng = np.random.default_rng(0)
    for _ in range(2000):
        width, height = (int(n) for n in rng.integers(16, 33, 2))  # from 256 colours on it is no labels
        unit = 255 // (max(width, height) - 1)  # levels a pixel
        picture = coordinates(width, height, unit)
        only_cut = rng.random() < 0.5
        free = tuple(int(n) for n in rng.integers(6, 80, 2))
        canvas = (int(rng.integers(8, width + 1)), height) if only_cut else (free[0], free[1])
        fit = cover((width, height), canvas, (float(rng.random()), float(rng.random())), bool(rng.random() < 0.5))
        target, condition = apply(picture, fit, False), apply(picture, fit, True)
        assert target.shape == condition.shape == (canvas[1], canvas[0], 3)
        if fit.scaled == (width, height):
            assert np.array_equal(target, condition)
        check(target, fit, (width, height), unit, only_cut)
        check(condition, fit, (width, height), unit, only_cut)


def check(shown: Picture, fit: Fit, size: tuple[int, int], unit: int, exact: bool) -> None:
    """Every pixel whose source lies inside the picture shows the coordinate that `place` brings there."""
    for axis in (0, 1):
        scale = fit.scaled[axis] / size[axis]
        ends = [place(fit, size, *(p if a == axis else 0 for a in (0, 1)))[axis] for p in (0, size[axis])]
        middles = np.arange(fit.canvas[axis]) + 0.5
        source = (middles - ends[0]) / (ends[1] - ends[0]) * size[axis] - 0.5  # in pixel centres
        inside = (source >= 2) & (source <= size[axis] - 3)  # beyond, an enlarged picture repeats its border
        line = shown[shown.shape[0] // 2, :, 0] if axis == 0 else shown[:, shown.shape[1] // 2, 1]
        error = np.abs(line[inside] / unit - source[inside]) * scale  # in pixels of the canvas
        bound = 0.0 if exact else 0.5 + scale / unit  # 8 bits round by half a level
        assert not error.size or error.max() <= bound + 1e-9, (fit, size, axis, error.max())


def test_labels_keep_their_borders_within_half_a_pixel() -> None:
    rng = np.random.default_rng(1)
    for _ in range(300):
        width, wide = int(rng.integers(16, 64)), int(rng.integers(8, 200))
        border = int(rng.integers(4, width - 4))
        labels = np.zeros((16, width, 3), np.uint8)
        labels[:, border:] = (200, 10, 60)
        labels[:8, border:] = (90, 160, 30)
        shown = apply(labels, Fit((wide, 16), (0, 0), (wide, 16)), True)
        assert {tuple(c) for c in shown.reshape(-1, 3)} <= {tuple(c) for c in labels.reshape(-1, 3)}
        found = int(np.argmax(shown[0, :, 0] == 90))
        assert abs(found - border * wide / width) <= 0.5 + 1e-9


def test_a_line_stays_where_it_is() -> None:
    rng = np.random.default_rng(2)
    for _ in range(100):
        at, wide = int(rng.integers(8, 56)), int(rng.integers(40, 200))
        edges = np.zeros((64, 64, 3), np.uint8)
        edges[:, at] = 255
        shown = apply(edges, Fit((wide, 64), (0, 0), (wide, 64)), True)[32, :, 0]
        found = np.flatnonzero(shown) + 0.5
        if found.size:  # a line of one pixel that is shrunk may fall below half of its height
            assert abs(found.mean() - (at + 0.5) * wide / 64) <= 1


def test_a_pair_is_aligned_after_its_exif_turn() -> None:
    upright = coordinates(24, 40, 6)
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.fromarray(np.rot90(upright)).save(buffer, "PNG", exif=exif)
    turned = decode(buffer.getvalue(), "turned")
    assert size_of(buffer.getvalue(), "turned") == (24, 40)
    assert np.array_equal(turned, upright)
    smaller = align(Sample(turned, upright, "x"), (20, 20), (0.3, 0.9), True)
    assert np.array_equal(smaller.target, smaller.condition) and smaller.target.shape == (20, 20, 3)
    same = align(Sample(turned, upright, "x"), (24, 30), (0.3, 0.9), True)
    assert np.array_equal(same.target, same.condition) and same.caption == "x"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_files_header_says_the_size_of_the_turned_picture(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    xmp = f'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="{orientation}"/>'.encode()
    notes: list[dict[str, Any]] = [{"exif": exif}]
    if kind == "TIFF":
        notes.append({"tiffinfo": {700: xmp}})
    elif kind != "PNG":  # Pillow writes none there
        notes.append({"xmp": xmp})
    for note in notes:
        buffer = io.BytesIO()
        Image.fromarray(coordinates(24, 40, 6)).save(buffer, kind, **note)
        data = buffer.getvalue()
        height, width, _ = decode(data, "turned").shape
        assert size_of(data, "turned") == (width, height) == ((40, 24) if orientation > 4 else (24, 40)), note


def test_the_result_is_new_and_bounded() -> None:
    picture = coordinates(8, 8, 3)
    assert not np.shares_memory(apply(picture, cover((8, 8), (8, 8)), False), picture)
    with pytest.raises(BadImage, match="crop it first"):
        apply(np.zeros((1, 5000, 3), np.uint8), cover((5000, 1), (4096, 4096)), False)
