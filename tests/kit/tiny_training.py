"""A small real training: a linear map is learned from noisy rows, with the one loop. Run as a program, it is killed.

python tests/kit/tiny_training.py RUN [REQUEST AS JSON] [HABITS AS JSON]
"""

import json
import sys
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from disegno.core.teach import TeachRequest, make_teach_request
from disegno.training.base import Batch, Example, Facts, Learner, Look, Looking, TeachEvent, Turn, Watcher
from disegno.training.convergence import CONTROLLABILITY, ERROR
from disegno.training.lesson import Habits, Lesson, opened
from disegno.training.run import Run
from disegno.training.stopping import Stop
from disegno.training.trainer import train
from disegno.weights.save import save_safetensors

WIDTH = 8
TRUTH = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(5))


@dataclass(frozen=True)
class Rows:
    """Rows x (n 8) and what the truth makes of them; `lengths`: n, one shape each."""

    count: int = 24
    lengths: tuple[int, ...] = (3, 5)
    tasks: tuple[str, ...] = ("",)

    def __len__(self) -> int:
        return self.count

    def task(self, index: int) -> str:
        return self.tasks[index % len(self.tasks)]

    def shape(self, index: int) -> tuple[int, ...]:
        return (self.lengths[index // 2 % len(self.lengths)],)

    def __getitem__(self, index: int) -> Example:
        x = torch.randn(self.shape(index)[0], WIDTH, generator=torch.Generator().manual_seed(index))  # n 8
        return {"x": x, "y": x @ TRUTH}


class TinyNet(nn.Module):
    """The map; `hidden` is there to make it wide. Its noise comes from the rows' seeds."""

    def __init__(self, hidden: int = WIDTH, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(WIDTH, hidden, generator=torch.Generator().manual_seed(1)).to(dtype) / 4)
        self.controlnet_mid_block = nn.Linear(hidden, WIDTH, bias=False, dtype=dtype)
        nn.init.zeros_(self.controlnet_mid_block.weight)

    def forward(self, batch: Batch, turn: str) -> Tensor:
        """Return each row's loss, (b,)."""
        x, y = batch.rows["x"], batch.rows["y"]  # b n 8
        noise = torch.stack([torch.randn(x[0].shape, generator=torch.Generator().manual_seed(s)) for s in batch.seeds])
        shown = (x + 0.1 * noise * self.training).to(self.first.dtype)
        return (self.controlnet_mid_block(shown @ self.first) - y).float().square().mean((1, 2))


@dataclass(frozen=True)
class TinyLearner:
    """What a recipe would open."""

    module: nn.Module = field(default_factory=TinyNet)
    rate: float = 0.02

    @property
    def turns(self) -> tuple[Turn, ...]:
        return (Turn("map", dict(self.module.named_parameters()), self.rate),)

    def save(self, path: Path, facts: Facts, weights: Mapping[str, Tensor] | None = None) -> None:
        words = {"steps": str(facts.steps), "metrics": json.dumps(dict(facts.metrics)), "name": facts.name}
        save_safetensors(path, weights or dict(self.module.named_parameters()), words)


@dataclass
class TinyWatcher:
    """Says how near the map is to the truth; `fails`: it raises instead."""

    fails: bool = False

    def look(self, control: Path, step: int) -> Looking:
        from disegno.weights.load import load_file

        if self.fails:
            raise OSError("the camera is broken")
        yield
        tensors = load_file(control)
        error = (tensors["first"] @ tensors["controlnet_mid_block.weight"].T - TRUTH).square().mean()
        found = 1 - float(error / TRUTH.square().mean())
        return Look(step, None, {CONTROLLABILITY: found, ERROR: 0.01})


def request(**fields: object) -> TeachRequest:
    """Return a request for a short training."""
    return make_teach_request({"name": "tiny", "data": ["rows"], "steps": 20, "batch": 2, "save_every": 4} | fields)


def lesson(
    asked: TeachRequest, learner: Learner | None = None, rows: Rows | None = None, watcher: Watcher | None = None
) -> Lesson:
    """Return a training, open."""
    held, watcher = Rows(4) if asked.holdout else None, watcher or TinyWatcher()
    return Lesson(asked, learner or TinyLearner(), rows or Rows(), held, Facts(asked.name), "tiny", watcher=watcher)


def events(folder: Path, taught: Lesson, **others: Any) -> Generator[TeachEvent]:
    """Return what happens in a training, one by one."""
    return train(taught.request, Run(folder, taught.request.name), opened(taught), **others)


def run(
    folder: Path, asked: TeachRequest, learner: Learner | None = None, rows: Rows | None = None
) -> list[TeachEvent]:
    """Return all that happened in a training."""
    return list(events(folder, lesson(asked, learner, rows)))


def main() -> None:
    """Train in a folder; a signal ends it."""
    asked = request(**json.loads(sys.argv[2]) if len(sys.argv) > 2 else {})
    habits = Habits(**json.loads(sys.argv[3]) if len(sys.argv) > 3 else {})
    taught = lesson(asked, TinyLearner(TinyNet(512)))
    with Stop().on_signals() as stop:
        for event in events(Path(sys.argv[1]), taught, stop=stop, habits=habits):
            print(event, flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
