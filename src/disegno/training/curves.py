"""Curves as SVG text that stands in a page by itself: light and dark, readable on a phone."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 420, 236
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 26, 34
NUM_TICKS = 5

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Curve:
    """A line of points. `style`: a class of the page's styles; `marks`: every point is shown and says its value."""

    title: str
    points: Points
    style: str = "c1"
    marks: bool = False
    errors: Sequence[float] = ()

    @property
    def spans(self) -> Sequence[float]:
        """Return each point's error, 0 where none is known."""
        return [error if math.isfinite(error) else 0.0 for error in self.errors] or [0.0] * len(self.points)


@dataclass(frozen=True)
class Level:
    """A dashed line at one height, with a name."""

    title: str
    y: float


@dataclass(frozen=True)
class _Frame:
    """Where values lie on the drawing."""

    x: tuple[float, float]
    y: tuple[float, float]

    def at(self, x: float, y: float) -> tuple[float, float]:
        left = LEFT + (x - self.x[0]) / (self.x[1] - self.x[0]) * (WIDTH - LEFT - RIGHT)
        top = HEIGHT - BOTTOM - (y - self.y[0]) / (self.y[1] - self.y[0]) * (HEIGHT - TOP - BOTTOM)
        return round(left, 1), round(top, 1)


def chart(title: str, curves: Sequence[Curve], levels: Sequence[Level] = (), x_title: str = "step") -> str:
    """Return the curves as one SVG element; "" where no curve has a finite point."""
    curves = [_finite(curve) for curve in curves]
    curves = [curve for curve in curves if curve.points]
    levels = [level for level in levels if math.isfinite(level.y)]
    if not curves:
        return ""
    frame = _frame(curves, levels)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}" class="chart">',
        f'<text x="{LEFT}" y="15" class="title">{escape(title)}</text>',
        *_grid(frame, x_title),
        *(_level(level, frame) for level in levels),
        *(part for curve in curves for part in _curve(curve, frame)),
        "</svg>",
    ]
    if len(curves) > 1:
        parts.append(_legend(curves))
    return "\n".join(parts)


def thinned(points: Points, most: int = 300) -> list[tuple[float, float]]:
    """Return at most about `most` points: the means of equal runs of them."""
    run = max(1, -(-len(points) // most))
    runs = [points[start : start + run] for start in range(0, len(points), run)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in runs]


def smoothed(points: Points, horizon: int) -> list[tuple[float, float]]:
    """Return an exponential mean over about `horizon` points, unbiased at its start; NaN is passed over."""
    kept, total, weight = 1 - 1 / max(1, horizon), 0.0, 0.0
    smooth: list[tuple[float, float]] = []
    for x, y in points:
        if math.isfinite(y):
            total, weight = kept * total + (1 - kept) * y, kept * weight + (1 - kept)
            smooth.append((x, total / weight if weight else y))
    return smooth


def ticks(low: float, high: float, about: int = NUM_TICKS) -> list[float]:
    """Return round values from `low` to `high`, about so many."""
    step = 10 ** math.floor(math.log10((high - low) / about))
    step *= next(k for k in (1, 2, 5, 10) if (high - low) / (k * step) <= about)
    first = math.ceil(low / step - 1e-9)
    return [round(n * step, 12) for n in range(first, math.floor(high / step + 1e-9) + 1)]


def _finite(curve: Curve) -> Curve:
    kept = [n for n, point in enumerate(curve.points) if all(map(math.isfinite, point))]
    errors = [curve.spans[n] for n in kept] if curve.errors else []
    return Curve(curve.title, [curve.points[n] for n in kept], curve.style, curve.marks, errors)


def _frame(curves: Sequence[Curve], levels: Sequence[Level]) -> _Frame:
    xs = [x for curve in curves for x, _ in curve.points]
    ys = [level.y for level in levels]
    for curve in curves:
        for (_, y), span in zip(curve.points, curve.spans, strict=True):
            ys += [y - span, y + span]
    return _Frame(_widened(min(xs), max(xs), 0.0), _widened(min(ys), max(ys), 0.06))


def _widened(low: float, high: float, margin: float) -> tuple[float, float]:
    """Return the range with a margin; one that floating point cannot divide is made wider."""
    room, size = high - low, max(abs(low), abs(high), 1e-6)
    if room < 1e-6 * size:
        return (low + high) / 2 - size / 2, (low + high) / 2 + size / 2
    return low - margin * room, high + margin * room


def _grid(frame: _Frame, x_title: str) -> list[str]:
    parts: list[str] = []
    for y in ticks(*frame.y):
        left, top = frame.at(frame.x[0], y)
        parts.append(f'<path d="M{left} {top}H{WIDTH - RIGHT}" class="grid"/>')
        parts.append(f'<text x="{LEFT - 5}" y="{top + 3.5}" class="tick y">{y:g}</text>')
    for x in ticks(*frame.x):
        left, top = frame.at(x, frame.y[0])
        parts.append(f'<text x="{left}" y="{top + 14}" class="tick x">{x:g}</text>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 5}" class="tick end">{escape(x_title)}</text>')
    return parts


def _level(level: Level, frame: _Frame) -> str:
    left, top = frame.at(frame.x[0], level.y)
    return (
        f'<path d="M{left} {top}H{WIDTH - RIGHT}" class="level"/>'
        f'<text x="{WIDTH - RIGHT}" y="{top - 3}" class="tick end">{escape(level.title)} {level.y:.3g}</text>'
    )


def _curve(curve: Curve, frame: _Frame) -> list[str]:
    places = [frame.at(x, y) for x, y in curve.points]
    line = " ".join(f"{'L' if n else 'M'}{x} {y}" for n, (x, y) in enumerate(places))
    parts = [f'<path d="{line}" class="line {curve.style}"/>'] if len(places) > 1 else []
    for (x, y), error in zip(curve.points, curve.errors, strict=False):
        (left, low), (_, high) = frame.at(x, y - error), frame.at(x, y + error)
        parts.append(f'<path d="M{left} {low}V{high}" class="error {curve.style}"/>')
    if curve.marks:
        parts += [
            f'<circle cx="{left}" cy="{top}" r="2.6" class="mark {curve.style}">'
            f"<title>{escape(curve.title)} {y:.4g} at {x:g}</title></circle>"
            for (left, top), (x, y) in zip(places, curve.points, strict=True)
        ]
    return parts


def _legend(curves: Sequence[Curve]) -> str:
    named = [curve for curve in curves if curve.title]
    keys = "".join(f'<span class="key {curve.style}">{escape(curve.title)}</span>' for curve in named)
    return f'<p class="legend">{keys}</p>'
