"""AND: a prompt of several parts, each with its weight, that are drawn together.

uncond + cfg * sum(weight * (part - uncond))        Liu et al. 2022, composable diffusion, eq. 9
"""

import re
from typing import NamedTuple

_AND = re.compile(r"\bAND\b")
_WEIGHT = re.compile(r"\s*([-+]?(?:\d+\.?|\d*\.\d+))")


class Part(NamedTuple):
    """One part of a prompt, and how much it counts."""

    text: str
    weight: float


def split_parts(prompt: str) -> list[Part]:
    """Return the parts between the upper-case words AND; at least one.

    A1111 parity: a number after the last colon is a weight even where there is no AND ("at 10:30" weighs 30). Not so
    after an escaped colon: "at 10\\:30" is text; upstream has no way to say so.
    """
    return [_part(text) for text in _AND.split(prompt)]


def _part(text: str) -> Part:
    text = text.rstrip()
    before, colon, after = text.rpartition(":")
    found = _WEIGHT.fullmatch(after) if colon and not _ends_escaping(before) else None
    return Part(before.rstrip(), float(found[1])) if found else Part(text, 1.0)


def _ends_escaping(text: str) -> bool:
    """Return whether a text ends with a backslash that escapes what follows: an odd number of them."""
    return (len(text) - len(text.rstrip("\\"))) % 2 == 1
