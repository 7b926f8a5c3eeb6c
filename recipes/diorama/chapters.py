"""Scenes for the loop, composed in chapters ahead of it by other processes, and kept on the device as tensors.

A chapter is some thousands of scenes, each used a few times, in an order that the step alone decides; so a training
that was stopped goes on exactly. While one chapter is learned from, the next is composed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from multiprocessing import get_context
from multiprocessing.pool import AsyncResult, Pool
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from disegno.training.base import Batch, Example

from .world.labels import Labels, labels_of
from .world.maps import BASE_CONDITIONS, MAPS
from .world.pack import Wardrobe, open_pack
from .world.render import compose

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
    """What is drawn of each scene. `conditions`: scene k is drawn under the k-th of these, in turn; none: nothing."""

    size: int
    conditions: tuple[str, ...] = ()
    labels: bool = False
    stream: int = STREAMS["train"]


def draw(wardrobe: Wardrobe, wish: Wish, first: int, last: int) -> Drawn:
    """Return the scenes first .. last - 1."""
    scenes = [compose(wardrobe, wish.stream, index, wish.size) for index in range(first, last)]
    maps = [
        MAPS[wish.conditions[scene.seed[1] % len(wish.conditions)]](scene, wardrobe) if wish.conditions else None
        for scene in scenes
    ]
    drawn = np.stack([m for m in maps if m is not None]) if wish.conditions else np.zeros((0, 0, 0, 3), np.uint8)
    labels = tuple(labels_of(scene) for scene in scenes) if wish.labels else ()
    return Drawn(np.stack([scene.image for scene in scenes]), drawn, tuple(s.caption for s in scenes), labels)


_OPEN: list[Wardrobe] = []  # of a worker process


def _start(pack: Path) -> None:
    cv2.setNumThreads(1)
    _OPEN.append(open_pack(pack))


def _work(job: tuple[Wish, int, int]) -> Drawn:
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
            self._pool = get_context("spawn").Pool(self.workers, _start, (self.pack,))
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
                self._ahead[wanted] = self._pool.map_async(_work, self._jobs(wanted), chunksize=1)
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
    """Which scenes a step takes (`Ordering`): those of one chapter and one task, each task in turn."""

    seed: int
    num_rows: int
    chapter: int
    uses: int
    tasks: tuple[str, ...] = ("",)

    @property
    def steps_per_chapter(self) -> int:
        return max(len(self.tasks), self.chapter * self.uses // self.num_rows)

    def task(self, step: int) -> str:
        return self.tasks[step % self.steps_per_chapter % len(self.tasks)]

    def rows(self, step: int) -> list[int]:
        """Return numbers of scenes in the whole stream; scene k shows the task k modulo their number."""
        chapter, place = divmod(step, self.steps_per_chapter)
        round_, task = divmod(place, len(self.tasks))
        count = self.chapter // len(self.tasks)
        picks: list[int] = []
        for flat in range(round_ * self.num_rows, (round_ + 1) * self.num_rows):
            turn, at = divmod(flat, count)
            local = int(_shuffled(self.seed, chapter, turn, task, count)[at])
            picks.append(chapter * self.chapter + local * len(self.tasks) + task)
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


Encode = Callable[[Drawn], Mapping[str, Tensor]]


class FromChapters(nn.Module):
    """A recipe's module whose batches name scenes by number. What it trains and costs is the recipe's own."""

    def __init__(self, inner: nn.Module, composer: Composer, encode: Encode) -> None:
        super().__init__()
        self.inner = inner
        self._source = (composer, encode)
        self._number, self._rows = -1, dict[str, Tensor]()

    def forward(self, batch: Batch, turn: str = "") -> Tensor:
        """Return each row's loss, (b,), float32."""
        composer, encode = self._source
        index = batch.rows["row"]
        number = int(index[0]) // composer.count
        if number != self._number:
            self._rows = dict(encode(composer.chapter(number)))
            self._number = number
        at = index - number * composer.count
        rows = {name: tensor[at.to(tensor.device)] for name, tensor in self._rows.items()}
        return self.inner(replace(batch, rows=rows), turn)


def chunks(drawn: Drawn, size: int) -> Iterator[slice]:
    """Yield the scenes in parts of at most `size`."""
    for begin in range(0, len(drawn.captions), size):
        yield slice(begin, min(begin + size, len(drawn.captions)))


def to_tensor(pictures: NDArray[np.uint8], device: torch.device) -> Tensor:
    """Return pictures as (n 3 h w), uint8, on a device."""
    return torch.from_numpy(pictures).to(device).permute(0, 3, 1, 2).contiguous()


assert set(BASE_CONDITIONS) <= set(MAPS)
