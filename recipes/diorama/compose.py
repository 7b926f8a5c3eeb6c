"""Stage 1: compose the scenes into arrays.

python -m recipes.diorama.compose --sprites SPRITES --out RUN
python -m recipes.diorama.compose --sprites SPRITES --pictures FOLDER --train 200     # pictures, captions
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .world.assets import load_sprites, wardrobe
from .world.composer import Looks, compose
from .world.maps import canny

SIZE = 128
SEEDS = {"train": 1, "held_out": 2}
CHUNK = 500


class Store:
    """The arrays of one split: `images` (n h w 3), `classes`, `instances` and `edges` (n h w), all uint8."""

    FIELDS = (
        ("images", (SIZE, SIZE, 3)),
        ("classes", (SIZE, SIZE)),
        ("instances", (SIZE, SIZE)),
        ("edges", (SIZE, SIZE)),
    )

    def __init__(self, folder: Path, split: str) -> None:
        self.folder, self.split = folder, split

    def path(self, field: str) -> Path:
        """Return the file of one field."""
        return self.folder / f"{self.split}_{field}.npy"

    def create(self, count: int) -> None:
        """Make empty arrays on disk."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for field, shape in self.FIELDS:
            np.lib.format.open_memmap(self.path(field), "w+", np.uint8, (count, *shape)).flush()

    def open(self, field: str, mode: str = "r") -> NDArray[np.uint8]:
        """Return one field as a memory map."""
        return np.load(self.path(field), mmap_mode=mode)

    def captions(self) -> list[str]:
        """Return the caption of every scene."""
        return json.loads((self.folder / f"{self.split}_captions.json").read_text())


def fill(folder: Path, split: str, looks: Looks, start: int, stop: int) -> list[str]:
    """Write the scenes start..stop-1 and return their captions."""
    store = Store(folder, split)
    fields = {field: store.open(field, "r+") for field, _ in Store.FIELDS}
    captions: list[str] = []
    for index in range(start, stop):
        scene = compose(looks, SEEDS[split], index, SIZE)
        fields["images"][index], fields["classes"][index] = scene.image, scene.classes
        fields["instances"][index], fields["edges"][index] = scene.instances, canny(scene.image)
        captions.append(scene.caption)
    return captions


LOOKS: Looks = {}  # one copy per worker process, set by `start_worker`


def start_worker(sprites: Path) -> None:
    """Load the sprites of this worker."""
    LOOKS.update(wardrobe(load_sprites(sprites)))


def work(job: tuple[Path, str, int, int]) -> list[str]:
    """Fill one chunk in a worker."""
    folder, split, start, stop = job
    return fill(folder, split, LOOKS, start, stop)


def write_pictures(sprites: Path, folder: Path, count: int) -> None:
    """Write the first scenes as NNNN.png, each with its caption beside it as NNNN.txt."""
    folder.mkdir(parents=True, exist_ok=True)
    looks = wardrobe(load_sprites(sprites))
    for index in range(count):
        scene = compose(looks, SEEDS["train"], index, SIZE)
        Image.fromarray(scene.image).save(folder / f"{index:04d}.png")
        (folder / f"{index:04d}.txt").write_text(scene.caption, "utf-8")


def main() -> None:
    """Compose both splits, or a folder of pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sprites", type=Path, required=True)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--out", type=Path)
    where.add_argument("--pictures", type=Path)
    parser.add_argument("--train", type=int, default=40_000)
    parser.add_argument("--held-out", type=int, default=1_000)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    if args.pictures is not None:
        write_pictures(args.sprites, args.pictures, args.train)
        print(f"{args.pictures}: {args.train} pictures")
        return
    for split, count in (("held_out", args.held_out), ("train", args.train)):
        Store(args.out, split).create(count)
        jobs = [(args.out, split, k, min(k + CHUNK, count)) for k in range(0, count, CHUNK)]
        with multiprocessing.Pool(args.workers, start_worker, (args.sprites,)) as pool:
            captions = [caption for chunk in pool.imap(work, jobs) for caption in chunk]
        (args.out / f"{split}_captions.json").write_text(json.dumps(captions))
        print(f"{split}: {count} scenes, {len(set(captions))} different captions")


if __name__ == "__main__":
    main()
