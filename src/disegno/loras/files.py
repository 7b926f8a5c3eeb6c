"""A LoRA file, read: its matrices by part and module, and the scales that it states beside them."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

from torch import Tensor

from disegno.core.errors import CorruptFile, UnknownKind
from disegno.loras.dialects import PARTS, Part, address_of, squashed
from disegno.loras.matrices import NEEDED, Scale
from disegno.weights.card import FileCard
from disegno.weights.finite import require_finite
from disegno.weights.json_table import json_table, read_json
from disegno.weights.load import open_file
from disegno.weights.tensor_file import TensorFile

Json = Mapping[str, object]

# Where peft and diffusers write what they know of a LoRA: in a file beside it, or in its header.
PEFT_CONFIG, PEFT_STEM = "adapter_config.json", "adapter_model"
DIFFUSERS_HEADER = "lora_adapter_metadata"
_HEADER_PARTS: dict[str, Part] = {
    "unet": "unet",
    "transformer": "unet",
    "text_encoder": "te",
    "text_encoder_2": "te2",
    "text_encoder_3": "te3",
}
_KOHYA_HASH = "sshs_model_hash"
_PLAIN_NAME = re.compile(r"[\w.]+")


@dataclass(frozen=True)
class Scales:
    """What a file states for a part of the model: one scale, and others for some modules."""

    whole: Scale = field(default_factory=Scale)
    by_module: Mapping[str, Scale] = field(default_factory=dict[str, Scale])

    def of(self, module: str) -> Scale:
        """Return the scale of a module, named without dots."""
        ends = (end for end in self.by_module if module == end or module.endswith(f"_{end}"))
        return next((self.by_module[end] for end in ends), self.whole)


@dataclass(frozen=True)
class LoraFile:
    """A LoRA's matrices, by part and by module (named without dots). `hash`: A1111's, 12 digits are shown of it.

    `passed_over`: the tensors of the file that are no matrices of a known kind.
    """

    name: str
    sha256: str
    hash: str
    modules: Mapping[tuple[Part, str], Mapping[str, Tensor]]
    scales: Mapping[Part, Scales]
    passed_over: tuple[str, ...] = ()

    def scale_of(self, part: Part, module: str) -> Scale:
        """Return the scale of a module that has no alpha of its own."""
        return self.scales[part].of(module) if part in self.scales else Scale()


def read_lora(card: FileCard) -> LoraFile:
    """Return the LoRA in a file. Raises UnknownKind where it holds no matrices that can be used, and as `open_file`."""
    with open_file(card.path) as file:
        modules, passed_over = _modules(file)
        if not modules:
            some = ", ".join(file.keys()[:3])
            raise UnknownKind(
                f"{card.path.name} holds no matrices that can be used ({some}, ...). Known are LoRA, LoCon, LoHa, LoKr,"
                " each with or without DoRA, GLoRA, (IA)3, OFT, BOFT and full differences. Convert it, or use another"
                " file."
            )
        for matrices in modules.values():
            require_finite(card.path.name, matrices)
        return LoraFile(card.path.stem, file.sha256(), _hash(file), modules, _scales(file), passed_over)


def _modules(file: TensorFile) -> tuple[dict[tuple[Part, str], dict[str, Tensor]], tuple[str, ...]]:
    """Return the matrices of each module, and the names of the tensors that are none."""
    addresses = {key: address_of(key) for key in file.contents.entries}
    placed: dict[str, tuple[Part, str]] = {key: (at.part, at.module) for key, at in addresses.items() if at is not None}
    usable = {placed[key] for key, at in addresses.items() if at is not None and at.matrix in NEEDED}
    found: dict[tuple[Part, str], dict[str, Tensor]] = {}
    for key, address in addresses.items():
        if address is not None and placed[key] in usable:
            found.setdefault(placed[key], {})[address.matrix] = file.tensor(key)
    return found, tuple(key for key in addresses if placed.get(key) not in usable)


def _hash(file: TensorFile) -> str:
    """Return the hash that A1111 knows a LoRA by: the trainer's, or sha256 over what follows a safetensors header."""
    if (told := file.metadata.get(_KOHYA_HASH)) is not None:
        return told
    if file.contents.format != "safetensors":
        return file.sha256()
    header = int.from_bytes(file.data[:8], "little")
    return hashlib.sha256(memoryview(file.data)[8 + header :]).hexdigest()


# ---- scales


def _scales(file: TensorFile) -> dict[Part, Scales]:
    if DIFFUSERS_HEADER in file.metadata:
        table = json_table(file.metadata[DIFFUSERS_HEADER], f"{file.path.name}: its {DIFFUSERS_HEADER}")
        told: dict[Part, Json] = {part: below for name, part in _HEADER_PARTS.items() if (below := _below(table, name))}
        return {part: _stated(file.path.name, below) for part, below in told.items()}
    beside = file.path.parent / PEFT_CONFIG
    if file.path.stem == PEFT_STEM and beside.is_file():
        stated = _stated(file.path.name, read_json(beside))
        everywhere: dict[Part, Scales] = dict.fromkeys(PARTS, stated)
        return everywhere
    return {}


def _below(table: Json, prefix: str) -> Json:
    return {key.removeprefix(f"{prefix}."): value for key, value in table.items() if key.startswith(f"{prefix}.")}


def _stated(where: str, config: Json) -> Scales:
    """Return what peft's configuration says: its alpha, alpha_pattern, use_rslora. Raises CorruptFile, UnknownKind."""
    by_root, alpha = bool(config.get("use_rslora")), config.get("lora_alpha", config.get("alpha"))
    patterns, rank = config.get("alpha_pattern") or {}, config.get("r")
    if not isinstance(patterns, dict) or not isinstance(alpha, int | float | None) or not isinstance(rank, int | None):
        raise CorruptFile(f"{where}: its r, alpha or alpha_pattern is no number or table. Fetch it again.")
    by_module: dict[str, Scale] = {}
    for name, value in cast(Json, patterns).items():
        if not _PLAIN_NAME.fullmatch(name) or not isinstance(value, int | float):
            raise UnknownKind(f"{where}: its alpha_pattern {name!r} is no module's name. Save it with plain names.")
        by_module[squashed(name)] = Scale(float(value), by_root, rank)
    return Scales(Scale(None if alpha is None else float(alpha), by_root, rank), by_module)
