"""Every problem of a data set before any training: each picture is decoded whole, each pair compared.

A header that can be read says little: files that were cut off have one, too.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from disegno.annotators.maps import kind_of
from disegno.core.errors import BadData, BadImage
from disegno.engine.pictures import decode, to_rgb
from disegno.training.data.align import cover
from disegno.training.data.buckets import make_buckets, nearest_bucket
from disegno.training.data.captions import num_words
from disegno.training.data.dataset import LIMITS, Dataset, Rows, same_shape
from disegno.training.data.match import Match, match, strays
from disegno.training.data.pool import Failed, Task, num_processors, run, run_here
from disegno.training.data.problems import Fault, Problem
from disegno.training.data.report import Report
from disegno.training.pairs import Picture

R = TypeVar("R")
Size = tuple[int, int]  # width, height

NUM_TOKENS = 75
"""What Stable Diffusion's text encoder reads of a caption, beside its two end marks."""

_FEW = 64  # so few rows are looked at in this process: starting others takes longer
_ENLARGED = 1.1  # a picture that grows by less is as good as one that does not
_FAINT = 32  # levels of 256: a condition that spans fewer shows a net next to nothing; masks of classes 0, 1, 2 do
_SMALL_PIXELS = 10_000  # below, a picture has too few colours to say what kind of picture it is


@dataclass(frozen=True)
class DoctorProgress:
    """So many rows have been looked at."""

    done: int
    num_rows: int


@dataclass(frozen=True)
class Finding:
    """What a row is. `notes`: (kind, detail) of what costs nothing; `shown`: a hash of the target's pixels."""

    size: Size
    canvas: Size
    shown: bytes
    caption: str | None
    paired: bool
    notes: tuple[tuple[str, str], ...]
    match: Match | None = None


@dataclass(frozen=True)
class Examine:
    """The look at one row, in a worker (`pool.Task`)."""

    rows: Rows
    canvas: Size
    buckets: tuple[Size, ...]

    def prepare(self) -> None: ...

    def __call__(self, index: int) -> Finding:
        """Return what the row is. Raises Fault where it cannot be used."""
        target = _picture(self.rows.target, index, self.rows.key(index))
        condition = _picture(self.rows.condition, index, self.rows.condition_name(index))
        assert target is not None
        height, width = target.shape[:2]
        canvas = nearest_bucket((width, height), self.buckets) if self.buckets else self.canvas
        if canvas is None:
            raise Fault("extreme_shape", f"{width} x {height} pixels fit no canvas.")
        caption = self.rows.caption(index)
        notes = [*_of_size((width, height), canvas), *_of_caption(caption)]
        meets = None
        if condition is not None:
            notes += _of_condition(target, condition)
            meets = match(target, condition)
        cut = None if caption is None else caption[:1]  # only whether there is one is asked for
        return Finding((width, height), canvas, _hash(target), cut, condition is not None, tuple(notes), meets)


@dataclass(frozen=True)
class Hash:
    """A hash of one target's pixels, in a worker (`pool.Task`)."""

    rows: Rows

    def prepare(self) -> None: ...

    def __call__(self, index: int) -> bytes:
        """Return it. Raises Fault."""
        target = _picture(self.rows.target, index, self.rows.key(index))
        assert target is not None
        return _hash(target)


def _picture(read: Callable[[int], bytes | None], index: int, name: str) -> Picture | None:
    try:
        data = read(index)
        return None if data is None else to_rgb(decode(data, name, LIMITS))
    except (BadData, BadImage) as error:
        raise Fault("broken", str(error)) from error


def _hash(picture: Picture) -> bytes:
    return hashlib.blake2b(repr(picture.shape).encode() + picture.tobytes(), digest_size=16).digest()


def _of_size(size: Size, canvas: Size) -> Iterator[tuple[str, str]]:
    factor = cover(size, canvas).scaled[0] / size[0]
    if factor > _ENLARGED:
        yield "too_small", f"{size[0]} x {size[1]} pixels are enlarged {factor:.1f} times"


def _of_caption(caption: str | None) -> Iterator[tuple[str, str]]:
    if caption == "":
        yield "empty_caption", ""
    if caption and (num := num_words(caption)) > NUM_TOKENS:
        yield "cut_caption", f"{num} words and marks"


