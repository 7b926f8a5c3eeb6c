"""ControlNet-XS (Zavadski et al. 2023, arXiv 2312.06573): a small net beside the model's own, in both directions.

It adds to the model's encoder, middle and decoder, and sees what they become: so it runs in lock step with the model,
as a `Stream` of the call. Its scale is the strength: of the encoder's and the decoder's block at one depth alike.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from disegno.controls._net import weight_of
from disegno.controls._xs_net import Heads, XsNet
from disegno.controls._xs_new import Sizes, xs_shapes
from disegno.controls.base import Body, Condition, Host, Layers, key_of
from disegno.core.errors import KeyMismatch, WrongFamily
from disegno.diffusion.call import Call, Steps, Stream
from disegno.memory import Memory
from disegno.weights.card import FileCard
from disegno.weights.shapes import require_shapes, sides
from disegno.weights.xs_files import MECHANISM, XsFile, read_xs

MIX_POWER = 0.3  # of the share that a control's own embedding of the time has: the original's
families = ("sd1", "sd2", "sdxl", "diorama")


def recognises(card: FileCard) -> bool:
    """Return whether the file is a ControlNet-XS."""
    return card.mechanism == MECHANISM


@dataclass(frozen=True, eq=False)
class ControlNetXs:
    """A prepared ControlNet-XS. `hint`: the condition's features, (1 c h/8 w/8): they depend on nothing else."""

    net: XsNet
    hint: Tensor
    key: str
    sees_x: bool = True
    positive_only: bool = False

    def __call__(self, call: Call) -> Call:
        """Return the call with this control's net beside the model's."""
        rows = torch.arange(len(call.rows), device=call.x.device)
        return replace(call, streams=(*call.streams, Stream(self._begin, rows, self.net.num_residuals)))

    def _begin(self, x: Tensor, emb: Tensor, t: Tensor, tokens: Tensor, told: Tensor | None) -> Steps:
        like = weight_of(self.net)
        x, emb, tokens = x[:, : self.net.channels].to(like), emb.to(like), tokens.to(like)
        return self.net.begin(self.hint, x, emb, t, tokens, None if told is None else told.to(like))


@dataclass(frozen=True)
class ControlNetXsController:
    """A ControlNet-XS's weights, open."""

    name: str
    annotator: str | None
    net: XsNet
    fingerprint: str

    def layers(self, task: str) -> Layers:
        """Return what a unit's layers weigh."""
        return Layers(self.net.num_residuals)

    def prepare(self, condition: Condition) -> ControlNetXs:
        """Return the control for one condition."""
        with torch.no_grad():
            hint = self.net.features(condition.image.to(weight_of(self.net)))
        return ControlNetXs(self.net, hint, key_of(MECHANISM, self.fingerprint, condition.key))


def open(path: Path, backbone: Host, memory: Memory) -> ControlNetXsController:
    """Return the ControlNet-XS in this file or folder. Raises UnknownKind, WrongFamily, KeyMismatch, CorruptFile."""
    file = read_xs(path)
    net = memory.pack(open_xs(path.name, file, backbone, memory))
    return ControlNetXsController(path.stem, file.words.get("disegno.annotator"), net, file.fingerprint)


def open_xs(name: str, file: XsFile, backbone: Body, memory: Memory) -> XsNet:
    """Return the net with these weights, frozen and placed. Raises WrongFamily, KeyMismatch."""
    shapes = {key: tuple(tensor.shape) for key, tensor in file.tensors.items()}
    config: Mapping[str, object] = getattr(backbone.net, "config", {})

    def make() -> XsNet:
        try:
            return XsNet(shapes, _heads(file, backbone))
        except (KeyError, IndexError) as error:
            raise KeyMismatch(
                f"{name} is an incomplete ControlNet-XS: it has no tensor {error}. Fetch it again."
            ) from error

    net = memory.build(make, file.tensors, name)
    net.share = float(str(file.config.get("time_embedding_mix", 1.0))) ** MIX_POWER
    given = {
        "the widths of the levels it adds to": tuple(dict.fromkeys(wire.out_channels for wire in wires(net))),
        "the blocks that it adds to": len(net.to_base),
        "the width of the text": _width(shapes),
    }
    levels = _widths(config)
    wanted = {
        "the widths of the levels it adds to": tuple(dict.fromkeys(levels)),
        "the blocks that it adds to": len(levels) * (int(str(config.get("layers_per_block", 2))) + 1),
        "the width of the text": config.get("cross_attention_dim"),
    }
    for meaning, ours in given.items():
        if ours != wanted[meaning]:
            raise WrongFamily(
                f"{name} does not fit the open model {backbone.name} ({backbone.family}): {meaning}: {ours}, the"
                f" model's: {wanted[meaning]}. Choose a control that was made for {backbone.family}."
            )
    _require_whole(name, file, backbone)
    if len(net.steps) + 1 != len(net.to_base) or len(net.mid_block.resnets) != 2:
        raise KeyMismatch(
            f"{name} is an incomplete ControlNet-XS: blocks of its encoder or its middle are missing. Fetch it again."
        )
    return net


def _require_whole(name: str, file: XsFile, backbone: Body) -> None:
    """Raise KeyMismatch where a tensor has another shape than beside this model's."""
    config, tensors = getattr(backbone.net, "config", {}), file.tensors
    first = (f"down_blocks.{i}.resnets.0.conv1.weight" for i in range(len(_widths(config))))
    own = [sides(name, tensors, key, 4)[0] for key in first if key in tensors]
    sizes = Sizes.of(cast(UNet2DConditionModel, backbone.net), own)
    wanted = xs_shapes(replace(sizes, heads=_heads(file, backbone)))
    if "time_embedding.linear_2.bias" in tensors:  # its embedding of t is its own
        wanted = {key: shape for key, shape in wanted.items() if ".time_emb_proj." not in key}
    require_shapes(name, tensors, wanted)


def wires(net: XsNet) -> list[torch.nn.Conv2d]:
    """Return the wires to the model's encoder, shallow to deep."""
    return [wire for wire in net.to_base if isinstance(wire, torch.nn.Conv2d)]


def _widths(config: Mapping[str, object]) -> tuple[int, ...]:
    widths = config.get("block_out_channels")
    return tuple(int(width) for width in widths) if isinstance(widths, list | tuple) else ()


def heads_of(backbone: Body) -> Heads:
    """Return how wide the heads of a control for this backbone are."""
    config: Mapping[str, object] = getattr(backbone.net, "config", {})
    return Heads.of(config, _widths(config))


def _heads(file: XsFile, backbone: Body) -> Heads:
    """Return the heads that the control's folder tells, and else the backbone's rule."""
    widths, told = _widths(file.config), file.config.get("num_attention_heads")
    nums = [int(str(num)) for num in told] if isinstance(told, list) else [int(str(told))] * len(widths) if told else []
    return replace(heads_of(backbone), told=dict(zip(widths, nums, strict=False)))


def _width(shapes: Mapping[str, tuple[int, ...]]) -> int:
    return next((shape[1] for key, shape in shapes.items() if key.endswith("attn2.to_k.weight")), 0)
