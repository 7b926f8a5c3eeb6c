"""Scenes for the loop, composed in chapters ahead of it by other processes, and kept on the device as tensors.

A chapter is some thousands of scenes, each used a few times, in an order that the step alone decides; so a training
that was stopped goes on exactly. While some chapters are learned from, the next is composed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import lru_cache
from multiprocessing import get_context
from multiprocessing.pool import AsyncResult, Pool
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from disegno.training.base import Batch, Example

from .world.labels import Labels, labels_of
from .world.maps import BASE_CONDITIONS, MAPS
from .world.pack import Wardrobe, open_pack
from .world.render import Scene, compose

CHUNK = 16  # scenes of one job
STREAMS = {"train": 1, "held_out": 2}


@dataclass(frozen=True)
class Drawn:
    """Some scenes, drawn: (n h w 3) uint8 each, captions, and what a detector learns; empty where it was not asked."""

    images: NDArray[np.uint8]
    conditions: NDArray[np.uint8]
    captions: tuple[str, ...]
    labels: tuple[Labels, ...] = ()


@dataclass(frozen=True)
class Wish:
    """What is drawn of each scene. `conditions`: scene k is drawn under the k-th of these, in turn; none: nothing.

    A condition "" is a black picture: these scenes are shown without a drawing.
    """

    size: int
    conditions: tuple[str, ...] = ()
    labels: bool = False
    stream: int = STREAMS["train"]


def draw(wardrobe: Wardrobe, wish: Wish, first: int, last: int) -> Drawn:
    """Return the scenes first .. last - 1."""
    scenes = [compose(wardrobe, wish.stream, index, wish.size) for index in range(first, last)]
    maps = [_condition(wardrobe, wish, scene) for scene in scenes] if wish.conditions else []
    drawn = np.stack(maps) if maps else np.zeros((0, 0, 0, 3), np.uint8)
    labels = tuple(labels_of(scene) for scene in scenes) if wish.labels else ()
    return Drawn(np.stack([scene.image for scene in scenes]), drawn, tuple(s.caption for s in scenes), labels)


def _condition(wardrobe: Wardrobe, wish: Wish, scene: Scene) -> NDArray[np.uint8]:
    name = wish.conditions[scene.seed[1] % len(wish.conditions)]
    return MAPS[name](scene, wardrobe) if name else np.zeros_like(scene.image)


_OPEN: list[Wardrobe] = []  # of a worker process


def start_worker(pack: Path) -> None:
    """Make this process ready for `drawn_by_worker`."""
    cv2.setNumThreads(1)
    _OPEN.append(open_pack(pack))


def drawn_by_worker(job: tuple[Wish, int, int]) -> Drawn:
    """Return what `draw` does."""
    return draw(_OPEN[0], *job)


@dataclass
class Composer:
    """Draws chapters, the next one ahead. `workers`: processes; 0 draws here when asked, from `wardrobe`."""

    wish: Wish
    count: int
    pack: Path | None = None
    workers: int = 0
    wardrobe: Wardrobe | None = None
    _pool: Pool | None = None
    _ahead: dict[int, AsyncResult[list[Drawn]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.workers:
            assert self.pack is not None
            self._pool = get_context("spawn").Pool(self.workers, start_worker, (self.pack,))
        elif self.wardrobe is None:
            assert self.pack is not None
            self.wardrobe = open_pack(self.pack)

    def close(self) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.terminate()

    def chapter(self, number: int) -> Drawn:
        """Return a chapter, and begin with the next."""
        if self._pool is None:
            assert self.wardrobe is not None
            return draw(self.wardrobe, self.wish, number * self.count, (number + 1) * self.count)
        for wanted in (number, number + 1):
            if wanted not in self._ahead:
                self._ahead[wanted] = self._pool.map_async(drawn_by_worker, self._jobs(wanted), chunksize=1)
        parts = self._ahead.pop(number).get()
        return joined(parts)

    def _jobs(self, number: int) -> list[tuple[Wish, int, int]]:
        first, last = number * self.count, (number + 1) * self.count
        return [(self.wish, k, min(k + CHUNK, last)) for k in range(first, last, CHUNK)]


def joined(parts: Sequence[Drawn]) -> Drawn:
    """Return some scenes as one."""
    return Drawn(
        np.concatenate([part.images for part in parts]),
        np.concatenate([part.conditions for part in parts]),
        tuple(caption for part in parts for caption in part.captions),
        tuple(labels for part in parts for labels in part.labels),
    )


# ---- in the loop


@lru_cache(maxsize=8)
def _shuffled(seed: int, chapter: int, turn: int, task: int, count: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, chapter, turn, task]).permutation(count)


@dataclass(frozen=True)
class ChapterOrder:
    """Which scenes a step takes (`Ordering`): those of one task, each task in turn.

    `chapter`: scenes in one, a multiple of the number of tasks; `uses`: how often the newest is shown before the next
    one comes. `window`: how many of them are drawn from; 1: all of one chapter, each scene equally often. `lead`:
    chapters that are there at first, `most`: that there are in all. Raises ValueError.
    """

    seed: int
    num_rows: int
    chapter: int
    uses: int
    tasks: tuple[str, ...] = ("",)
    window: int = 1
    lead: int = 1
    most: int = 2**31

    def __post_init__(self) -> None:
        if self.chapter % len(self.tasks):  # scene k shows the task k modulo their number, in whatever chapter it is
            raise ValueError(f"A chapter of {self.chapter} scenes is no multiple of {len(self.tasks)} tasks.")

    @property
    def steps_per_chapter(self) -> int:
        return max(len(self.tasks), self.chapter * self.uses // self.num_rows)

    def task(self, step: int) -> str:
        return self.tasks[step % self.steps_per_chapter % len(self.tasks)]

    def newest(self, step: int) -> int:
        """Return the newest chapter that a step draws from."""
        return min(self.lead - 1 + step // self.steps_per_chapter, self.most - 1)

    def scenes(self, steps: int) -> int:
        """Return how many different scenes are shown in so many steps, at most."""
        return min((self.newest(steps - 1) + 1) * self.chapter, steps * self.num_rows)

    def rows(self, step: int) -> list[int]:
        """Return numbers of scenes in the whole stream; scene k shows the task k modulo their number."""
        count = self.chapter // len(self.tasks)
        round_, task = divmod(step % self.steps_per_chapter, len(self.tasks))
        newest = self.newest(step)
        if self.window > 1:
            rng = np.random.default_rng([self.seed, step])
            chapters = rng.integers(max(0, newest - self.window + 1), newest + 1, self.num_rows)
            local = rng.integers(0, count, self.num_rows)
            return (chapters * self.chapter + local * len(self.tasks) + task).tolist()
        picks: list[int] = []
        for flat in range(round_ * self.num_rows, (round_ + 1) * self.num_rows):
            turn, at = divmod(flat, count)
            local = int(_shuffled(self.seed, newest, turn, task, count)[at])
            picks.append(newest * self.chapter + local * len(self.tasks) + task)
        return picks


@dataclass(frozen=True)
class Numbers:
    """The examples that the loop reads (`Examples`): a scene's number is all; the tensors are on the device already."""

    count: int
    tasks: tuple[str, ...] = ("",)

    def __len__(self) -> int:
        return self.count

    def task(self, index: int) -> str:
        return self.tasks[index % len(self.tasks)]

    def shape(self, index: int) -> tuple[int, ...]:
        return ()

    def __getitem__(self, index: int) -> Example:
        return {"row": torch.tensor(index)}


