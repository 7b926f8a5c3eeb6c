"""All stages in one go, by the clock: for a machine that is there for some minutes only.

python -m recipes.diorama.course --run RUN --stock STOCK --out OUT --ends vae=105 half=270 net=440 base=585 few=665

Each stage ends when its second is over, counted from the start, and the next begins from what it has learned. Before
it, and beside it, run `stock` (the scenes) and `haste` (the compiler's cache). What a stage leaves is in OUT/STAGE, as
small as it is shipped; `python -m recipes.diorama.course --pieces OUT --to FOLDER` cuts what is new into files
(15 MiB each).
"""

from __future__ import annotations

import argparse
import gc
import os
import shutil
import tarfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from disegno.core.errors import DisegnoError
from disegno.core.settings import load_settings
from disegno.memory import DTYPES
from disegno.weights.load import open_file
from disegno.weights.quantised import dequantise_rows, quantise_rows
from disegno.weights.save import save_safetensors

from .scale import FULL, SCALES
from .shards import MOST_BYTES, size_mib
from .stages import STAGES, Place
from .train import PARTS, finish, slice_of

LARGE = ("unet.safetensors", "base.safetensors")
FAILURES = (
    *(RuntimeError, OSError, ValueError, AssertionError, TypeError, AttributeError, LookupError),
    DisegnoError,
)
WARM_SECONDS = 40.0
MOST_MIB = 58.0  # of what travels at once
SENT = "sent"  # beside what has been cut into pieces


def files_of(place: Place, stage: str) -> list[Path]:
    """Return the files of a stage's result that are its own."""
    path = place.result(stage)
    if path.is_dir():
        return [path / PARTS[stage]]
    return [path, *sorted(path.parent.glob(f"{path.stem}_*{path.suffix}"))]


def packed(source: Path, target: Path) -> None:
    """Write a file of weights as it is shipped: large nets as int8 rows, the others in 16 bits."""
    with open_file(source) as file:
        tensors, words = dict(file.tensors()), dict(file.metadata)
    if source.name in LARGE:
        tensors = quantise_rows(dequantise_rows(tensors))
    else:
        tensors = {name: tensor.to(DTYPES["fp16"]).contiguous() for name, tensor in tensors.items()}
    save_safetensors(target, tensors, words)


def run_stage(place: Place, stage: str, seconds: float, out: Path) -> None:
    """Teach a stage for so long, and leave what it has learned."""
    if slice_of(place, stage, seconds / 60).why == "stopped":
        finish(replace(place, compiled=False), stage)
    folder = out / f".{stage}"
    folder.mkdir(parents=True, exist_ok=True)
    for file in files_of(place, stage):
        packed(file, folder / file.name)
    log = place.folder(stage) / "log.csv"
    if log.exists():
        shutil.copy(log, folder / f"{stage}.csv")
    folder.rename(out / stage)


def is_warm(run: Path, stage: str) -> bool:
    """Return whether the compiler's cache has a stage; where that is in the making, wait for it for a while."""
    began = time.monotonic()
    while not (run / f"warm-{stage}").exists():
        if not (run / f"warming-{stage}").exists() or time.monotonic() - began > WARM_SECONDS:
            return False
        time.sleep(0.2)
    return True


def run_all(place: Place, ends: dict[str, float], out: Path) -> None:
    """Teach every stage that has an end, one after the other; one that fails is told of, and the next begins."""
    began = time.monotonic()
    for stage, end in ends.items():
        compiled = is_warm(place.run, stage)
        for each in dict.fromkeys((compiled, False)):
            left = end - (time.monotonic() - began)
            print(f"== {stage}: {left:.0f} s, {'compiled' if each else 'as it is'}", flush=True)
            try:
                run_stage(replace(place, compiled=each), stage, left, out)
                break
            except FAILURES:
                traceback.print_exc()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        print(f"== {stage} over at {time.monotonic() - began:.0f} s", flush=True)


def pieces(out: Path, to: Path) -> list[Path]:
    """Cut what stages have left since the last time into files of at most 15 MiB; as many stages as fit MOST_MIB.

    What another stage has gone on from, and nothing else needs, is left out.
    """
    to.mkdir(parents=True, exist_ok=True)
    new: list[Path] = []
    nets = (stage for stage in STAGES if STAGES[stage].leaves == "folder")
    passed = {STAGES[stage].rather for stage in nets if (out / stage).is_dir()}
    for folder in (out / stage for stage in STAGES if stage not in passed):
        if folder.is_dir() and not (folder / SENT).exists():
            all_files = (path for each in (*new, folder) for path in each.iterdir())
            new += [folder] if size_mib(all_files) < MOST_MIB else []
    whole = out / ".pieces.tar"
    with tarfile.open(whole, "w") as tar:
        for folder in new:
            tar.add(folder, folder.name)
            (folder / SENT).touch()
    data, made = whole.read_bytes(), []
    name = "-".join(folder.name for folder in new)
    for number, begin in enumerate(range(0, len(data) if new else 0, MOST_BYTES)):
        made.append(to / f"{name}.tar.{number:02}")
        made[-1].write_bytes(data[begin : begin + MOST_BYTES])
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    """Teach all stages, or cut what they left, from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--stock", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--scale", choices=tuple(SCALES), default=FULL.name)
    parser.add_argument("--ends", nargs="+", default=[], metavar="STAGE=SECOND")
    parser.add_argument("--pieces", type=Path)
    parser.add_argument("--to", type=Path)
    args = parser.parse_args(arguments)
    if args.pieces is not None:
        for path in pieces(args.pieces, args.to):
            print(f"{path}: {path.stat().st_size / 2**20:.1f} MiB")
        return
    ends = {stage: float(end) for stage, _, end in (given.partition("=") for given in args.ends)}
    if not ends or set(ends) - set(STAGES):
        parser.error(f"--ends STAGE=SECOND ..., of {', '.join(STAGES)}")
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    workers = 0 if args.stock is not None else max(1, (os.cpu_count() or 2) - 1)
    place = Place(args.run, SCALES[args.scale], load_settings(), args.run / "world.zip", workers, stock=args.stock)
    run_all(place, ends, args.out)


if __name__ == "__main__":
    main()
