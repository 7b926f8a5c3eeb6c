"""A new ControlNet-XS for a model: its shapes follow from the model's and from its own widths."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Generator, Tensor

from disegno.controls._xs_net import Heads, XsNet, groups_of
from disegno.memory import FULL_PRECISION, Memory, build_empty

Shape = tuple[int, ...]
_HINT = (16, 16, 16, 32, 32, 96, 96, 256)  # ControlNet's own block for a condition's pixels
_ZEROS = ("to_base.", "to_control.", "to_decoder.", "controlnet_mid_block.", "controlnet_cond_embedding.conv_out.")
_NORMS = ("norm", "group_norm")


def draw(name: str, shapes: Mapping[str, Shape], generator: Generator) -> Tensor:
    """Return a new tensor: norms 1 and 0, else uniform by the number of inputs (PyTorch's own draw of a layer)."""
    module, _, part = name.rpartition(".")
    if module.rpartition(".")[2].startswith(_NORMS):
        return torch.ones(shapes[name]) if part == "weight" else torch.zeros(shapes[name])
    bound = torch.Size(shapes[f"{module}.weight"][1:]).numel() ** -0.5
    return (torch.rand(shapes[name], generator=generator) * 2 - 1) * bound


@dataclass(frozen=True)
class Sizes:
    """Of a model, and of the small encoder beside it. `widths`, `own`: of the levels; `embedded`: of t.

    `depths`: of each level, how many transformer blocks an attention has.
    """

    widths: tuple[int, ...]
    own: tuple[int, ...]
    layers: int
    attended: tuple[bool, ...]
    depths: tuple[int, ...]
    embedded: int
    text: int
    linear: bool
    heads: Heads
    latent: int

    @classmethod
    def of(cls, net: UNet2DConditionModel, own: Sequence[int]) -> "Sizes":
        """Return the sizes for a model's net."""
        config, widths = net.config, tuple(net.config["block_out_channels"])
        depths = config["transformer_layers_per_block"]
        return cls(
            widths=widths,
            own=tuple(own),
            layers=int(config["layers_per_block"]),
            attended=tuple(kind.startswith("CrossAttn") for kind in config["down_block_types"]),
            depths=(depths,) * len(widths) if isinstance(depths, int) else tuple(depths),
            embedded=widths[0] * 4,
            text=int(config["cross_attention_dim"]),
            linear=bool(config["use_linear_projection"]),
            heads=Heads.of(config, widths),
            latent=int(config["out_channels"]),
        )


def xs_shapes(sizes: Sizes) -> dict[str, Shape]:
    """Return the names and shapes of a ControlNet-XS of these sizes."""
    shapes: dict[str, Shape] = {"conv_in.weight": (sizes.own[0], sizes.latent, 3, 3), "conv_in.bias": sizes.own[:1]}
    shapes |= _hint(sizes.own[0])
    blocks = [(sizes.widths[0], sizes.own[0])]  # of each encoder block: the model's width, and its own
    for i, (base, own) in enumerate(zip(sizes.widths, sizes.own, strict=True)):
        for j in range(sizes.layers):
            shapes |= _resnet(f"down_blocks.{i}.resnets.{j}", sum(blocks[-1]), own, sizes.embedded)
            shapes |= _attention(f"down_blocks.{i}.attentions.{j}", own, sizes, i) if sizes.attended[i] else {}
            blocks.append((base, own))
        if i < len(sizes.own) - 1:
            shapes |= _conv(f"down_blocks.{i}.downsamplers.0.conv", sum(blocks[-1]), own, 3)
            blocks.append((base, own))
    base, own = blocks[-1]
    shapes |= _resnet("mid_block.resnets.0", base + own, own, sizes.embedded)
    shapes |= _attention("mid_block.attentions.0", own, sizes, -1)
    shapes |= _resnet("mid_block.resnets.1", own, own, sizes.embedded)
    shapes |= _conv("controlnet_mid_block", own, base)
    for k, (base, own) in enumerate(blocks):
        shapes |= _conv(f"to_base.{k}", own, base) | _conv(f"to_control.{k}", base, base)
    arriving = [sizes.widths[-1], *(w for w in reversed(sizes.widths) for _ in range(sizes.layers + 1))]
    for k, (_, own) in enumerate(reversed(blocks)):
        shapes |= _conv(f"to_decoder.{k}", own, arriving[k])
    return shapes


def _conv(at: str, inputs: int, out: int, kernel: int = 1) -> dict[str, Shape]:
    return {f"{at}.weight": (out, inputs, kernel, kernel), f"{at}.bias": (out,)}


def _norm(at: str, width: int) -> dict[str, Shape]:
    return {f"{at}.weight": (width,), f"{at}.bias": (width,)}


def _resnet(at: str, inputs: int, out: int, embedded: int) -> dict[str, Shape]:
    shapes = _norm(f"{at}.norm1", inputs) | _conv(f"{at}.conv1", inputs, out, 3)
    shapes |= {f"{at}.time_emb_proj.weight": (out, embedded), f"{at}.time_emb_proj.bias": (out,)}
    shapes |= _norm(f"{at}.norm2", out) | _conv(f"{at}.conv2", out, out, 3)
    return shapes | (_conv(f"{at}.conv_shortcut", inputs, out) if inputs != out else {})


def _attention(at: str, width: int, sizes: Sizes, level: int) -> dict[str, Shape]:
    num = sizes.heads.at(width)

    def make() -> Transformer2DModel:
        return Transformer2DModel(
            num,
            max(1, width // num),
            width,
            num_layers=sizes.depths[level],
            cross_attention_dim=sizes.text,
            norm_num_groups=groups_of(width),
            use_linear_projection=sizes.linear,
        )

    return {f"{at}.{name}": tuple(tensor.shape) for name, tensor in build_empty(make).state_dict().items()}


def _hint(out: int) -> dict[str, Shape]:
    at = "controlnet_cond_embedding"
    shapes = _conv(f"{at}.conv_in", 3, _HINT[0], 3) | _conv(f"{at}.conv_out", _HINT[-1], out, 3)
    for k, (inputs, width) in enumerate(pairwise(_HINT[1:])):
        shapes |= _conv(f"{at}.blocks.{k}", inputs, width, 3)
    return shapes


def new_xs(
    net: UNet2DConditionModel, widths: Sequence[int], generator: Generator, memory: Memory | None = None
) -> XsNet:
    """Return a new control for a model's net: its wires are zero, so that at first nothing is added."""
    sizes = Sizes.of(net, widths)
    shapes = xs_shapes(sizes)
    tensors = {
        name: torch.zeros(shape) if name.startswith(_ZEROS) else draw(name, shapes, generator)
        for name, shape in shapes.items()
    }
    memory = memory or Memory(FULL_PRECISION)
    return memory.build(lambda: XsNet(shapes, sizes.heads), tensors, "The new control")
