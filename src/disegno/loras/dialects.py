"""The names of LoRA files, taken apart: which part of the model, which module, which of the module's matrices.

    kohya       lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight      also with the original's names
    diffusers   unet.down_blocks.0.attentions.0.proj_in.lora.down.weight           and its attention processors'
    peft        base_model.model.down_blocks.0.attentions.0.proj_in.lora_A.weight

A module's name is compared without its dots, since kohya's have none.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import nn

from disegno.weights.keys import ldm

Part = Literal["unet", "te"]
PARTS: tuple[Part, ...] = ("unet", "te")

# What ends a name, and which matrix it is. (The second column: as kohya and LyCORIS call it.)
_ENDS: dict[str, str] = {
    **{f".{name}.weight": name for name in ("lora_down", "lora_up", "lora_mid")},
    **{f".{kind}.{half}.weight": f"lora_{half}" for kind in ("lora", "lora_linear_layer") for half in ("down", "up")},
    **{f"_lora.{half}.weight": f"lora_{half}" for half in ("down", "up")},
    **{f".lora_A{name}.weight": "lora_down" for name in ("", ".default", ".default_0")},
    **{f".lora_B{name}.weight": "lora_up" for name in ("", ".default", ".default_0")},
    **{f".lora_magnitude_vector{name}": "magnitude" for name in ("", ".weight", ".default", ".default.weight")},
    **{f".{name}": name for name in ("alpha", "dora_scale", "diff", "diff_b")},
    **{f".hada_{name}": f"hada_{name}" for name in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")},
    **{f".lokr_{name}": f"lokr_{name}" for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")},
}
_BY_LENGTH = sorted(_ENDS, key=len, reverse=True)

# What begins a name, and which part it is of; taken off one after the other.
_BEGINNINGS: dict[str, Part | None] = {
    "base_model.model.": None,
    "lora_unet_": "unet",
    "lora_te1_": "te",
    "lora_te_": "te",
    "model.diffusion_model.": "unet",
    "diffusion_model.": "unet",
    "text_encoder.": "te",
    "unet.": "unet",
    "text_model.": "te",
    "text_model_": "te",
}
_PROCESSOR = re.compile(r"\.processor\.(to_\w+?)$")  # diffusers before peft: attn1.processor.to_q_lora


class Address(NamedTuple):
    """Where a tensor belongs: the part, the module's name without dots, and which of its matrices it is."""

    part: Part
    module: str
    matrix: str


def address_of(key: str) -> Address | None:
    """Return where a tensor of this name belongs, or None where the name is no LoRA's."""
    end = next((end for end in _BY_LENGTH if key.endswith(end)), None)
    if end is None:
        return None
    part, module = _part_of(key.removesuffix(end))
    if (found := _PROCESSOR.search(module)) is not None:
        inner = "to_out.0" if found[1] == "to_out" else found[1]
        module = f"{module[: found.start()]}.{inner}"
    return Address(part, squashed(module), _ENDS[end])


def _part_of(module: str) -> tuple[Part, str]:
    part: Part = "unet"
    while (begin := next((begin for begin in _BEGINNINGS if module.startswith(begin)), None)) is not None:
        part, module = _BEGINNINGS[begin] or part, module.removeprefix(begin)
    return part, module


def squashed(module: str) -> str:
    """Return a module's name without dots."""
    return module.replace(".", "_")


@dataclass(frozen=True)
class Place:
    """A module of the model that a LoRA can change."""

    part: Part
    name: str


def places_in(nets: Mapping[str, nn.Module], kinds: tuple[type[nn.Module], ...]) -> dict[tuple[Part, str], Place]:
    """Return every module of these kinds, by part and name without dots: its own, and the original's (LDM's)."""
    found: dict[tuple[Part, str], Place] = {}
    for part in PARTS:
        modules = nets[part].named_modules() if part in nets else ()
        names = [name for name, module in modules if isinstance(module, kinds)]
        others = _originals(names) if part == "unet" else []
        for name, other in (*others, *((name, name) for name in names)):
            found[part, squashed(other)] = Place(part, name)
    return found


def _originals(names: Iterable[str]) -> list[tuple[str, str]]:
    """Return each module's own name with the original's, where it has one."""
    table = ldm.unet_originals([f"{name}.weight" for name in names])
    return [(name.removesuffix(".weight"), original.removesuffix(".weight")) for name, original in table.items()]
