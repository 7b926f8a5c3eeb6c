"""What a data set is: rows of (target, condition, caption), read one at a time. No torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from disegno.annotators import ANNOTATORS
from disegno.annotators.base import make_params

Picture = NDArray[np.uint8]  # h w 3


@dataclass(frozen=True)
class Sample:
    """A pair, read: pixel-aligned, of one size. `target` and `condition`: uint8 RGB (h w 3)."""

    target: Picture
    condition: Picture
    caption: str


class Pairs(Protocol):
    """A data set. `annotator`: what made its conditions, where the data set says so."""

    @property
    def name(self) -> str: ...
    @property
    def annotator(self) -> str | None: ...
    @property
    def params(self) -> Mapping[str, bool | int | float | str]:
        """The annotator's parameters."""
        ...

    @property
    def resolution(self) -> int | None:
        """The short side at which the annotator saw every picture, where the data set says so."""
        ...

    def __len__(self) -> int: ...

    def key(self, index: int) -> str:
        """Return the row's name: stable, and unique in its data set."""
        ...

    def digest(self, index: int) -> str:
        """Return the sha256 of all that the row says: both pictures' bytes, the caption. What caches are keyed by."""
        ...

    def target_digest(self, index: int) -> str:
        """Return the sha256 of the target's bytes: equal for rows that show one picture. What `split` goes by."""
        ...

    def caption(self, index: int) -> str:
        """Return the row's caption; "" where there is none."""
        ...

    def size(self, index: int) -> tuple[int, int]:
        """Return the target's (width, height) in pixels; the whole picture need not be decoded for it."""
        ...

    def read(self, index: int) -> Sample:
        """Return the row's pictures and caption. Raises BadImage."""
        ...


def is_made_by(pairs: Pairs, annotator: str | None) -> bool:
    """Return whether the data set says that its conditions are this annotator's."""
    own = pairs.annotator
    return None not in (own, annotator) and _plain(own) == _plain(annotator)


def params_of(
    pairs: Pairs, annotator: str | None, given: Mapping[str, bool | int | float | str]
) -> dict[str, bool | int | float | str]:
    """Return the annotator's parameters: as given, or else the data set's, where its conditions are this annotator's.

    `annotator`: None: the data set's own. Texts, as of a command line, become what an annotator of ours takes.
    Raises RequestError where it has no such parameter, or cannot be given such a value.
    """
    if given:
        return _typed(annotator or pairs.annotator, given)
    return dict(pairs.params) if annotator is None or is_made_by(pairs, annotator) else {}


def _typed(annotator: str | None, given: Mapping[str, bool | int | float | str]) -> dict[str, bool | int | float | str]:
    if annotator is None or annotator not in ANNOTATORS:
        return dict(given)
    made = make_params(ANNOTATORS.load(annotator), given)
    return {key: getattr(made, key) for key in given}


def _plain(name: str | None) -> str:
    return (name or "").lower().replace("_", "-")
