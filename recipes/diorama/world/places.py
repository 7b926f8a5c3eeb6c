"""Places: painted backgrounds with what is known of each pixel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from .canvas import Canvas, Picture, below, gradient, mottle, rgb, wave
from .indoors import kitchen, room, studio, table
from .vocabulary import PLAIN


@dataclass(frozen=True)
class Light:
    """The light of a time of day. `tint`: on things; `lift`: what even black things reflect; `dim`: on drawn ground."""

    tint: tuple[float, float, float]
    lift: float
    shadow: float
    sky: tuple[str, str] | None = None
    dim: tuple[float, float, float] = (1.0, 1.0, 1.0)


LIGHT: dict[str, Light] = {
    "day": Light((1.0, 1.0, 1.0), 0.0, 0.36),
    "sunset": Light((1.0, 0.87, 0.80), 0.02, 0.42, ("5d4a9c", "ff9f5a"), (0.94, 0.70, 0.60)),
    "night": Light((0.70, 0.75, 0.98), 0.05, 0.48, ("101645", "3f478a"), (0.30, 0.36, 0.60)),
}
Drawer = Callable[[int, Generator, float, str], Canvas]


def paint(place: str, size: int, rng: Generator, horizon: float, light: str) -> Canvas:
    """Return a place, painted. `horizon`: where its ground begins, as a part of the height."""
    return DRAWERS[place](size, rng, horizon, light)


def _sky(size: int, rng: Generator, horizon: float, light: str, day: tuple[str, str], clouds: int) -> Canvas:
    """Return the sky of a time of day; at night with stars, else with clouds."""
    canvas = Canvas(gradient(size, *(LIGHT[light].sky or day), 0, horizon), "sky")
    if light == "night":
        canvas.stars(rng, int(rng.integers(18, 40)), horizon - 0.08)
    else:
        canvas.puff(rng, int(rng.integers(0, clouds + 1)), max(0.12, horizon - 0.28), 0.6 if light == "day" else 0.25)
    return canvas


def _lit(picture: Picture, light: str) -> Picture:
    return picture * np.asarray(LIGHT[light].dim, np.float32)


def _rolling(
    size: int, rng: Generator, horizon: float, light: str,
    sky: tuple[str, str], hill: tuple[str, str], ground: tuple[str, str], name: str, clouds: int = 3,
) -> Canvas:  # fmt: skip
    """Return sky, one or two far hills and the ground."""
    canvas = _sky(size, rng, horizon, light, sky, clouds)
    for k in range(int(rng.integers(1, 3))):
        lift = 0.10 - 0.06 * k
        far = below(size, wave(size, rng, horizon - lift, 0.04 - 0.012 * k))
        shade = gradient(size, *hill, horizon - 0.2, horizon + 0.05) * np.float32(1.04 - 0.05 * k)
        canvas.lay(_lit(shade, light), far, "hill", 0.10 + 0.05 * k)
    near = below(size, wave(size, rng, horizon + 0.005, 0.01))
    canvas.ground(_lit(mottle(gradient(size, *ground, horizon, 1), rng, 12, 0.022), light), near, name, horizon)
    return canvas


def meadow(size: int, rng: Generator, horizon: float, light: str) -> Canvas:
    """Return green hills, some with tufts and flowers."""
    greens = (("93d162", "55aa3d"), ("a3d86a", "64b244"), ("86cb6a", "489f45"))
    ground = greens[int(rng.integers(len(greens)))]
    canvas = _rolling(size, rng, horizon, light, ("4fa8ef", "d9effc"), ("aadb9e", "8acb7c"), ground, "grass")
    if rng.random() < 0.5:
        canvas.dots(rng, 26, horizon + 0.06, ("ffffff", "ffe27a", "ff9fb8"), LIGHT[light].dim)
    return canvas


def forest(size: int, rng: Generator, horizon: float, light: str) -> Canvas:
    """Return rows of soft trees, the far ones paler, above a mossy ground."""
    canvas = _sky(size, rng, horizon, light, ("bfe3e6", "e9f5dc"), 0)
    tones = ("a9d3a0", "7dba80", "559a62")
    for k, tone in enumerate(tones):
        top = horizon - 0.40 + 0.12 * k
        crowns = _crowns(size, rng, top, horizon + 0.02, 10 - 2 * k)
        canvas.lay(_lit(gradient(size, tone, tone) * np.float32(1.0), light), crowns, "forest", 0.08 + 0.05 * k)
    near = below(size, wave(size, rng, horizon + 0.005, 0.012))
    ground = mottle(gradient(size, "7fb457", "43803c", horizon, 1), rng, 14, 0.035)
    canvas.ground(_lit(ground, light), near, "grass", horizon)
    return canvas


def _crowns(size: int, rng: Generator, top: float, foot: float, count: int) -> Picture:
    """Return a mask (h w 1) of trees side by side: firs, or round crowns on stems."""
    scale = 2  # drawn large and reduced: smooth edges
    mask = np.zeros((size * scale, size * scale), np.uint8)
    firs = rng.random() < 0.6
    for k in range(count + 1):
        x = (k + rng.uniform(-0.3, 0.3)) / count * size * scale
        height = (foot - top) * rng.uniform(0.75, 1.1) * size * scale
        y, half = foot * size * scale, height * rng.uniform(0.26, 0.36)
        if firs:
            for level in (1.0, 0.72, 0.45):
                tip, base = y - height, y - height * (1 - level)
                corners = [[x - half * level, base], [x, tip], [x + half * level, base]]
                cv2.fillPoly(mask, [np.array(corners, np.int32)], 255)
        else:
            cv2.ellipse(
                mask, (int(x), int(y - height * 0.62)), (int(half * 1.15), int(height * 0.4)), 0, 0, 360, 255, -1
            )
            cv2.rectangle(mask, (int(x - half * 0.12), int(y - height * 0.4)), (int(x + half * 0.12), int(y)), 255, -1)
    return cv2.resize(mask, (size, size), interpolation=cv2.INTER_AREA).astype(np.float32)[..., None] / 255


def mountains(size: int, rng: Generator, horizon: float, light: str) -> Canvas:
    """Return peaks with snow above a green valley."""
    canvas = _sky(size, rng, horizon, light, ("5aaef0", "e2f2fb"), 2)
    for k, (rock, deep) in enumerate((("a9b6d3", "8c9cc0"), ("8797b8", "6a7ba0"))):
        ridge = _ridge(size, rng, horizon - 0.17 + 0.09 * k, 0.16 - 0.05 * k)
        stone = gradient(size, rock, deep, horizon - 0.4, horizon)
        line = ridge[None] + size * (0.055 + 0.02 * np.sin(np.arange(size) * 0.35 + k))[None]
        snow = np.clip((line - np.arange(size, dtype=np.float32)[:, None]) / 2, 0, 1)[..., None].astype(np.float32)
        canvas.lay(
            _lit(stone * (1 - snow) + snow * np.float32(0.98), light), below(size, ridge), "mountain", 0.06 + 0.05 * k
        )
    near = below(size, wave(size, rng, horizon + 0.005, 0.012))
    ground = mottle(gradient(size, "a0d070", "5aa548", horizon, 1), rng, 12, 0.025)
    canvas.ground(_lit(ground, light), near, "grass", horizon)
    return canvas


def _ridge(size: int, rng: Generator, level: float, swing: float) -> NDArray[np.float32]:
    """Return a jagged line, in pixels per column."""
    count = int(rng.integers(4, 7))
    heights = np.array([level + swing * (0.9 if k % 2 else -0.9) * rng.uniform(0.5, 1.0) for k in range(2 * count + 1)])
    knots = np.linspace(-0.1, 1.1, len(heights)) + rng.uniform(-0.02, 0.02, len(heights))
    return (np.interp(np.linspace(0, 1, size), np.sort(knots), heights) * size).astype(np.float32)


def snow(size: int, rng: Generator, horizon: float, light: str) -> Canvas:
    """Return a white field, at times with falling snow."""
    canvas = _rolling(
        size, rng, horizon, light, ("9fc6ec", "e6f0f9"), ("d9e7f4", "c4d9ec"), ("f8fbfe", "dde9f4"), "snow", 2
    )
    if rng.random() < 0.4:
        canvas.stars(rng, 40, 0.95, 0.9)
    return canvas


def desert(size: int, rng: Generator, horizon: float, light: str) -> Canvas:
    """Return yellow dunes."""
    return _rolling(
        size, rng, horizon, light, ("5fb0ee", "eaf4f8"), ("efd29a", "e0b874"), ("f5d99c", "e0ad61"), "sand", 1
    )


def _water(size: int, rng: Generator, top: str, bottom: str, horizon: float, end: float, strength: float) -> Picture:
    """Return water with ripples that grow towards the viewer."""
    water = gradient(size, top, bottom, horizon, end)
    y = np.arange(size, dtype=np.float32)[:, None] / size
    x = np.arange(size, dtype=np.float32)[None] / size
    near = np.clip((y - horizon) / max(1 - horizon, 0.05), 0.02, 1)
    ripple = np.sin(26 * np.log(near + 0.06) + 1.3 * np.sin(x * (9 + 5 / (near + 0.2)) + rng.uniform(0, 6.3)))
    return np.clip(water * (1 + strength * (0.4 + near)[..., None] * ripple[..., None]), 0, 1).astype(np.float32)


def beach(size: int, rng: Generator, horizon: float, light: str) -> Canvas:
    """Return sand before the sea."""
    canvas = _sky(size, rng, horizon, light, ("4fa8ef", "dcf0fb"), 3)
    shore_at = horizon + float(rng.uniform(0.12, 0.16))
    level = below(size, np.full(size, horizon * size, np.float32))
    canvas.ground(_lit(_water(size, rng, "2f8fd6", "58c8de", horizon, shore_at, 0.02), light), level, "water", horizon)
    shore = wave(size, rng, shore_at, 0.012)
    foam = gradient(size, "ffffff", "ffffff") * np.float32(0.98)
    canvas.ground(_lit(foam, light), below(size, shore - size * 0.014), "water", horizon)
    sand = mottle(gradient(size, "f8e3b6", "e6be7e", shore_at, 1), rng, 12, 0.02)
    canvas.ground(_lit(sand, light), below(size, shore), "sand", horizon)
    return canvas


def sea(size: int, rng: Generator, horizon: float, light: str) -> Canvas:
    """Return the open sea."""
    canvas = _sky(size, rng, horizon, light, ("4fa8ef", "dcf0fb"), 3)
    level = below(size, np.full(size, horizon * size, np.float32))
    canvas.ground(_lit(_water(size, rng, "45a2e4", "1763b0", horizon, 1, 0.05), light), level, "water", horizon)
    return canvas


def underwater(size: int, rng: Generator, horizon: float, light: str) -> Canvas:
    """Return blue depths with rays of light above a sandy floor."""
    image = gradient(size, "5fcbe8", "14508f")
    x, y = np.meshgrid(np.linspace(0, 1, size, dtype=np.float32), np.linspace(0, 1, size, dtype=np.float32))
    slant = x + 0.25 * y + rng.uniform(0, 1)
    rays = np.clip(np.sin(slant * 19) + 0.5 * np.sin(slant * 47), 0, 2) * (1 - y) ** 1.5
    canvas = Canvas(np.clip(image + 0.07 * rays[..., None], 0, 1).astype(np.float32), "water")
    floor = below(size, wave(size, rng, horizon + 0.02, 0.015))
    canvas.ground(mottle(gradient(size, "6fa7b0", "3f7a92", horizon, 1), rng, 12, 0.03), floor, "sand", horizon)
    canvas.dots(rng, 14, 0.08, ("bfefff",), (1.0, 1.0, 1.0), 0.008)
    return canvas


def sky(size: int, rng: Generator, horizon: float, light: str) -> Canvas:
    """Return a high sky, with clouds by day and stars by night."""
    canvas = Canvas(gradient(size, *(LIGHT[light].sky or ("3f9bec", "d4edfb"))), "sky")
    if light == "night":
        canvas.stars(rng, 50, 0.95)
    else:
        canvas.puff(rng, int(rng.integers(2, 6)), 0.95, 0.8 if light == "day" else 0.35)
    return canvas


def space(size: int, rng: Generator, horizon: float, light: str) -> Canvas:
    """Return darkness with stars and a pale cloud of gas."""
    glow = cv2.resize(rng.random((4, 4)).astype(np.float32), (size, size), interpolation=cv2.INTER_CUBIC)[..., None]
    hue = rgb(("5a2f8f", "1f4f9c", "8f2f6a")[int(rng.integers(3))])
    canvas = Canvas(
        np.clip(gradient(size, "0b0e2c", "191a4a") + 0.45 * np.clip(glow - 0.35, 0, 1) * hue, 0, 1), "space"
    )
    canvas.stars(rng, 90, 1.0)
    return canvas


def street(size: int, rng: Generator, horizon: float, light: str) -> Canvas:
    """Return a road before a row of houses."""
    canvas = _sky(size, rng, horizon, light, ("5bb0f0", "e4f3fb"), 2)
    _houses(canvas, rng, horizon, light, (0.16, 0.25), (0.10, 0.40))
    level = lambda part: below(size, np.full(size, part * size, np.float32))  # noqa: E731
    canvas.ground(
        _lit(gradient(size, "dcd9d7", "c5c1c0", horizon, horizon + 0.07), light),
        level(horizon),
        "pavement",
        horizon - 0.1,
    )
    kerb = horizon + 0.065
    canvas.ground(_lit(gradient(size, "7b7d8b", "5a5c6a", kerb, 1), light), level(kerb), "road", horizon - 0.1)
    canvas.image[int((kerb) * size) : int((kerb + 0.008) * size)] *= 0.86
    shift = float(rng.uniform(0, 0.3))
    for k in range(-1, 4):
        left, right = int((k * 0.36 + shift) * size), int((k * 0.36 + shift + 0.17) * size)
        canvas.image[int(0.945 * size) : int(0.965 * size), max(left, 0) : max(right, 0)] = rgb("f2efe6") * np.asarray(
            LIGHT[light].dim
        )
    return canvas


def town(size: int, rng: Generator, horizon: float, light: str) -> Canvas:
    """Return a paved square before low houses with gables, and grass between."""
    canvas = _sky(size, rng, horizon, light, ("5bb0f0", "e9f5fb"), 3)
    far = below(size, wave(size, rng, horizon - 0.08, 0.02))
    canvas.lay(_lit(gradient(size, "a6d69a", "8ac57c", horizon - 0.1, horizon), light), far, "hill", 0.12)
    _houses(canvas, rng, horizon, light, (0.1, 0.16), (horizon - 0.2, horizon - 0.12), gables=True)
    level = below(size, np.full(size, horizon * size, np.float32))
    canvas.ground(
        _lit(mottle(gradient(size, "9fd077", "6db052", horizon, 1), rng, 10, 0.02), light),
        level,
        "grass",
        horizon - 0.05,
    )
    path = wave(size, rng, horizon + 0.1, 0.008)
    canvas.ground(
        _lit(mottle(gradient(size, "e9dcc5", "d3c0a0", horizon, 1), rng, 14, 0.015), light),
        below(size, path),
        "pavement",
        horizon - 0.05,
    )
    return canvas


WALLS = ("e9a48c", "efc28f", "9db8dc", "c3a6d6", "a8cfc0", "e8b6c0", "d9d0a8", "b9c4d9")


def _houses(
    canvas: Canvas, rng: Generator, horizon: float, light: str,
    widths: tuple[float, float], tops: tuple[float, float], gables: bool = False,
) -> None:  # fmt: skip
    """Paint house fronts side by side, their windows lit at night."""
    size, x = canvas.image.shape[0], -float(rng.uniform(0, 0.1))
    glass = rgb("ffd98a") if light == "night" else rgb("fdf3cf") * np.asarray(LIGHT[light].dim) ** 0.5
    while x < 1:
        width, top = float(rng.uniform(*widths)), float(rng.uniform(*tops))
        wall = rgb(WALLS[int(rng.integers(len(WALLS)))]) * np.asarray(LIGHT[light].dim)
        left, right, roof, foot = (int(v * size) for v in (x, x + width, top, horizon + 0.01))
        mask = np.zeros((size, size, 1), np.float32)
        mask[roof:foot, max(left, 0) : max(right, 0)] = 1
        canvas.lay(np.broadcast_to(wall.astype(np.float32), canvas.image.shape), mask, "skyline", 0.2)
        if gables:
            gable = np.zeros((size, size), np.uint8)
            peak = [[left - 3, roof], [(left + right) // 2, roof - int(width * size * 0.55)], [right + 3, roof]]
            cv2.fillPoly(gable, [np.array(peak, np.int32)], 255, cv2.LINE_AA)
            tile = rgb(("c9604f", "b5785a", "8d6f94")[int(rng.integers(3))]) * np.asarray(LIGHT[light].dim)
            shape = gable.astype(np.float32)[..., None] / 255
            canvas.lay(np.broadcast_to(tile.astype(np.float32), canvas.image.shape), shape, "skyline", 0.2)
        _panes(canvas, (left, right, roof, foot), glass)
        x += width + (float(rng.uniform(0.01, 0.09)) if gables else 0.0)


def _panes(canvas: Canvas, box: tuple[int, int, int, int], glass: Picture) -> None:
    size, (left, right, roof, foot) = canvas.image.shape[0], box
    columns = max(1, (right - left) // int(0.07 * size))
    wide, high = max(2, int(0.032 * size)), max(2, int(0.042 * size))
    for i in range(columns):
        x = left + int((i + 0.5) * (right - left) / columns) - wide // 2
        for y in range(roof + int(0.03 * size), foot - int(0.06 * size), int(0.078 * size)):
            canvas.image[y : y + high, max(x, 0) : max(x + wide, 0)] = glass


DRAWERS: dict[str, Drawer] = {
    drawer.__name__: drawer
    for drawer in (
        meadow, forest, mountains, beach, snow, desert, street, town, sea, underwater, sky, space, table, kitchen, room,
        studio,
    )
}  # fmt: skip
assert PLAIN in DRAWERS
