"""Layouts: which things are where, in what colour and size, drawn from a seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator

from .pack import Wardrobe
from .vocabulary import (
    COLOURS,
    DAY_ONLY,
    LIGHT_WEIGHTS,
    NIGHT_ONLY,
    PLAIN,
    RECOLOUR_SHARES,
    SETTINGS,
    SPACE_ONLY,
    STYLE_WEIGHTS,
    SUPPORTS,
    Noun,
    in_pools,
    nouns_at,
)
from .words import can_be_counted, without_colour

COUNT_SHARE, ABOVE_SHARE, ON_SHARE, AFLOAT_SHARE = 0.17, 0.24, 0.14, 0.25
NUM_THINGS = {1: 0.46, 2: 0.33, 3: 0.15, 4: 0.06}
CLOSE_SHARE = 0.5  # of the things that stand alone fill the picture
PLAIN_NUM = {1: 0.8, 2: 0.2}
SIZE_POWER = 0.36  # a castle of 11 m is drawn 4 times as tall as an apple of 0.1 m, if they ever meet
MOST_UNLIKE = 2.1  # times: things that differ more in drawn height do not share a scene
LEAST_SEEN = 0.62
_TRIES = 12


@dataclass(frozen=True)
class Item:
    """One thing. `x`: its centre, `base`: its lower edge, `height`: all as parts of the picture.

    `group`: things of one group are named as one ("three apples"). `role`: ground, above, afloat, on, floating.
    """

    noun: Noun
    colour: str | None
    x: float
    base: float
    height: float
    group: int
    role: str = "ground"
    flipped: bool = False
    support: int | None = None


@dataclass(frozen=True)
class Layout:
    """A scene before it is painted; the items are in the order of painting, from far to near."""

    place: str
    light: str
    style: str
    horizon: float
    items: tuple[Item, ...]


def draw_layout(rng: Generator, wardrobe: Wardrobe) -> Layout:
    """Return a layout in which every thing can be seen."""
    settings = tuple(place for place in SETTINGS if any(map(wardrobe.has, nouns_at(place))))
    weights = np.array([SETTINGS[name].weight for name in settings])
    place = settings[int(rng.choice(len(settings), p=weights / weights.sum()))]
    light = pick(rng, LIGHT_WEIGHTS) if SETTINGS[place].has_light else "day"
    style = pick(rng, STYLE_WEIGHTS)
    horizon = float(rng.uniform(*SETTINGS[place].horizon))
    most = 4
    for attempt in range(_TRIES):
        items = _draw_items(rng, wardrobe, place, light, horizon, most)
        if items and is_seen(items, wardrobe):
            return Layout(place, light, style, horizon, items)
        most = 4 if attempt < 4 else 2 if attempt < 8 else 1
    noun = next(noun for noun in nouns_at(place) if wardrobe.has(noun))
    return Layout(place, light, style, horizon, (Item(noun, None, 0.5, min(0.86, horizon + 0.3), 0.5, 0),))


def pick(rng: Generator, weights: dict[str, float] | dict[int, float]):
    """Return one key, drawn by its weight."""
    keys, values = list(weights), np.array(list(weights.values()))
    return keys[int(rng.choice(len(keys), p=values / values.sum()))]


def drawn_height(noun: Noun) -> float:
    """Return how tall a thing is drawn beside others: in the right order, and less unlike than in the world."""
    return max(noun.height_m, 0.02) ** SIZE_POWER


def extent(wardrobe: Wardrobe, item: Item) -> tuple[float, float]:
    """Return an item's width and height as parts of the picture."""
    left, top, right, bottom = wardrobe.looks[item.noun.code].box
    return item.height * (right - left) / (bottom - top), item.height


# ---- what is there


