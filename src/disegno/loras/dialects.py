"""The names of LoRA files, taken apart: which part of the model, which module, which of the module's matrices.

    kohya       lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight      also with the original's names
    diffusers   unet.down_blocks.0.attentions.0.proj_in.lora.down.weight           and its attention processors'
    peft        base_model.model.down_blocks.0.attentions.0.proj_in.lora_A.weight
    LyCORIS     lycoris_down_blocks_0_attentions_0_proj_in.lokr_w1                 or kohya's

and of Stable Diffusion 3, whose original has queries, keys and values in one layer:

    kohya       lora_unet_joint_blocks_0_x_block_attn_qkv.lora_down.weight         lora_te1_, lora_te2_, lora_te3_
    diffusers   transformer.transformer_blocks.0.attn.to_q.lora_A.weight           text_encoder., _2., _3.

A module's name is compared without its dots, since kohya's have none.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import nn

from disegno.weights.keys import ldm, mmdit

Part = Literal["unet", "te", "te2", "te3"]
TEXTS: tuple[Part, ...] = ("te", "te2", "te3")  # of Stable Diffusion 3: CLIP-L, OpenCLIP-G, T5
PARTS: tuple[Part, ...] = ("unet", *TEXTS)

# What ends a name, and which matrix it is. (The second column: as kohya and LyCORIS call it.)
_ENDS: dict[str, str] = {
    **{f".{name}.weight": name for name in ("lora_down", "lora_up", "lora_mid")},
    **{f".{kind}.{half}.weight": f"lora_{half}" for kind in ("lora", "lora_linear_layer") for half in ("down", "up")},
    **{f"_lora.{half}.weight": f"lora_{half}" for half in ("down", "up")},
    ".lora_A.weight": "lora_down",
    ".lora_B.weight": "lora_up",
    **{f".lora_magnitude_vector{end}": "magnitude" for end in ("", ".weight")},
    **{f".{name}": name for name in ("alpha", "dora_scale", "diff", "diff_b", "oft_blocks", "rescale", "on_input")},
    ".w_norm": "diff",
    ".b_norm": "diff_b",
    ".weight": "weight",
    **{f".{name}.weight": f"glora_{name}" for name in ("a1", "a2", "b1", "b2")},
    **{f".hada_{name}": f"hada_{name}" for name in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")},
    **{f".lokr_{name}": f"lokr_{name}" for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")},
}
_BY_LENGTH = sorted(_ENDS, key=len, reverse=True)

# What begins a name, and which part it is of; taken off one after the other.
_BEGINNINGS: dict[str, Part | None] = {
    "base_model.model.": None,
    "lora_unet_": "unet",
    "oft_unet_": "unet",
    "lora_transformer_": "unet",
    "lycoris_": None,  # of whatever net its own wrapper trained
    "lora_te1_": "te",
    "lora_te2_": "te2",
    "lora_te3_": "te3",
    "lora_te_": "te",
    "model.diffusion_model.": "unet",
    "diffusion_model.": "unet",
    "text_encoders.clip_l.transformer.": "te",
    "text_encoders.clip_g.transformer.": "te2",
    "text_encoders.t5xxl.transformer.": "te3",
    "text_encoder.": "te",
    "text_encoder_2.": "te2",
    "text_encoder_3.": "te3",
    "unet.": "unet",
    "transformer.": "unet",
}
_IN_TEXT = ("text_model.", "text_model_")  # of whichever text encoder: the only one, where nothing was said before
# Of peft's tensors as they are in memory: the adapter's name.
_ADAPTER = re.compile(r"(\.lora_A|\.lora_B|\.lora_magnitude_vector)\.(?!weight$)[\w-]+(?=\.weight$|$)")
_PROCESSOR = re.compile(r"\.processor\.(to_\w+?)$")  # diffusers before peft: attn1.processor.to_q_lora


class Address(NamedTuple):
    """Where a tensor belongs: the part, the module's name without dots, and which of its matrices it is."""

    part: Part
    module: str
    matrix: str


def address_of(key: str) -> Address | None:
    """Return where a tensor of this name belongs, or None where the name is no LoRA's."""
    key = _ADAPTER.sub(r"\1", key)
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
    if (inner := next((begin for begin in _IN_TEXT if module.startswith(begin)), None)) is not None:
        part, module = "te" if part == "unet" else part, module.removeprefix(inner)
    return part, module


def squashed(module: str) -> str:
    """Return a module's name without dots."""
    return module.replace(".", "_")


@dataclass(frozen=True)
class Place:
    """A module of the model that a LoRA can change.

    `beside`: the modules that the original has as one, this one among them, in their order. `swaps`: the halves of the
    original's rows stand the other way round.
    """

    part: Part
    name: str
    beside: tuple[str, ...] = ()
    swaps: bool = False


Places = Mapping[tuple[Part, str], tuple[Place, ...]]


def places_in(nets: Mapping[str, nn.Module], kinds: tuple[type[nn.Module], ...]) -> Places:
    """Return every module of these kinds, by part and name without dots: its own, and the original's.

    The original's name may be that of several.
    """
    found: dict[tuple[Part, str], tuple[Place, ...]] = {}
    for part in PARTS:
        modules = nets[part].named_modules() if part in nets else ()
        names = [
            name
            for name, module in modules
            if isinstance(module, kinds) and getattr(module, "weight", None) is not None
        ]
        if part == "unet":
            found |= {(part, squashed(other)): some for other, some in _originals(names)}
        found |= {(part, squashed(name)): (Place(part, name),) for name in names}
    return found


def _originals(names: Iterable[str]) -> Iterator[tuple[str, tuple[Place, ...]]]:
    """Yield the original's name of each module or modules, where it has one."""
    weights = {f"{name}.weight": name for name in names}
    for joined in mmdit.joined_modules(weights):
        beside = joined.names if len(joined.names) > 1 else ()
        yield joined.original, tuple(Place("unet", name, beside, joined.swaps) for name in joined.names)
    if mmdit.num_blocks(weights):
        return
    for name, original in ldm.unet_originals(list(weights)).items():
        yield original.removesuffix(".weight"), (Place("unet", weights[name]),)
