"""A background while it is painted, and the brushes."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from .vocabulary import BACKGROUND_CLASSES, CLASSES

Picture = NDArray[np.float32]  # (h w 3) in [0, 1]
NEAREST_GROUND, FARTHEST_GROUND = 0.72, 0.16


def rgb(code: str) -> Picture:
    """Return the colour of a six-digit hex code."""
    return np.array([int(code[i : i + 2], 16) for i in (0, 2, 4)], np.float32) / 255


def gradient(size: int, top: str, bottom: str, start: float = 0.0, end: float = 1.0) -> Picture:
    """Return a vertical gradient that runs from `start` to `end` of the height."""
    t = np.clip((np.arange(size, dtype=np.float32) / size - start) / max(end - start, 1e-3), 0, 1)[:, None, None]
    return np.broadcast_to(rgb(top) * (1 - t) + rgb(bottom) * t, (size, size, 3)).astype(np.float32)


def mottle(image: Picture, rng: Generator, cells: int, amount: float) -> Picture:
    """Return the picture with soft light and dark patches."""
    noise = rng.standard_normal((cells, cells)).astype(np.float32)
    soft = cv2.resize(noise, image.shape[1::-1], interpolation=cv2.INTER_CUBIC)
    return np.clip(image * (1 + amount * soft[..., None]), 0, 1)


def below(size: int, line: NDArray[np.float32]) -> Picture:
    """Return a smooth-edged mask (h w 1) of what lies below a line given per column in pixels."""
    return np.clip(np.arange(size, dtype=np.float32)[:, None] - line[None] + 0.5, 0, 1)[..., None].astype(np.float32)


def wave(size: int, rng: Generator, height: float, swing: float) -> NDArray[np.float32]:
    """Return a gently waved line at `height` of the picture."""
    x = np.linspace(0, 2 * np.pi, size, dtype=np.float32)
    slow, fast = (np.sin(x * rng.uniform(low, high) + rng.uniform(0, 6.3)) for low, high in ((0.5, 0.9), (1.2, 1.8)))
    return (size * (height + swing * (slow + 0.5 * fast))).astype(np.float32)


class Canvas:
    """A background, painted from back to front.

    `classes` (h w): index into CLASSES. `nearness` (h w): 0 far, 1 near. `is_ground` (h w): what faces up.
    """

    def __init__(self, image: Picture, name: str, nearness: float = 0.0) -> None:
        self.image = np.ascontiguousarray(image, np.float32)
        size = image.shape[:2]
        self.classes = np.full(size, CLASSES.index(name), np.uint8)
        self.nearness = np.full(size, nearness, np.float32)
        self.is_ground = np.zeros(size, bool)

    @property
    def is_ground_or_plain(self) -> NDArray[np.bool_]:
        """Return where shadows fall, (h w): the ground, and a backdrop without one."""
        return self.is_ground | (self.classes == CLASSES.index("backdrop"))

    def lay(self, layer: Picture, mask: Picture, name: str, nearness: float) -> None:
        """Paint an upright `layer` where `mask` (h w 1) is one."""
        self.image += (layer - self.image) * mask
        seen = mask[..., 0] > 0.5
        self.classes[seen] = CLASSES.index(name)
        self.nearness[seen] = nearness
        self.is_ground[seen] = False

    def ground(self, layer: Picture, mask: Picture, name: str, horizon: float) -> None:
        """Paint what lies flat and comes nearer towards the lower edge."""
        self.lay(layer, mask, name, 0.0)
        seen, size = mask[..., 0] > 0.5, self.image.shape[0]
        ramp = np.broadcast_to(ground_nearness(np.arange(size) / size, horizon)[:, None], seen.shape)
        self.nearness[seen] = ramp[seen]
        self.is_ground[seen] = True

    def name(self, rows: slice, columns: slice, name: str) -> None:
        """Say what a part of a wall is."""
        self.classes[rows, columns] = CLASSES.index(name)

    def puff(self, rng: Generator, count: int, top: float, strength: float) -> None:
        """Paint soft small clouds above `top` of the height; they stay part of the sky."""
        if not count:
            return
        size = self.image.shape[0]
        mask = np.zeros((size, size), np.float32)
        for _ in range(count):
            x, y, wide = rng.uniform(0, size), rng.uniform(0.05, top) * size, rng.uniform(0.7, 1.3)
            for k in range(4):
                centre = (
                    int(x + (k - 1.5) * 0.045 * wide * size),
                    int(y - (0.018 if k in (1, 2) else 0) * size * wide),
                )
                radii = (int(size * 0.05 * wide), int(size * (0.03 if k in (1, 2) else 0.02) * wide))
                cv2.ellipse(mask, centre, radii, 0, 0, 360, strength, -1)
        mask = cv2.GaussianBlur(mask, (0, 0), size * 0.01)[..., None]
        self.image += (1 - self.image) * mask

    def stars(self, rng: Generator, count: int, bottom: float, low: float = 0.6) -> None:
        """Paint small lights (or snowflakes) above `bottom` of the height."""
        self.dots(rng, count, 0.0, ("ffffff",), (1.0, 1.0, 1.0), 0.0045, bottom, low)

    def dots(
        self, rng: Generator, count: int, top: float, colours: tuple[str, ...], dim: tuple[float, float, float],
        radius: float = 0.006, bottom: float = 1.0, low: float = 0.8,
    ) -> None:  # fmt: skip
        """Paint small round spots between `top` and `bottom` of the height."""
        size = self.image.shape[0]
        for _ in range(count):
            centre = (int(rng.uniform(0, size) * 16), int(rng.uniform(top, max(bottom, top + 0.01)) * size * 16))
            colour = rgb(colours[int(rng.integers(len(colours)))]) * np.asarray(dim) * rng.uniform(low, 1.0)
            shown = max(0.5, size * radius * rng.uniform(0.4, 1.0))
            cv2.circle(self.image, centre, int(shown * 16), colour.tolist(), -1, cv2.LINE_AA, 4)


def ground_nearness(y: NDArray[np.float64] | float, horizon: float) -> NDArray[np.float32]:
    """Return how near the ground is at a height `y` of the picture (0 is its upper edge)."""
    share = np.clip((np.asarray(y) - horizon) / max(1 - horizon, 0.05), 0, 1)
    return (FARTHEST_GROUND + (NEAREST_GROUND - FARTHEST_GROUND) * share).astype(np.float32)


assert set(BACKGROUND_CLASSES) <= set(CLASSES)
