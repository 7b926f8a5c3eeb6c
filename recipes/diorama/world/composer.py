"""The composer: a scene with its caption and exact maps, from a seed and an index."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from .assets import Sprite
from .captions import Mention, pair_caption, single_caption, sky_caption
from .places import DRAWERS
from .vocabulary import CLASSES, COLOURS, NOUNS, Noun

Looks = dict[tuple[str, str | None], Sprite]
SKY_GROUPS = ("flyer", "aircraft", "celestial")
PAIR_SHARE, SKY_PAIR_SHARE = 0.22, 0.10
RECOLOUR_SHARE, NAME_NATIVE_COLOUR_SHARE = 0.6, 0.6


@dataclass(frozen=True)
class Item:
    """One thing in a layout. `x`: centre, `base`: lower edge, `height`: all as parts of the picture."""

    noun: Noun
    look: str | None
    x: float
    base: float
    height: float

    def mention(self, rng: Generator) -> Mention:
        """Return how a caption may name it: a foreign colour always, the native one sometimes."""
        named = self.look or (self.noun.colour if rng.random() < NAME_NATIVE_COLOUR_SHARE else None)
        return Mention(self.noun, named)


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
    """A composed picture. `classes` and `instances` are (h w); instance 0 is the background, later ones nearer."""

    image: NDArray[np.uint8]
    caption: str
    place: str
    items: tuple[Item, ...]
    classes: NDArray[np.uint8]
    instances: NDArray[np.uint8]
    boxes: tuple[Box, ...]


def compose(looks: Looks, seed: int, index: int, size: int = 128) -> Scene:
    """Return scene number `index` of the stream `seed`: the same arguments give the same scene."""
    rng = np.random.default_rng([seed, index])
    nouns = tuple(noun for noun in NOUNS if (noun.code, None) in looks)
    place, items, caption = draw_layout(rng, nouns)
    return render(looks, place, items, caption, rng, size)


def draw_layout(rng: Generator, nouns: tuple[Noun, ...]) -> tuple[str, tuple[Item, ...], str]:
    """Return a place, the things in it and the caption."""
    noun = weighted(rng, nouns)
    place = noun.places[int(rng.integers(len(noun.places)))]
    share = rng.random()
    beside = tuple(
        other for other in nouns if place in other.places and other.code != noun.code and side_by_side(noun, other)
    )
    above = tuple(other for other in nouns if other.group in SKY_GROUPS and place_of_flyer(place, other))
    if share < PAIR_SHARE and beside:
        left, right = draw_pair(rng, noun, weighted(rng, beside), place)
        return place, (left, right), pair_caption(left.mention(rng), right.mention(rng), place, rng)
    if share < PAIR_SHARE + SKY_PAIR_SHARE and above and noun.group not in SKY_GROUPS:
        ground, flying = draw_single(rng, noun, place, 0.8), draw_flying(rng, weighted(rng, above))
        return place, (flying, ground), sky_caption(ground.mention(rng), flying.mention(rng), place, rng)
    item = draw_single(rng, noun, place)
    return place, (item,), single_caption(item.mention(rng), place, rng)


def weighted(rng: Generator, nouns: tuple[Noun, ...]) -> Noun:
    """Return one noun, drawn by weight."""
    weights = np.array([noun.weight for noun in nouns])
    return nouns[int(rng.choice(len(nouns), p=weights / weights.sum()))]


def side_by_side(noun: Noun, other: Noun) -> bool:
    """Tell whether two things can share one ground (or both the air)."""
    return (noun.group in SKY_GROUPS) == (other.group in SKY_GROUPS)


def place_of_flyer(place: str, noun: Noun) -> bool:
    """Tell whether a thing can be in the sky over a place."""
    if noun.names[0] in ("moon", "star"):
        return place == "night"
    if noun.names[0] in ("sun", "cloud"):
        return place in ("meadow", "beach", "snow", "desert", "sea", "street")
    return place not in ("table", "studio", "sky")


def draw_look(rng: Generator, noun: Noun) -> str | None:
    """Return a foreign colour for the thing, or None for its native look."""
    if noun.colour is None or rng.random() > RECOLOUR_SHARE:
        return None
    others = tuple(colour for colour in COLOURS if colour != noun.colour)
    return others[int(rng.integers(len(others)))]


def draw_base(rng: Generator, noun: Noun, place: str, height: float) -> float:
    """Return where the lower edge of a thing is."""
    if noun.group in SKY_GROUPS and place in ("sky", "night", "sunset"):
        centre = 0.5 if place == "sky" else 0.42
        return centre + height / 2 + float(rng.uniform(-0.05, 0.05))
    if place == "studio":
        return float(np.clip(0.5 + height / 2 + rng.uniform(-0.02, 0.06), 0.6, 0.93))
    return float(rng.uniform(0.84, 0.92))


def draw_single(rng: Generator, noun: Noun, place: str, scale: float = 1.0) -> Item:
    """Return one large thing near the middle."""
    height = float(min(0.64 * noun.size * scale * rng.uniform(0.88, 1.08), 0.8))
    x = float(np.clip(rng.normal(0.5, 0.06), 0.36, 0.64))
    return Item(noun, draw_look(rng, noun), x, draw_base(rng, noun, place, height), height)


def draw_pair(rng: Generator, noun: Noun, other: Noun, place: str) -> tuple[Item, Item]:
    """Return two things, the left one first."""
    first, second = (noun, other) if rng.random() < 0.5 else (other, noun)
    items = []
    for each, x in ((first, 0.27), (second, 0.74)):
        height = float(0.44 * each.size * rng.uniform(0.9, 1.08))
        items.append(
            Item(
                each,
                draw_look(rng, each),
                x + float(rng.uniform(-0.02, 0.02)),
                draw_base(rng, each, place, height),
                height,
            )
        )
    return items[0], items[1]


def draw_flying(rng: Generator, noun: Noun) -> Item:
    """Return a small thing in the upper corner."""
    height = float(0.25 * noun.size * rng.uniform(0.95, 1.1))
    x = float(rng.choice([0.2, 0.8]) + rng.uniform(-0.04, 0.04))
    return Item(noun, draw_look(rng, noun), x, 0.05 + height, height)


def render(looks: Looks, place_name: str, items: tuple[Item, ...], caption: str, rng: Generator, size: int) -> Scene:
    """Return the scene painted at `size` pixels, later items in front."""
    place = DRAWERS[place_name](size, rng)
    image, classes = place.image, place.classes
    instances = np.zeros((size, size), np.uint8)
    for number, item in enumerate(items, start=1):
        if standing(item, place_name):
            image = cast_shadow(image, item, place.shadow, looks[item.noun.code, item.look])
        colour, alpha = placed(looks[item.noun.code, item.look], item, size)
        if place_name == "sea" and item.noun.sink:
            alpha = alpha * sunk(item, size)
        image = image * (1 - alpha) + colour * np.asarray(place.tint, np.float32) * alpha
        seen = alpha[..., 0] > 0.5
        classes[seen] = CLASSES.index(item.noun.group)
        instances[seen] = number
    pixels = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
    return Scene(pixels, caption, place_name, items, classes, instances, boxes_of(instances, items))


def standing(item: Item, place: str) -> bool:
    """Tell whether a thing touches the ground and so throws a shadow on it."""
    return place not in ("sky", "sea") and item.base > 0.55 and item.noun.group not in SKY_GROUPS


def extent(sprite: Sprite, item: Item) -> tuple[float, float]:
    """Return width and height as parts of the picture: at most 0.86 wide."""
    width = item.height * sprite.shape[1] / sprite.shape[0]
    widest = 0.46 if item.height < 0.62 and abs(item.x - 0.5) > 0.18 else 0.86
    shrink = min(1.0, widest / width)
    return width * shrink, item.height * shrink


def placed(sprite: Sprite, item: Item, size: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the sprite on the whole picture: colour (h w 3), alpha (h w 1)."""
    width, height = extent(sprite, item)
    w, h = max(2, round(width * size)), max(2, round(height * size))
    alpha = sprite[..., 3:].astype(np.float32) / 255
    small = cv2.resize(np.dstack([sprite[..., :3] * (alpha / 255), alpha]), (w, h), interpolation=cv2.INTER_AREA)
    full = np.zeros((3 * size, 3 * size, 4), np.float32)
    left, top = size + round(item.x * size - w / 2), size + round(item.base * size) - h
    full[top : top + h, left : left + w] = small
    full = full[size : 2 * size, size : 2 * size]
    mask = full[..., 3:]
    return np.where(mask > 1e-3, full[..., :3] / np.maximum(mask, 1e-3), 0).astype(np.float32), mask


