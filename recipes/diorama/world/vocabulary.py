"""The nouns, places and colours of the world, as tables."""

from __future__ import annotations

from dataclasses import dataclass

GROUND = ("meadow", "night", "sunset", "studio")
WILD = ("meadow", "desert", "sunset", "night", "studio")
STREET = ("street", "street", "street", "street", "studio", "night")
TABLE = ("table", "table", "studio")
SEA = ("sea", "sea", "studio")
SKY = ("sky", "sky", "night", "sunset", "studio")


@dataclass(frozen=True)
class Noun:
    """One thing of the world.

    `size`: its height beside other things, 1 is a car. `sink`: the part of it that stands in the water.
    `colour`: its native colour where it can be recoloured, else None. `weight`: how often it is drawn.
    """

    code: str
    names: tuple[str, ...]
    group: str
    places: tuple[str, ...]
    size: float = 1.0
    colour: str | None = None
    sink: float = 0.0
    weight: float = 1.0


NOUNS: tuple[Noun, ...] = (
    Noun(
        "1f697",
        ("car", "car", "automobile"),
        "vehicle",
        (*STREET, "street", "street", "desert", "snow", "beach"),
        1.0,
        "red",
        weight=5,
    ),
    Noun("1f695", ("taxi", "cab"), "vehicle", STREET, 1.0),
    Noun("1f699", ("jeep", "suv"), "vehicle", (*STREET, "desert"), 1.0, "blue"),
    Noun("1f68c", ("bus",), "vehicle", STREET, 1.15),
    Noun("1f69a", ("truck", "delivery truck", "lorry"), "vehicle", STREET, 1.1),
    Noun("1f693", ("police car",), "vehicle", STREET, 1.0),
    Noun("1f692", ("fire truck", "fire engine"), "vehicle", STREET, 1.1, "red"),
    Noun("1f6b2", ("bicycle", "bike"), "vehicle", (*STREET, "meadow"), 0.9),
    Noun("1f3cd-fe0f", ("motorcycle", "motorbike"), "vehicle", STREET, 0.9, "red"),
    Noun("1f69c", ("tractor",), "vehicle", ("meadow", "meadow", "sunset", "studio"), 1.0, "green"),
    Noun("26f5", ("sailboat", "boat"), "boat", SEA, 1.2),
    Noun("1f6a2", ("ship",), "boat", SEA, 1.2),
    Noun("1f3e0", ("house", "home"), "building", ("meadow", "meadow", "snow", "night", "sunset", "studio"), 1.25),
    Noun(
        "1f3f0",
        ("castle",),
        "building",
        ("meadow", "night", "night", "sunset", "snow", "desert", "studio"),
        1.35,
        weight=1.5,
    ),
    Noun("26ea", ("church",), "building", ("meadow", "snow", "night", "sunset"), 1.3),
    Noun("26fa", ("tent",), "building", ("meadow", "night", "desert"), 0.95, "green"),
    Noun("1f332", ("pine tree", "fir tree"), "tree", ("meadow", "snow", "night", "studio"), 1.3),
    Noun("1f333", ("tree",), "tree", GROUND, 1.3),
    Noun("1f334", ("palm tree",), "tree", ("beach", "beach", "desert", "sunset", "studio"), 1.35),
    Noun("1f335", ("cactus",), "tree", ("desert", "desert", "sunset", "studio"), 1.15),
    Noun("1f384", ("christmas tree",), "tree", ("snow", "night", "studio"), 1.2),
    Noun(
        "1f415",
        ("dog", "puppy"),
        "animal",
        ("meadow", "meadow", "beach", "snow", "street", "night", "studio"),
        0.95,
        "orange",
        weight=2,
    ),
    Noun(
        "1f408",
        ("cat", "kitten"),
        "animal",
        ("meadow", "meadow", "snow", "street", "night", "studio"),
        0.95,
        "orange",
        weight=2,
    ),
    Noun("1f40e", ("horse",), "animal", GROUND, 1.15),
    Noun("1f404", ("cow",), "animal", GROUND, 1.1),
    Noun("1f416", ("pig",), "animal", GROUND, 0.9),
    Noun("1f411", ("sheep", "lamb"), "animal", (*GROUND, "meadow"), 0.95),
    Noun("1f418", ("elephant",), "animal", WILD, 1.25),
    Noun("1f407", ("rabbit", "bunny"), "animal", ("meadow", "meadow", "snow", "night", "studio"), 0.85),
    Noun("1f427", ("penguin",), "animal", ("snow", "snow", "snow", "studio"), 0.95),
    Noun("1f422", ("turtle", "tortoise"), "animal", ("meadow", "beach", "desert", "studio"), 0.8),
    Noun("1f986", ("duck",), "animal", ("meadow", "sea", "studio"), 0.85),
    Noun("1f413", ("rooster", "chicken"), "animal", GROUND, 0.9),
    Noun("1f405", ("tiger",), "animal", WILD, 1.0),
    Noun("1f42a", ("camel",), "animal", ("desert", "desert", "sunset", "studio"), 1.1),
    Noun("1f992", ("giraffe",), "animal", WILD, 1.35),
    Noun("1f993", ("zebra",), "animal", WILD, 1.1),
    Noun("1f98c", ("deer", "reindeer"), "animal", ("meadow", "snow", "night", "sunset"), 1.15),
    Noun("1f996", ("dinosaur", "t-rex"), "animal", WILD, 1.2, "green"),
    Noun("1f43c", ("panda",), "animal", ("studio", "meadow", "snow"), 0.95),
    Noun("1f98a", ("fox",), "animal", ("studio", "meadow", "snow"), 0.9),
    Noun("1f981", ("lion",), "animal", ("studio", "desert", "sunset"), 0.95),
    Noun("1f40b", ("whale",), "sea animal", SEA, 1.15, sink=0.2),
    Noun("1f42c", ("dolphin",), "sea animal", SEA, 1.1, sink=0.15),
    Noun("1f41f", ("fish",), "sea animal", SEA, 0.9, "blue", sink=0.1),
    Noun("1f419", ("octopus",), "sea animal", SEA, 1.0, sink=0.15),
    Noun("1f980", ("crab",), "sea animal", ("beach", "beach", "studio"), 0.8, "red"),
    Noun("1f98b", ("butterfly",), "flyer", SKY, 0.9),
    Noun("1f41d", ("bee",), "flyer", SKY, 0.85),
    Noun("1f680", ("rocket", "space rocket"), "aircraft", SKY, 1.1),
    Noun("2708-fe0f", ("airplane", "plane"), "aircraft", SKY, 1.1),
    Noun("1f681", ("helicopter",), "aircraft", SKY, 1.0, "orange"),
    Noun("1f6f8", ("flying saucer", "ufo"), "aircraft", ("sky", "night", "night", "sunset"), 1.0),
    Noun("1f388", ("balloon",), "aircraft", SKY, 1.1, "red", weight=1.5),
    Noun("2600-fe0f", ("sun",), "celestial", ("sky", "sky", "studio"), 0.95),
    Noun("1f319", ("moon", "crescent moon"), "celestial", ("night", "night", "studio"), 0.95),
    Noun("2601-fe0f", ("cloud",), "celestial", ("sky", "sky", "sunset"), 0.8),
    Noun("2b50", ("star",), "celestial", ("night", "night", "studio"), 0.9),
    Noun("1f34e", ("apple",), "food", TABLE, 0.85, "red"),
    Noun("1f34c", ("banana",), "food", TABLE, 0.85),
    Noun("1f353", ("strawberry",), "food", TABLE, 0.85),
    Noun("1f349", ("watermelon", "slice of watermelon"), "food", TABLE, 0.85),
    Noun("1f382", ("cake", "birthday cake"), "food", TABLE, 1.0),
    Noun("1f9c1", ("cupcake", "muffin"), "food", TABLE, 0.9),
    Noun("1f355", ("pizza", "slice of pizza"), "food", TABLE, 0.9),
    Noun("1f369", ("donut", "doughnut"), "food", TABLE, 0.85),
    Noun("1f354", ("hamburger", "burger"), "food", TABLE, 0.9),
    Noun("2615", ("cup", "cup of coffee", "mug"), "tableware", TABLE, 0.85, weight=1.5),
    Noun("1fad6", ("teapot",), "tableware", TABLE, 0.9, "red"),
    Noun("1f4d5", ("book",), "object", TABLE, 0.95, "red", weight=1.5),
    Noun("1f4a1", ("lamp", "light bulb"), "object", TABLE, 0.95),
    Noun("23f0", ("alarm clock", "clock"), "object", TABLE, 0.9, "red"),
    Noun("1f4f7", ("camera",), "object", TABLE, 0.85),
    Noun("1f56f-fe0f", ("candle",), "object", TABLE, 0.95),
    Noun("1fa91", ("chair",), "furniture", ("studio", "studio", "studio", "beach"), 1.1),
    Noun("1f3b8", ("guitar", "electric guitar"), "object", ("studio", "studio", "table"), 1.1, "red"),
    Noun("26bd", ("soccer ball", "ball", "football"), "object", ("meadow", "meadow", "beach", "studio", "street"), 0.8),
    Noun("1f3c0", ("basketball",), "object", ("street", "studio", "studio"), 0.8),
    Noun("1f451", ("crown", "golden crown"), "object", TABLE, 0.85),
    Noun("1f381", ("gift", "present"), "object", (*TABLE, "snow"), 0.9, "yellow"),
    Noun("1f9f8", ("teddy bear",), "object", (*TABLE, "studio"), 1.0),
    Noun("1f916", ("robot",), "character", ("studio", "street", "table"), 1.0),
    Noun("26c4", ("snowman",), "character", ("snow", "snow", "snow", "night"), 1.1),
    Noun("1f47b", ("ghost",), "character", ("night", "night", "studio"), 1.0),
    Noun("1f383", ("pumpkin", "halloween pumpkin"), "food", ("night", "meadow", "studio", "table"), 0.9),
    Noun("1f339", ("rose",), "flower", ("studio", "meadow", "table"), 0.95, "red"),
    Noun("1f33b", ("sunflower",), "flower", ("meadow", "meadow", "studio"), 1.05),
    Noun("1f337", ("tulip", "flower"), "flower", ("meadow", "meadow", "studio"), 1.0, "pink"),
    Noun("1f344", ("mushroom", "toadstool"), "flower", ("meadow", "meadow", "studio"), 0.85, "red"),
)

