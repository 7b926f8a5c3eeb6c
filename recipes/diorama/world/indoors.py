"""Places under a roof, and the plain backdrop. Their light is always that of the day."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.random import Generator

from .canvas import Canvas, Picture, below, gradient, mottle, rgb


def table(size: int, rng: Generator, horizon: float, light: str) -> Canvas:
    """Return a wooden table before a softly lit wall."""
    walls = (("faf0e0", "ecd9bf"), ("e6eef5", "cbdbe8"), ("f3e3e4", "e3c7c9"), ("e7efe0", "cfdec3"))
    woods = (("cd945f", "a3693c"), ("dcb083", "b9875a"), ("a8754f", "7d4f31"))
    canvas = Canvas(_glow(gradient(size, *walls[int(rng.integers(len(walls)))], 0, horizon), rng, horizon), "wall", 0.3)
    canvas.ground(
        _planks(size, rng, woods[int(rng.integers(len(woods)))], horizon), _level(size, horizon), "table", horizon
    )
    canvas.image[int(horizon * size) : int((horizon + 0.012) * size)] *= 1.06
    return canvas


def _level(size: int, part: float) -> Picture:
    return below(size, np.full(size, part * size, np.float32))


def _glow(wall: Picture, rng: Generator, horizon: float) -> Picture:
    """Return the wall with a soft patch of light."""
    size = wall.shape[0]
    x, y = np.meshgrid(np.linspace(0, 1, size, dtype=np.float32), np.linspace(0, 1, size, dtype=np.float32))
    spot = np.exp(-(((x - rng.uniform(0.2, 0.8)) / 0.45) ** 2) - ((y - horizon * 0.4) / 0.35) ** 2)[..., None]
    return np.clip(wall * (0.96 + 0.09 * spot), 0, 1).astype(np.float32)


def _planks(size: int, rng: Generator, wood: tuple[str, str], horizon: float) -> Picture:
    grain = cv2.resize(rng.standard_normal((28, 3)).astype(np.float32), (size, size), interpolation=cv2.INTER_CUBIC)
    return np.clip(gradient(size, *wood, horizon, 1) * (1 + 0.025 * grain[..., None]), 0, 1).astype(np.float32)


def kitchen(size: int, rng: Generator, horizon: float, light: str) -> Canvas:
    """Return a stone counter before tiles."""
    tiles = (("dff0f2", "c9e3e6"), ("f4f1ea", "e5e0d3"), ("e3ecd8", "d0dfc0"), ("f6e2d3", "ebcdb8"))
    canvas = Canvas(_glow(gradient(size, *tiles[int(rng.integers(len(tiles)))], 0, horizon), rng, horizon), "wall", 0.3)
    step = int(size * rng.uniform(0.1, 0.14))
    for at in range(int(rng.integers(step)), size, step):
        canvas.image[: int(horizon * size), at : at + max(1, size // 128)] *= 0.93
        if at < horizon * size:
            canvas.image[at : at + max(1, size // 128)] *= 0.93
    stone = (("f3f0ec", "cfc9c1"), ("8f8a8c", "6a6568"), ("d9b38c", "b78a60"))[int(rng.integers(3))]
    top = mottle(gradient(size, *stone, horizon, 1), rng, 40, 0.015)
    canvas.ground(top, _level(size, horizon), "table", horizon)
    return canvas


def room(size: int, rng: Generator, horizon: float, light: str) -> Canvas:
    """Return a wall with a window, a skirting board and floorboards."""
    walls = (("f6e7d3", "ecd6ba"), ("dce8ef", "c3d7e3"), ("e9dff0", "d6c6e2"), ("dfeadb", "c8dbc2"))
    canvas = Canvas(_glow(gradient(size, *walls[int(rng.integers(len(walls)))], 0, horizon), rng, horizon), "wall", 0.3)
    if rng.random() < 0.6:
        _window(canvas, float(rng.choice([rng.uniform(0.06, 0.2), rng.uniform(0.62, 0.74)])), horizon)
    woods = (("d9a873", "b07c48"), ("c79767", "96653c"), ("e2c39c", "c29a6a"))
    canvas.ground(
        _planks(size, rng, woods[int(rng.integers(len(woods)))], horizon), _level(size, horizon), "floor", horizon
    )
    canvas.image[int((horizon - 0.03) * size) : int(horizon * size)] = rgb("fbf7f0")
    for k in range(-8, 9):  # the boards run to one vanishing point
        near, far = int((0.5 + k * 0.22) * size), int((0.5 + k * 0.11) * size)
        cv2.line(canvas.image, (far, int(horizon * size) + 1), (near, size), (0.55, 0.38, 0.22), 1, cv2.LINE_AA)
    return canvas


def _window(canvas: Canvas, left: float, horizon: float) -> None:
    """Paint a window with sky and hills behind it."""
    size = canvas.image.shape[0]
    x0, x1, y0, y1 = (int(v * size) for v in (left, left + 0.24, 0.08, horizon - 0.18))
    canvas.image[y0 - 4 : y1 + 4, x0 - 4 : x1 + 4] = rgb("fdfaf4")
    canvas.image[y0:y1, x0:x1] = gradient(size, "6db8f2", "d5ecfa", 0.08, horizon - 0.18)[y0:y1, x0:x1]
    canvas.image[y1 - (y1 - y0) // 5 : y1, x0:x1] = rgb("8fcb74")
    canvas.image[y0:y1, (x0 + x1) // 2 - 2 : (x0 + x1) // 2 + 2] = rgb("fdfaf4")
    canvas.name(slice(y0 - 4, y1 + 4), slice(x0 - 4, x1 + 4), "window")


PASTELS = (
    ("e3effb", "f6fafe"), ("fbe6ea", "fef5f6"), ("e6f6e4", "f6fcf5"), ("fdf3d6", "fefaee"), ("ece4fa", "f8f5fe"),
    ("d8f1f0", "f0fbfa"), ("ffe3cf", "fff4ea"), ("f2f2f4", "fbfbfc"), ("cfe0f5", "e9f1fb"), ("f9d7e3", "fdeef4"),
)  # fmt: skip


def studio(size: int, rng: Generator, horizon: float, light: str) -> Canvas:
    """Return a plain pastel backdrop."""
    top, bottom = PASTELS[int(rng.integers(len(PASTELS)))]
    return Canvas(gradient(size, top, bottom), "backdrop", 0.25)
