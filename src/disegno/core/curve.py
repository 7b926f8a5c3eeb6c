"""A strength over the steps: points `value@share`, straight lines between them.

    0.2@0.1,0.5@0.3     0.2 until a tenth of the steps are done, rising to 0.5 at three tenths, 0.5 from there on
    1@0.5,0@0.5         1 for the first half, 0 for the second: two points at one place are a jump

The first value holds before the first point, the last one after the last.
"""

import re
from bisect import bisect_right
from collections.abc import Iterable
from itertools import pairwise

Point = tuple[float, float]  # share of the steps, value

MAX_POINTS = 64
MAX_VALUE = 4.0
_NUMBER = r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*"
_POINT = re.compile(f"{_NUMBER}@{_NUMBER}")


def parse_curve(text: str) -> tuple[Point, ...]:
    """Return the points of a curve, by share; none for an empty text. Raises ValueError saying what was expected."""
    if not text.strip():
        return ()
    found = [_POINT.fullmatch(part) for part in text.split(",")]
    points = tuple((float(match[2]), float(match[1])) for match in found if match)
    if len(points) < len(found):
        raise ValueError(f"{text!r} is no curve: it wants value@share,value@share,..., for example 0.2@0.1,0.5@0.3")
    return check_points(points)


def check_points(points: tuple[Point, ...]) -> tuple[Point, ...]:
    """Return the points if they are a curve. Raises ValueError."""
    if len(points) > MAX_POINTS:
        raise ValueError(f"a curve of {len(points)} points is too long: at most {MAX_POINTS}")
    if any(not 0 <= share <= 1 or not 0 <= value <= MAX_VALUE for share, value in points):
        raise ValueError(f"a curve's values lie from 0 to {MAX_VALUE:g} and its shares of the steps from 0 to 1")
    if any(later < earlier for (earlier, _), (later, _) in pairwise(points)):
        raise ValueError("a curve's points must be in the order of their shares")
    return points


def write_curve(points: Iterable[Point]) -> str:
    """Return the text that `parse_curve` reads."""
    return ",".join(f"{_written(value)}@{_written(share)}" for share, value in points)


def _written(number: float) -> str:
    """Return a number from 0 to six places, without an exponent or a sign, which `parse_curve` does not read."""
    return f"{abs(number):.6f}".rstrip("0").rstrip(".")


def value_at(points: tuple[Point, ...], share: float) -> float:
    """Return the curve's value when this share of the steps is done; 1 without points."""
    if not points:
        return 1.0
    after = bisect_right([at for at, _ in points], share)
    if after in (0, len(points)):
        return points[min(after, len(points) - 1)][1]
    (begin, low), (end, high) = points[after - 1], points[after]
    return low + (high - low) * (share - begin) / (end - begin)
