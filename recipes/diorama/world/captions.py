"""Captions: sentences that say exactly what a layout holds, and the same as facts that can be checked."""

from __future__ import annotations

from dataclasses import dataclass

from numpy.random import Generator

from .layout import Item, Layout
from .pack import Wardrobe
from .vocabulary import LIGHTS, PLAIN, SETTINGS, STYLES
from .words import NUMBERS, indefinite, plural, without_colour

NAME_OWN_COLOUR_SHARE, NAME_STYLE_SHARE = 0.5, 0.3
BESIDE_AT_LEAST, DEPTH_AT_LEAST = 0.16, 0.05  # parts of the picture, between centres and between lower edges


@dataclass(frozen=True)
class Mention:
    """One thing, or several alike, as the caption names it. `items`: their numbers in the layout, from 0."""

    name: str
    words: str
    colour: str | None
    items: tuple[int, ...]
    role: str


@dataclass(frozen=True)
class Relation:
    """`subject` and `object` are numbers of mentions; `kind`: left, right, behind, front, on, above."""

    subject: int
    kind: str
    object: int


@dataclass(frozen=True)
class Facts:
    """What a caption claims."""

    mentions: tuple[Mention, ...]
    relations: tuple[Relation, ...]


def pick(rng: Generator, options: tuple[str, ...]) -> str:
    """Return one of the options."""
    return options[int(rng.integers(len(options)))]


def write(rng: Generator, layout: Layout, wardrobe: Wardrobe) -> tuple[str, Facts]:
    """Return a caption of a layout and what it claims."""
    mentions = _mentions(rng, layout, wardrobe)
    ground = [k for k, m in enumerate(mentions) if m.role in ("ground", "floating")]
    rng.shuffle(ground)
    text, relations = _main(rng, layout, mentions, ground)
    for k, mention in enumerate(mentions):
        if mention.role == "on":
            base = layout.items[mention.items[0]].support
            bearer = next(n for n, m in enumerate(mentions) if base in m.items)
            text, relation = _lying(rng, text, mentions, k, bearer)
            relations.append(relation)
    where = _where(rng, layout)
    text = f"{text} {where}".strip()
    for mention in mentions:
        if mention.role == "above":
            text += pick(
                rng, (f", {mention.words} in the sky", f" with {mention.words} in the sky", f", {mention.words} above")
            )
        elif mention.role == "afloat":
            text += pick(
                rng,
                (
                    f", {mention.words} on the sea",
                    f" with {mention.words} on the water",
                    f", {mention.words} in the sea",
                ),
            )
    return _styled(rng, layout, text), Facts(mentions, tuple(relations))


def _mentions(rng: Generator, layout: Layout, wardrobe: Wardrobe) -> tuple[Mention, ...]:
    groups: dict[int, list[int]] = {}
    for number, item in enumerate(layout.items):
        groups.setdefault(item.group, []).append(number)
    return tuple(_mention(rng, layout, wardrobe, tuple(numbers)) for numbers in groups.values())


def _mention(rng: Generator, layout: Layout, wardrobe: Wardrobe, numbers: tuple[int, ...]) -> Mention:
    item = layout.items[numbers[0]]
    colour = item.colour
    neutral = without_colour(item.noun.names)
    if colour is None and neutral and layout.light == "day" and rng.random() < NAME_OWN_COLOUR_SHARE:
        colour = wardrobe.looks[item.noun.code].colour if item.noun.kind in _COLOUR_IS_TOLD else None
    name = pick(rng, neutral if colour else item.noun.names)
    if len(numbers) > 1:
        words = f"{NUMBERS[len(numbers)]} {f'{colour} ' if colour else ''}{plural(name)}"
    else:
        words = indefinite(f"{colour} {name}" if colour else name, name)
    return Mention(item.noun.name, words, colour, numbers, item.role)


_COLOUR_IS_TOLD = frozenset(
    {
        "vehicle",
        "clothing",
        "object",
        "furniture",
        "sport",
        "boat",
        "aircraft",
        "tableware",
        "flower",
        "building",
        "animal",
    }
)