def _draw_items(
    rng: Generator, wardrobe: Wardrobe, place: str, light: str, horizon: float, most: int
) -> tuple[Item, ...]:  # fmt: skip
    """Return the things of a scene; none where they could not be placed."""
    setting = SETTINGS[place]
    pool = [noun for noun in nouns_at(place) if wardrobe.has(noun) and fits_light(noun, place, light)]
    if not pool:
        return ()
    first = _draw_noun(rng, pool)
    if place == PLAIN and first.kind in ("face", "sign", "nature"):
        most = 1
    chosen = _choose(rng, place, pool, first, most)
    if setting.floats:
        return _place_floating(rng, wardrobe, place, chosen)
    items = _place_standing(rng, wardrobe, place, chosen, horizon)
    if items and most > 1 and place != PLAIN and rng.random() < ON_SHARE:
        items = _add_on(rng, wardrobe, place, items)
    if items and setting.afloat and rng.random() < AFLOAT_SHARE:
        items = _add_afloat(rng, wardrobe, items, horizon)
    if items and setting.above and rng.random() < ABOVE_SHARE:
        items = _add_above(rng, wardrobe, place, light, items)
    return items


def _draw_noun(rng: Generator, pool: Sequence[Noun]) -> Noun:
    return pool[int(rng.integers(len(pool)))]


def fits_light(noun: Noun, place: str, light: str) -> bool:
    """Tell whether a thing can be seen by this light: no sun at night."""
    if place in ("space", PLAIN):
        return True
    if noun.name in SPACE_ONLY:
        return False
    return noun.name not in (DAY_ONLY if light == "night" else NIGHT_ONLY)


def _choose(
    rng: Generator, place: str, pool: Sequence[Noun], first: Noun, most: int
) -> list[tuple[Noun, str | None, int]]:
    """Return (noun, foreign colour, group) of each thing."""
    colour = draw_colour(rng, first)
    if most > 1 and can_be_counted(first) and rng.random() < COUNT_SHARE:
        count = int(rng.choice([2, 3, 4, 5], p=[0.4, 0.35, 0.15, 0.10]))
        return [(first, colour, 0)] * count
    wanted = min(most, pick(rng, PLAIN_NUM if place == PLAIN else NUM_THINGS))
    chosen = [(first, colour, 0)]
    alike = [noun for noun in pool if noun.code != first.code and _are_alike(noun, first, place)]
    while len(chosen) < wanted and alike:
        noun = alike.pop(int(rng.integers(len(alike))))
        chosen.append((noun, draw_colour(rng, noun), len(chosen)))
    return chosen


def _are_alike(noun: Noun, other: Noun, place: str) -> bool:
    """Tell whether two things can stand side by side."""
    if place == PLAIN and (
        noun.kind in ("face", "sign", "nature", "celestial") or not set(noun.pools) & set(other.pools)
    ):
        return False
    ratio = drawn_height(noun) / drawn_height(other)
    return 1 / MOST_UNLIKE < ratio < MOST_UNLIKE


def draw_colour(rng: Generator, noun: Noun) -> str | None:
    """Return a foreign colour for a thing, None for its own look. Whether it can wear it, its look says."""
    if rng.random() > RECOLOUR_SHARES.get(noun.kind, 0.0) or not without_colour(noun.names):
        return None
    return list(COLOURS)[int(rng.integers(len(COLOURS)))]


def worn(wardrobe: Wardrobe, noun: Noun, colour: str | None) -> str | None:
    """Return the foreign colour that a thing really wears."""
    look = wardrobe.looks[noun.code]
    return None if look.hue is None or colour == look.colour else colour


# ---- where it is


