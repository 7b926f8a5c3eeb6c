"""How well one drawing agrees with another: the measure of each kind of condition, and which annotator has which.

Every measure compares the drawing that was wanted with the one that was found in a picture, both uint8 RGB (h w 3) of
one size, and says whether more is better. None means much alone: it is read between what is reached without the control
and what the real picture reaches.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Literal, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from disegno.core.errors import BadImage, UnknownName
from disegno.training.base import Picture

EDGE_TOLERANCE = 0.0075  # of the diagonal, as in the BSDS benchmark (Martin, Fowlkes and Malik 2004): 5 px at 512 px
MIN_SHARE = 0.001  # a colour of fewer pixels is the blur of a border, not a class
MAX_CLASSES = 256
BEST_PSNR = 100.0  # dB: of equal pictures, where the formula has no number


@dataclass(frozen=True)
class Measure:
    """A measure of (wanted, found). `better`: "higher" or "lower"."""

    name: str
    title: str
    better: Literal["higher", "lower"]
    compare: Callable[[Picture, Picture], float]

    def __call__(self, wanted: Picture, found: Picture) -> float:
        """Return how well `found` agrees with `wanted`. Raises BadImage where their sizes differ."""
        if wanted.shape != found.shape:
            raise BadImage(f"{self.title} compares pictures of one size; these are {wanted.shape} and {found.shape}.")
        return self.compare(wanted, found)

    def gain(self, value: float, other: float) -> float:
        """Return by how much `value` is better than `other`."""
        return value - other if self.better == "higher" else other - value


def edge_f1(wanted: Picture, found: Picture) -> float:
    """Return the F1 of found lines, white on black, within EDGE_TOLERANCE; soft lines count by their brightness.

    Precision is the share of the found lines near wanted ones, recall that of the wanted near found. Unlike BSDS, one
    line may answer for several: no matching is made.
    """
    x, y = (_grey(map_) for map_ in (wanted, found))
    radius = max(1, round(EDGE_TOLERANCE * float(np.hypot(*x.shape))))
    disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    near_x, near_y = (np.asarray(cv2.dilate(map_, disk)) for map_ in (x, y))
    total_x, total_y = float(x.sum()), float(y.sum())
    if total_x == 0 or total_y == 0:
        return float(total_x == total_y)
    precision = float(np.minimum(y, near_x).sum()) / total_y
    recall = float(np.minimum(x, near_y).sum()) / total_x
    return 2 * precision * recall / max(precision + recall, 1e-12)


def mean_iou(wanted: Picture, found: Picture) -> float:
    """Return the mean intersection over union of the flat colours, each a class, over all classes of either map."""
    return _iou(wanted, found, background=None)


def boxes_iou(wanted: Picture, found: Picture) -> float:
    """Return the mean intersection over union of filled boxes, one colour a class; the black ground does not count."""
    return _iou(wanted, found, background=0)


def rmse(wanted: Picture, found: Picture) -> float:
    """Return the root of the mean square difference, in [0, 1]."""
    return float(np.sqrt(np.mean((wanted.astype(np.float32) - found.astype(np.float32)) ** 2)) / 255)


def delta_e(wanted: Picture, found: Picture) -> float:
    """Return the mean colour difference CIEDE2000; 2 is just seen, 10 is another shade."""
    from skimage.color import deltaE_ciede2000, rgb2lab  # takes a second to import

    return float(np.mean(deltaE_ciede2000(rgb2lab(wanted), rgb2lab(found))))


def ssim(wanted: Picture, found: Picture) -> float:
    """Return the structural similarity, Wang et al. 2004: a Gaussian window of sigma 1.5, each channel alone."""
    from skimage.metrics import structural_similarity

    value = structural_similarity(
        wanted, found, channel_axis=2, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    return cast("float", value)


def psnr(wanted: Picture, found: Picture) -> float:
    """Return the peak signal-to-noise ratio in dB, at most BEST_PSNR."""
    error = rmse(wanted, found)
    return BEST_PSNR if error == 0 else min(BEST_PSNR, -20 * float(np.log10(error)))


def _grey(picture: Picture) -> Picture:
    """Return the brightest channel, (h w): lines may be drawn in colour."""
    return np.ascontiguousarray(picture.max(axis=2))


def _iou(wanted: Picture, found: Picture, background: int | None) -> float:
    x, y = _packed(wanted), _packed(found)
    classes = _classes(x, y)
    labels_x, labels_y = _labels(x, classes), _labels(y, classes)
    shares: list[float] = []
    for label in range(len(classes)):
        if background is not None and int(classes[label]) == background:
            continue
        in_x, in_y = labels_x == label, labels_y == label
        union = int(np.count_nonzero(in_x | in_y))
        if union:
            shares.append(int(np.count_nonzero(in_x & in_y)) / union)
    return float(np.mean(shares)) if shares else 1.0


def _packed(picture: Picture) -> NDArray[np.int64]:
    """Return each pixel's colour as one number, (h w)."""
    return picture.astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])


