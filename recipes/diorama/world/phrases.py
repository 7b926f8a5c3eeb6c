"""Every phrase that a caption of the world can be made of."""

from __future__ import annotations

from collections.abc import Iterator

from .captions import SAID
from .vocabulary import COLOURS, LIGHTS, SETTINGS, STYLES, nouns
from .words import NUMBERS, plural

JOINTS = (
    "a", "an", "the", "some", "and", ",", "with", "in the sky", "above", "on the sea", "on the water", "in the sea",
    "on", "on top of", "sitting on", "flat style", "glossy style", "3d render", "3d style",
)  # fmt: skip


def every_phrase() -> Iterator[str]:
    """Yield them all; "" is the caption that was left out."""
    yield ""
    yield from JOINTS
    yield from (*COLOURS, *NUMBERS.values())
    for group in (*LIGHTS.values(), *STYLES.values(), *SAID.values()):
        yield from group
    for setting in SETTINGS.values():
        yield from setting.phrases
    for noun in nouns():
        for name in noun.names:
            yield name
            yield plural(name)
