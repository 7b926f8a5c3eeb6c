"""A Base ControlNet finetuned as a whole for one condition: the ablation of CtrLoRA's paper (`ft_with_lora: False`).

Ten times the weights of a LoRA, and a file of its own size: worth it with very many pairs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from disegno.controls.ctrlora import Base, open_base
from disegno.diffusion.call import Residuals
from disegno.training.base import Batch, Facts, Turn
from disegno.training.denoising import Denoising, frozen_net, objective_of, placed, residuals
from disegno.training.encoder import masters_of
from disegno.training.layers import install
from disegno.training.recipe import OF_LORA, About, Opening
from disegno.training.result import save_control, told
from disegno.weights.ctrlora_files import FULL_MECHANISM

ABOUT = About(
    summary="one condition: all weights of a Base ControlNet",
    wants=("latent", "condition_latent", "tokens"),
    on_base=True,
    unused=OF_LORA,
)
RATE = 1e-5


@dataclass(frozen=True)
class FullLearner:
    """A Base ControlNet in training."""

    module: Denoising
    turns: tuple[Turn, ...]
    base: Base
    family: str

    def save(self, path: Path, facts: Facts, weights: Mapping[str, Tensor] | None = None) -> None:
        """Write the condition's file, which is its base as well."""
        words = told(facts, FULL_MECHANISM, self.family, base_sha256=self.base.sha256)
        save_control(path, dict(weights or self.turns[0].parameters), words)


def open(opening: Opening) -> FullLearner:
    """Return the base, all of it trainable. `start`: a file of this recipe to go on from."""
    request, memory = opening.request, opening.memory
    path = opening.start or opening.base
    assert path is not None and opening.empty is not None
    base = open_base(path, opening.model, masters_of(memory))
    base.net.requires_grad_(True)
    install(base.net)
    if request.checkpointing:
        base.net.enable_gradient_checkpointing()

    def show(batch: Batch, x: Tensor, t: Tensor, tokens: Tensor) -> Residuals:
        return residuals(base.net, placed(batch.rows["condition_latent"], memory.policy), t, tokens)

    module = Denoising(frozen_net(opening), objective_of(opening), opening.empty, memory.policy, base.net, show)
    turn = Turn("control", dict(base.net.named_parameters()), request.rate or RATE)
    return FullLearner(module.train(), (turn,), base, opening.model.family)
