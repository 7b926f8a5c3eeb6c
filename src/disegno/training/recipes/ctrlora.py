"""CtrLoRA's finetuning: a new condition on a frozen Base ControlNet (Xu et al. 2024, section 3.3).

What trains: LoRA matrices on every linear layer, the zero convolutions, the norms of the transformers. A thousand pairs
and a thousand steps are enough for most conditions. The original's learning rate, 1e-5, is for batches of 1 and up to
100,000 steps.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Generator, Tensor

from disegno.controls.ctrlora import Base, open_base
from disegno.core.errors import RequestError
from disegno.diffusion.call import Residuals
from disegno.training.base import Batch, Facts, Turn
from disegno.training.denoising import Denoising, frozen_net, objective_of, placed, residuals
from disegno.training.layers import install
from disegno.training.lora import Lora, Trainable, open_trainable
from disegno.training.recipe import About, Opening
from disegno.training.result import save_control, told
from disegno.weights.ctrlora_files import MECHANISM, read_condition

ABOUT = About(
    summary="a new condition: LoRA matrices, zero convolutions and norms on a Base ControlNet",
    wants=("latent", "condition_latent", "tokens"),
    on_base=True,
)
RATE = 1e-4


@dataclass(frozen=True)
class CtrLoraLearner:
    """A condition in training, on its base."""

    module: Denoising
    turns: tuple[Turn, ...]
    trained: Trainable
    base: Base
    family: str

    def save(self, path: Path, facts: Facts, weights: Mapping[str, Tensor] | None = None) -> None:
        """Write the condition's file."""
        tensors = self.trained.lora_net.in_file(dict(weights or self.trained.parameters))
        rank = str(self.trained.lora_net.lora.rank)
        words = told(facts, MECHANISM, self.family, rank=rank, base_sha256=self.base.sha256)
        save_control(path, {name: t.detach().float() for name, t in tensors.items()}, words)


def open(opening: Opening) -> CtrLoraLearner:
    """Return the condition, new or gone on with."""
    assert opening.base is not None
    return open_on(opening, open_base(opening.base, opening.model, opening.memory))


def open_on(opening: Opening, base: Base) -> CtrLoraLearner:
    """Return the condition, new or gone on with, on a base that is open."""
    request, memory = opening.request, opening.memory
    assert opening.empty is not None
    lora = Lora(request.rank, request.alpha, request.lora_dropout)
    start = None if opening.start is None else _start(opening.start)
    trained = open_trainable(base, lora, Generator().manual_seed(request.seed), start)
    install(trained.net)
    if request.checkpointing:
        trained.net.enable_gradient_checkpointing()

    def show(batch: Batch, x: Tensor, t: Tensor, tokens: Tensor) -> Residuals:
        trained.lora_net.turn("", batch.seeds)
        return residuals(trained.net, placed(batch.rows["condition_latent"], memory.policy), t, tokens)

    module = Denoising(frozen_net(opening), objective_of(opening), opening.empty, memory.policy, trained.net, show)
    turn = Turn("control", trained.parameters, request.rate or RATE)
    return CtrLoraLearner(module.train(), (turn,), trained, base, opening.model.family)


def _start(path: Path) -> Mapping[str, Tensor]:
    """Return the tensors of a condition to go on from. Raises RequestError where it has none beside its base's."""
    file = read_condition(path)
    if file.is_whole:
        raise RequestError(
            f"{path.name} was taught as a whole and has no LoRA matrices to go on from. Go on with it by --recipe full,"
            " or teach new matrices on it by naming it with --base in place of --start."
        )
    return file.tensors