def sunk(item: Item, size: int) -> NDArray[np.float32]:
    """Return a mask that lets the lower part of a thing vanish in the water, (h 1 1)."""
    line = (item.base - item.noun.sink * item.height * 0.6) * size
    return np.clip((line - np.arange(size, dtype=np.float32)) / (0.05 * size) + 0.5, 0, 1)[:, None, None]


def cast_shadow(image: NDArray[np.float32], item: Item, strength: float, sprite: Sprite) -> NDArray[np.float32]:
    """Return the background with a soft contact shadow under the thing."""
    size = image.shape[0]
    width, _ = extent(sprite, item)
    mask = np.zeros((size, size), np.float32)
    centre = (round(item.x * size), round((item.base - 0.012) * size))
    cv2.ellipse(
        mask, centre, (round(width * size * 0.46), max(2, round(size * 0.034))), 0, 0, 360, 1.0, -1, cv2.LINE_AA
    )
    mask = cv2.GaussianBlur(mask, (0, 0), size * 0.018)[..., None]
    return image * (1 - strength * mask)


def boxes_of(instances: NDArray[np.uint8], items: tuple[Item, ...]) -> tuple[Box, ...]:
    """Return the box of what is seen of every item."""
    boxes = []
    for number, item in enumerate(items, start=1):
        ys, xs = np.nonzero(instances == number)
        if len(ys):
            boxes.append(Box(item.noun.names[0], int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1))
    return tuple(boxes)
