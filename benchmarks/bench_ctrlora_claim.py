"""CtrLoRA's claim in small: a LoRA on a Base ControlNet against a ControlNet from scratch and against all of the Base.

    python benchmarks/bench_ctrlora_claim.py OUT --data palette=PAIRS --data line-art=PAIRS [--model FOLDER]
        [--steps ctrlora=1000 controlnet=5000 full=1000] [--every 250] [--batch 8] [--rank 32]
        [--pairs 100 300] [--judge palette=PAIRS --judge line-art=PAIRS]

PAIRS: a folder of `python -m recipes.diorama.compose --out`. Every condition is taught by every recipe from the same
pairs, batches and seeds, each in a process of its own, and looked at through the engine every so many steps: drawings
that were held out are followed how well (docs/explanation/figures.md). Rates fall by a cosine. Peers: the recipes
`controlnet` (Zhang et al. 2023) and `full` (the paper's ablation). What is in OUT already is kept; a training that was
broken off goes on. `--pairs`: ctrlora learns from so few as well. `--judge`: what all reach in the end, on more pairs
than a look draws. OUT gets CONDITION-RECIPE-PAIRS.json each, claim.md (the table), claim-CONDITION.svg (the curves),
CONDITION-judged.json each and judged.md.
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

from claim_judge import judge
from common import report
from PIL import Image

from disegno.core.request import Scalar
from disegno.core.settings import load_settings
from disegno.core.teach import TeachRequest
from disegno.training.base import Look, TeachProgress, TeachResult
from disegno.training.convergence import CONTROLLABILITY, ERROR
from disegno.training.curves import HEIGHT, WIDTH, Curve, Level, chart
from disegno.training.data.opening import open_pairs
from disegno.training.data.split import split
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
    """One training. `pairs`: a folder of pairs of the condition; `looked`: whether some are kept back and drawn."""

    condition: str
    recipe: str
    pairs: Path
    steps: int
    looked: bool = True

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
            annotator=annotator_of(self.condition, args),
            steps=self.steps,
            batch=args.batch,
            rank=args.rank,
            rate=args.rate or RATES[self.recipe],
            rate_schedule="cosine",
            timesteps="high-noise",
            warmup=min(50, self.steps // 10),
            validate_every=min(max(args.every, self.steps // 5), self.steps) if self.looked else 0,
            holdout=args.holdout if self.looked else 0,
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


def annotator_of(condition: str, args: argparse.Namespace) -> str | None:
    """Return what draws the condition again; None: nothing does."""
    return None if condition in args.unseen else condition


def few(condition: str, pairs: Path, num: int, args: argparse.Namespace) -> Path:
    """Return a folder of `num` of the pairs, of those that the other trainings learn from."""
    folder = args.out / "pairs" / f"{condition}-{num}"
    if (folder / "prompt.json").is_file():
        return folder
    taught, lines = split(open_pairs(str(pairs)), args.holdout)[0], list[str]()
    if len(taught) < num:
        raise SystemExit(f"{pairs} has {len(taught)} pairs to learn from; --pairs asks for {num}.")
    for part in ("source", "target"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for index in range(num):
        sample, names = taught.read(index), {part: f"{part}/{index:06d}.png" for part in ("source", "target")}
        Image.fromarray(sample.condition).save(folder / names["source"])
        Image.fromarray(sample.target).save(folder / names["target"])
        lines.append(json.dumps(names | {"prompt": sample.caption}))
    (folder / "prompt.json").write_text("\n".join(lines) + "\n", "utf-8")
    return folder


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


def _cell(figure: list[float] | None) -> str:
    """Return a mean and its error; a set's distance has none."""
    if figure is None:
        return ""
    mean, error = figure
    return f"{mean:.3f} ± {error:.3f}" if error else f"{mean:.3f}"


def judged_table(found: dict[str, Any]) -> str:
    """Return what all controls reach on the judged pairs in Markdown: a line a control."""
    lines = list[str]()
    for condition, figures in found.items():
        lines += ["| " + " | ".join([condition, *figures]) + " |", "|" + "---|" * (len(figures) + 1)]
        for way in next(iter(figures.values())):
            lines.append("| " + " | ".join([way, *(_cell(of.get(way)) for of in figures.values())]) + " |")
        lines.append("")
    return "\n".join(lines)


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
    parser.add_argument("--pairs", nargs="*", type=int, default=[], help="ctrlora learns from so many as well")
    parser.add_argument("--judge", action="append", default=[], metavar="CONDITION=PAIRS")
    parser.add_argument("--judged-on", type=int, default=64, help="so many pairs")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser.parse_args()


def trials_of(given: str, steps: dict[str, int], args: argparse.Namespace) -> list[Trial]:
    """Return what is taught from CONDITION=PAIRS."""
    condition, pairs = _named(given)
    whole = [Trial(condition, recipe, Path(pairs), steps[recipe]) for recipe in args.recipes]
    if "ctrlora" not in args.recipes:
        return whole
    parts = (few(condition, Path(pairs), num, args) for num in args.pairs)
    return whole + [Trial(condition, "ctrlora", part, steps["ctrlora"], looked=False) for part in parts]


def _named(given: str) -> tuple[str, str]:
    condition, _, pairs = given.partition("=")
    return condition, pairs


def _judged(condition: str, pairs: Path, trials: list[Trial], args: argparse.Namespace) -> dict[str, Any]:
    """Return what the condition's controls reach, from its file where it is there."""
    path = args.out / f"{condition}-judged.json"
    if not path.is_file():
        own = [trial.name for trial in trials if trial.condition == condition]
        found = judge(
            {name: args.out / name / f"{name}.safetensors" for name in own},
            pairs,
            args.judged_on,
            model=args.model,
            annotator=annotator_of(condition, args),
            params=PARAMS.get(condition),
            settings=load_settings(cache_dir=args.out / "cache"),
        )
        path.write_text(json.dumps(found, indent=1), "utf-8")
    return json.loads(path.read_text("utf-8"))


def main() -> None:
    """Teach every condition by every recipe, each in its own process, and report all."""
    args = parsed()
    args.out.mkdir(parents=True, exist_ok=True)
    steps = STEPS | {recipe: int(n) for recipe, _, n in (given.partition("=") for given in args.steps)}
    trials = [trial for given in args.data for trial in trials_of(given, steps, args)]
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
        own = [row for row in found if row["condition"] == condition and row["curve"]]
        (args.out / f"claim-{condition}.svg").write_text(drawing(condition, own), "utf-8")
    judged = {condition: _judged(condition, Path(pairs), trials, args) for condition, pairs in map(_named, args.judge)}
    (args.out / "judged.md").write_text(judged_table(judged), "utf-8")
    for row in found:
        report("ctrlora_claim", **row)


if __name__ == "__main__":
    main()
