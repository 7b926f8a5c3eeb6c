"""The names of ControlNet-like encoders: what belongs to which part, in which order, and what the shapes tell.

Names here are diffusers' unless they are called original; `ldm.py` holds the tables between the two.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from disegno.weights.keys.ldm import CONTROL_PREFIX, MOST_BLOCKS, unet_names
from disegno.weights.shapes import sides

LORA_MARK = ".lora_layer."
HINT_PREFIX = "controlnet_cond_embedding."
ZERO_PREFIXES = ("controlnet_down_blocks.", "controlnet_mid_block.", "controlnet_blocks.")  # the last: of transformers
DIFFERENCE_MARK = "difference"
_TASKS = re.compile(r"loras_dict\.(?P<task>.+)\.(?P<index>\d+)\.(?P<half>down|up)\.weight")

_JOINT_NORM = re.compile(r"transformer_blocks\.\d+\.attn2?\.norm_\w+\.weight")

# The order in which the original registers its modules: the order of `loras_dict`'s numbers. Note ff before attn2.
_REGISTERED = (
    *("time_embed", "input_blocks", "middle_block", "emb_layers", "proj_in", "transformer_blocks"),
    *("attn1", "ff", "attn2", "proj_out", "to_q", "to_k", "to_v", "to_out", "net", "proj"),
)

Shape = tuple[int, ...]


def control_keys(keys: Iterable[str]) -> dict[str, str]:
    """Return key in the file -> name without prefix, of the control net; all keys where nothing has the prefix."""
    keys = list(keys)
    own = {key: key.removeprefix(CONTROL_PREFIX) for key in keys if key.startswith(CONTROL_PREFIX)}
    return own or {key: key for key in keys}


def is_diffusers_named(names: Iterable[str]) -> bool:
    """Return whether these are diffusers' names, not the original ones."""
    return not any(name.startswith(("input_blocks.", "time_embed.", "zero_convs.")) for name in names)


def diffusers_names(names: Iterable[str]) -> dict[str, str]:
    """Return name -> diffusers name, whichever of the two these are; names that belong to no encoder are left out."""
    names = list(names)
    if not is_diffusers_named(names):
        return unet_names(names)
    return {name: name for name in names}


def is_zero_conv(name: str) -> bool:
    """Return whether the name is of a zero convolution: 26 tensors in SD 1.x."""
    return name.startswith(ZERO_PREFIXES)


def is_transformer_norm(name: str) -> bool:
    """Return whether the name is of a transformer's norm: 56 in SD 1.x. Those of residual blocks are the base's own.

    Of SD 3 those of queries and keys: its other norms come from linear layers.
    """
    if LORA_MARK in name:
        return False
    return (".attentions." in name and ".norm" in name) or _JOINT_NORM.fullmatch(name) is not None


def is_adapted(name: str) -> bool:
    """Return whether a CtrLoRA condition has its own copy: LoRA matrices, zero convolutions, transformer norms."""
    return LORA_MARK in name or is_zero_conv(name) or is_transformer_norm(name)


def lora_names(module: str) -> tuple[str, str]:
    """Return the names of a module's two LoRA matrices: down (r in) and up (out r)."""
    return f"{module}{LORA_MARK}down.weight", f"{module}{LORA_MARK}up.weight"


def tasks_of(names: Iterable[str]) -> dict[str, dict[tuple[int, str], str]]:
    """Return task -> (number, "down" or "up") -> name, of a pretraining checkpoint's `loras_dict`."""
    tasks: dict[str, dict[tuple[int, str], str]] = {}
    for name in names:
        if match := _TASKS.fullmatch(name):
            tasks.setdefault(match["task"], {})[int(match["index"]), match["half"]] = name
    return tasks


def registered_order(original_modules: Iterable[str]) -> list[str]:
    """Return original module names in the order in which the original registers them, the order of `loras_dict`."""

    def place(module: str) -> tuple[int, ...]:
        return tuple(int(part) if part.isdigit() else _REGISTERED.index(part) for part in module.split("."))

    return sorted(original_modules, key=place)