def _classes(x: NDArray[np.int64], y: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the colours that are classes: those of at least MIN_SHARE of either map, at most MAX_CLASSES."""
    colours, counts = np.unique(np.concatenate([x.ravel(), y.ravel()]), return_counts=True)
    common = counts >= max(1, MIN_SHARE * x.size)
    if not common.any():
        common = counts == counts.max()
    order = np.argsort(-counts[common], kind="stable")[:MAX_CLASSES]
    return colours[common][order]


def _unpacked(colours: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.stack([colours >> 16, colours >> 8 & 255, colours & 255], axis=1)  # n 3


def _labels(x: NDArray[np.int64], classes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the number of the nearest class of each pixel, (h w)."""
    colours, where = np.unique(x, return_inverse=True)
    own, known = _unpacked(colours), _unpacked(classes)
    nearest = np.concatenate(
        [((part[:, None] - known[None]) ** 2).sum(axis=2).argmin(axis=1) for part in np.array_split(own, 64)]
    )
    return nearest[where].reshape(x.shape)


EDGE_F1 = Measure("edge-f1", "edge F1", "higher", edge_f1)
MEAN_IOU = Measure("miou", "mean IoU", "higher", mean_iou)
BOXES_IOU = Measure("boxes-iou", "boxes' IoU", "higher", boxes_iou)
RMSE = Measure("rmse", "RMSE", "lower", rmse)
DELTA_E = Measure("delta-e", "colour difference (CIEDE2000)", "lower", delta_e)
SSIM = Measure("ssim", "SSIM", "higher", ssim)
PSNR = Measure("psnr", "PSNR", "higher", psnr)
MEASURES: Mapping[str, Measure] = {m.name: m for m in (EDGE_F1, MEAN_IOU, BOXES_IOU, RMSE, DELTA_E, SSIM, PSNR)}

_BY_CONDITION: Mapping[str, tuple[str, ...]] = {
    "edge-f1": (
        *("canny", "soft-edge", "line-art", "scribble", "scribble-xdog", "straight-lines"),
        *("hed", "pidinet", "mlsd"),
    ),
    "miou": ("segmentation", "illusion", "threshold"),
    "boxes-iou": ("boxes",),
    "rmse": (
        *("depth", "normal", "grayscale", "blur", "recolor-intensity", "recolor-luminance", "jpeg", "invert"),
        *("inpainting", "inpainting-brush", "outpainting"),
    ),
    "delta-e": ("palette", "pixelate", "segments", "shuffle"),
    "ssim": ("none", "tile"),
}
MEASURE_OF: Mapping[str, str] = {
    condition: measure for measure, conditions in _BY_CONDITION.items() for condition in conditions
}
"""Each condition's own measure. SLIC's patches (segments) have a colour each and no classes: their colours count."""

GENERAL = "ssim"  # for what nothing is known of


def find_measure(name: str) -> Measure:
    """Return the measure of this name. Raises UnknownName."""
    if name not in MEASURES:
        raise UnknownName.of("measure", name, MEASURES)
    return MEASURES[name]


def measure_of(annotator: str | None, module: ModuleType | None = None) -> Measure:
    """Return the measure for a condition of this annotator; another package's module may name one as `MEASURE`."""
    own = getattr(module, "MEASURE", None) if module is not None else None
    return find_measure(str(own)) if own is not None else MEASURES[MEASURE_OF.get(annotator or "", GENERAL)]
