"""The words of a training: pairs, examples, batches, a recipe's learner, and what is said while the one loop runs.

    Pairs     what a data set is: rows of (target, condition, caption), read one at a time        training/pairs.py
    Examples  the same as tensors, ready to be batched: latents and text states from the cache     training/cache.py
    Learner   what a recipe opens: a module whose forward gives each row's loss                    training/recipes/
    train     TeachRequest -> Iterator[TeachProgress | Look | TeachResult]                         training/trainer.py

All randomness of a row comes from its own seed, `row_seed(seed, step, place)`: so a resumed run, another number of
processes or of workers, and another micro-batch give the same numbers, and no generator's state is ever saved.
"""

import hashlib
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from torch import Tensor, nn

from disegno.training.pairs import Pairs as Pairs
from disegno.training.pairs import Picture as Picture
from disegno.training.pairs import Sample as Sample

Example = Mapping[str, Tensor]  # one row's tensors, without the batch's dimension: "latent" (c h w), "tokens" (n d) ...


class Examples(Protocol):
    """Pairs as tensors: what the loop batches. Batches hold one task and one shape."""

    def __len__(self) -> int: ...

    def task(self, index: int) -> str:
        """Return which condition the row teaches; "" where there is only one."""
        ...

    def shape(self, index: int) -> tuple[int, ...]:
        """Return what rows of one batch must have in common, beside the task: the latent's (h, w)."""
        ...

    def __getitem__(self, index: int) -> Example: ...


@dataclass(frozen=True)
class Batch:
    """Rows of one task and shape. `rows`: each name's tensors, stacked (b ...). `seeds`: one a row; `step`: from 0."""

    rows: Mapping[str, Tensor]
    seeds: tuple[int, ...]
    task: str
    step: int


def row_seed(seed: int, step: int, place: int) -> int:
    """Return the seed of the row at `place` of a step's whole batch (over all processes and micro-batches), 63 bits."""
    digest = hashlib.blake2b(f"{seed} {step} {place}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@dataclass(frozen=True)
class Turn:
    """What one optimiser owns. Most recipes have one turn a step; an adversarial one has two (generator, critic).

    `parameters`: by the names of the file; those that are not float32 are the rounded copies of masters that the loop
    keeps. `rate`: the recipe's own peak learning rate.
    """

    name: str
    parameters: Mapping[str, nn.Parameter]
    rate: float


@dataclass(frozen=True)
class Facts:
    """What a saved file says about its making, for its header (`disegno.*`). `metrics`: name -> value."""

    name: str
    annotator: str | None = None
    params: Mapping[str, bool | int | float | str] = field(default_factory=dict[str, bool | int | float | str])
    training_pairs: int = 0
    steps: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])
    licence: str = ""


class Learner(Protocol):
    """What a recipe opens: the weights that train, what they cost, and how they are saved. It never loops."""

    @property
    def module(self) -> nn.Module:
        """The module whose call, `module(batch, turn.name)`, gives each row's loss, (b,) float32, with gradients.

        All randomness comes from `batch.seeds`, and nothing is kept between calls: a batch may come in parts.
        In eval mode nothing is dropped: neither captions nor a LoRA's activations. It opens in train mode.
        """
        ...

    @property
    def turns(self) -> Sequence[Turn]:
        """What is optimised, in this order, at every step."""
        ...

    def save(self, path: Path, facts: Facts, weights: Mapping[str, Tensor] | None = None) -> None:
        """Write the file that the engine opens, whole or not at all; the same weights and facts give the same bytes.

        `weights`: in place of the parameters' (masters, or their average), by the turns' names.
        """
        ...


@dataclass(frozen=True)
class Estimate:
    """What a training will take, known before it begins: bytes, where it runs. `seconds`: of one step, measured.

    `weights`: all that is there as the first step begins, frozen or not. `optimiser`: its states. `step`: what a step
    holds at its fullest, activations and gradients. `opening`: while the caches fill, before there are steps.
    `reserve`: what the device's libraries take beside it. None where it is not known.
    """

    weights: int
    optimiser: int
    step: int
    opening: int
    reserve: int
    available: int | None = None
    seconds: float | None = None

    @property
    def total(self) -> int:
        """Return the most bytes that will be taken at once."""
        return max(self.weights + self.optimiser + self.step, self.opening) + self.reserve

    @property
    def fits(self) -> bool:
        """Return whether it can be done with what is available: where that is not known, it may."""
        return self.available is None or self.total - self.reserve <= self.available


@dataclass(frozen=True)
class TeachProgress:
    """A step has been done, or something that takes time goes on (`stage`: "caching", "looking", "paused: ...").

    `loss`: None where the step was skipped, being not finite. `gradient`: its norm before it was clipped. `estimate`:
    what it will take, said once before the first step.
    """

    step: int
    num_steps: int
    stage: str = "teaching"
    loss: float | None = None
    rate: float | None = None
    gradient: float | None = None
    seconds_left: float | None = None
    estimate: Estimate | None = None


@dataclass(frozen=True)
class Look:
    """What has been learned by `step`: the held-out loss, the figures by name, and where the pictures lie."""

    step: int
    loss: float | None
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])
    sheet: Path | None = None


@dataclass(frozen=True)
class TeachResult:
    """The training has ended. `why`: "steps", "converged", "enough" (it was asked to end with what it had learned),
    "stopped" (`path` is then the run's folder, to go on in).
    """

    path: Path
    step: int
    why: str
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])
    warnings: tuple[str, ...] = ()


TeachEvent = TeachProgress | Look | TeachResult


class Watcher(Protocol):
    """Looks at a training from time to time and says what was learned. Where it fails, the training goes on."""

    def look(self, control: Path, step: int) -> "Looking":
        """Return what the control in this file can do by now: drawn with the engine, measured on held-out pairs.

        It yields often, at least after every step of sampling: closing it there breaks the look off.
        """
        ...


class Events(Protocol):
    """Who listens to a training: TensorBoard, the HTML report, a terminal's bar, a server's job."""

    def hear(self, event: TeachEvent) -> None: ...


Teaching = Generator[TeachEvent]
Looking = Generator[None, None, Look]
