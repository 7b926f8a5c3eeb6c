"""Large canvases in overlapping parts: windows of latents at every step, and pictures through the VAE piece by piece.

At every step each window is evaluated by itself, and the outputs are averaged where windows overlap, with weights that
fall off towards a window's edges (Bar-Tal et al. 2023, MultiDiffusion, eq. 5): no seam, whatever the sampler.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Window:
    """A part of a canvas, in cells or pixels."""

    top: int
    left: int
    height: int
    width: int

    def cut(self, x: Tensor) -> Tensor:
        """Return that part of x (... h w)."""
        return x[..., self.top : self.top + self.height, self.left : self.left + self.width]

    def scaled(self, k: float) -> "Window":
        """Return the same part of a canvas k times as large; its sides must be whole there."""
        return Window(*(round(side * k) for side in (self.top, self.left, self.height, self.width)))


def _starts(length: int, size: int, overlap: int) -> list[int]:
    """Return where windows begin, evenly, so that they cover the length and share at least `overlap`."""
    if length <= size:
        return [0]
    count = -(-(length - overlap) // (size - overlap))
    return [round(i * (length - size) / (count - 1)) for i in range(count)]


def windows(height: int, width: int, size: int, overlap: int) -> tuple[Window, ...]:
    """Return windows of `size` (smaller where the canvas is) that cover a canvas, row by row."""
    assert 0 <= overlap < size
    tall, wide = min(size, height), min(size, width)
    rows, columns = _starts(height, size, overlap), _starts(width, size, overlap)
    return tuple(Window(top, left, tall, wide) for top in rows for left in columns)


def _peak(length: int) -> Tensor:
    """Return weights over one side of a window, (length,): highest in the middle, never 0."""
    place = torch.arange(length, dtype=torch.float32)
    return torch.minimum(place + 1, length - place)


def _plateau(length: int, overlap: float) -> Tensor:
    """Return weights over one side of a part, (length,): next to nothing where its own edge is felt, then rising to 1.

    A quarter of the overlap is left to the neighbour, which sees more there; the rise takes half of it.
    """
    rise = (_peak(length) - 0.5 - overlap / 4) / max(overlap / 2, 1)
    return rise.clamp(1e-6, 1)


@dataclass
class _Average:
    """A weighted average over a canvas that is being added to."""

    total: Tensor  # b c h w
    weight: Tensor  # h w

    @classmethod
    def over(cls, part: Tensor, height: int, width: int) -> "_Average":
        """Return an empty one for parts like this, float32."""
        total = torch.zeros(*part.shape[:2], height, width, device=part.device)
        return cls(total, torch.zeros(height, width, device=part.device))

    def add(self, part: Tensor, window: Window, weights: tuple[Tensor, Tensor]) -> None:
        """Add a window's part, with weights over its height and its width."""
        weight = (weights[0][:, None] * weights[1][None]).to(self.total.device)  # h w
        window.cut(self.total).add_(part.float() * weight)
        window.cut(self.weight).add_(weight)

    def value(self) -> Tensor:
        """Return the average, (b c h w)."""
        return self.total / self.weight


def averaged(parts: Sequence[Tensor], places: Sequence[Window], like: Tensor) -> Tensor:
    """Return the windows' outputs as one, (r c h w), float32. `like`: any tensor of the canvas's height and width."""
    average = _Average.over(parts[0], *like.shape[-2:])
    for part, window in zip(parts, places, strict=True):
        average.add(part, window, (_peak(window.height), _peak(window.width)))
    return average.value()


@dataclass(frozen=True)
class Tiling:
    """How a large tensor is worked through: parts of `size`, sharing `overlap`, both in cells of the input."""

    size: int
    overlap: int


def in_parts(work: Callable[[Tensor], Tensor], x: Tensor, tiling: Tiling | None, scale: float) -> Tensor:
    """Return work(x), (b c' kh kw), float32, done part by part where x (b c h w) is larger than a part.

    `scale`: k, how much larger the result is; below 1 where it is smaller. Memory: one part's, and the result's.
    """
    if tiling is None or max(x.shape[-2:]) <= tiling.size:
        return work(x)
    unit = max(1, round(1 / scale))  # parts begin where the result has a cell
    cells = windows(x.shape[-2] // unit, x.shape[-1] // unit, tiling.size // unit, tiling.overlap // unit)
    average: _Average | None = None
    for window in (cell.scaled(unit) for cell in cells):
        part, place = work(window.cut(x)), window.scaled(scale)
        if average is None:
            average = _Average.over(part, round(x.shape[-2] * scale), round(x.shape[-1] * scale))
        overlap = tiling.overlap * scale
        average.add(part, place, (_plateau(place.height, overlap), _plateau(place.width, overlap)))
    assert average is not None
    return average.value()
