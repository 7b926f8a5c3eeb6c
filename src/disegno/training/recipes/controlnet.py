"""ControlNet (Zhang et al. 2023, arXiv 2302.05543): a copy of the net's encoder that learns one condition from pixels.

It needs no base, but far more pairs and steps than CtrLoRA; for a long time nothing is to be seen, then it follows the
condition from one hundred steps to the next. The original: rate 1e-5, batches of 4, better with many accumulated.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from diffusers import ControlNetModel
from torch import Generator, Tensor

from disegno.controls.controlnet import open_whole
from disegno.core.errors import RequestError
from disegno.diffusion.call import Residuals
from disegno.training.base import Batch, Facts, Turn
from disegno.training.denoising import Denoising, frozen_net, net_of, objective_of, placed, residuals
from disegno.training.encoder import copy_encoder, masters_of
from disegno.training.layers import install
from disegno.training.recipe import OF_LORA, About, Opening
from disegno.training.result import save_control, told

ABOUT = About(
    summary="a plain ControlNet: a copy of the model's encoder that sees the condition's pixels",
    wants=("latent", "condition", "tokens"),
    exact=True,
    unlike=("sd3",),
    unused=(*OF_LORA, "base"),
)
RATE = 1e-5
MECHANISM = "controlnet"
_HINT_PIXELS = 8  # a latent cell's side, as ControlNet's hint block halves pixels


@dataclass(frozen=True)
class ControlNetLearner:
    """A ControlNet in training."""

    module: Denoising
    turns: tuple[Turn, ...]
    net: ControlNetModel
    family: str

    def save(self, path: Path, facts: Facts, weights: Mapping[str, Tensor] | None = None) -> None:
        """Write the ControlNet's file."""
        tensors = dict(weights or self.turns[0].parameters)
        save_control(path, tensors, told(facts, MECHANISM, self.family))


def open(opening: Opening) -> ControlNetLearner:
    """Return the ControlNet, new from the net's encoder, or gone on with."""
    request, memory = opening.request, opening.memory
    assert opening.empty is not None
    if opening.model.downscale != _HINT_PIXELS:
        raise RequestError(
            f"{opening.model.name} has latent cells of {opening.model.downscale} pixels; a ControlNet's are of "
            f"{_HINT_PIXELS}. Use the recipe ctrlora, which is shown latents."
        )
    net = _net(opening)
    install(net)
    if request.checkpointing:
        net.enable_gradient_checkpointing()

    def show(batch: Batch, x: Tensor, t: Tensor, tokens: Tensor) -> Residuals:
        hint = placed(batch.rows["condition"].float() / 255, memory.policy)  # b 3 H W, in [0, 1]
        return residuals(net, x, t, tokens, hint)

    module = Denoising(frozen_net(opening), objective_of(opening), opening.empty, memory.policy, net, show)
    turn = Turn("control", dict(net.named_parameters()), request.rate or RATE)
    return ControlNetLearner(module.train(), (turn,), net, opening.model.family)


def _net(opening: Opening) -> ControlNetModel:
    if opening.start is not None:
        return open_whole(opening.start, opening.model, masters_of(opening.memory)).net.requires_grad_(True)
    generator = Generator().manual_seed(opening.request.seed)
    return copy_encoder(net_of(opening), opening.memory, generator, with_hint=True)
