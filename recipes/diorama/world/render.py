"""The composer: a scene from a seed and an index. A layout is drawn, worded, and painted from far to near."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from .canvas import Canvas, ground_nearness
from .captions import Facts, write
from .layout import Item, Layout, draw_layout, extent
from .pack import Wardrobe
from .places import LIGHT, Light, paint
from .sprites import recoloured
from .vocabulary import CLASSES, PLAIN

SINK = {"sea animal": 0.2, "boat": 0.05}  # the part of a swimming thing that is under water
FLOATING_NEARNESS = 0.6
STANDING_NEARER = 0.06  # a thing is nearer than the ground that it stands on, so that its outline shows in the depth


@dataclass(frozen=True)
class Box:
    """Where a thing is seen: pixel edges, right and bottom exclusive."""

    label: str
    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True)
class Scene:
    """A painted layout. (h w): `classes`; `instances`, 0 for the background, else the item's number from 1;

    `nearness` in [0, 1] of each pixel before things are rounded; `is_ground`: what faces up.
    """

    image: NDArray[np.uint8]
    caption: str
    facts: Facts
    layout: Layout
    classes: NDArray[np.uint8]
    instances: NDArray[np.uint8]
    nearness: NDArray[np.float32]
    is_ground: NDArray[np.bool_]
    seed: tuple[int, int]

    @property
    def boxes(self) -> tuple[Box, ...]:
        """Return the box of what is seen of every item."""
        boxes = []
        for number, item in enumerate(self.layout.items, start=1):
            ys, xs = np.nonzero(self.instances == number)
            if len(ys):
                boxes.append(Box(item.noun.name, int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1))
        return tuple(boxes)


def compose(wardrobe: Wardrobe, seed: int, index: int, size: int = 256) -> Scene:
    """Return scene number `index` of the stream `seed`: the same arguments give the same scene."""
    rng = np.random.default_rng([seed, index])
    layout = draw_layout(rng, wardrobe)
    caption, facts = write(rng, layout, wardrobe)
    return render(wardrobe, layout, caption, facts, (seed, index), size)


def render(
    wardrobe: Wardrobe, layout: Layout, caption: str, facts: Facts, seed: tuple[int, int], size: int,
    style: str | None = None,
) -> Scene:  # fmt: skip
    """Return a layout painted at `size` pixels. `style`: in place of its own (for twins: the same in another style)."""
    style = style or layout.style
    canvas = paint(layout.place, size, np.random.default_rng([*seed, 1]), layout.horizon, layout.light)
    if style == "flat":
        flatten(canvas)
    instances = np.zeros((size, size), np.uint8)
    light = LIGHT[layout.light]
    for number, item in enumerate(layout.items, start=1):
        sprite = placed(wardrobe, item, style, size)
        if item.role == "ground" and layout.place != "sea" and style != "flat":
            cast_shadow(canvas, wardrobe, item, light.shadow * (0.7 if layout.place == PLAIN else 1.0))
        if item.role == "afloat" or (layout.place == "sea" and item.role == "ground"):
            sink(sprite, SINK.get(item.noun.kind, 0.0))
        put(canvas, instances, layout, item, number, sprite, light)
    pixels = np.rint(np.clip(canvas.image, 0, 1) * 255).astype(np.uint8)
    return Scene(
        pixels, caption, facts, layout, canvas.classes, instances, canvas.nearness, canvas.is_ground, seed
    )  # fmt: skip


def flatten(canvas: Canvas) -> None:
    """Paint a background as flat drawings have it: most surfaces in about one tone, the rest in few."""
    canvas.image = (np.rint(np.clip(canvas.image, 0, 1) * _TONES) / _TONES).astype(np.float32)
    for name in _ONE_TONE:
        seen = canvas.classes == CLASSES.index(name)
        if seen.any():
            canvas.image[seen] = 0.12 * canvas.image[seen] + 0.88 * canvas.image[seen].mean(axis=0)


_TONES = 24
_ONE_TONE = (
    "sky",
    "hill",
    "grass",
    "sand",
    "snow",
    "table",
    "wall",
    "floor",
    "backdrop",
    "pavement",
    "space",
    "forest",
)


@dataclass
class Placed:
    """A sprite at its size (h w 4), premultiplied, and where its upper left corner is in the picture."""

    pixels: NDArray[np.float32]
    left: int
    top: int


def placed(wardrobe: Wardrobe, item: Item, style: str, size: int) -> Placed:
    """Return an item's sprite as large as it is drawn, in its colour."""
    width, height = extent(wardrobe, item)
    w, h = max(2, round(width * size)), max(2, round(height * size))
    source = wardrobe.of(style, item.noun)
    how = cv2.INTER_AREA if h < source.shape[0] else cv2.INTER_CUBIC
    small = cv2.resize(source, (w, h), interpolation=how).astype(np.float32) / 255
    if item.flipped:
        small = np.ascontiguousarray(small[:, ::-1])
    look = wardrobe.looks[item.noun.code]
    if item.colour is not None and look.hue is not None:
        small = recoloured(small, look, item.colour)
    return Placed(small, round(item.x * size - w / 2), round(item.base * size) - h)


