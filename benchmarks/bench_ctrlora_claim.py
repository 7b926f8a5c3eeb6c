"""CtrLoRA's claim in small: a LoRA on a Base ControlNet against a ControlNet from scratch and against all of the Base.

python benchmarks/bench_ctrlora_claim.py --data palette=PAIRS --data canny=PAIRS --base BASE --model MODEL --out RUNS

Every condition is taught by every recipe from the same pairs, batches and seeds, and looked at after the same numbers
of steps: one JSON line for each training, with what it came to at each look. Peers: the recipes `controlnet` (Zhang et
al. 2023) and `full` (the paper's ablation). Interrupted, the same command goes on where it was.
"""

import argparse
import resource
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from common import report

from disegno.core.settings import Settings, load_settings
from disegno.core.teach import TeachRequest
from disegno.training.base import Look, TeachProgress, TeachResult
from disegno.training.teach import teach
from disegno.weights.load import load_file

RATES = {"ctrlora": 1e-3, "controlnet": 2e-4, "full": 2e-4}  # not searched: to be found with `teach --find-rate`
STEPS, BATCH, RANK = 5000, 8, 16
LOOK_EVERY = 250


@dataclass(frozen=True)
class Outcome:
    """One training. `curve`: step -> what its look measured; `trainable`: parameters in its file."""

    condition: str
    recipe: str
    trainable: int
    seconds: float
    peak_mib: float
    file_mib: float
    curve: dict[int, dict[str, float]]


def run(request: TeachRequest, settings: Settings, folder: Path, condition: str) -> Outcome:
    """Return what a training came to."""
    began = time.monotonic()
    curve: dict[int, dict[str, float]] = {}
    path = folder
    for event in teach(request, settings, folder):
        if isinstance(event, TeachProgress) and event.step % LOOK_EVERY == 0:
            print(f"{condition} {request.recipe} {event.step}/{event.num_steps} {event.stage} {event.loss}", flush=True)
        if isinstance(event, Look):
            curve[event.step] = dict(event.metrics)
        if isinstance(event, TeachResult):
            path = event.path
    seconds = time.monotonic() - began
    trainable = sum(tensor.numel() for tensor in load_file(path).values())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return Outcome(condition, request.recipe, trainable, seconds, peak, path.stat().st_size / 2**20, curve)


def request_of(condition: str, pairs: str, recipe: str, args: argparse.Namespace) -> TeachRequest:
    """Return one training's request; all but the recipe and its rate are the same for all."""
    request = TeachRequest(
        name=f"{condition}-{recipe}",
        data=(pairs,),
        recipe=recipe,
        model=args.model,
        annotator=condition if condition != "flat" else None,
        steps=args.steps,
        batch=BATCH,
        rank=RANK,
        rate=RATES[recipe],
        warmup=min(50, args.steps // 10),
        validate_every=min(LOOK_EVERY, args.steps),
        holdout=args.holdout,
        width=args.size,
        height=args.size,
    )
    return replace(request, base=args.base) if recipe != "controlnet" else request


def main() -> None:
    """Teach every condition by every recipe, and report each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", action="append", required=True, help="CONDITION=PAIRS, of `compose --out`")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="diorama")
    parser.add_argument("--base", default=None)
    parser.add_argument("--size", type=int, default=None)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--holdout", type=int, default=16)
    parser.add_argument("--recipes", nargs="+", choices=tuple(RATES), default=list(RATES))
    args = parser.parse_args()
    settings = load_settings()
    for spec in args.data:
        condition, _, pairs = spec.partition("=")
        for recipe in args.recipes:
            request = request_of(condition, pairs, recipe, args)
            outcome = run(request, settings, args.out / f"{condition}-{recipe}-{Path(pairs).name}", condition)
            report("ctrlora_claim", **asdict(outcome))


if __name__ == "__main__":
    main()
