"""Train a stage for some minutes, in slices that go on exactly where the last one ended.

python -m recipes.diorama.train STAGE --run RUN --minutes 9 [--workers 15] [--bring SHARDS] [--leave SHARDS]
python -m recipes.diorama.train STAGE --run RUN --finish              # end a stage with what it has learned so far
python -m recipes.diorama.train --rehearse --run RUN                  # every stage as a toy, in under three minutes

STAGE: vae, half, net, base, obey, few, decoder, tiny, detector, in this order (half and obey may be left out; detector
needs none of the others, and learns to see through the autoencoder where there is one).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from disegno.core.settings import load_settings
from disegno.core.teach import TeachRequest
from disegno.memory import DTYPES
from disegno.training import checkpoint
from disegno.training.base import TeachProgress, TeachResult
from disegno.training.lesson import Habits, Lesson, Opening
from disegno.training.optimise import open_pupil, restore
from disegno.training.run import Run, asked_in, digest, write_result
from disegno.training.stopping import Stop
from disegno.training.trainer import train
from disegno.weights.load import load_file, open_file
from disegno.weights.quantised import quantise_rows
from disegno.weights.save import save_safetensors

from .newborn import standardised
from .scale import SCALES, TOY
from .shards import INDEX, join, split
from .stages import STAGES, Place, measured, open_stage, request_of
from .world.pack import known_to, open_pack

LOG_SECONDS = 10.0
MOST_MIB = 60.0  # of what a slice leaves
MEASURED_SCENES = {"full": 192, "home": 192, "toy": 8}
PARTS = {"vae": "vae.safetensors", "half": "unet.safetensors", "net": "unet.safetensors", "obey": "unet.safetensors"}


def run_of(place: Place, stage: str) -> Run:
    """Return the folder of a stage."""
    return Run(place.folder(stage), stage, ".safetensors" if STAGES[stage].leaves == "file" else "")


def slice_of(place: Place, stage: str, minutes: float, steps: int | None = None) -> TeachResult:
    """Train a stage until it has ended or the minutes are over, and return what came of it."""
    run = run_of(place, stage)
    request = asked_in(run.folder) or request_of(place, stage, steps)
    stop = Stop()
    clock = threading.Timer(minutes * 60, stop.ask)
    clock.daemon = True
    clock.start()
    result: TeachResult | None = None
    said, began = 0.0, time.monotonic()
    habits = Habits(workers=0, save_minutes=10)  # rows are numbers: threads that read ahead would only cost
    with stop.on_signals():
        for event in train(request, run, open_stage(place, stage, request), (), stop, habits=habits):
            if isinstance(event, TeachProgress) and time.monotonic() - said > LOG_SECONDS:
                said = time.monotonic()
                print(f"{stage} {event.step}/{event.num_steps} loss {event.loss} {said - began:.0f} s", flush=True)
                with (run.folder / "log.csv").open("a", encoding="utf-8") as log:
                    log.write(f"{event.step},{said - began:.1f},{event.loss}\n")
            if isinstance(event, TeachResult):
                result = event
    clock.cancel()
    assert result is not None
    print(f"{stage}: {result.why} at step {result.step}: {result.path}", flush=True)
    if result.why != "stopped" and settle(place, stage):
        write_result(run, result)  # with the new bytes: else the next slice would write the old ones again
    return result


def settle(place: Place, stage: str) -> bool:
    """Give a finished VAE's latents mean 0 and deviation 1, once; return whether that has changed its file."""
    if stage != "vae":
        return False
    mark, file = place.result("vae") / "standardised", place.result("vae") / "vae.safetensors"
    if mark.exists() and digest(file) in mark.read_text("utf-8"):  # else the mark is an earlier file's
        return False
    mean, deviation = measured(place, MEASURED_SCENES[place.scale.name])
    save_safetensors(file, standardised(dict(load_file(file)), mean, deviation), {"format": "pt"})
    mark.write_text(f"mean {mean.tolist()}\ndeviation {deviation.tolist()}\nsha256 {digest(file)}\n", "utf-8")
    return True


# ---- ending early, and travelling


def learned(place: Place, stage: str, request: TeachRequest) -> tuple[Lesson, dict[str, Tensor], int]:
    """Return a stage's lesson, the weights of its newest checkpoint (their average), and its step."""
    lesson = opened(open_stage(place, stage, request))
    found = checkpoint.newest(run_of(place, stage).checkpoints).checkpoint
    if found is None:
        raise SystemExit(f"{place.folder(stage)} has no checkpoint yet. Train it first.")
    weights: dict[str, Tensor] = {}
    for turn in lesson.learner.turns:
        pupil = open_pupil(turn, request)
        restore(pupil, found.tensors)
        weights |= {name: tensor.detach() for name, tensor in pupil.weights.items()}
    return lesson, weights, found.step


def opened(opening: Opening) -> Lesson:
    """Return what an opening opens."""
    while True:
        try:
            next(opening)
        except StopIteration as end:
            return end.value