PLACES: dict[str, tuple[str, ...]] = {
    "meadow": ("in a meadow", "in a green meadow", "on green grass", "in a grassy field under a blue sky"),
    "beach": ("on a beach", "on a sandy beach", "on the beach by the sea"),
    "snow": ("in the snow", "on a snowy field", "in a snowy landscape"),
    "desert": ("in a desert", "in a sandy desert", "in the desert"),
    "night": ("at night", "at night under the stars", "on a starry night"),
    "sunset": ("at sunset", "in a field at sunset", "under an orange evening sky"),
    "street": ("on a city street", "on a street in a city", "on a street", "on a road in a town"),
    "table": ("on a table", "on a wooden table", "on a brown table"),
    "studio": ("on a plain background", "in a studio", "on a pastel background"),
    "sea": ("on the sea", "in the sea", "on the open ocean", "in the ocean"),
    "sky": ("in the sky", "in a blue sky", "in the blue sky with clouds"),
}

# Hue in degrees, then factors on saturation and value.
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (352.0, 1.05, 1.0),
    "orange": (26.0, 1.0, 1.05),
    "yellow": (46.0, 1.0, 1.15),
    "green": (130.0, 0.9, 0.9),
    "blue": (214.0, 0.95, 1.05),
    "purple": (272.0, 0.75, 0.95),
    "pink": (328.0, 0.62, 1.15),
    "white": (30.0, 0.08, 1.12),
    "black": (250.0, 0.35, 0.3),
}

BACKGROUND_CLASSES = (
    "sky",
    "hill",
    "grass",
    "sand",
    "snow",
    "water",
    "skyline",
    "pavement",
    "road",
    "table",
    "wall",
    "backdrop",
)
OBJECT_CLASSES = tuple(dict.fromkeys(noun.group for noun in NOUNS))
CLASSES: tuple[str, ...] = BACKGROUND_CLASSES + OBJECT_CLASSES