def sink(sprite: Placed, part: float) -> None:
    """Let the lower part of a sprite vanish in the water, along a wavy line."""
    h, w = sprite.pixels.shape[:2]
    line = h * (1 - part) + 1.2 * np.sin(np.arange(w) * 0.5)
    sprite.pixels *= np.clip((line[None] - np.arange(h)[:, None]) / 2 + 0.5, 0, 1)[..., None].astype(np.float32)


def put(
    canvas: Canvas, instances: NDArray[np.uint8], layout: Layout, item: Item, number: int, sprite: Placed, light: Light
) -> None:  # fmt: skip
    """Paint a sprite, and note whose pixels they are."""
    size = instances.shape[0]
    h, w = sprite.pixels.shape[:2]
    top, left = max(0, sprite.top), max(0, sprite.left)
    bottom, right = min(size, sprite.top + h), min(size, sprite.left + w)
    if bottom <= top or right <= left:
        return
    part = sprite.pixels[top - sprite.top : bottom - sprite.top, left - sprite.left : right - sprite.left]
    alpha = part[..., 3:]
    shines = item.noun.kind == "celestial" or layout.place == "space"
    colour = part[..., :3] if shines else part[..., :3] * np.asarray(light.tint, np.float32) + light.lift * alpha
    window = (slice(top, bottom), slice(left, right))
    canvas.image[window] = canvas.image[window] * (1 - alpha) + colour
    seen = alpha[..., 0] > 0.5
    canvas.classes[window][seen] = CLASSES.index(item.noun.kind)
    canvas.nearness[window][seen] = nearness_of(layout, item)
    canvas.is_ground[window][seen] = False
    instances[window][seen] = number


def nearness_of(layout: Layout, item: Item) -> float:
    """Return how near an item is: as the ground at its foot, and a little nearer."""
    if item.role == "floating":
        return FLOATING_NEARNESS
    if item.role == "above":
        return 0.12
    bearer = item if item.support is None else layout.items[item.support]
    lift = STANDING_NEARER if item.support is None else 2 * STANDING_NEARER
    return float(ground_nearness(bearer.base, layout.horizon)) + lift


def cast_shadow(canvas: Canvas, wardrobe: Wardrobe, item: Item, strength: float) -> None:
    """Darken the ground around an item's foot: a small dark spot, and a wide faint one to the right."""
    size = canvas.image.shape[0]
    width, height = extent(wardrobe, item)
    first, last = wardrobe.looks[item.noun.code].foot
    if item.flipped:
        first, last = 1 - last, 1 - first
    centre = item.x + width * ((first + last) / 2 - 0.5)
    foot = max(0.02, width * (last - first))
    spots = (
        (centre, foot * 0.56, 0.020 + 0.10 * foot * 0.3, 1.0),
        (centre + 0.12 * height, foot * 0.62 + 0.12 * height, 0.03 + 0.05 * height, 0.42),
    )
    for x, wide, high, share in spots:
        _spot(canvas, (x * size, (item.base - 0.006) * size), (wide * size, high * size), strength * share)


def _spot(canvas: Canvas, centre: tuple[float, float], radii: tuple[float, float], strength: float) -> None:
    size = canvas.image.shape[0]
    x0, x1 = (int(np.clip(centre[0] + sign * 1.5 * radii[0], 0, size)) for sign in (-1, 1))
    y0, y1 = (int(np.clip(centre[1] + sign * 1.5 * radii[1], 0, size)) for sign in (-1, 1))
    if x1 <= x0 or y1 <= y0:
        return
    x = (np.arange(x0, x1, dtype=np.float32) - centre[0]) / radii[0]
    y = (np.arange(y0, y1, dtype=np.float32) - centre[1]) / radii[1]
    depth = np.exp(-2.2 * (x[None] ** 2 + y[:, None] ** 2))
    fade = 1 - strength * depth * canvas.is_ground_or_plain[y0:y1, x0:x1]
    canvas.image[y0:y1, x0:x1] *= fade[..., None]
