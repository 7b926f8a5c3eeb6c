"""Places: drawn backgrounds with their class maps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from .vocabulary import BACKGROUND_CLASSES

Picture = NDArray[np.float32]  # (h w 3) in [0, 1]
ClassMap = NDArray[np.uint8]  # (h w), index into vocabulary.CLASSES


@dataclass(frozen=True)
class Place:
    """A background. `horizon`: where the ground begins, as a part of the height. `tint`: the light on objects."""

    image: Picture
    classes: ClassMap
    horizon: float
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)
    shadow: float = 0.42


def rgb(code: str) -> Picture:
    """Return the colour of a six-digit hex code."""
    return np.array([int(code[i : i + 2], 16) for i in (0, 2, 4)], np.float32) / 255


def gradient(size: int, top: str, bottom: str, start: float = 0.0, end: float = 1.0) -> Picture:
    """Return a vertical gradient that runs from `start` to `end` of the height."""
    t = np.clip((np.arange(size, dtype=np.float32) / size - start) / max(end - start, 1e-3), 0, 1)[:, None, None]
    return np.broadcast_to(rgb(top) * (1 - t) + rgb(bottom) * t, (size, size, 3)).astype(np.float32).copy()


def mottle(image: Picture, rng: Generator, cells: int, amount: float) -> Picture:
    """Return the picture with soft light and dark patches."""
    noise = rng.standard_normal((cells, cells)).astype(np.float32)
    soft = cv2.resize(noise, image.shape[1::-1], interpolation=cv2.INTER_CUBIC)
    return np.clip(image * (1 + amount * soft[..., None]), 0, 1)


def below(size: int, line: NDArray[np.float32]) -> Picture:
    """Return a smooth-edged mask (h w 1) of what lies below a line given per column in pixels."""
    return np.clip(np.arange(size, dtype=np.float32)[:, None] - line[None] + 0.5, 0, 1)[..., None]


def wave(size: int, rng: Generator, height: float, swing: float) -> NDArray[np.float32]:
    """Return a gently waved line at `height` of the picture."""
    x = np.linspace(0, 2 * np.pi, size, dtype=np.float32)
    bumps = np.sin(x * rng.uniform(0.5, 0.9) + rng.uniform(0, 6.3)) + 0.5 * np.sin(
        x * rng.uniform(1.2, 1.8) + rng.uniform(0, 6.3)
    )
    return (size * (height + swing * bumps)).astype(np.float32)


class Canvas:
    """A background being painted from back to front."""

    def __init__(self, image: Picture, name: str) -> None:
        self.image = image
        self.classes = np.full(image.shape[:2], BACKGROUND_CLASSES.index(name), np.uint8)

    def lay(self, layer: Picture, mask: Picture, name: str) -> None:
        """Paint `layer` where `mask` is one and note the class."""
        self.image = self.image * (1 - mask) + layer * mask
        self.classes[mask[..., 0] > 0.5] = BACKGROUND_CLASSES.index(name)

    def puff(self, rng: Generator, count: int, top: float, strength: float = 0.55) -> None:
        """Paint soft small clouds above `top` of the height; they stay part of the sky."""
        size = self.image.shape[0]
        mask = np.zeros((size, size), np.float32)
        for _ in range(count):
            x, y = rng.uniform(0, size), rng.uniform(0.06, top) * size
            for _ in range(3):
                centre = (int(x + rng.uniform(-0.08, 0.08) * size), int(y + rng.uniform(-0.012, 0.012) * size))
                cv2.ellipse(
                    mask, centre, (int(size * rng.uniform(0.05, 0.09)), int(size * 0.028)), 0, 0, 360, strength, -1
                )
        mask = cv2.GaussianBlur(mask, (0, 0), size * 0.014)[..., None]
        self.image = self.image * (1 - mask) + mask


def rolling(
    size: int, rng: Generator, sky: tuple[str, str], hill: tuple[str, str], ground: tuple[str, str], name: str
) -> tuple[Canvas, float]:
    """Return sky, a far hill and the ground, and the horizon."""
    horizon = float(rng.uniform(0.56, 0.64))
    canvas = Canvas(gradient(size, *sky, 0, horizon), "sky")
    far = below(size, wave(size, rng, horizon - 0.06, 0.035))
    canvas.lay(gradient(size, *hill, horizon - 0.12, horizon + 0.08), far, "hill")
    near = below(size, wave(size, rng, horizon + 0.02, 0.012))
    canvas.lay(mottle(gradient(size, *ground, horizon, 1), rng, 12, 0.03), near, name)
    return canvas, horizon


def meadow(size: int, rng: Generator) -> Place:
    """Return green hills under a blue sky."""
    canvas, horizon = rolling(size, rng, ("4fa8ef", "d3ecfb"), ("a5d59a", "86c47a"), ("8fce5c", "54a83c"), "grass")
    canvas.puff(rng, 2, 0.3)
    return Place(canvas.image, canvas.classes, horizon)


def snow(size: int, rng: Generator) -> Place:
    """Return a white field under a pale sky."""
    canvas, horizon = rolling(size, rng, ("9fc6ec", "e3eef8"), ("d3e3f1", "c4d9ec"), ("f7fafd", "dce8f3"), "snow")
    return Place(canvas.image, canvas.classes, horizon, shadow=0.3)


def desert(size: int, rng: Generator) -> Place:
    """Return yellow dunes under a blue sky."""
    canvas, horizon = rolling(size, rng, ("5fb0ee", "e6f2f7"), ("edcf94", "dfb670"), ("f3d597", "dfab5e"), "sand")
    return Place(canvas.image, canvas.classes, horizon)


def sunset(size: int, rng: Generator) -> Place:
    """Return a golden field under an orange and purple sky."""
    canvas, horizon = rolling(size, rng, ("5d4a9c", "ff9f5a"), ("a35f4f", "8e5545"), ("b98a45", "7d5f34"), "grass")
    return Place(canvas.image, canvas.classes, horizon, (1.0, 0.88, 0.8))


def night(size: int, rng: Generator) -> Place:
    """Return dark hills under stars."""
    canvas, horizon = rolling(size, rng, ("0f1440", "38407c"), ("25305c", "1f3550"), ("2c5a4c", "163a34"), "grass")
    for _ in range(26):
        x, y = int(rng.uniform(0, size)), int(rng.uniform(0, horizon - 0.14) * size)
        canvas.image[y : y + max(1, size // 128), x : x + max(1, size // 128)] = rng.uniform(0.7, 1.0)
    return Place(canvas.image, canvas.classes, horizon, (0.74, 0.77, 0.98), shadow=0.5)


def beach(size: int, rng: Generator) -> Place:
    """Return sand before the sea."""
    horizon = float(rng.uniform(0.44, 0.5))
    canvas = Canvas(gradient(size, "4fa8ef", "dcf0fb", 0, horizon), "sky")
    canvas.puff(rng, 2, 0.26)
    canvas.lay(
        gradient(size, "2f8fd6", "55c4dc", horizon, horizon + 0.16),
        below(size, np.full(size, horizon * size, np.float32)),
        "water",
    )
    shore = wave(size, rng, horizon + 0.14, 0.014)
    canvas.lay(gradient(size, "ffffff", "ffffff"), below(size, shore - size * 0.012), "water")
    canvas.lay(mottle(gradient(size, "f6dfae", "e5bd7c", horizon, 1), rng, 12, 0.025), below(size, shore), "sand")
    return Place(canvas.image, canvas.classes, horizon + 0.14)


def sea(size: int, rng: Generator) -> Place:
    """Return the open sea."""
    horizon = float(rng.uniform(0.46, 0.54))
    canvas = Canvas(gradient(size, "4fa8ef", "dcf0fb", 0, horizon), "sky")
    canvas.puff(rng, 2, 0.28)
    water = gradient(size, "3f9be0", "1660ac", horizon, 1)
    rows = np.arange(size, dtype=np.float32)[:, None]
    columns = np.arange(size, dtype=np.float32)[None]
    ripple = np.sin(rows * 60 / size + 1.6 * np.sin(columns * 19 / size + rng.uniform(0, 6.3)) + rng.uniform(0, 6.3))
    water = np.clip(water * (1 + 0.05 * ripple[..., None]), 0, 1).astype(np.float32)
    canvas.lay(water, below(size, np.full(size, horizon * size, np.float32)), "water")
    return Place(canvas.image, canvas.classes, horizon, shadow=0.25)


def sky(size: int, rng: Generator) -> Place:
    """Return a high blue sky with clouds."""
    canvas = Canvas(gradient(size, "3f9bec", "cfeafb"), "sky")
    canvas.puff(rng, 4, 0.95, 0.75)
    return Place(canvas.image, canvas.classes, 1.0)


def street(size: int, rng: Generator) -> Place:
    """Return a road before a row of houses."""
    canvas = Canvas(gradient(size, "5bb0f0", "e4f3fb", 0, 0.5), "sky")
    walls = ("e9a48c", "efc28f", "9db8dc", "c3a6d6", "a8cfc0", "e8b6c0")
    x = -float(rng.uniform(0, 0.1))
    while x < 1:
        width, top = float(rng.uniform(0.17, 0.25)), float(rng.uniform(0.14, 0.36))
        tower(canvas, (x, top, width), walls[int(rng.integers(len(walls)))])
        x += width
    level = lambda part: below(size, np.full(size, part * size, np.float32))  # noqa: E731
    canvas.lay(gradient(size, "d9d6d4", "c2bebd", 0.56, 0.63), level(0.56), "pavement")
    canvas.lay(gradient(size, "747684", "565865", 0.63, 1), level(0.63), "road")
    shift = float(rng.uniform(0, 0.3))
    for k in range(-1, 4):
        left, right = int((k * 0.36 + shift) * size), int((k * 0.36 + shift + 0.18) * size)
        canvas.image[int(0.925 * size) : int(0.955 * size), max(left, 0) : max(right, 0)] = rgb("f2efe6")
    return Place(canvas.image, canvas.classes, 0.64)


def tower(canvas: Canvas, box: tuple[float, float, float], wall: str) -> None:
    """Paint one house front with windows; `box`: left, top and width as parts of the picture."""
    size = canvas.image.shape[0]
    left, top, right = (int(v * size) for v in (box[0], box[1], box[0] + box[2]))
    mask = np.zeros((size, size, 1), np.float32)
    mask[top : int(0.57 * size), max(left, 0) : max(right, 0)] = 1
    canvas.lay(gradient(size, wall, wall) * np.float32(0.97), mask, "skyline")
    step, pane = 0.075, (max(2, int(0.033 * size)), max(2, int(0.042 * size)))
    columns = max(1, int(box[2] / step))
    for i in range(columns):
        x = left + int((i + 0.5) * (right - left) / columns) - pane[0] // 2
        for y in range(top + int(0.035 * size), int(0.52 * size), int(step * size * 1.05)):
            canvas.image[y : y + pane[1], max(x, 0) : max(x + pane[0], 0)] = rgb("fdf3cf")


def table(size: int, rng: Generator) -> Place:
    """Return a wooden table before a light wall."""
    horizon = float(rng.uniform(0.56, 0.62))
    canvas = Canvas(gradient(size, "f8ecd9", "ead6ba", 0, horizon), "wall")
    wood = gradient(size, "c58a55", "9c6236", horizon, 1)
    grain = cv2.resize(rng.standard_normal((24, 3)).astype(np.float32), (size, size), interpolation=cv2.INTER_CUBIC)
    wood = np.clip(wood * (1 + 0.03 * grain[..., None]), 0, 1)
    canvas.lay(wood, below(size, np.full(size, horizon * size, np.float32)), "table")
    return Place(canvas.image, canvas.classes, horizon)


def studio(size: int, rng: Generator) -> Place:
    """Return a plain pastel backdrop."""
    tints = (
        ("e3effb", "f6fafe"),
        ("fbe6ea", "fef5f6"),
        ("e6f6e4", "f6fcf5"),
        ("fdf3d6", "fefaee"),
        ("ece4fa", "f8f5fe"),
    )
    top, bottom = tints[int(rng.integers(len(tints)))]
    canvas = Canvas(gradient(size, top, bottom), "backdrop")
    return Place(canvas.image, canvas.classes, 0.66, shadow=0.28)


DRAWERS: dict[str, Callable[[int, Generator], Place]] = {
    drawer.__name__: drawer for drawer in (meadow, beach, snow, desert, night, sunset, street, table, studio, sea, sky)
}