def _place_standing(
    rng: Generator, wardrobe: Wardrobe, place: str, chosen: Sequence[tuple[Noun, str | None, int]], horizon: float
) -> tuple[Item, ...]:  # fmt: skip
    """Return things on the ground: farther ones higher up and smaller, all of them within the picture."""
    count = len(chosen)
    alone = count == 1
    close = alone and rng.random() < CLOSE_SHARE
    depth = rng.uniform(*((0.75, 1.0) if close else (0.55, 0.85)), 1) if alone else rng.uniform(0.30, 0.95, count)
    if not alone and rng.random() < 0.5:
        depth = np.clip(rng.uniform(0.5, 0.9) + rng.uniform(-0.08, 0.08, count), 0.2, 1)  # in a row
    bases = np.clip(horizon + (0.95 - horizon) * depth, horizon + 0.05, 0.95)
    raw = np.array([drawn_height(noun) for noun, _, _ in chosen]) * (0.62 + 0.38 * (bases - horizon) / (0.95 - horizon))
    ratios = np.array([_width_over_height(wardrobe, noun) for noun, _, _ in chosen])
    tallest, widest = (0.80, 0.92) if close else (0.70, 0.80) if alone else (0.56, 0.98)
    zoom = min(tallest / raw.max(), widest / float((raw * ratios).sum()))
    zoom *= rng.uniform(*((0.85, 1.0) if close else (0.62, 1.0) if alone else (0.86, 1.02)))
    heights = np.minimum(raw * zoom, bases - 0.03)
    widths = heights * ratios
    order = rng.permutation(count)
    gaps = max(0.0, 1 - float(widths.sum())) * rng.dirichlet(np.full(count + 1, 3.0))
    if alone:
        centre = float(
            np.clip(rng.normal(0.5, 0.09), widths[0] / 2 + 0.02, max(0.98 - widths[0] / 2, widths[0] / 2 + 0.02))
        )
        return (_item(rng, wardrobe, chosen[0], centre, float(bases[0]), float(heights[0])),)
    items, x = [], 0.0
    for slot, k in enumerate(order):
        x += gaps[slot]
        items.append(_item(rng, wardrobe, chosen[k], x + widths[k] / 2, float(bases[k]), float(heights[k])))
        x += widths[k]
    if any(item.height < 0.07 for item in items):
        return ()
    return tuple(sorted(items, key=lambda item: item.base))


def _width_over_height(wardrobe: Wardrobe, noun: Noun) -> float:
    left, top, right, bottom = wardrobe.looks[noun.code].box
    return (right - left) / (bottom - top)


def _item(
    rng: Generator, wardrobe: Wardrobe, what: tuple[Noun, str | None, int], x: float, base: float, height: float,
    role: str = "ground", support: int | None = None,
) -> Item:  # fmt: skip
    noun, colour, group = what
    flips = rng.random() < 0.5 and noun.kind in _MAY_FLIP
    return Item(noun, worn(wardrobe, noun, colour), float(x), base, height, group, role, flips, support)


_MAY_FLIP = frozenset(
    {"animal", "sea animal", "insect", "vehicle", "boat", "person", "food", "flower", "tree", "aircraft", "flyer"}
)


def _place_floating(
    rng: Generator, wardrobe: Wardrobe, place: str, chosen: Sequence[tuple[Noun, str | None, int]]
) -> tuple[Item, ...]:  # fmt: skip
    """Return things in the air, in water or in space."""
    count = len(chosen)
    raw = np.array([drawn_height(noun) for noun, _, _ in chosen])
    ratios = np.array([_width_over_height(wardrobe, noun) for noun, _, _ in chosen])
    zoom = min((0.62 if count == 1 else 0.46) / raw.max(), (0.8 if count == 1 else 0.94) / float((raw * ratios).sum()))
    heights = raw * zoom * rng.uniform(0.75, 1.0, count)
    widths, items, x = heights * ratios, [], 0.0
    gaps = max(0.0, 1 - float(widths.sum())) * rng.dirichlet(np.full(count + 1, 3.0))
    for slot, k in enumerate(rng.permutation(count)):
        x += gaps[slot]
        y = float(np.clip(rng.normal(0.48, 0.08 if count == 1 else 0.14), heights[k] / 2 + 0.04, 0.92 - heights[k] / 2))
        items.append(
            _item(rng, wardrobe, chosen[k], x + widths[k] / 2, y + heights[k] / 2, float(heights[k]), "floating")
        )
        x += widths[k]
    return () if min(heights) < 0.07 else tuple(items)


