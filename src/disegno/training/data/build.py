"""Pairs from pictures: each fitted to its canvas, drawn by an annotator or a script, written as ControlNet's form.

The folder says itself what is done, so a build that was killed goes on where it was, to the same bytes:

    dataset.json           the card, first: all that decides the pixels; another card is another data set
    target/ID.png          ID: of the picture's bytes, so a file that is there is the right one (files appear whole)
    source/ID.png          its condition
    problems.jsonl         pictures that are no pair, and why; and what was noticed about others
    prompt.json            the pairs, last, in the order of the pictures' names
"""

import hashlib
import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import cv2
from filelock import FileLock, Timeout

from disegno import __version__
from disegno.core.errors import BadData, BadImage, RequestError, ResourceError
from disegno.core.files import write_atomically
from disegno.engine.pictures import decode, size_of, to_rgb
from disegno.training.data.align import apply, cover
from disegno.training.data.buckets import make_buckets, nearest_bucket
from disegno.training.data.card import CARD, MANIFEST, Card, ScriptCard, card_text, read_card
from disegno.training.data.dataset import LIMITS, Dataset, Rows
from disegno.training.data.formats.listing import Options
from disegno.training.data.making import Annotate, Script
from disegno.training.data.opening import open_rows
from disegno.training.data.pool import ITEM_SECONDS, Failed, num_processors, run
from disegno.training.data.problems import Fault, Problem
from disegno.training.data.root import Root
from disegno.training.pairs import Picture

