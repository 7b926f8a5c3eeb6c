"""Five ways to teach a condition, side by side on the same work: the same pairs, steps, batches, model and drawings.

    python benchmarks/bench_methods.py PICTURES OUT [--steps 400] [--batch 8] [--num 24] [--annotator canny]

PICTURES: a folder of pictures with captions. Each method is taught in a process of its own under the built-in model;
pairs that it was not taught with are drawn through the engine and measured (docs/explanation/figures.md). What is in
OUT already is kept, so a run that was broken off goes on, but only with the same work: another is refused. At the end
sampling is timed for all in turn. OUT gets METHOD.json each, methods.md (the table) and methods.png: one row a drawing,
one column a method.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Generator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from common import report
from PIL import Image

from disegno import ControlUnit, Request, generate
from disegno.core.evaluate import EvaluateRequest
from disegno.core.settings import Settings, load_settings
from disegno.core.teach import TeachRequest
from disegno.engine.sheet import sheet
from disegno.engine.studio import Studio
from disegno.training.base import TeachProgress
from disegno.training.evaluation import Evaluation, evaluate
from disegno.training.lesson import Lesson, Opening
from disegno.training.processes import ALONE
from disegno.training.recipes import RECIPES
from disegno.training.scores import CONTROL, REAL, WITHOUT
from disegno.training.teach import open_lesson, run_of
from disegno.training.trainer import train
from disegno.training.trial import controllability
from disegno.weights.load import open_file

# Each method's peak learning rate here: above its recipe's own, since the steps are few
RATES = {"controlnet": 5e-4, "ctrlora": 5e-4, "unicontrol": 5e-4, "uni-controlnet": 5e-4, "xs": 1e-3}
HOLDOUT = 64
SHOWN = 4  # drawings in the picture
PACE_STEPS = (16, 1)  # of sampling: many against one, so that decoding and text do not count
ROUNDS = 3


@dataclass(frozen=True)
class Work:
    """What every method does."""

    pictures: str
    out: Path
    steps: int
    batch: int
    num: int
    annotator: str

    @property
    def words(self) -> str:
        """What was done, so that only equal work stands in one table."""
        return f"{self.annotator}, {self.steps} steps of {self.batch} pairs, {self.num} drawings"

    @property
    def settings(self) -> Settings:
        """Where latents are kept: they are made once for all methods."""
        return load_settings(cache_dir=self.out / "cache")

    def request(self, method: str) -> TeachRequest:
        """Return the training of a method."""
        several = RECIPES.load(method).ABOUT.several
        return TeachRequest(
            name=method,
            data=(f"{self.annotator}={self.pictures}" if several else self.pictures,),
            recipe=method,
            annotator=self.annotator,
            steps=self.steps,
            batch=self.batch,
            rate=RATES[method],
            rate_schedule="cosine",
            warmup=self.steps // 20,
            holdout=HOLDOUT,
            validate_every=0,
            save_every=self.steps,
        )


def _counted(opening: Opening, found: dict[str, Any]) -> Generator[TeachProgress, None, Lesson]:
    lesson = yield from opening
    found |= {"pairs": len(lesson.examples), "steps": lesson.request.steps}
    found["trained"] = sum(p.numel() for turn in lesson.learner.turns for p in turn.parameters.values())
    return lesson


def taught(work: Work, method: str) -> dict[str, Any]:
    """Teach a method, and return what that took."""
    request, found, folder = work.request(method), dict[str, Any](), work.out / method
    run = run_of(request, folder)
    ends = list[float]()
    for event in train(request, run, _counted(open_lesson(request, run, work.settings, ALONE), found)):
        if isinstance(event, TeachProgress) and event.stage == "teaching":
            ends.append(time.perf_counter())
            if event.step % 50 == 0:
                print(f"{method}: step {event.step}, loss {event.loss}", file=sys.stderr, flush=True)
    found["seconds_per_step"] = round(median(b - a for a, b in pairwise(ends)), 3)
    found["training_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    return found


def measured(work: Work, method: str) -> dict[str, Any]:
    """Return how well a method's control is followed, and keep some of its pictures."""
    path = work.out / method / f"{method}.safetensors"
    task = work.annotator if RECIPES.load(method).ABOUT.several else None
    request = EvaluateRequest(
        control=str(path), data=work.pictures, annotator=work.annotator, num=work.num, holdout=HOLDOUT, task=task
    )
    done = next(event for event in evaluate(request, work.settings) if isinstance(event, Evaluation))
    for n in range(SHOWN):
        for way in (CONTROL, WITHOUT, REAL):
            Image.fromarray(done.drawn[way][n][0]).save(work.out / f"{method}-{n}-{way}.png")
        Image.fromarray(done.rows[n].condition).save(work.out / f"condition-{n}.png")
    score = done.scores[0]
    reached = controllability(done.criterion, *(score.rows[way] for way in (CONTROL, WITHOUT, REAL)))
    ways = {way: round(summary.mean, 4) for way, summary in score.of.items()}
    return {
        "measure": score.title,
        **ways,
        "controllability": reached and round(reached.mean, 3),
        "error": reached and round(reached.error, 3),
        "mib": round(path.stat().st_size / 2**20, 1),
        "parameters": _parameters(path) + (_parameters(base) if (base := _base(method, work)) else 0),
    }


