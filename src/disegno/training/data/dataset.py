"""Pairs in any form: rows of bytes, and what turns them into pictures."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from disegno.annotators.maps import resize_map
from disegno.core.errors import BadData, BadImage
from disegno.core.request import Scalar
from disegno.engine.pictures import Limits, decode, size_of, to_rgb
from disegno.training.data.card import Card
from disegno.training.data.problems import Problem
from disegno.training.data.root import MAX_PICTURE_BYTES, Root
from disegno.training.pairs import Pairs, Picture, Sample

LIMITS = Limits(max_bytes=MAX_PICTURE_BYTES, paths=False)


class Rows(Protocol):
    """Where the bytes of a data set lie. Rows without a condition are pictures that a condition is made from."""

    def __len__(self) -> int: ...
    def key(self, index: int) -> str: ...
    def target(self, index: int) -> bytes: ...
    def condition(self, index: int) -> bytes | None: ...
    def caption(self, index: int) -> str | None: ...

    def condition_name(self, index: int) -> str:
        """Return what the condition is called, for a report."""
        ...


class Maker(Protocol):
    """Makes a condition from a target. `identity` says all that decides the result."""

    @property
    def identity(self) -> str: ...
    def prepare(self) -> None: ...
    def __call__(self, picture: Picture) -> Picture: ...


@dataclass(frozen=True)
class FolderRow:
    """A row of files: names within the folder."""

    key: str
    target: str
    condition: str | None
    caption: str | None


@dataclass(frozen=True)
class FolderRows:
    """Rows whose pictures are files in one folder."""

    root: Root
    rows: Sequence[FolderRow]

    def __len__(self) -> int:
        return len(self.rows)

    def key(self, index: int) -> str:
        return self.rows[index].key

    def target(self, index: int) -> bytes:
        return self.root.read(self.rows[index].target)

    def condition(self, index: int) -> bytes | None:
        name = self.rows[index].condition
        return None if name is None else self.root.read(name)

    def caption(self, index: int) -> str | None:
        return self.rows[index].caption

    def condition_name(self, index: int) -> str:
        return self.rows[index].condition or ""


@dataclass(frozen=True)
class Dataset:
    """Pairs in one of the known forms (`Pairs`). `problems`: what opening it found; `layout`: the form's name."""

    name: str
    layout: str
    rows: Rows
    annotator: str | None = None
    params: Mapping[str, Scalar] = field(default_factory=dict[str, Scalar])
    make: Maker | None = None
    problems: tuple[Problem, ...] = ()
    card: Card | None = None
    """How `dataset build` made it, where it did."""

    @property
    def resolution(self) -> int | None:
        return self.card.resolution if self.card else None

    @property
    def script(self) -> str | None:
        """The name of the Python file that made the conditions, where none of the registry's annotators did."""
        return self.card.script.name if self.card and self.card.script else None

    def __len__(self) -> int:
        return len(self.rows)

    def key(self, index: int) -> str:
        return self.rows.key(index)

    def digest(self, index: int) -> str:
        condition = self.rows.condition(index)
        parts = (
            self.rows.target(index),
            condition if condition is not None else self._maker().identity.encode(),
            self.caption(index).encode(),
        )
        each = b"".join(hashlib.sha256(part).digest() for part in parts)
        return hashlib.sha256(each).hexdigest()

    def target_digest(self, index: int) -> str:
        return hashlib.sha256(self.rows.target(index)).hexdigest()

    def caption(self, index: int) -> str:
        return self.rows.caption(index) or ""

    def size(self, index: int) -> tuple[int, int]:
        return size_of(self.rows.target(index), self.key(index), LIMITS)

    def read(self, index: int) -> Sample:
        try:
            data, condition, caption = self.rows.target(index), self.rows.condition(index), self.caption(index)
        except BadData as error:
            raise BadImage(f"{self.key(index)}: {error}") from error
        target = self._decode(data, self.key(index))
        drawing = (
            self._maker()(target) if condition is None else self._decode(condition, self.rows.condition_name(index))
        )
        return Sample(target, on_target(drawing, target, self.key(index)), caption)

    def _decode(self, data: bytes, name: str) -> Picture:
        return to_rgb(decode(data, name, LIMITS))

    def _maker(self) -> Maker:
        if self.make is None:
            raise BadData(
                f"{self.name} has pictures without conditions. Name an annotator that makes them, or make them once "
                "with `disegno dataset build`."
            )
        return self.make


def same_shape(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Return whether two sizes are one shape at two scales, to within a pixel."""
    return abs(size[0] * other[1] - size[1] * other[0]) <= max(*size, *other)


def on_target(condition: Picture, target: Picture, name: str) -> Picture:
    """Return the condition at its target's size. Raises BadImage where it has another shape: it would be distorted."""
    (height, width), (own_height, own_width) = target.shape[:2], condition.shape[:2]
    if (own_width, own_height) == (width, height):
        return condition
    if not same_shape((width, height), (own_width, own_height)):
        raise BadImage(
            f"{name} is {width} x {height} pixels, its condition {own_width} x {own_height}: another shape. Make the "
            "condition again from the picture; it is not stretched, for then it would not lie on it."
        )
    return resize_map(condition, width, height, centred=True)


@dataclass(frozen=True)
class Subset:
    """Some rows of other pairs, in the order of `indices` (`Pairs`)."""

    pairs: Pairs
    indices: Sequence[int]

    @property
    def name(self) -> str:
        return self.pairs.name

    @property
    def annotator(self) -> str | None:
        return self.pairs.annotator

    @property
    def params(self) -> Mapping[str, Scalar]:
        return self.pairs.params

    @property
    def resolution(self) -> int | None:
        return self.pairs.resolution

    def __len__(self) -> int:
        return len(self.indices)

    def key(self, index: int) -> str:
        return self.pairs.key(self.indices[index])

    def digest(self, index: int) -> str:
        return self.pairs.digest(self.indices[index])

    def target_digest(self, index: int) -> str:
        return self.pairs.target_digest(self.indices[index])

    def caption(self, index: int) -> str:
        return self.pairs.caption(self.indices[index])

    def size(self, index: int) -> tuple[int, int]:
        return self.pairs.size(self.indices[index])

    def read(self, index: int) -> Sample:
        return self.pairs.read(self.indices[index])