def _main(
    rng: Generator, layout: Layout, mentions: tuple[Mention, ...], ground: list[int]
) -> tuple[str, list[Relation]]:
    """Return the words for the things on the ground, and the relations that they say."""
    words = [mentions[k].words for k in ground]
    if len(ground) == 1:
        return words[0], []
    if rng.random() < 0.25:
        return f"{', '.join(words[:-1])} and {words[-1]}", []
    first, second = ground[:2]
    options = _true_relations(layout, mentions, first, second)
    if not options:
        return f"{', '.join(words[:-1])} and {words[-1]}", []
    kind = options[int(rng.integers(len(options)))]
    text, relations = f"{words[0]} {pick(rng, SAID[kind])} {words[1]}", [Relation(first, kind, second)]
    for k in ground[2:]:
        options = _true_relations(layout, mentions, k, second)
        if options and rng.random() < 0.6:
            kind = options[int(rng.integers(len(options)))]
            text += f" and {mentions[k].words} {pick(rng, SAID[kind])} the {_short(mentions[second])}"
            relations.append(Relation(k, kind, second))
        else:
            text += f" and {mentions[k].words}"
    return text, relations


SAID: dict[str, tuple[str, ...]] = {
    "left": ("to the left of", "left of", "on the left of"),
    "right": ("to the right of", "right of", "on the right of"),
    "behind": ("behind",),
    "front": ("in front of",),
    "beside": ("next to", "beside"),
}


def _short(mention: Mention) -> str:
    """Return a mention's words without its article."""
    first, _, rest = mention.words.partition(" ")
    return rest if first in ("a", "an", "some", "the") else mention.words


def _true_relations(layout: Layout, mentions: tuple[Mention, ...], first: int, second: int) -> list[str]:
    """Return what can truly be said of two mentions, in every pair of their things."""
    pairs = [(layout.items[a], layout.items[b]) for a in mentions[first].items for b in mentions[second].items]
    return [kind for kind, holds in _HOLDS.items() if all(holds(a, b) for a, b in pairs)]


_HOLDS = {
    "left": lambda a, b: b.x - a.x >= BESIDE_AT_LEAST,
    "right": lambda a, b: a.x - b.x >= BESIDE_AT_LEAST,
    "behind": lambda a, b: a.role == b.role == "ground" and b.base - a.base >= DEPTH_AT_LEAST and abs(a.x - b.x) < 0.34,
    "front": lambda a, b: a.role == b.role == "ground" and a.base - b.base >= DEPTH_AT_LEAST and abs(a.x - b.x) < 0.34,
    "beside": lambda a, b: a.role == b.role == "ground" and abs(a.base - b.base) < 0.04 and 0.1 < abs(a.x - b.x) < 0.5,
}


def _lying(rng: Generator, text: str, mentions: tuple[Mention, ...], k: int, bearer: int) -> tuple[str, Relation]:
    """Return the words with what lies on one of the things."""
    relation = Relation(k, "on", bearer)
    if text == mentions[bearer].words:
        return f"{mentions[k].words} {pick(rng, ('on', 'on top of', 'sitting on'))} {text}", relation
    return f"{text}, {mentions[k].words} on the {_short(mentions[bearer])},", relation


def _where(rng: Generator, layout: Layout) -> str:
    setting = SETTINGS[layout.place]
    if layout.place == PLAIN and rng.random() < 0.6:
        return ""
    if rng.random() < 0.04:
        return ""
    light = pick(rng, LIGHTS[layout.light]) if setting.has_light else ""
    return f"{pick(rng, setting.phrases)} {light}".strip()


def _styled(rng: Generator, layout: Layout, text: str) -> str:
    """Return the caption with its style: always where it is not the usual one."""
    if layout.style == "3d" and rng.random() > NAME_STYLE_SHARE:
        return text
    words = pick(rng, STYLES[layout.style])
    if rng.random() < 0.25:
        return f"{text}, {layout.style} style" if layout.style != "3d" else f"{text}, 3d render"
    return f"{words} {text}"


def is_true(facts: Facts, items: tuple[Item, ...], relation: Relation) -> bool:
    """Tell whether a relation holds between all the items of its two mentions."""
    if relation.kind == "on":
        return all(
            items[a].support in facts.mentions[relation.object].items for a in facts.mentions[relation.subject].items
        )
    holds = _HOLDS[relation.kind]
    subject, other = facts.mentions[relation.subject].items, facts.mentions[relation.object].items
    return all(holds(items[a], items[b]) for a in subject for b in other)