def _add_above(rng: Generator, wardrobe: Wardrobe, place: str, light: str, items: tuple[Item, ...]) -> tuple[Item, ...]:
    """Return the items with a thing in the sky, farthest of all; as they were where there is no room."""
    pool = [n for n in in_pools(SETTINGS[place].above) if wardrobe.has(n) and fits_light(n, place, light)]
    if not pool:
        return items
    noun = _draw_noun(rng, pool)
    height = float(rng.uniform(0.15, 0.23)) * (0.65 if noun.kind in ("flyer", "insect") else 1.0)
    width = height * _width_over_height(wardrobe, noun)
    x = float(rng.uniform(width / 2 + 0.02, 0.98 - width / 2))
    tops = [i.base - i.height for i in items if abs(i.x - x) < (extent(wardrobe, i)[0] + width) / 2]
    room = min(tops, default=0.5) - 0.02
    if room < height + 0.03 or any(i.noun.code == noun.code for i in items):
        return items
    base = float(rng.uniform(height + 0.02, min(room, height + 0.16)))
    what = noun, draw_colour(rng, noun) if noun.kind == "aircraft" else None, 1 + max(i.group for i in items)
    return _with_first(items, _item(rng, wardrobe, what, x, base, height, "above"))


def _with_first(items: tuple[Item, ...], item: Item) -> tuple[Item, ...]:
    """Return the items with one more behind them all."""
    moved = (i if i.support is None else replace(i, support=i.support + 1) for i in items)
    return (item, *moved)


def _add_afloat(rng: Generator, wardrobe: Wardrobe, items: tuple[Item, ...], horizon: float) -> tuple[Item, ...]:
    """Return the items with a boat on the water behind them."""
    pool = [n for n in in_pools(("boat",)) if wardrobe.has(n)]
    if not pool:
        return items
    noun = _draw_noun(rng, pool)
    height = float(rng.uniform(0.11, 0.17))
    width = height * _width_over_height(wardrobe, noun)
    x = float(rng.uniform(width / 2 + 0.02, 0.98 - width / 2))
    what = noun, draw_colour(rng, noun), 1 + max(i.group for i in items)
    return _with_first(items, _item(rng, wardrobe, what, x, horizon + 0.05, height, "afloat"))


def _add_on(rng: Generator, wardrobe: Wardrobe, place: str, items: tuple[Item, ...]) -> tuple[Item, ...]:
    """Return the items with a thing that lies on one of them; as they were where none can bear it."""
    for number, item in enumerate(items):
        found = SUPPORTS.get(item.noun.name)
        if found is None or sum(i.group == item.group for i in items) > 1:
            continue
        depth, pools = found
        fitting = [
            n for n in in_pools(pools)
            if wardrobe.has(n) and n.kind not in ("face",) and drawn_height(n) < drawn_height(item.noun) * 0.95
            and all(i.noun.code != n.code for i in items)
        ]  # fmt: skip
        if not fitting:
            continue
        noun = _draw_noun(rng, fitting)
        scale = min(0.75, max(0.35, drawn_height(noun) / drawn_height(item.noun)))
        wide, tall = extent(wardrobe, item)
        height = min(scale * tall, 0.8 * wide / _width_over_height(wardrobe, noun))
        base = item.base - tall * (1 - depth)
        if base - height < 0.02:
            continue
        what = noun, draw_colour(rng, noun), 1 + max(i.group for i in items)
        lying = _item(rng, wardrobe, what, item.x + wide * rng.uniform(-0.08, 0.08), base, height, "on", number)
        return (*items, lying)
    return items


# ---- is it seen


def is_seen(items: tuple[Item, ...], wardrobe: Wardrobe) -> bool:
    """Tell whether enough of everything can be seen, by their boxes: two thirds of a box, and its centre."""
    side = 48
    owner = np.full((side, side), -1, np.int16)
    areas = []
    for number, item in enumerate(items):
        width, height = extent(wardrobe, item)
        rows = slice(max(0, round((item.base - height) * side)), min(side, round(item.base * side)))
        columns = slice(max(0, round((item.x - width / 2) * side)), min(side, round((item.x + width / 2) * side)))
        owner[rows, columns] = number
        areas.append(max(1, (rows.stop - rows.start) * (columns.stop - columns.start)))
    least = 0.78 if len({item.group for item in items}) < len(items) else LEAST_SEEN
    return all((owner == number).sum() >= least * area for number, area in enumerate(areas))