def finish(place: Place, stage: str) -> Path:
    """Write a stage's result from its newest checkpoint, and return where it is."""
    request = asked_in(place.folder(stage)) or request_of(place, stage)
    lesson, weights, step = learned(place, stage, request)
    path = place.result(stage)
    if path.is_dir():
        shutil.rmtree(path)
    lesson.learner.save(path, lesson.facts_at(step, {}), weights)
    settle(place, stage)
    print(f"{stage}: ended at step {step} of {request.steps}: {path}")
    return path


def leave(place: Place, stage: str, out: Path, most_mib: float = MOST_MIB) -> list[Path]:
    """Return the pieces of what the next slice needs: the newest checkpoint, or the weights alone in 16 bits."""
    folder = place.folder(stage)
    newest = max((p for p in (folder / "checkpoints").glob("step-*") if p.is_dir()), default=None)
    files = {} if newest is None else {f"checkpoints/{newest.name}/{p.name}": p for p in newest.iterdir()}
    files["training.json"] = folder / "training.json"
    if sum(path.stat().st_size for path in files.values()) <= most_mib * 2**20:
        return split(files, out, {"stage": stage, "exact": True})
    files, step = compact(place, stage)
    return split(files, out, {"stage": stage, "exact": False, "step": step})


def compact(place: Place, stage: str) -> tuple[dict[str, Path], int]:
    """Return the files of what a stage has learned, in few bits, and its step: as small as they are shipped."""
    folder = place.folder(stage) / "compact"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    request = asked_in(place.folder(stage)) or request_of(place, stage)
    lesson, weights, step = learned(place, stage, request)
    if stage in PARTS:
        own = {name: tensor for name, tensor in weights.items() if not name.startswith("critic.")}
        save_safetensors(folder / PARTS[stage], _small(PARTS[stage], own), {"format": "pt"})
    else:
        lesson.learner.save(folder / place.result(stage).name, lesson.facts_at(step, {}), weights)
        for path in folder.iterdir():
            with open_file(path) as file:
                tensors, words = _small(path.name, file.tensors()), dict(file.metadata)
            save_safetensors(path, tensors, words)
    return {path.name: path for path in folder.iterdir()}, step


def _small(name: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return large nets as int8 rows, the rest in 16 bits."""
    if name in ("unet.safetensors", "base.safetensors"):
        return quantise_rows(tensors)
    return {key: tensor.to(DTYPES["fp16"]).contiguous() for key, tensor in tensors.items()}


def bring(place: Place, stage: str, shards: Path) -> bool:
    """Unpack what an earlier slice left; return whether the training goes on exactly."""
    folder = place.folder(stage)
    if any((folder / "checkpoints").glob("step-*")):
        return True  # this machine has it already
    brought = place.run / "brought" / stage
    note = join(shards, folder if _is_exact(shards) else brought)
    if not note["exact"]:
        if stage in PARTS:
            shutil.copy(brought / PARTS[stage], place.model_of(stage) / PARTS[stage])
        print(f"{stage}: the weights of step {note['step']}, with a new optimiser and a new warm-up")
    return bool(note["exact"])


def _is_exact(shards: Path) -> bool:
    return bool(json.loads((shards / INDEX).read_text("utf-8"))["exact"])


def rehearse(place: Place) -> dict[str, float]:
    """Train every stage as a toy, each in two slices; return the seconds of each."""
    seconds: dict[str, float] = {}
    for stage in STAGES:
        began = time.monotonic()
        slice_of(place, stage, minutes=60)
        seconds[stage] = time.monotonic() - began
    return seconds


def main(arguments: Sequence[str] | None = None) -> None:
    """Train from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", nargs="?", choices=tuple(STAGES))
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--pack", type=Path, help="the data pack; unset: RUN/world.zip")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--steps", type=int, help="of the whole stage; unset: scale.py's")
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 1))
    parser.add_argument("--scale", choices=tuple(SCALES), default="full")
    parser.add_argument("--vocabulary", type=Path, help="a model.json: only nouns that it knows; drawn in this process")
    parser.add_argument("--compiled", action="store_true", help="compile net and base: 1.3 times as fast on a CPU")
    parser.add_argument("--bring", type=Path, help="a folder of shards to go on from")
    parser.add_argument("--leave", type=Path, help="where to write shards for the next slice")
    parser.add_argument("--finish", action="store_true")
    parser.add_argument("--rehearse", action="store_true")
    args = parser.parse_args(arguments)
    pack = args.pack or args.run / "world.zip"
    place = Place(args.run, SCALES[args.scale], load_settings(), pack, args.workers, compiled=args.compiled)
    if args.vocabulary is not None:
        place = replace(place, workers=0, wardrobe=known_to(args.vocabulary, open_pack(pack)))
    torch.backends.cuda.matmul.allow_tf32 = True
    if args.rehearse:
        print(rehearse(replace(place, scale=TOY, workers=0)))
        return
    if args.stage is None:
        parser.error("name a stage, or --rehearse")
    if args.bring is not None:
        bring(place, args.stage, args.bring)
    if args.finish:
        finish(replace(place, workers=0, compiled=False), args.stage)
    else:
        slice_of(place, args.stage, args.minutes, args.steps)
    if args.leave is not None:
        for path in leave(replace(place, workers=0), args.stage, args.leave):
            print(f"{path}: {path.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
