"""What a detector finds, held against what a prompt asked for: shares of objects, colours, counts, relations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from .detector import Found
from .world.captions import Facts, Mention, Relation
from .world.labels import CELLS
from .world.render import Box, Scene
from .world.vocabulary import nouns

ON_AT_MOST = 0.25  # parts of the picture between the middles of what lies on something and that something


@dataclass(frozen=True)
class Share:
    """So many of so many."""

    hits: int = 0
    of: int = 0

    def __str__(self) -> str:
        return "-" if not self.of else f"{100 * self.hits / self.of:.0f} % of {self.of}"

    @property
    def part(self) -> float:
        return self.hits / self.of if self.of else 0.0

    def plus(self, hits: Iterable[bool]) -> Share:
        found = list(hits)
        return Share(self.hits + sum(found), self.of + len(found))


@dataclass(frozen=True)
class Scores:
    """`colour`: of the objects that were found and whose colour was named. `count`: of two and more of a kind."""

    object: Share = field(default_factory=Share)
    colour: Share = field(default_factory=Share)
    count: Share = field(default_factory=Share)
    relation: Share = field(default_factory=Share)


def score(scores: Scores, facts: Facts, found: Sequence[Found]) -> Scores:
    """Return the scores with one more picture."""
    number = {noun.name: k for k, noun in enumerate(nouns())}
    of = [[each for each in found if each.noun == number[mention.name]] for mention in facts.mentions]
    pairs = list(zip(facts.mentions, of, strict=True))
    return Scores(
        scores.object.plus(bool(seen) for _, seen in pairs),
        scores.colour.plus(_has_colour(mention, seen) for mention, seen in pairs if mention.colour and seen),
        scores.count.plus(len(seen) == len(mention.items) for mention, seen in pairs if len(mention.items) > 1),
        scores.relation.plus(_holds(r, of) for r in facts.relations if r.kind in _HOLDS),
    )


def in_their_places(share: Share, scene: Scene, found: Sequence[Found]) -> Share:
    """Return the share with the things of one more picture: the middle of each was found in its box, or not."""
    number, size = {noun.name: k for k, noun in enumerate(nouns())}, scene.image.shape[0]
    return share.plus(
        any(each.noun == number[box.label] and _is_in(each, box, size) for each in found) for box in scene.boxes
    )


def _is_in(found: Found, box: Box, size: int) -> bool:
    """Tell whether the middle of a thing is in a box, or half a cell beside it: the detector says it no finer."""
    x, y, more = found.x * size, found.y * size, size / CELLS / 2
    return box.left - more <= x <= box.right + more and box.top - more <= y <= box.bottom + more


def _has_colour(mention: Mention, seen: Sequence[Found]) -> bool:
    return seen[0].colour == mention.colour


def _holds(relation: Relation, of: Sequence[Sequence[Found]]) -> bool:
    """Tell whether both things were found, and every one of the first stands so to every one of the second."""
    first, second = of[relation.subject], of[relation.object]
    holds = _HOLDS[relation.kind]
    return bool(first and second) and all(holds(a, b) for a in first for b in second)


_HOLDS: dict[str, Callable[[Found, Found], bool]] = {
    "left": lambda a, b: a.x < b.x,
    "right": lambda a, b: a.x > b.x,
    "on": lambda a, b: a.y < b.y and abs(a.x - b.x) < ON_AT_MOST,
}