class Chapters(Protocol):
    """A chapter's scenes as what is learned from, on the device."""

    def tensors(self, number: int) -> Mapping[str, Tensor]:
        """Return each name's tensor, (scenes ...)."""
        ...


class FromChapters(nn.Module):
    """A recipe's module whose batches name scenes by number. What it trains and costs is the recipe's own.

    The newest chapters of the order's window are kept, each in its place of one tensor a name. `side`: target and
    condition are shown in squares of so many pixels, cut out where the row's seed says; 0: whole.
    """

    def __init__(self, inner: nn.Module, chapters: Chapters, order: ChapterOrder, side: int = 0) -> None:
        super().__init__()
        self.inner = inner
        self._source, self.order, self.side = chapters, order, side
        self._held: list[int] = [-1] * order.window
        self._store: dict[str, Tensor] = {}

    def forward(self, batch: Batch, turn: str = "") -> Tensor:
        """Return each row's loss, (b,), float32."""
        newest, count, window = self.order.newest(batch.step), self.order.chapter, self.order.window
        for chapter in range(max(0, newest - window + 1), newest + 1):
            if self._held[chapter % window] != chapter:
                self._hold(chapter)
        index = batch.rows["row"]
        at = index // count % window * count + index % count
        rows = {name: tensor[at.to(tensor.device)] for name, tensor in self._store.items()}
        if self.side:
            rows = cut(rows, batch.seeds, self.side)
        return self.inner(replace(batch, rows=rows), turn)

    def _hold(self, chapter: int) -> None:
        count, window = self.order.chapter, self.order.window
        place = chapter % window
        for name, tensor in self._source.tensors(chapter).items():
            if name not in self._store:
                self._store[name] = tensor.new_empty((window * count, *tensor.shape[1:]))
            self._store[name][place * count : (place + 1) * count] = tensor
        self._held[place] = chapter


PIXELS = ("target", "condition")


def cut(rows: Mapping[str, Tensor], seeds: Sequence[int], side: int) -> dict[str, Tensor]:
    """Return rows whose pictures, (b 3 h w), are squares of `side` pixels, of one place a row."""
    first = next(rows[name] for name in PIXELS if name in rows)
    room = first.shape[-1] - side
    corners = torch.tensor([(seed % (room + 1), seed // (room + 1) % (room + 1)) for seed in seeds])
    span = torch.arange(side)
    ys, xs = ((corners[:, axis, None] + span).to(first.device) for axis in (0, 1))  # b side
    which = torch.arange(len(seeds), device=first.device).view(-1, 1, 1)

    def cut_out(x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1)[which, ys[:, :, None], xs[:, None, :]].permute(0, 3, 1, 2)

    return {name: cut_out(x) if name in PIXELS else x for name, x in rows.items()}


class Source(Protocol):
    """Where chapters come from."""

    def chapter(self, number: int) -> Drawn: ...


@dataclass
class Ahead:
    """Chapters by number, the next one of `most` already being read by a thread while one is learned from."""

    source: Source
    most: int
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="chapters"))
    _next: dict[int, Future[Drawn]] = field(default_factory=dict)

    def chapter(self, number: int) -> Drawn:
        """Return a chapter, and begin with the next."""
        future = self._next.pop(number, None) or self._pool.submit(self.source.chapter, number)
        drawn = future.result()
        follows = [number + 1] if number + 1 < self.most else []
        self._next = {each: self._pool.submit(self.source.chapter, each) for each in follows}
        return drawn


def chunks(count: int, size: int) -> Iterator[slice]:
    """Yield so many rows in parts of at most `size`."""
    for begin in range(0, count, size):
        yield slice(begin, min(begin + size, count))


def to_tensor(pictures: NDArray[np.uint8], device: torch.device) -> Tensor:
    """Return pictures as (n 3 h w), uint8, on a device."""
    return torch.from_numpy(pictures).to(device).permute(0, 3, 1, 2).contiguous()


assert set(BASE_CONDITIONS) <= set(MAPS)
