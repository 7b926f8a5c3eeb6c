"""Whether a drawing lies on its picture: where both have edges, slid over each other, they should meet at no shift.

Measured on 150 pictures of 128 px an annotator, in 20 drawn sets of 60, in each 3 drawings another's and 3 moved. Where
drawings follow edges closely (canny, scribble, grayscale, tile), at least 58 of 60 of either were named, and nothing
sound. Where they follow them loosely (line art, threshold, blur, soft edge) or hardly (palettes, straight lines) next
to nothing is named, right or wrong: 17 times in 6,000 a sound pair, 16 of them soft edges.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

import cv2
import numpy as np
from numpy.typing import NDArray

from disegno.annotators.maps import kind_of
from disegno.training.pairs import Picture

_SIDE = 128  # pictures are compared at this size; a shift is told in pixels of their own
_FEW = 8  # of so few rows nothing is said
_FOLLOWS = 0.4  # the median of data sets whose drawings follow edges is above
_NO_ONE = 0.1
_SPREADS = 6  # a pair is a stray when it is so many times as far below the median as the lowest fifth begins
_NEAR = 2  # pixels of _SIDE: smoothing moves the peak by one


@dataclass(frozen=True)
class Match:
    """How a drawing's edges meet its picture's. `here`: the correlation at no shift; `peak`: at `shift`, in pixels.

    `is_lines`: the drawing is thin lines and nothing else.
    """

    here: float
    peak: float
    shift: tuple[int, int]
    is_near: bool
    is_lines: bool


def match(target: Picture, condition: Picture) -> Match | None:
    """Return how the two meet; None where one of them has no edges. The pictures are (h w 3), of one shape."""
    a, b = _edges(target), _edges(condition)
    norm = float(np.sqrt(np.square(a).sum() * np.square(b).sum()))
    if norm < 1e-6:
        return None
    c = np.fft.irfft2(np.fft.rfft2(a).conj() * np.fft.rfft2(b), s=a.shape) / norm
    y, x = (int(n) for n in np.unravel_index(np.argmax(c), c.shape))
    dx, dy = ((n + _SIDE // 2) % _SIDE - _SIDE // 2 for n in (x, y))
    height, width = target.shape[:2]
    shift = round(dx * width / _SIDE), round(dy * height / _SIDE)
    return Match(float(c[0, 0]), float(c.max()), shift, max(abs(dx), abs(dy)) <= _NEAR, kind_of(condition) == "edges")


def _edges(picture: Picture) -> NDArray[np.float32]:
    """Return how steep the picture is, of mean 0 and faded towards the border, (_SIDE _SIDE)."""
    x = cv2.resize(picture, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
    steep = np.square(cv2.Sobel(x, cv2.CV_32F, 1, 0)) + np.square(cv2.Sobel(x, cv2.CV_32F, 0, 1))
    y = cv2.GaussianBlur(steep.sum(axis=2) ** 0.25, (0, 0), 1.0)  # the root of the gradient: weak edges count, too
    y = (y - y.mean()) * cv2.createHanningWindow((_SIDE, _SIDE), cv2.CV_32F)
    return np.asarray(y, np.float32)


def strays(matches: Mapping[int, Match]) -> dict[int, tuple[str, str]]:
    """Return the rows whose drawing does not lie on its picture as the others' do: (kind of problem, detail)."""
    if len(matches) < _FEW:
        return {}
    agreements = sorted(one.here for one in matches.values())
    usual, low = median(agreements), agreements[len(agreements) // 5]
    beside = {index: one for index, one in matches.items() if _lies_beside(one)}
    if len(beside) > len(matches) / 2:
        return {index: ("shifted", _where(one)) for index, one in beside.items()}
    if usual < _NO_ONE and sum(one.is_lines for one in matches.values()) > len(matches) / 2:
        return {index: ("foreign", f"lines that follow edges in {one.here:.0%}") for index, one in matches.items()}
    if usual < _FOLLOWS:
        return {}
    fence = min(usual / 2, usual - _SPREADS * (usual - low))
    return {
        index: ("shifted", _where(one))
        if index in beside
        else ("foreign", f"its edges agree by {one.here:.2f}, those of most by more than {low:.2f}")
        for index, one in matches.items()
        if one.here < fence
    }


def _lies_beside(one: Match) -> bool:
    return not one.is_near and one.peak >= _FOLLOWS and one.here < one.peak / 2


def _where(one: Match) -> str:
    return f"{one.shift[0]} pixels to the right and {one.shift[1]} down"
