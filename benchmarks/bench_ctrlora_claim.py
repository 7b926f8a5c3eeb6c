"""CtrLoRA's claim in small: a LoRA on a Base ControlNet against a ControlNet from scratch and against all of the Base.

    python benchmarks/bench_ctrlora_claim.py OUT --data palette=PAIRS --data line-art=PAIRS [--model FOLDER]
        [--steps ctrlora=1000 controlnet=5000 full=1000] [--every 250] [--batch 8] [--rank 32]

PAIRS: a folder of `python -m recipes.diorama.compose --out`. Every condition is taught by every recipe from the same
pairs, batches and seeds, each in a process of its own, and looked at through the engine every so many steps: drawings
that were held out are followed how well (docs/explanation/figures.md). Rates fall by a cosine. Peers: the recipes
`controlnet` (Zhang et al. 2023) and `full` (the paper's ablation). What is in OUT already is kept; a training that was
broken off goes on. OUT gets CONDITION-RECIPE-PAIRS.json each, claim.md (the table), claim-CONDITION.svg (the curves).
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common import report

from disegno.core.request import Scalar
from disegno.core.settings import load_settings
from disegno.core.teach import TeachRequest
from disegno.training.base import Look, TeachProgress, TeachResult
from disegno.training.convergence import CONTROLLABILITY, ERROR
from disegno.training.curves import HEIGHT, WIDTH, Curve, Level, chart
from disegno.training.teach import teach
from disegno.weights.load import open_file

# Peak rates, not searched for: above the recipes' own, since the steps are few
RATES = {"ctrlora": 1e-3, "controlnet": 5e-4, "full": 5e-4}
STEPS = {"ctrlora": 1000, "controlnet": 5000, "full": 1000}
STYLES = {"ctrlora": "c1", "controlnet": "c2", "full": "c2 dashed"}
PARAMS: dict[str, dict[str, Scalar]] = {"palette": {"cell": 16}}  # 8 by 8 cells of 128 pixels, as the world draws it
ON_BASE = ("ctrlora", "full")
STYLE = """text{font:10px sans-serif;fill:#555}.title{font-size:12px;font-weight:600}.y,.end{text-anchor:end}
.x{text-anchor:middle}.grid{stroke:#ccc;stroke-width:.6}.level{stroke:#888;stroke-dasharray:4 3;fill:none}
.line{fill:none;stroke-width:1.8}.c1{stroke:#a34a1f}.c2{stroke:#2f6f8f}.dashed{stroke-dasharray:5 3}
.error{fill:none;opacity:.45;stroke-dasharray:none!important}
circle{fill:#fff;stroke-dasharray:none!important}"""


@dataclass(frozen=True)
class Trial:
    """One training. `pairs`: a folder of pairs of the condition."""

    condition: str
    recipe: str
    pairs: Path
    steps: int

    @property
    def name(self) -> str:
        return f"{self.condition}-{self.recipe}-{self.pairs.name}"

    def request(self, args: argparse.Namespace) -> TeachRequest:
        """Return what is asked for; all but the recipe, its rate and its length is the same for all."""
        return TeachRequest(
            name=self.name,
            data=(str(self.pairs),),
            recipe=self.recipe,
            model=args.model,
            params=PARAMS.get(self.condition, {}),
            annotator=self.condition if self.condition not in args.unseen else None,
            steps=self.steps,
            batch=args.batch,
            rank=args.rank,
            rate=args.rate or RATES[self.recipe],
            rate_schedule="cosine",
            timesteps="high-noise",
            warmup=min(50, self.steps // 10),
            validate_every=min(max(args.every, self.steps // 5), self.steps),
            holdout=args.holdout,
            base=args.base if self.recipe in ON_BASE else None,
        )


@dataclass(frozen=True)
class Outcome:
    """What a training came to. `curve`: step -> what its look measured; `trainable`: parameters in its file."""

    condition: str
    recipe: str
    pairs: str
    steps: int
    trainable: int
    seconds: float
    peak_mib: float
    file_mib: float
    curve: dict[int, dict[str, float]]


def run(trial: Trial, args: argparse.Namespace) -> Outcome:
    """Return what a training came to. `seconds`: of a processor, for all its steps, without the looks."""
    curve, path, seconds, last = dict[int, dict[str, float]](), args.out, 0.0, time.process_time()
    for event in teach(trial.request(args), load_settings(cache_dir=args.out / "cache"), args.out / trial.name):
        now = time.process_time()
        if isinstance(event, TeachProgress) and event.stage == "teaching":
            seconds += now - last
            if event.step % 50 == 0:
                print(f"{trial.name}: step {event.step}, loss {event.loss}", file=sys.stderr, flush=True)
        if isinstance(event, Look):
            curve[event.step] = dict(event.metrics)
        if isinstance(event, TeachResult):
            path = event.path
        last = time.process_time()
    with open_file(path) as file:
        trainable = sum(file.tensor(key).numel() for key in file.contents.entries)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    size = path.stat().st_size / 2**20
    return Outcome(trial.condition, trial.recipe, trial.pairs.name, trial.steps, trainable, seconds, peak, size, curve)


def table(found: list[dict[str, Any]]) -> str:
    """Return all outcomes in Markdown: a line a training."""
    looks = sorted({int(step) for row in found for step in row["curve"]})
    head = ["condition", "pairs", "recipe", "parameters taught", "file, MiB", "core s", "memory, MiB"]
    lines = ["| " + " | ".join([*head, *(f"at {step}" for step in looks)]) + " |"]
    lines.append("|" + "---|" * (len(head) + len(looks)))
    for row in found:
        reached = [row["curve"].get(str(step), {}) for step in looks]
        cells = [row["condition"], row["pairs"], row["recipe"], f"{row['trainable']:,}", f"{row['file_mib']:.1f}"]
        cells += [f"{row['seconds']:.0f}", f"{row['peak_mib']:.0f}"]
        lines.append("| " + " | ".join([*cells, *map(_told, reached)]) + " |")
    return "\n".join(lines) + "\n"


def _told(look: dict[str, float]) -> str:
    """Return what a look found, with its standard error."""
    return f"{look[CONTROLLABILITY]:.2f} ± {look[ERROR]:.2f}" if CONTROLLABILITY in look else ""


def drawing(condition: str, found: list[dict[str, Any]]) -> str:
    """Return the curves of a condition as a whole SVG file: controllability by step, a line a recipe."""
    curves: list[Curve] = []
    for row in found:
        looks = sorted((int(step), figures) for step, figures in row["curve"].items())
        looks = [(step, figures) for step, figures in looks if CONTROLLABILITY in figures]
        points = [(step, figures[CONTROLLABILITY]) for step, figures in looks]
        errors = [figures.get(ERROR, 0.0) for _, figures in looks]
        curves.append(Curve(f"{row['recipe']}, {row['pairs']}", points, STYLES[row["recipe"]], True, errors))
    levels = [Level("no control", 0.0), Level("the real pictures", 1.0)]
    svg = chart(f"{condition}: controllability", curves, levels).partition("</svg>")[0]
    legend = "".join(
        f'<path d="M60 {HEIGHT + 13 * n}h18" class="line {curve.style}"/>'
        f'<text x="82" y="{HEIGHT + 13 * n + 3}">{curve.title}</text>'
        for n, curve in enumerate(curves)
    )
    size = f'viewBox="0 0 {WIDTH} {HEIGHT + 13 * len(curves)}" xmlns="http://www.w3.org/2000/svg"'
    svg = svg.replace(f'viewBox="0 0 {WIDTH} {HEIGHT}"', size, 1)
    return svg.replace(">", f"><style>{STYLE}</style>", 1) + f"{legend}</svg>\n"


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", action="append", required=True, metavar="CONDITION=PAIRS")
    parser.add_argument("--model", default="diorama")
    parser.add_argument("--base", default=None, help="unset: the model's own")
    parser.add_argument(
        "--steps", nargs="+", default=[], metavar="RECIPE=STEPS", help="a recipe that is left out: STEPS"
    )
    parser.add_argument("--recipes", nargs="+", choices=tuple(RATES), default=list(RATES))
    parser.add_argument(
        "--unseen",
        nargs="*",
        default=["flat", "inpainting-brush"],
        help="conditions that cannot be drawn again: none draws the first, and the second's hole is drawn by chance",
    )
    for name, default in (("every", 250), ("batch", 8), ("rank", 32), ("holdout", 16)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--rate", type=float, help="the peak, of every recipe; unset: each its own")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Teach every condition by every recipe, each in its own process, and report all."""
    args = parsed()
    args.out.mkdir(parents=True, exist_ok=True)
    steps = STEPS | {recipe: int(n) for recipe, _, n in (given.partition("=") for given in args.steps)}
    trials = [
        Trial(condition, recipe, Path(pairs), steps[recipe])
        for condition, _, pairs in (given.partition("=") for given in args.data)
        for recipe in args.recipes
    ]
    if args.one:
        (trial,) = (each for each in trials if each.name == args.one)
        (args.out / f"{trial.name}.json").write_text(json.dumps(asdict(run(trial, args)), indent=1), "utf-8")
        return
    for trial in trials:
        if not (args.out / f"{trial.name}.json").is_file():
            subprocess.run([sys.executable, *sys.argv, "--one", trial.name], check=True)
    found = [json.loads((args.out / f"{trial.name}.json").read_text("utf-8")) for trial in trials]
    (args.out / "claim.md").write_text(table(found), "utf-8")
    for condition in dict.fromkeys(trial.condition for trial in trials):
        own = [row for row in found if row["condition"] == condition]
        (args.out / f"claim-{condition}.svg").write_text(drawing(condition, own), "utf-8")
    for row in found:
        report("ctrlora_claim", **row)


if __name__ == "__main__":
    main()