@dataclass(frozen=True)
class Sizes:
    """What the shapes tell about an encoder, as ControlNetModel's config names it: not heads, groups or eps.

    `cross_attention_dim`: None where nothing in it attends to the text, as in the smallest for SDXL.
    """

    in_channels: int
    block_out_channels: tuple[int, ...]
    layers_per_block: int
    transformer_layers_per_block: tuple[int, ...]
    down_block_types: tuple[str, ...]
    cross_attention_dim: int | None
    use_linear_projection: bool
    conditioning_channels: int
    conditioning_embedding_out_channels: tuple[int, ...]
    mid_block_type: str = "UNetMidBlock2DCrossAttn"


_NO_HINT = (
    3,
    (16, 32, 96, 256),
)  # a CtrLoRA base has no hint block; the class wants sizes for one, which is then left out


def sizes_of(shapes: Mapping[str, Shape]) -> Sizes:
    """Return the sizes of the encoder with these names and shapes.

    Raises KeyError where it is none, KeyMismatch where a tensor that tells a size has not the sides that it should.
    """
    levels = _count(shapes, r"down_blocks\.(\d+)\.")
    depths = [_depth(shapes, f"down_blocks.{i}") for i in range(levels)]
    middle = _depth(shapes, "mid_block")
    conditioning, hint = _hint(shapes)
    text, projection = (_first(shapes, end) for end in (".attn2.to_k.weight", ".proj_in.weight"))
    return Sizes(
        in_channels=sides("The net", shapes, "conv_in.weight", 4)[1],
        block_out_channels=tuple(
            sides("The net", shapes, f"down_blocks.{i}.resnets.0.conv1.weight", 4)[0] for i in range(levels)
        ),
        layers_per_block=_count(shapes, r"down_blocks\.0\.resnets\.(\d+)\."),
        # the class gives the middle the depth of the last level, which itself may have no attention
        transformer_layers_per_block=(
            *(1 if depth is None else depth for depth in depths[:-1]),
            next((depth for depth in (depths[-1], middle) if depth is not None), 1),
        ),
        down_block_types=tuple("DownBlock2D" if depth is None else "CrossAttnDownBlock2D" for depth in depths),
        cross_attention_dim=text[-1] if text else None,
        use_linear_projection=len(projection) == 2,
        conditioning_channels=conditioning,
        conditioning_embedding_out_channels=hint,
        mid_block_type="UNetMidBlock2D" if middle is None else "UNetMidBlock2DCrossAttn",
    )


def _depth(shapes: Mapping[str, Shape], at: str) -> int | None:
    """Return how many transformer blocks each attention of a level has, 0 in some; None: there is no attention."""
    if f"{at}.attentions.0.proj_in.weight" not in shapes:
        return None
    return _count(shapes, rf"{re.escape(at)}\.attentions\.0\.transformer_blocks\.(\d+)\.")


def _first(shapes: Mapping[str, Shape], end: str) -> Shape:
    """Return the shape of the first attention's tensor with this end, () where there is no attention."""
    return next((shape for name, shape in shapes.items() if name.endswith(end)), ())


def _count(names: Iterable[str], pattern: str) -> int:
    numbers = (int(match[1]) for name in names if (match := re.match(pattern, name)))
    return 1 + max((number for number in numbers if number < MOST_BLOCKS), default=-1)


def _hint(shapes: Mapping[str, Shape]) -> tuple[int, tuple[int, ...]]:
    """Return the hint image's channels and the widths of its block."""
    first = shapes.get(f"{HINT_PREFIX}conv_in.weight")
    if first is None:
        return _NO_HINT
    num = _count(shapes, re.escape(HINT_PREFIX) + r"blocks\.(\d+)\.")
    widths = (shapes[f"{HINT_PREFIX}blocks.{k}.weight"][0] for k in range(1, num, 2))
    return first[1], (first[0], *widths)