PROBLEMS = "problems.jsonl"
_FOLDERS = ("source", "target")
_LOCK = ".lock"
# measured on pictures of 512 x 512: a sixth of the time of zlib's usual level 6, and no larger
_PNG = (cv2.IMWRITE_PNG_COMPRESSION, 3, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE)
_ID = re.compile("[0-9a-f]{24}[.]png")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is built. `size`: (width, height) of the canvas, or of the area that buckets share; None is each its own.

    `pictures`: what `open_rows` opens. `captions`: the pictures' own ("files"), their names as words ("names"), or
    "none". `caption`: for pictures without one. `seconds`: how long one picture may take.
    """

    pictures: str
    out: Path
    maker: Annotate | Script
    size: tuple[int, int] | None = None
    buckets: bool = False
    captions: str = "files"
    caption: str | None = None
    workers: int | None = None
    seconds: float = ITEM_SECONDS


@dataclass(frozen=True)
class BuildProgress:
    """So many of the pictures are done; `num_lost` of them are no pair."""

    done: int
    num_pictures: int
    num_lost: int
    seconds_left: float


@dataclass(frozen=True)
class BuildResult:
    """The data set is there. `num_new`: pairs that were not there before."""

    out: Path
    num_pairs: int
    num_new: int
    problems: tuple[Problem, ...]


@dataclass(frozen=True)
class Made:
    """A pair is on the disk. `name`: its ID; `enlarged`: the picture was smaller than its canvas."""

    name: str
    caption: str
    is_new: bool
    enlarged: bool


@dataclass(frozen=True)
class MakePair:
    """The work on one picture, in a worker (`pool.Task`)."""

    rows: Rows
    out: Path
    maker: Annotate | Script
    size: tuple[int, int] | None
    buckets: tuple[tuple[int, int], ...]
    captions: str
    caption: str

    def prepare(self) -> None:
        self.maker.prepare()

    def __call__(self, index: int) -> Made:
        """Return the pair, written. Raises Fault where there is none, ResourceError."""
        key = self.rows.key(index)
        try:
            data = self.rows.target(index)
            size = size_of(data, key, LIMITS)
        except (BadData, BadImage) as error:
            raise Fault("broken", str(error)) from error
        name = hashlib.sha256(data).hexdigest()[:24]
        source, target = (self.out / folder / f"{name}.png" for folder in _FOLDERS)
        canvas = self._canvas(size)
        enlarged = canvas[0] > size[0] or canvas[1] > size[1]
        caption = self._caption(index)
        if source.exists() and target.exists():
            return Made(name, caption, False, enlarged)
        try:
            picture = to_rgb(decode(data, key, LIMITS))
        except BadImage as error:
            raise Fault("broken", str(error)) from error
        fitted = apply(picture, cover(size, canvas), False)
        _write_png(source, self.maker(fitted))
        _write_png(target, fitted)
        return Made(name, caption, True, enlarged)

    def _caption(self, index: int) -> str:
        """Return the row's caption. Raises Fault."""
        if self.captions != "names":
            return (self.rows.caption(index) if self.captions == "files" else None) or ""
        words = re.split(r"[\W_]+", PurePosixPath(self.rows.key(index)).stem)
        return " ".join(word for word in words if word and not word.isdigit()) or self.caption

    def _canvas(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the canvas of a picture of this size. Raises Fault."""
        if not self.buckets:
            return self.size or size
        canvas = nearest_bucket(size, self.buckets)
        if canvas is None:
            raise Fault("extreme_shape", f"{size[0]} x {size[1]} pixels fit no canvas.")
        return canvas


def _write_png(path: Path, picture: Picture) -> None:
    data = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), _PNG)[1]
    write_atomically(path, lambda temporary: temporary.write_bytes(data.data))


def build(plan: Plan) -> Iterator[BuildProgress | BuildResult]:
    """Yield progress, then the result. The same pictures and plan give the same bytes, however often it was killed.

    Raises RequestError where it cannot begin, ResourceError where nothing can be written, as on a full disk: run
    again, it goes on.
    """
    default = plan.caption if plan.captions == "files" else ""
    pictures = open_rows(plan.pictures, Options(caption=default))
    task = _task(plan, pictures)
    _begin(plan)
    lock = FileLock(plan.out / _LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RequestError(f"Another process is building {plan.out} right now. Wait until it has ended.") from error
    except OSError as error:
        raise ResourceError(f"{plan.out} cannot be written to ({error.strerror}). Choose another folder.") from error
    try:
        yield from _build(plan, pictures, task)
    finally:
        (plan.out / _LOCK).unlink(missing_ok=True)
        lock.release()


def _task(plan: Plan, pictures: Dataset) -> MakePair:
    if plan.buckets and plan.size is None:
        raise RequestError("Buckets share an area; give it as a size, for example 512x512.")
    buckets = make_buckets(*plan.size) if plan.buckets and plan.size is not None else ()
    out = plan.out.expanduser().resolve()
    return MakePair(pictures.rows, out, plan.maker, plan.size, buckets, plan.captions, plan.caption or "")


def card_of(plan: Plan) -> Card:
    """Return what the data set will say about itself."""
    width, height = plan.size or (None, None)
    script = plan.maker if isinstance(plan.maker, Script) else None
    annotator = plan.maker if isinstance(plan.maker, Annotate) else None
    return Card(
        annotator=annotator.name if annotator else None,
        params=dict(annotator.params) if annotator else {},
        resolution=annotator.resolution if annotator else None,
        script=ScriptCard(name=script.path.name, sha256=script.sha256) if script else None,
        width=width,
        height=height,
        buckets=plan.buckets,
        captions=plan.captions,
        caption=plan.caption,
        made_by=f"disegno {__version__}",
    )


def _begin(plan: Plan) -> None:
    """Make the folder, or make sure that it is this plan's. Raises RequestError, ResourceError."""
    out, pictures = plan.out.expanduser().resolve(), Path(plan.pictures).expanduser()
    if pictures.is_dir() and (out.is_relative_to(pictures.resolve()) or pictures.resolve().is_relative_to(out)):
        raise RequestError(f"{out} and {pictures} lie within each other; the data set needs a folder of its own.")
    try:
        for folder in _FOLDERS:
            (out / folder).mkdir(parents=True, exist_ok=True)
        empty = {path.name for path in out.iterdir()} <= {_LOCK, *_FOLDERS} and not any((out / "target").iterdir())
    except OSError as error:
        raise ResourceError(f"{out} cannot be used as a folder ({error.strerror}). Choose another one.") from error
    old, new = read_card(Root(out)), card_of(plan)
    if old is None and not empty:
        raise RequestError(f"{out} is not empty, and no data set of this program. Choose another folder.")
    if old is not None and old != new:
        changed = [f"{name}: {getattr(old, name)!r}, now {getattr(new, name)!r}" for name in Card.__dataclass_fields__
                   if getattr(old, name) != getattr(new, name)]  # fmt: skip
        raise RequestError(
            f"{out} is a data set that was made otherwise ({'; '.join(changed)}). Remove it, or choose another folder."
        )


def _build(plan: Plan, pictures: Dataset, task: MakePair) -> Iterator[BuildProgress | BuildResult]:
    for stale in [path for folder in ("", *_FOLDERS) for path in (plan.out / folder).glob(".*.tmp")]:
        stale.unlink(missing_ok=True)
    _write_text(plan.out / CARD, card_text(card_of(plan)))
    num, num_lost, began = len(pictures), 0, time.monotonic()
    results: dict[int, Made | Failed] = {}
    for index, result in run(task, range(num), plan.workers or num_processors(), plan.seconds):
        results[index] = result
        num_lost += isinstance(result, Failed)
        left = (time.monotonic() - began) / len(results) * (num - len(results))
        yield BuildProgress(len(results), num, num_lost, left)
    yield _finish(plan, pictures, [results[index] for index in range(num)])


def _finish(plan: Plan, pictures: Dataset, results: list[Made | Failed]) -> BuildResult:
    """Write the lists, and remove pairs of pictures that are no longer there."""
    problems, lines = list(pictures.problems), list[dict[str, str]]()
    named: dict[str, str] = {}
    for index, result in enumerate(results):
        key = pictures.key(index)
        if isinstance(result, Failed):
            problems.append(Problem(result.kind, key, result.reason))
            continue
        if result.name in named:
            problems.append(Problem("duplicate", key, f"It is the same file as {named[result.name]}; one is kept."))
            continue
        named[result.name] = key
        if result.enlarged:
            problems.append(Problem("too_small", key))
        source, target = (f"{folder}/{result.name}.png" for folder in _FOLDERS)
        lines.append({"source": source, "target": target, "prompt": result.caption, "image": key})
    if not lines:
        raise BadData(f"None of the {len(results)} pictures could be used: {problems[0].name}: {problems[0].detail}")
    told = [{"image": p.name, "problem": p.kind, "detail": p.detail} for p in problems]
    _write_text(plan.out / PROBLEMS, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in told))
    _write_text(plan.out / MANIFEST, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    for path in [path for folder in _FOLDERS for path in (plan.out / folder).iterdir()]:
        if _ID.fullmatch(path.name) and path.stem not in named:
            path.unlink()
    num_new = sum(isinstance(result, Made) and result.is_new for result in results)
    return BuildResult(plan.out, len(lines), num_new, tuple(problems))


def _write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda temporary: temporary.write_text(text, "utf-8", newline="\n"))
