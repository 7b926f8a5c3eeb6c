"""The distances of two sets of features: what they are for Gaussians, and for samples of one set."""

import numpy as np
import pytest
from scipy.linalg import sqrtm

from disegno.training.features import frechet_distance, kernel_distance

pytestmark = pytest.mark.unit


def test_frechet_is_the_formula_of_heusel() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(0, 1, (60, 5)), rng.normal(0.5, 2, (40, 5)) @ rng.normal(0, 1, (5, 5))
    of_x, of_y = np.cov(x.T), np.cov(y.T)
    by_formula = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(of_x + of_y - 2 * np.real(sqrtm(of_x @ of_y)))
    assert frechet_distance(x, y) == pytest.approx(by_formula, rel=1e-8)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)


def test_frechet_of_fewer_pictures_than_features_is_still_sound() -> None:
    x = np.random.default_rng(0).normal(0, 1, (10, 100))
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(x, x + 1) == pytest.approx(100)


def test_kernel_distance_is_unbiased() -> None:
    rng = np.random.default_rng(0)
    same = [kernel_distance(rng.normal(0, 1, (12, 20)), rng.normal(0, 1, (9, 20))) for _ in range(400)]
    assert abs(np.mean(same)) < 3 * np.std(same) / 20 and min(same) < 0
    assert kernel_distance(rng.normal(0, 1, (12, 20)), rng.normal(1, 1, (9, 20))) > np.max(same)
