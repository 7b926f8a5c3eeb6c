"""Captions: sentences that say exactly what a layout holds."""

from __future__ import annotations

from dataclasses import dataclass

from numpy.random import Generator

from .vocabulary import PLACES, Noun


@dataclass(frozen=True)
class Mention:
    """One thing as the caption names it. `colour` is None where the caption keeps silent about it."""

    noun: Noun
    colour: str | None


def pick(rng: Generator, options: tuple[str, ...]) -> str:
    """Return one of the options."""
    return options[int(rng.integers(len(options)))]


def article(phrase: str) -> str:
    """Return the phrase with its indefinite article."""
    return f"an {phrase}" if phrase[0] in "aeiou" and not phrase.startswith("ufo") else f"a {phrase}"


def name(mention: Mention, rng: Generator) -> str:
    """Return the thing's name with its colour, without an article."""
    noun = pick(rng, mention.noun.names)
    return f"{mention.colour} {noun}" if mention.colour else noun


def phrase(mention: Mention, rng: Generator) -> str:
    """Return the thing with an article; sun and moon are unique."""
    bare = name(mention, rng)
    return f"the {bare}" if bare in ("sun", "moon") else article(bare)


def single_caption(mention: Mention, place: str, rng: Generator) -> str:
    """Return a caption for one thing in a place."""
    style = rng.random()
    if place == "studio" and style < 0.45:
        return name(mention, rng) if style < 0.15 else phrase(mention, rng)
    if style < 0.06:
        return f"{name(mention, rng)}, {place}"
    if style < 0.16:
        return f"a picture of {phrase(mention, rng)} {pick(rng, PLACES[place])}"
    return f"{phrase(mention, rng)} {pick(rng, PLACES[place])}"


def pair_caption(left: Mention, right: Mention, place: str, rng: Generator) -> str:
    """Return a caption for two things side by side, saying who stands where in two cases of three."""
    where = pick(rng, PLACES[place])
    style = rng.random()
    if style < 0.34:
        first, second = (left, right) if rng.random() < 0.5 else (right, left)
        return f"{phrase(first, rng)} and {phrase(second, rng)} {where}"
    if style < 0.67:
        return f"{phrase(left, rng)} to the left of {phrase(right, rng)} {where}"
    return f"{phrase(right, rng)} to the right of {phrase(left, rng)} {where}"


def sky_caption(ground: Mention, flying: Mention, place: str, rng: Generator) -> str:
    """Return a caption for one thing below and one in the sky."""
    where = pick(rng, PLACES[place])
    if rng.random() < 0.5:
        return f"{phrase(ground, rng)} {where} with {phrase(flying, rng)} in the sky"
    return f"{phrase(ground, rng)} {where}, {phrase(flying, rng)} above"
