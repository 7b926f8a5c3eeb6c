"""Words: articles, plurals and numbers, as English has them."""

from __future__ import annotations

from .vocabulary import COLOURS, Noun

NUMBERS = {2: "two", 3: "three", 4: "four", 5: "five"}
_PLURALS = {
    "mouse": "mice", "goose": "geese", "sheep": "sheep", "fish": "fish", "tropical fish": "tropical fish",
    "deer": "deer",
    "knife": "knives", "leaf": "leaves", "scarf": "scarves", "wolf face": "wolf faces", "die": "dice", "ox": "oxen",
    "man": "men", "woman": "women", "child": "children", "person": "people", "bison": "bison", "squid": "squid",
    "shrimp": "shrimp", "tooth": "teeth", "loaf": "loaves", "calf": "calves", "fisherman": "fishermen",
}  # fmt: skip
_MASS = frozenset(
    [
        "salt",
        "butter",
        "meat",
        "bacon",
        "popcorn",
        "garlic",
        "corn",
        "ginger",
        "lettuce",
        "broccoli",
        "bread",
        "champagne",
        "whisky",
        "beer",
        "coffee",
        "tea",
        "milk",
        "juice",
        "sake",
        "oden",
        "sushi",
        "spaghetti",
        "curry",
        "custard",
        "fondue",
        "chocolate",
        "stew",
        "salad",
        "falafel",
        "fire",
        "soap",
        "fries",
        "french",
        "cheese",
        "steak",
        "clover",
        "grapes",
    ]
)
_MANY = frozenset(
    [
        "cherries",
        "blueberries",
        "peanuts",
        "beans",
        "peas",
        "pancakes",
        "glasses",
        "sunglasses",
        "goggles",
        "headphones",
        "jeans",
        "shorts",
        "socks",
        "gloves",
        "scissors",
        "books",
        "chopsticks",
        "maracas",
        "scales",
        "wrestlers",
        "houses",
        "leaves",
        "fries",
        "noodles",
        "grapes",
        "sparkles",
        "eyes",
        "lips",
        "masks",
        "prints",
        "hammers",
        "bags",
        "pins",
    ]
)
_UNIQUE = frozenset(
    {"sun", "moon", "earth", "planet earth", "smiling sun", "statue of liberty", "crescent moon", "full moon"}
)
_HEADS = (" of ", " with ", " on ", " in ", " behind ", " doing ")


def indefinite(phrase: str, noun_name: str) -> str:
    """Return a phrase with what goes before it: a, an, the, some, or nothing."""
    if noun_name in _UNIQUE:
        return f"the {phrase}"
    if is_many(noun_name):
        return phrase if phrase.split()[0] in NUMBERS.values() else f"some {phrase}"
    if noun_name in _MASS:
        return phrase
    return (
        f"an {phrase}" if phrase[0] in "aeiou" and not phrase.startswith(("ufo", "one", "unicorn")) else f"a {phrase}"
    )


def is_many(name: str) -> bool:
    """Tell whether a name is a plural by itself."""
    return _split(name)[0].split()[-1] in _MANY


def can_be_counted(noun: Noun) -> bool:
    """Tell whether several of a thing can be named: not the sun, not salt, not jeans."""
    head = _split(noun.name)[0].split()[-1]
    return noun.name not in _UNIQUE and head not in _MANY and head not in _MASS and noun.kind not in ("nature", "face")


def plural(name: str) -> str:
    """Return the plural of a name: of its head, where it has parts."""
    head, rest = _split(name)
    *first, last = head.split()
    whole = _PLURALS.get(head)
    return (whole if whole is not None else " ".join([*first, _plural_of_word(last)])) + rest


def _plural_of_word(word: str) -> str:
    if word in _PLURALS:
        return _PLURALS[word]
    if word.endswith(("s", "x", "ch", "sh", "z")):
        return f"{word}es"
    if word.endswith("y") and word[-2] not in "aeiou":
        return f"{word[:-1]}ies"
    if word in ("potato", "tomato", "mosquito", "torpedo", "volcano", "mango"):
        return f"{word}es"
    return f"{word}s"


def _split(name: str) -> tuple[str, str]:
    """Return the part of a name that has a plural, and the rest of it."""
    found = [at for mark in _HEADS if (at := name.find(mark)) > 0]
    at = min(found, default=len(name))
    return name[:at], name[at:]


def without_colour(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names in which no colour is."""
    return tuple(name for name in names if not set(name.split()) & (COLOURS.keys() | {"golden", "snow-capped"}))
