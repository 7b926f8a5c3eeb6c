"""What a detector learns of a scene: which noun stands in which cell, in which colour, and how large."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .render import Scene
from .vocabulary import COLOURS, nouns

CELLS = 16  # a side of the grid, whatever the picture's size
NO_NOUN, NO_COLOUR = -1, -1
COLOUR_NAMES = tuple(COLOURS)


@dataclass(frozen=True)
class Labels:
    """(16 16) each: `noun`, an index of the table at the cell of a thing's centre, else -1; `colour` there, or -1."""

    noun: NDArray[np.int16]
    colour: NDArray[np.int8]


def labels_of(scene: Scene) -> Labels:
    """Return the labels of a scene, by what is seen of each thing."""
    number = {noun.code: k for k, noun in enumerate(nouns())}
    size = scene.instances.shape[0]
    noun = np.full((CELLS, CELLS), NO_NOUN, np.int16)
    colour = np.full((CELLS, CELLS), NO_COLOUR, np.int8)
    said = {k: mention.colour for mention in scene.facts.mentions for k in mention.items}
    for k, item in enumerate(scene.layout.items):
        ys, xs = np.nonzero(scene.instances == k + 1)
        if not len(ys):
            continue
        cell = tuple(min(CELLS - 1, int((v.min() + v.max() + 1) / 2 * CELLS / size)) for v in (ys, xs))
        noun[cell] = number[item.noun.code]
        named = said.get(k)
        colour[cell] = NO_COLOUR if named is None else COLOUR_NAMES.index(named)
    return Labels(noun, colour)