def _of_condition(target: Picture, condition: Picture) -> Iterator[tuple[str, str]]:
    """Yield what is odd about a condition. Raises Fault where it cannot be laid on its target."""
    (height, width), (own_height, own_width) = target.shape[:2], condition.shape[:2]
    if (width, height) != (own_width, own_height):
        sizes = f"{width} x {height} pixels, its condition {own_width} x {own_height}"
        if not same_shape((width, height), (own_width, own_height)):
            raise Fault("other_shape", sizes)
        yield "other_size", sizes
    if (condition == condition[0, 0]).all():
        yield "blank", ""
    elif (span := int(np.ptp(condition, axis=(0, 1)).max())) < _FAINT:
        yield "faint", f"its values span {span} of 255"
    elif np.array_equal(target, condition):
        yield "same", ""
    elif _is_photo(condition) and not _is_photo(target):
        yield "swapped", "the target has few colours, its condition many"


def _is_photo(picture: Picture) -> bool:
    """Return whether it is no drawing; small pictures have too few colours to say."""
    return picture.size < 3 * _SMALL_PIXELS or kind_of(picture) == "picture"


def examine(
    pairs: Dataset,
    canvas: Size = (512, 512),
    buckets: bool = True,
    others: Sequence[Dataset] = (),
    workers: int | None = None,
) -> Iterator[DoctorProgress | Report]:
    """Yield progress, then the report. `canvas`: of the training; with `buckets`, the area that they share.

    `others`: the held-out parts of the same data set, none of whose pictures may be among the pairs.
    Raises RequestError.
    """
    num_rows = len(pairs) + sum(map(len, others))
    task = Examine(pairs.rows, canvas, make_buckets(*canvas) if buckets else ())
    findings: dict[int, Finding | Failed] = {}
    for index, result in _each(task, len(pairs), workers):
        findings[index] = result
        yield DoctorProgress(len(findings), num_rows)
    seen: dict[bytes, str] = {}
    done = len(pairs)
    for other in others:
        for index, shown in _each(Hash(other.rows), len(other), workers):
            if not isinstance(shown, Failed):
                seen.setdefault(shown, f"{other.name}/{other.key(index)}")
            done += 1
            yield DoctorProgress(done, num_rows)
    yield _report(pairs, canvas, {index: findings[index] for index in range(len(pairs))}, seen)


def _each(task: Task[R], num: int, workers: int | None) -> Iterator[tuple[int, R | Failed]]:
    """Yield each row and what the task says of it."""
    if num <= _FEW and workers is None:
        return run_here(task, range(num))
    return run(task, range(num), workers or num_processors())


def _report(pairs: Dataset, canvas: Size, found: Mapping[int, Finding | Failed], seen: Mapping[bytes, str]) -> Report:
    """Return what all rows together are."""
    problems = list(pairs.problems)
    captioned = any(isinstance(row, Finding) and row.caption for row in found.values())
    usable: dict[int, Finding] = {}
    first: dict[bytes, str] = {}
    for index, row in found.items():
        key = pairs.key(index)
        if isinstance(row, Failed):
            problems.append(Problem(row.kind, key, row.reason))
            continue
        if captioned and row.caption is None:
            problems.append(Problem("missing_caption", key))
            continue
        usable[index] = row
        notes = [note for note in row.notes if captioned or note[0] != "empty_caption"]  # none has one: said once
        problems += [Problem(kind, key, detail) for kind, detail in notes]
        if (before := first.setdefault(row.shown, key)) != key:
            problems.append(Problem("duplicate", key, f"the same picture as {before}"))
        if row.shown in seen:
            problems.append(Problem("leak", key, f"the same picture as {seen[row.shown]}"))
    matches = {index: row.match for index, row in usable.items() if row.match is not None}
    problems += [Problem(kind, pairs.key(index), detail) for index, (kind, detail) in strays(matches).items()]
    return Report(
        name=pairs.name,
        layout=pairs.layout,
        annotator=pairs.annotator or pairs.script,
        canvas=canvas,
        usable=tuple(usable),
        problems=tuple(problems),
        canvases=Counter(row.canvas for row in usable.values()),
        captioned=captioned,
        paired=any(row.paired for row in usable.values()),
        smallest=min((row.size for row in usable.values()), default=(0, 0), key=min),
        largest=max((row.size for row in usable.values()), default=(0, 0), key=max),
    )
