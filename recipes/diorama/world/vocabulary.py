"""The nouns, places, lights and colours of the world, as tables."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path

TABLE = Path(__file__).with_name("nouns.csv")


@dataclass(frozen=True)
class Noun:
    """One thing of the world. `names`: the first is its own. `height_m`: as it stands, in metres."""

    code: str
    names: tuple[str, ...]
    kind: str
    height_m: float
    pools: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.names[0]


@cache
def nouns() -> tuple[Noun, ...]:
    """Return every noun of the table."""
    with TABLE.open(encoding="utf-8", newline="") as file:
        return tuple(
            Noun(row["code"], tuple(row["names"].split("|")), row["kind"], float(row["height_m"]), _split(row["pools"]))
            for row in csv.DictReader(file)
        )


def _split(cell: str) -> tuple[str, ...]:
    return tuple(cell.split("|"))


@dataclass(frozen=True)
class Setting:
    """A place as the layout sees it. `phrases`: how captions name it. `pools`: what stands there.

    `above`: what may be in its sky; `afloat`: what may swim on water that it shows behind. `floats`: nothing stands.
    """

    phrases: tuple[str, ...]
    pools: tuple[str, ...]
    horizon: tuple[float, float]
    weight: float = 1.0
    above: tuple[str, ...] = ()
    afloat: tuple[str, ...] = ()
    has_light: bool = True
    floats: bool = False


SKY = ("celestial", "aircraft", "flyer", "storm")
PLAIN = "studio"
SETTINGS: dict[str, Setting] = {
    "meadow": Setting(
        ("in a meadow", "on green grass", "in a grassy field", "in a green meadow"),
        (
            "pasture",
            "savanna",
            "woodland",
            "flower",
            "tree",
            "house",
            "offroad",
            "people",
            "ball",
            "landmark",
            "fairy",
            "insect",
        ),
        (0.5, 0.6),
        1.5,
        SKY,
    ),
    "forest": Setting(
        ("in a forest", "in the woods", "among the trees", "in a green forest"),
        ("woodland", "flower", "insect", "fairy", "landmark", "tree", "people"),
        (0.5, 0.58),
        1.0,
        ("flyer",),
    ),
    "mountains": Setting(
        ("in the mountains", "before high mountains", "in a mountain valley"),
        ("woodland", "pasture", "house", "tree", "people", "offroad", "flower"),
        (0.54, 0.62),
        0.8,
        SKY,
    ),
    "beach": Setting(
        ("on a beach", "on a sandy beach", "on the beach by the sea", "at the seaside"),
        ("shore", "palm", "people", "ball", "beachware", "pet"),
        (0.4, 0.46),
        1.2,
        ("celestial", "aircraft", "flyer"),
        ("boat",),
    ),
    "snow": Setting(
        ("in the snow", "on a snowy field", "in a snowy landscape", "in winter"),
        ("arctic", "skier", "house", "tree", "people"),
        (0.5, 0.6),
        0.9,
        ("celestial", "aircraft", "flyer"),
    ),
    "desert": Setting(
        ("in a desert", "in the desert", "in a sandy desert", "among the dunes"),
        ("desert", "savanna", "cactus", "palm", "landmark", "offroad"),
        (0.5, 0.6),
        0.9,
        ("celestial", "aircraft", "flyer"),
    ),
    "street": Setting(
        ("on a city street", "on a street", "in a city", "on a road in a town"),
        ("vehicle", "roadside", "people", "pet", "ball", "town"),
        (0.56, 0.6),
        1.4,
        ("celestial", "aircraft", "flyer", "storm"),
    ),
    "town": Setting(
        ("in a town", "on a town square", "in a village", "in front of some houses"),
        ("house", "town", "vehicle", "people", "roadside", "tree"),
        (0.55, 0.6),
        0.9,
        SKY,
    ),
    "sea": Setting(
        ("on the sea", "on the ocean", "on the water", "on the open sea"),
        ("boat", "marine"),
        (0.44, 0.52),
        1.0,
        ("celestial", "aircraft", "flyer", "storm"),
    ),
    "underwater": Setting(
        ("under water", "under the sea", "deep in the sea", "at the bottom of the sea"),
        ("marine", "shore"),
        (0.78, 0.84),
        0.8,
        has_light=False,
        floats=True,
    ),
    "sky": Setting(
        ("in the sky", "high in the sky", "among the clouds"),
        ("aircraft", "flyer", "celestial", "storm"),
        (1.0, 1.0),
        0.9,
        floats=True,
    ),
    "space": Setting(
        ("in space", "in outer space", "among the stars", "in the dark of space"),
        ("spacecraft", "celestial"),
        (1.0, 1.0),
        0.5,
        has_light=False,
        floats=True,
    ),
    "table": Setting(
        ("on a table", "on a wooden table", "on the table"),
        ("fruit", "meal", "drink", "toy", "device", "desk", "leaf", "ball"),
        (0.5, 0.58),
        2.2,
        has_light=False,
    ),
    "kitchen": Setting(
        ("in a kitchen", "on a kitchen counter", "on the counter of a kitchen"),
        ("fruit", "meal", "drink"),
        (0.52, 0.58),
        1.2,
        has_light=False,
    ),
    "room": Setting(
        ("in a room", "in a living room", "at home", "on a wooden floor"),
        ("furniture", "pet", "gear", "toyroom", "ball"),
        (0.56, 0.62),
        1.2,
        has_light=False,
    ),
    PLAIN: Setting(
        ("on a plain background", "on a pastel background", "in a studio", "on a simple background"),
        ("*",),
        (0.62, 0.68),
        5.0,
        has_light=False,
    ),
}
"""Place -> what is known of it before it is painted."""

PETS = ("dog", "poodle", "guide dog", "cat", "black cat")
SPACECRAFT = ("rocket", "flying saucer", "satellite", "planet earth", "earth", "comet", "ringed planet", "star")
NIGHT_ONLY = ("crescent moon", "full moon", "star", "comet", "ringed planet", "earth")
DAY_ONLY = ("sun", "rainbow", "sun behind a cloud")
SPACE_ONLY = ("ringed planet", "earth", "satellite")

LIGHTS: dict[str, tuple[str, ...]] = {
    "day": ("", "", "", "by day", "on a sunny day"),
    "sunset": ("at sunset", "in the evening", "at dusk", "under an orange sky"),
    "night": ("at night", "by night", "at night under the stars", "on a dark night"),
}
LIGHT_WEIGHTS = {"day": 0.64, "sunset": 0.18, "night": 0.18}

STYLES: dict[str, tuple[str, ...]] = {
    "3d": ("a 3d render of", "3d render of", "a soft 3d picture of"),
    "glossy": ("a glossy picture of", "a glossy icon of", "glossy style,"),
    "flat": ("a flat illustration of", "a flat drawing of", "flat style,"),
}
STYLE_WEIGHTS = {"3d": 0.76, "glossy": 0.10, "flat": 0.14}

# Hue in degrees, saturation, value: of the middle of a thing of that colour.
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (355.0, 0.84, 0.90),
    "orange": (26.0, 0.82, 0.97),
    "yellow": (48.0, 0.76, 0.98),
    "green": (128.0, 0.66, 0.72),
    "blue": (212.0, 0.78, 0.92),
    "purple": (272.0, 0.62, 0.72),
    "pink": (332.0, 0.40, 0.98),
    "brown": (22.0, 0.56, 0.48),
    "white": (220.0, 0.03, 0.97),
    "black": (250.0, 0.14, 0.20),
}
# How often a thing of a kind wears a foreign colour, where it can.
RECOLOUR_SHARES: dict[str, float] = {
    "vehicle": 0.7, "clothing": 0.65, "object": 0.55, "furniture": 0.55, "sport": 0.4, "building": 0.35, "boat": 0.5,
    "aircraft": 0.45, "tableware": 0.4, "flower": 0.45, "animal": 0.22, "sea animal": 0.25, "insect": 0.25,
    "tree": 0.15, "food": 0.12, "sign": 0.4,
}  # fmt: skip

SUPPORTS: dict[str, tuple[float, tuple[str, ...]]] = {
    "couch": (0.5, ("pet", "toyroom")),
    "bed": (0.5, ("pet", "toyroom")),
    "chair": (0.52, ("pet", "toyroom", "ball")),
    "rock": (0.06, ("woodland", "insect", "desert", "shore", "flyer")),
    "log": (0.1, ("woodland", "insect", "flower")),
    "box": (0.1, ("pet", "toy", "toyroom", "ball")),
    "gift": (0.3, ("toy",)),
    "book": (0.02, ("toy", "fruit", "insect")),
    "blue book": (0.02, ("toy", "fruit")),
    "briefcase": (0.2, ("toy", "pet", "desk")),
    "suitcase": (0.16, ("pet", "toyroom")),
    "drum": (0.24, ("pet", "toy")),
    "oil drum": (0.08, ("pet", "flyer")),
    "television": (0.22, ("pet", "toyroom")),
    "birthday cake": (0.35, ("fruit",)),
    "bread": (0.12, ("fruit",)),
    "elephant": (0.2, ("flyer", "pet")),
    "horse": (0.4, ("flyer",)),
}
"""What another thing may lie on -> how far below its top that lies, as a part of its height, and what may lie there."""

BACKGROUND_CLASSES = (
    "sky", "hill", "grass", "sand", "snow", "water", "skyline", "pavement", "road", "table", "wall", "backdrop",
)  # fmt: skip
_FIRST_KINDS = (  # in the order of version 0, whose segmentation colours they keep
    "vehicle", "boat", "building", "tree", "animal", "sea animal", "flyer", "aircraft", "celestial", "food",
    "tableware", "object", "furniture", "character", "flower",
)  # fmt: skip
_LATER = (
    "insect",
    "sport",
    "clothing",
    "person",
    "face",
    "sign",
    "nature",
    "forest",
    "mountain",
    "floor",
    "window",
    "space",
)
CLASSES: tuple[str, ...] = BACKGROUND_CLASSES + _FIRST_KINDS + _LATER


@cache
def nouns_at(place: str) -> tuple[Noun, ...]:
    """Return what may stand (or float) at a place; everything fits the plain background."""
    return in_pools(SETTINGS[place].pools)


@cache
def in_pools(pools: tuple[str, ...]) -> tuple[Noun, ...]:
    """Return the nouns of some pools, each once; "*" is all of them."""
    return tuple(noun for noun in nouns() if any(is_in(noun, pool) for pool in pools))


def is_in(noun: Noun, pool: str) -> bool:
    """Tell whether a noun is in a pool: by the table, or by one of the lists above."""
    derived = {"pet": PETS, "spacecraft": SPACECRAFT, "toyroom": ("teddy bear", "gift", "soccer ball", "box")}
    return pool == "*" or pool in noun.pools or noun.name in derived.get(pool, ())
