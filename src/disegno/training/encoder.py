"""A new control from a model's own encoder: how a ControlNet and a Base ControlNet begin (Zhang et al. 2023, 3.1).

Encoder and middle are copies, the zero convolutions are zero, so that at first nothing is added.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from torch import Generator, Tensor, nn

from disegno.controls._net import ToldControlNet
from disegno.diffusion.told import is_told
from disegno.memory import Memory, build_empty
from disegno.weights.keys.control import HINT_PREFIX, is_zero_conv


def masters_of(memory: Memory) -> Memory:
    """Return the memory for what trains: laid out as in this one, but in float32."""
    return Memory(replace(memory.policy, dtype=torch.float32))


def copy_encoder(net: UNet2DConditionModel, memory: Memory, generator: Generator, with_hint: bool) -> ControlNetModel:
    """Return a control with the net's encoder, in float32, all of it ready to train.

    `with_hint`: ControlNet's block for the condition's pixels, drawn by the generator; without it, a Base ControlNet.
    """

    kind = ToldControlNet if is_told(net.config) else ControlNetModel

    def make() -> ControlNetModel:
        made = kind.from_unet(net, load_weights_from_unet=False)
        if not with_hint:
            made.add_module("controlnet_cond_embedding", nn.Identity())
        return made

    shapes = build_empty(make).state_dict()
    theirs = net.state_dict()
    tensors = {name: _first(name, empty, theirs, generator, shapes) for name, empty in shapes.items()}
    return masters_of(memory).build(make, tensors, "The new control").requires_grad_(True)


def _first(
    name: str, empty: Tensor, theirs: Mapping[str, Tensor], generator: Generator, shapes: Mapping[str, Tensor]
) -> Tensor:
    """Return the tensor that a new control begins with."""
    if name in theirs:
        return theirs[name].detach().float().clone()
    if is_zero_conv(name) or name.startswith(f"{HINT_PREFIX}conv_out."):
        return torch.zeros(empty.shape)
    return _drawn(name, empty, generator, shapes)


def _drawn(name: str, empty: Tensor, generator: Generator, shapes: Mapping[str, Tensor]) -> Tensor:
    weight = shapes[f"{name.rpartition('.')[0]}.weight"]
    bound = (weight.numel() / len(weight)) ** -0.5  # of inputs: PyTorch's own draw for a convolution
    return (torch.rand(empty.shape, generator=generator) * 2 - 1) * bound


def drawn(net: nn.Module, generator: Generator) -> dict[str, Tensor]:
    """Return weights for a net of convolutions, without norms, that begins from nothing, float32. `net`: empty."""
    shapes = net.state_dict()
    return {name: _drawn(name, empty, generator, shapes) for name, empty in shapes.items()}
