"""The measures between two drawings: what equal, shifted and wrong drawings get."""

from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio

from disegno.annotators import ANNOTATORS
from disegno.core.errors import BadImage, UnknownName
from disegno.engine.pictures import read_picture
from disegno.training.base import Picture
from disegno.training.measures import BEST_PSNR, MEASURE_OF, MEASURES, find_measure, measure_of

pytestmark = pytest.mark.unit

CAR = Path(__file__).parents[2] / "src/disegno/data/diorama/examples/car.png"


def _lines(*rows: int, size: int = 256) -> Picture:
    picture = np.zeros((size, size, 3), np.uint8)
    for row in rows:
        picture[row, 20:-20] = 255
    return picture


def _flat(split: int, size: int = 100) -> Picture:
    """Return two classes, red above and blue below the split."""
    picture = np.full((size, size, 3), (0, 0, 200), np.uint8)
    picture[:split] = (200, 0, 0)
    return picture


@pytest.mark.parametrize("name", MEASURES)
def test_equal_drawings_agree_best_and_worse_ones_less(name: str) -> None:
    measure, car = MEASURES[name], read_picture(CAR)
    blurred, foreign = cv2.GaussianBlur(car, (0, 0), 2), np.ascontiguousarray(255 - car[::-1])
    best, near, far = (measure(car, np.asarray(other)) for other in (car, blurred, foreign))
    assert best == {"higher": 1.0, "lower": 0.0}[measure.better] or (name == "psnr" and best == BEST_PSNR)
    assert measure.gain(best, near) > 0
    if name not in ("miou", "boxes-iou"):  # which are for flat colours
        assert measure.gain(near, far) > 0


def test_edges_may_lie_a_little_beside() -> None:
    f1 = MEASURES["edge-f1"]  # 256 px: a tolerance of 3
    assert f1(_lines(100), _lines(103)) == 1.0
    assert f1(_lines(100), _lines(104)) == 0.0
    assert f1(_lines(100, 200), _lines(100)) == pytest.approx(2 / 3)  # precision 1, recall 1/2
    assert f1(_lines(), _lines()) == 1.0 and f1(_lines(), _lines(9)) == 0.0


def test_soft_edges_count_by_their_brightness() -> None:
    faint = (_lines(100) // 4 + _lines(200)).astype(np.uint8)
    assert MEASURES["edge-f1"](_lines(200), faint) > 0.85 > MEASURES["edge-f1"](_lines(200), _lines(100, 200))


def test_classes_are_flat_colours_and_smears_between_them_are_none() -> None:
    miou = MEASURES["miou"]
    assert miou(_flat(50), _flat(25)) == pytest.approx((25 / 50 + 50 / 75) / 2)
    hard, soft = (
        cv2.circle(_flat(50, 300), (150, 150), 90, (0, 200, 0), -1, line) for line in (cv2.LINE_8, cv2.LINE_AA)
    )
    assert 1 > miou(hard, soft) > 0.97  # the circle's smoothed border has 30 colours of its own, all rare
    recoloured = _flat(50)
    recoloured[:50] = (0, 200, 0)
    assert miou(_flat(50), recoloured) == pytest.approx(1 / 3)  # red and green are each other's strangers


def test_boxes_leave_out_the_ground() -> None:
    wanted, found = (np.zeros((100, 100, 3), np.uint8) for _ in range(2))
    wanted[10:50, 10:50], found[10:50, 30:70] = (255, 0, 0), (255, 0, 0)
    assert MEASURES["boxes-iou"](wanted, found) == pytest.approx(20 / 60)
    assert MEASURES["miou"](wanted, found) > 0.5


def test_numbers_of_the_literature() -> None:
    black, grey = np.zeros((32, 32, 3), np.uint8), np.full((32, 32, 3), 119, np.uint8)
    assert MEASURES["rmse"](black, grey) == pytest.approx(119 / 255)
    # grey 119 is L* 50.034: CIEDE2000 of two greys is dL / S_L, S_L = 1 + .015 (25-50)^2 / sqrt(20 + (25-50)^2)
    mean = 50.034 / 2
    scale = 1 + 0.015 * (mean - 50) ** 2 / np.sqrt(20 + (mean - 50) ** 2)
    assert MEASURES["delta-e"](black, grey) == pytest.approx(50.034 / scale, rel=1e-3)


@given(st.integers(0, 2**32 - 1), st.integers(1, 60))
def test_psnr_is_scikit_images(seed: int, amount: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 256, (16, 16, 3)).astype(np.uint8)
    y = np.clip(x + rng.integers(-amount, amount + 1, x.shape), 0, 255).astype(np.uint8)
    if (x != y).any():
        assert MEASURES["psnr"](x, y) == pytest.approx(peak_signal_noise_ratio(x, y), abs=1e-4)


def test_every_annotator_has_its_measure() -> None:
    assert set(ANNOTATORS) <= set(MEASURE_OF)
    assert measure_of("canny").name == "edge-f1" and measure_of("palette").name == "delta-e"
    assert measure_of(None).name == "ssim" and measure_of("somebody's").name == "ssim"


def test_another_packages_annotator_names_its_own() -> None:
    module = ModuleType("theirs")
    module.MEASURE = "miou"
    assert measure_of("theirs", module).name == "miou"
    module.MEASURE = "mioo"
    with pytest.raises(UnknownName, match="miou"):
        measure_of("theirs", module)


def test_sizes_and_names_are_checked() -> None:
    with pytest.raises(BadImage, match="one size"):
        find_measure("rmse")(_flat(5, 10), _flat(5, 12))
    with pytest.raises(UnknownName, match="edge-f1"):
        find_measure("edgef1")
