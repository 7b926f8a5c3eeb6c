"""ControlNet-XS (Zavadski et al. 2023): a small net of its own beside the model's, drawn at random, not copied.

A fifth of the model's width, as the published one for Stable Diffusion 1.5: a seventh of a ControlNet's weights.
Gradients pass through the model's encoder, since it is steered block by block. The original: rate 1e-5, batch 1,
500,000 steps.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from torch import Generator, Tensor

from disegno.controls._xs_net import Heads, XsNet
from disegno.controls._xs_new import new_xs
from disegno.controls.controlnet_xs import open_xs
from disegno.diffusion.call import Stream
from disegno.training.base import Batch, Facts, Turn
from disegno.training.denoising import Denoising, frozen_net, net_of, objective_of, placed
from disegno.training.encoder import masters_of
from disegno.training.layers import install
from disegno.training.recipe import OF_LORA, About, Opening
from disegno.training.result import save_control, told
from disegno.weights.xs_files import MECHANISM, originals_of, read_xs

ABOUT = About(
    summary="ControlNet-XS: a small net beside the model's, in both directions",
    wants=("latent", "condition", "tokens"),
    exact=True,
    unlike=("sd3",),
    unused=(*OF_LORA, "base"),
)
RATE = 1e-4
WIDTH = 0.2  # of the model's


@dataclass(frozen=True)
class XsLearner:
    """A ControlNet-XS in training."""

    module: Denoising
    turns: tuple[Turn, ...]
    net: XsNet
    family: str

    def save(self, path: Path, facts: Facts, weights: Mapping[str, Tensor] | None = None) -> None:
        """Write the control's file, under the published names."""
        tensors = originals_of(dict(weights or self.turns[0].parameters))
        save_control(path, tensors, told(facts, MECHANISM, self.family), layout="ldm")


def open(opening: Opening) -> XsLearner:
    """Return the control, new or gone on with."""
    request, memory = opening.request, opening.memory
    assert opening.empty is not None
    net = _net(opening).requires_grad_(True)
    net.recomputes = request.checkpointing
    install(net)

    def show(batch: Batch, x: Tensor, t: Tensor, tokens: Tensor) -> Stream:
        hint = net.features(placed(batch.rows["condition"].float() / 255, memory.policy))  # b c h w
        rows = torch.arange(len(x), device=x.device)
        return Stream(partial(net.begin, hint), rows, net.num_residuals)

    frozen = frozen_net(opening, packs=False)
    module = Denoising(frozen, objective_of(opening), opening.empty, memory.policy, net, show)
    turn = Turn("control", dict(net.named_parameters()), request.rate or RATE)
    return XsLearner(module.train(), (turn,), net, opening.model.family)


def widths_of(net: UNet2DConditionModel) -> tuple[int, ...]:
    """Return the widths of a new control's levels: a fifth of the model's, and whole heads."""
    widths = tuple(net.config["block_out_channels"])
    heads = Heads.of(net.config, widths).num or 1
    return tuple(max(heads, int(width * WIDTH) // heads * heads) for width in widths)


def _net(opening: Opening) -> XsNet:
    memory = masters_of(opening.memory)
    if opening.start is not None:
        return open_xs(opening.start.name, read_xs(opening.start), opening.model, memory)
    net = net_of(opening)
    return new_xs(net, widths_of(net), Generator().manual_seed(opening.request.seed), memory)
