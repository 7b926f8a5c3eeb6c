"""ControlNet-XS's files (Zavadski et al. 2023, arXiv 2312.06573): a small encoder and its wires to the model's own.

    published   sd15_encD_canny_53m.ckpt, sdxl_encD_depth_48m.safetensors ...: `control_model.input_blocks.*`,
                `enc_zero_convs_out.*`, ... without an outer prefix; training checkpoints have one more `control_model.`
    diffusers   ControlNetXSAdapter's names, as converted files have them, or its folder

Our names: the encoder's are diffusers' (conv_in, down_blocks, mid_block, time_embedding, controlnet_cond_embedding);
the wires are `to_base.k`, `to_control.k`, `to_decoder.k` (k: of the encoder's or decoder's blocks) and
`controlnet_mid_block`.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from disegno.core.errors import KeyMismatch, UnknownKind
from disegno.weights.json_table import read_json
from disegno.weights.keys.ldm import CONTROL_PREFIX, layout_of, unet_names, unet_originals
from disegno.weights.parts import weights_of

MECHANISM = "controlnet-xs"
_WIRES = {"enc_zero_convs_out": "to_base", "enc_zero_convs_in": "to_control", "dec_zero_convs_out": "to_decoder"}
_MARK = "enc_zero_convs_out."
_WIRE = re.compile(r"(enc_zero_convs_out|enc_zero_convs_in|dec_zero_convs_out)\.(\d+)\.0\.(weight|bias)")
_OURS = re.compile(r"(to_base|to_control|to_decoder)\.(\d+)\.(weight|bias)")
_FIXED = {
    "control_to_base_for_conv_in.": "to_base.0.",
    "mid_block.ctrl_to_base.": "controlnet_mid_block.",
    "mid_block.midblock.": "mid_block.",
}
_FLAT = (
    (re.compile(r"down_blocks\.(\d+)\.ctrl_to_base\.(\d+)\.(.*)"), "to_base", 1),
    (re.compile(r"down_blocks\.(\d+)\.base_to_ctrl\.(\d+)\.(.*)"), "to_control", 0),
    (re.compile(r"up_connections\.(\d+)\.ctrl_to_base\.(\d+)\.(.*)"), "to_decoder", 0),
)


@dataclass(frozen=True)
class XsFile:
    """A file, read: its tensors by our names. `words`: of its header; `config`: of its folder."""

    tensors: Mapping[str, Tensor]
    words: Mapping[str, str]
    fingerprint: str
    config: Mapping[str, object] = field(default_factory=dict[str, object])


def read_xs(path: Path) -> XsFile:
    """Return the control in this file or folder.

    Raises UnknownKind where it is none, KeyMismatch for the smaller variants.
    """
    read, files, fingerprint = weights_of(path)
    names = names_of(read)
    if not any(name.startswith("to_base.") for name in names.values()):
        raise UnknownKind(f"{path.name} holds no ControlNet-XS. Give such a file.")
    if not any(name.startswith("to_decoder.") for name in names.values()):
        raise KeyMismatch(
            f"{path.name} has no wires to the decoder (dec_zero_convs_out): it is another variant than the published"
            " ones, which are of the type encoder_double. Choose one of these."
        )
    config = read_json(path / "config.json") if path.is_dir() else {}
    return XsFile({new: read[key] for key, new in names.items()}, files[0].metadata, fingerprint, config)


def names_of(keys: Iterable[str]) -> dict[str, str]:
    """Return key in the file -> our name; what belongs to neither encoder nor wires is left out."""
    keys = list(keys)
    outer = CONTROL_PREFIX if any(key.startswith(CONTROL_PREFIX + _MARK) for key in keys) else ""
    own = {key: key.removeprefix(outer) for key in keys}
    if any(name.startswith("control_to_base_for_conv_in.") for name in own.values()):
        return _of_diffusers(own)
    wires = {key: _wire(match) for key, name in own.items() if (match := _WIRE.fullmatch(name))}
    plain = {key: name.removeprefix(CONTROL_PREFIX) for key, name in own.items() if key not in wires}
    table = unet_names(plain.values(), layout_of(plain.values()))
    kept = {key: table[name] for key, name in plain.items() if name in table}
    # what the model is told besides the time is the model's own to embed, as in the original
    return wires | {key: name for key, name in kept.items() if not name.startswith("add_embedding.")}


def _wire(match: re.Match[str]) -> str:
    return f"{_WIRES[match[1]]}.{match[2]}.{match[3]}"


def _of_diffusers(own: Mapping[str, str]) -> dict[str, str]:
    """Return key -> our name, of a ControlNetXSAdapter."""
    counts = {ours: _counts(own.values(), pattern) for pattern, ours, _ in _FLAT}
    return {key: _of_adapter(name, counts) for key, name in own.items()}


def _of_adapter(name: str, counts: Mapping[str, list[int]]) -> str:
    for pattern, ours, first in _FLAT:
        if match := pattern.fullmatch(name):
            return f"{ours}.{first + sum(counts[ours][: int(match[1])]) + int(match[2])}.{match[3]}"
    if name.startswith("mid_block.base_to_ctrl."):
        return name.replace("mid_block.base_to_ctrl", f"to_control.{sum(counts['to_control'])}")
    start = next((start for start in _FIXED if name.startswith(start)), "")
    return _FIXED.get(start, "") + name.removeprefix(start).replace(".downsamplers.conv.", ".downsamplers.0.conv.")


def _counts(names: Iterable[str], pattern: re.Pattern[str]) -> list[int]:
    """Return how many wires each level has."""
    found = {(int(match[1]), int(match[2])) for name in names if (match := pattern.fullmatch(name))}
    return [sum(i == level for i, _ in found) for level in range(1 + max((i for i, _ in found), default=-1))]


def originals_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return our tensors by their published names: the inverse of reading."""
    back = {ours: theirs for theirs, ours in _WIRES.items()}
    encoder = [name for name in tensors if not _OURS.fullmatch(name)]
    table = unet_originals(encoder)
    out: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if match := _OURS.fullmatch(name):
            out[f"{back[match[1]]}.{match[2]}.0.{match[3]}"] = tensor
            continue
        original = table[name]
        outside = original.startswith(("input_hint_block.", "middle_block_out."))
        out[original if outside else CONTROL_PREFIX + original] = tensor
    return out
