"""Control-LoRA files in miniature: of a ControlNet that differs from a model's encoder by a known low-rank matrix."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from torch import Tensor

from disegno.backbones.miniature import draw
from disegno.memory import build_empty
from disegno.weights.keys import ldm
from disegno.weights.save import save_safetensors

RANK = 4
_UNLIKE = ("sample_size", "out_channels", "up_block_types")


@dataclass(frozen=True)
class Made:
    """`full`: the ControlNet, by diffusers' names. `file`: the same as a Control-LoRA, by the original's."""

    full: Mapping[str, Tensor]
    file: Mapping[str, Tensor]


def config_of(net: Any) -> dict[str, Any]:
    """Return the configuration of a ControlNet for a UNet, which may see more than latents."""
    own = signature(ControlNetModel.__init__).parameters
    config = {name: value for name, value in net.config.items() if name in own and name not in _UNLIKE}
    return config | {"in_channels": net.config["out_channels"]}


def make(net: UNet2DConditionModel, seed: int, rank: int = RANK, **unlike: Any) -> Made:
    """Return a ControlNet of this model, and its Control-LoRA. The rank is at most what a layer's sides allow."""
    theirs = net.state_dict()
    full = draw(build_empty(lambda: ControlNetModel(**config_of(net) | unlike)), seed)
    generator, own = torch.Generator().manual_seed(seed + 1), dict[str, Tensor]()
    for name, tensor in full.items():
        if name not in theirs or tensor.ndim < 2:
            own[name] = tensor
            continue
        pair = _pair(tensor.shape, rank, generator)
        weight = theirs[name][:, : tensor.shape[1]]  # of a model that inpaints, the part for latents
        full[name] = weight + (pair[0].flatten(1) @ pair[1].flatten(1)).reshape(tensor.shape)
        own |= {f"{name.removesuffix('.weight')}.{half}": part for half, part in zip(("up", "down"), pair, strict=True)}
    names = ldm.unet_originals(own)
    return Made(full, {names[name]: tensor for name, tensor in own.items()} | {"lora_controlnet": torch.zeros(0)})


def _pair(shape: torch.Size, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return up (o r) and down (r i), of a convolution (o r 1 1) and (r i kh kw): a quarter of a drawn weight."""
    rank = min(rank, shape[0], shape[1])
    up = torch.randn(shape[0], rank, *(1,) * (len(shape) - 2), generator=generator)
    down = torch.randn(rank, *shape[1:], generator=generator)
    return up / math.sqrt(16 * rank), down / math.sqrt(math.prod(shape[1:]))


def write(path: Path, net: UNet2DConditionModel, seed: int, **fields: Any) -> Path:
    """Return `path`, now a Control-LoRA of this model."""
    save_safetensors(path, make(net, seed, **fields).file, {})
    return path


def shapes(net: UNet2DConditionModel, rank: int) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of a published file of this rank for a model, which may be on the meta device."""
    found: dict[str, tuple[int, ...]] = {"lora_controlnet": (0,)}
    theirs = net.state_dict()
    real = build_empty(lambda: ControlNetModel(**config_of(net))).state_dict()
    for name, original in ldm.unet_originals(real).items():
        shape = tuple(real[name].shape)
        if name not in theirs or len(shape) < 2:
            found[original] = shape
            continue
        least, module = min(rank, *shape[:2]), original.removesuffix(".weight")
        found |= {f"{module}.up": (shape[0], least, *(1,) * (len(shape) - 2)), f"{module}.down": (least, *shape[1:])}
    return found
