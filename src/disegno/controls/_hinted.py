"""A ControlNet at work: what its hint block makes of a picture is worked out once, its net is asked at every step."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import ControlNetModel
from torch import Tensor, nn

from disegno.controls._net import layers_of, run, weight_of
from disegno.controls.base import Condition, Layers, add, key_of
from disegno.diffusion.call import Call, Residuals
from disegno.diffusion.patches import with_pooled
from disegno.memory import Memory


@dataclass(frozen=True)
class ControlNet:
    """A prepared ControlNet. `hint`: the condition's features, (1 c h/8 w/8): they depend on nothing else."""

    net: ControlNetModel
    hint: Tensor
    key: str
    positive_only: bool
    sees_x: bool = True

    def __call__(self, call: Call) -> Call:
        """Return the call with this control's residuals added."""
        tokens, chosen = with_pooled(call.tokens, call.pooled), [row.told for row in call.rows]
        residuals = run(self.net, call.x, self.hint, call.t, tokens, chosen=chosen)
        return add(call, _averaged(residuals) if self.positive_only else residuals)


def _averaged(residuals: Residuals) -> Residuals:
    """Return each residual's mean over space, at every place. A1111 parity: global average pooling (shuffle models)."""
    down = tuple(d.mean(dim=(2, 3), keepdim=True).expand_as(d) for d in residuals.down)
    return Residuals(down, residuals.mid.mean(dim=(2, 3), keepdim=True).expand_as(residuals.mid))


@dataclass(frozen=True)
class ControlNetController:
    """A ControlNet's weights. `stem`: image (1 3 h w) -> features (1 c h/8 w/8); `bgr`: it wants blue first."""

    name: str
    annotator: str | None
    net: ControlNetModel
    stem: nn.Module
    averages: bool
    bgr: bool
    fingerprint: str

    def layers(self, task: str) -> Layers:
        """Return what a unit's layers weigh."""
        return layers_of(self.net)

    def prepare(self, condition: Condition) -> ControlNet:
        """Return the control for one condition."""
        image = condition.image if condition.mask is None else _holed(condition.image, condition.mask)
        image = image.flip(1) if self.bgr else image
        hint = self.stem(image.to(weight_of(self.stem)))
        return ControlNet(self.net, hint, key_of("controlnet", self.fingerprint, condition.key), self.averages)


def _holed(image: Tensor, mask: Tensor) -> Tensor:
    """Return the image with -1 in its hole, (1 3 h w): what ControlNet 1.1's inpainting model was trained with."""
    return torch.where(mask > 0.5, -1.0, image)


@dataclass(frozen=True)
class Whole:
    """A ControlNet with its hint block, as its file has it. `words`: of the header."""

    net: ControlNetModel
    config: Mapping[str, object]
    words: Mapping[str, str]
    fingerprint: str


def controller_of(path: Path, whole: Whole, memory: Memory) -> ControlNetController:
    """Return the controller of an open net, whose hint block is taken out: it is asked once a picture."""
    stem = whole.net.controlnet_cond_embedding
    whole.net.add_module("controlnet_cond_embedding", nn.Identity())
    return ControlNetController(
        name=path.stem,
        annotator=whole.words.get("disegno.annotator"),
        net=memory.pack(whole.net),
        stem=stem,
        averages=bool(whole.config.get("global_pool_conditions"))
        or "shuffle" in path.stem.lower(),  # A1111 parity: by the name
        bgr=whole.config.get("controlnet_conditioning_channel_order") == "bgr",
        fingerprint=whole.fingerprint,
    )