def _base(method: str, work: Work) -> Path | None:
    return Studio(work.settings).backbone("diorama").base_control if RECIPES.load(method).ABOUT.on_base else None


def _parameters(path: Path) -> int:
    with open_file(path) as file:
        return sum(file.tensor(key).numel() for key in file.contents.entries)


def paces(work: Work, methods: list[str]) -> dict[str, float]:
    """Return the seconds of a guided sampling step with a new prompt, under each method and under none ("").

    They take turns, picture by picture, so that what else the machine does falls on all alike; medians.
    """
    studio, seconds = Studio(work.settings), {method: list[float]() for method in ("", *methods)}
    for n in range(ROUNDS + 1):
        for method, own in seconds.items():
            asked = [Request(prompt=f"picture {n}", steps=k, seed=n, controls=_units(work, method)) for k in PACE_STEPS]
            many, one = (_seconds(request, studio) for request in asked)
            own.append((many - one) / (PACE_STEPS[0] - PACE_STEPS[1]))
    return {method: round(median(own[1:]), 4) for method, own in seconds.items()}  # the first opens the control


def _units(work: Work, method: str) -> tuple[ControlUnit, ...]:
    if not method:
        return ()
    task = work.annotator if RECIPES.load(method).ABOUT.several else None
    path, image = work.out / method / f"{method}.safetensors", work.out / "condition-0.png"
    return (ControlUnit(name=str(path), image=str(image), annotate="none", task=task),)


def _seconds(request: Request, studio: Studio) -> float:
    began = time.perf_counter()
    for _ in generate(request, studio=studio):
        pass
    return time.perf_counter() - began


def one(work: Work, method: str) -> None:
    """Do a method's work and write METHOD.json."""
    found = {"method": method, "work": work.words, **taught(work, method), **measured(work, method)}
    (work.out / f"{method}.json").write_text(json.dumps(found, indent=1), "utf-8")


def table(found: list[dict[str, Any]]) -> str:
    """Return the figures as a table in Markdown."""
    columns = {
        "method": "method",
        "parameters": "parameters",
        "trained": "of them trained",
        "mib": "file, MiB",
        "steps": "steps",
        "seconds_per_step": "s a training step",
        "training_mib": "memory, MiB",
        CONTROL: "edges: with it",
        "controllability": "controllability",
        "error": "its error",
        "sampling_step": "s a sampling step",
        "times": "against none",
    }
    lines = ["| " + " | ".join(columns.values()) + " |", "|" + "---|" * len(columns)]
    lines += [
        "| " + " | ".join(f"{row[key]:,}" if isinstance(row[key], int) else f"{row[key]}" for key in columns) + " |"
        for row in found
    ]
    return "\n".join(lines) + "\n"


def page(work: Work, methods: list[str]) -> Image.Image:
    """Return the pictures: one row a drawing; the drawing, each method, no control, the real picture."""
    columns = ["the drawing", *methods, "no control", "real, through the VAE"]
    pictures: list[Image.Image] = []
    for n in range(SHOWN):
        names = [f"condition-{n}", *(f"{method}-{n}-{CONTROL}" for method in methods)]
        names += [f"{methods[0]}-{n}-{way}" for way in (WITHOUT, REAL)]
        pictures += [Image.open(work.out / f"{name}.png") for name in names]
    return sheet(pictures, columns * SHOWN, columns=len(columns))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures")
    parser.add_argument("out", type=Path)
    for name, default in (("steps", 400), ("batch", 8), ("num", 24)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--annotator", default="canny")
    parser.add_argument("--methods", nargs="+", default=list(RATES), choices=list(RATES))
    parser.add_argument("--one", choices=list(RATES), help=argparse.SUPPRESS)
    given = parser.parse_args()
    work = Work(given.pictures, given.out, given.steps, given.batch, given.num, given.annotator)
    work.out.mkdir(parents=True, exist_ok=True)
    if given.one:
        one(work, given.one)
        return
    for method in given.methods:
        if not (work.out / f"{method}.json").is_file():
            subprocess.run([sys.executable, *sys.argv, "--one", method], check=True)
    found = [json.loads((work.out / f"{method}.json").read_text("utf-8")) for method in given.methods]
    for row in found:
        if row["work"] != work.words:
            parser.error(f"{row['method']} did other work ({row['work']}); now: {work.words}. Choose another folder.")
    seconds = paces(work, given.methods)
    for row in found:
        step = seconds[row["method"]]
        row |= {"sampling_step": step, "times": round(step / seconds[""], 2)}
    (work.out / "methods.md").write_text(table(found), "utf-8")
    page(work, given.methods).save(work.out / "methods.png")
    report("methods", steps=work.steps, batch=work.batch, methods=found)


if __name__ == "__main__":
    main()
