"""Compiled nets: on a GPU a step takes half the time, after a minute of compiling that another process does ahead.

python -m recipes.diorama.haste STAGE [STAGE ...] --run RUN      # fills torch's cache; prints a line a stage
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from disegno.core.settings import load_settings
from disegno.training.base import Batch
from disegno.training.denoising import Denoising

from .scale import FULL, SCALES, Scale

NUM_TOKENS, TEXT_WIDTH = 48, 384


def hasten(module: nn.Module) -> None:
    """Compile the nets of a recipe's module in place, where it is one of noise; at their first call."""
    if not isinstance(module, Denoising):
        return
    for net in (module.denoiser, module.control):
        if net is not None:
            net.compile(dynamic=False)


def drawn_rows(scale: Scale, count: int, device: torch.device, shrink: int = 1) -> dict[str, Tensor]:
    """Return rows of no meaning, of the shapes that a stage is given."""
    side = scale.size // shrink // 8
    latents = {name: torch.randn(count, 4, side, side, device=device) for name in ("latent", "condition_latent")}
    return {**latents, "tokens": torch.randn(count, NUM_TOKENS, TEXT_WIDTH, device=device).bfloat16()}


def warm(run: Path, stage: str, scale: Scale) -> float:
    """Compile what a stage will, on a newborn model; return the seconds that it took."""
    from .newborn import write_newborn
    from .stages import STAGES, Place, open_taught, request_of

    place = Place(run / "warm", scale, load_settings(), compiled=True)
    request = replace(request_of(place, stage), model=str(write_newborn(place.run / "newborn", scale)))
    began = time.monotonic()
    learner, ground = open_taught(place, stage, request)
    device = ground.policy.device
    for step, task in enumerate(STAGES[stage].tasks[:2]):
        rows = drawn_rows(scale, request.batch, device, STAGES[stage].shrink)
        batch = Batch(rows, tuple(range(1, request.batch + 1)), task, step)
        loss = learner.module(batch, learner.turns[0].name).sum() / request.batch
        loss.backward(inputs=list(learner.turns[0].parameters.values()))
        assert bool(torch.isfinite(loss))
    return time.monotonic() - began


def main() -> None:
    """Warm the compiler's cache from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="+", choices=("half", "net", "base"))
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--scale", choices=tuple(SCALES), default=FULL.name)
    args = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = True
    for stage in args.stages:
        (args.run / f"warming-{stage}").touch()
    for stage in args.stages:
        print(f"{stage}: compiled in {warm(args.run, stage, SCALES[args.scale]):.0f} s", flush=True)
        (args.run / f"warm-{stage}").touch()


if __name__ == "__main__":
    main()
