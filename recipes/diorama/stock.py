"""Chapters on disk, composed once for all stages, by processes that run ahead of whatever learns.

python -m recipes.diorama.stock --run RUN --workers 14 --stock STOCK --chapters 40 --mapped 12

A chapter is a folder of parts; it is there when all its parts are. Only the first `mapped` have conditions and labels.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from .chapters import Drawn, Wish, drawn_by_worker, joined, start_worker
from .world.labels import Labels
from .world.maps import BASE_CONDITIONS

PART = 128  # scenes of one file
POLL_SECONDS = 0.05
PATIENCE_SECONDS = 120.0  # without a new part


@dataclass(frozen=True)
class Stock:
    """Where chapters of `count` scenes lie, in pictures of `size`. `shows`: whether conditions are read, too."""

    folder: Path
    count: int
    size: int
    shows: bool = True

    @property
    def wish(self) -> Wish:
        return Wish(self.size, BASE_CONDITIONS, labels=True)

    def parts(self, number: int) -> list[tuple[Path, int, int]]:
        """Return a chapter's folders, each with its first scene and the one after its last."""
        first, last = number * self.count, (number + 1) * self.count
        ends = [(k, min(k + PART, last)) for k in range(first, last, PART)]
        return [(self.folder / f"{number:05}" / f"{begin:09}", begin, end) for begin, end in ends]

    def has(self, number: int) -> bool:
        return all(path.exists() for path, _, _ in self.parts(number))

    def chapter(self, number: int) -> Drawn:
        """Return a chapter; waits until it is there. Raises RuntimeError where nothing comes any more."""
        there, since = -1, time.monotonic()
        while not self.has(number):
            if (now := sum(path.exists() for path, _, _ in self.parts(number))) != there:
                there, since = now, time.monotonic()
            if time.monotonic() - since > PATIENCE_SECONDS:
                raise RuntimeError(f"Chapter {number} does not come to {self.folder}: run recipes.diorama.stock there.")
            time.sleep(POLL_SECONDS)
        return joined([self._read(path) for path, _, _ in self.parts(number)])

    def _read(self, path: Path) -> Drawn:
        images, noun, colour, captions = (np.load(path / f"{name}.npy") for name in ("images", *_SMALL))
        conditions = np.load(path / "conditions.npy") if self.shows else np.zeros((0, 0, 0, 3), np.uint8)
        labels = tuple(Labels(*each) for each in zip(noun, colour, strict=True))
        return Drawn(images, conditions, tuple(captions.tolist()), labels)


_SMALL = ("noun", "colour", "captions")


def write_part(path: Path, drawn: Drawn) -> None:
    """Write a part, whole or not at all."""
    unfinished = path.with_suffix(f".{os.getpid()}")
    unfinished.mkdir(parents=True)
    arrays = {
        "images": drawn.images,
        "conditions": drawn.conditions,
        "captions": np.array(drawn.captions),
        "noun": np.stack([labels.noun for labels in drawn.labels]) if drawn.labels else np.zeros(0, np.int16),
        "colour": np.stack([labels.colour for labels in drawn.labels]) if drawn.labels else np.zeros(0, np.int8),
    }
    for name, array in arrays.items():
        np.save(unfinished / f"{name}.npy", array)
    unfinished.rename(path)


def _work(job: tuple[Wish, Path, int, int]) -> int:
    wish, path, first, last = job
    write_part(path, drawn_by_worker((wish, first, last)))
    return last - first


def jobs(stock: Stock, chapters: int, mapped: int) -> Iterator[tuple[Wish, Path, int, int]]:
    """Yield what is not there yet, in the order of the chapters."""
    plain = replace(stock.wish, conditions=(), labels=False)
    for number in range(chapters):
        wish = stock.wish if number < mapped else plain
        yield from ((wish, path, first, last) for path, first, last in stock.parts(number) if not path.exists())


def fill(stock: Stock, pack: Path, chapters: int, mapped: int, workers: int) -> float:
    """Compose what is not there yet; return scenes a second."""
    began, made = time.monotonic(), 0
    with get_context("spawn").Pool(workers, start_worker, (pack,)) as pool:
        for count in pool.imap(_work, jobs(stock, chapters, mapped)):
            made += count
    return made / (time.monotonic() - began)


def main() -> None:
    """Fill a stock from the command line."""
    from .scale import FULL, SCALES

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--stock", type=Path, required=True, help="a folder; 0.4 MiB a scene with conditions, else 0.2")
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 2))
    parser.add_argument("--chapters", type=int, default=40)
    parser.add_argument("--mapped", type=int, default=12)
    parser.add_argument("--scale", choices=tuple(SCALES), default=FULL.name)
    args = parser.parse_args()
    stock = Stock(args.stock, SCALES[args.scale].stocked, SCALES[args.scale].size)
    print(f"{fill(stock, args.run / 'world.zip', args.chapters, args.mapped, args.workers):.0f} scenes a second")


if __name__ == "__main__":
    main()
