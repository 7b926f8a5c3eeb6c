"""How far apart two sets of pictures are, by the features of a net, after which the figures are named."""

import numpy as np
from numpy.typing import NDArray

Features = NDArray[np.float64]  # n d

MIN_PICTURES = 8  # of fewer, a covariance says nothing at all


def frechet_distance(x: Features, y: Features) -> float:
    """Return the Fréchet distance of two Gaussians with the sets' means and covariances (Heusel et al. 2017, eq. 6).

    It falls as the sets grow: compare only figures of equally many pictures. With centred rows A and B, the trace of
    (S_x S_y)^1/2 is the sum of the singular values of A B^T, over ((n-1)(m-1))^1/2: exact, and quick for few pictures.
    """
    a, b = x - x.mean(axis=0), y - y.mean(axis=0)
    n, m = len(x) - 1, len(y) - 1
    shared = np.linalg.svd(a @ b.T, compute_uv=False).sum() / np.sqrt(n * m)
    means = float(((x.mean(axis=0) - y.mean(axis=0)) ** 2).sum())
    return max(0.0, means + float((a**2).sum() / n + (b**2).sum() / m - 2 * shared))


def kernel_distance(x: Features, y: Features) -> float:
    """Return the squared maximum mean discrepancy under (x.y / d + 1)^3 (Binkowski et al. 2018, KID's kernel).

    It is unbiased: 0 on average for two samples of one set, however small, so it may be negative.
    """
    n, m = len(x), len(y)
    of_x, of_y, between = _kernel(x, x), _kernel(y, y), _kernel(x, y)
    within = (of_x.sum() - np.trace(of_x)) / (n * (n - 1)) + (of_y.sum() - np.trace(of_y)) / (m * (m - 1))
    return float(within - 2 * between.mean())


def _kernel(x: Features, y: Features) -> Features:
    return (x @ y.T / x.shape[1] + 1) ** 3
