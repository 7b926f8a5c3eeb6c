"""Writes a file of weights in another form: as safetensors, and under the original's (LDM's) or diffusers' names.

A file whose suffix is torch's (.ckpt) becomes torch's checkpoint: other programs choose their reader by it.

Every tensor keeps its bits. The only change of shape is that of the VAE's attention, whose matrices the original
stores as 1x1 convolutions. What has no name in the other form (schedule buffers, EMA copies) is left out and listed.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from disegno.core.errors import KeyMismatch, UnknownKind
from disegno.weights import configs
from disegno.weights.card import FileCard
from disegno.weights.identify import identify
from disegno.weights.keys import ldm, openclip
from disegno.weights.load import open_file
from disegno.weights.modelspec import words_of
from disegno.weights.save import save_safetensors, save_weights, write_atomically
from disegno.weights.tensor_file import TensorFile

LAYOUTS = ("ldm", "diffusers")
_TEXT_PREFIX = "cond_stage_model.transformer."
_ATTENTION = re.compile(r"(en|de)coder\.mid(_block\.attentions\.0\.to_|\.attn_1\.(q|k|v|proj_out)\.)")
_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")


@dataclass(frozen=True)
class _Part:
    """One network of a model: its prefix in a single file, its folder and file in a diffusers folder, its two names."""

    prefix: str
    folder: str
    stem: str
    to_diffusers: Callable[[Iterable[str]], dict[str, str]]
    to_ldm: Callable[[Iterable[str]], dict[str, str]]
    config: Callable[[Mapping[str, Tensor]], dict[str, object]] = configs.unet_config


def _text_names(names: Iterable[str]) -> dict[str, str]:
    return {name: name for name in names if not name.endswith("position_ids")}


_HF = "text_model."


def _from_openclip(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {_HF + name: tensor for name, tensor in openclip.used(tensors).items()}


def _to_openclip(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return openclip.to_openclip({name.removeprefix(_HF): tensor for name, tensor in tensors.items()})


_FAMILIES = ("sd1", "sd2", "diorama", "")
_CONTROL = _Part(ldm.CONTROL_PREFIX, "", "", ldm.unet_names, ldm.unet_originals)
_UNET = _Part(ldm.UNET_PREFIX, "unet", _STEMS[0], ldm.unet_names, ldm.unet_originals)
_VAE = _Part(ldm.VAE_PREFIX, "vae", _STEMS[0], ldm.vae_names, ldm.vae_originals, configs.vae_config)
_TEXT = _Part(_TEXT_PREFIX, "text_encoder", _STEMS[1], _text_names, _text_names, configs.text_config)
_PARTS = {"control": _CONTROL, "unet": _UNET, "vae": _VAE, "text": _TEXT}


@dataclass(frozen=True)
class Converted:
    """What was written. `left_out`: names of the source that have no place in the new form."""

    card: FileCard
    left_out: tuple[str, ...]


def convert(source: Path, out: Path, layout: str | None = None) -> Converted:
    """Write `source` to `out` under the names of `layout` (unset: its own), and say what was written.

    A whole model under diffusers' names is a folder. Raises UnknownKind where there is no table between the two forms,
    KeyMismatch where a name is not in it, and as `identify` and `save_safetensors`.
    """
    card = identify(source)
    target = layout or card.layout
    if source.is_dir() and card.kind == "model" and target == "ldm":
        return _join(card, out)
    if source.is_dir():
        raise UnknownKind(f"{source.name} is a folder with a {card.kind}; only a whole model becomes one file.")
    with open_file(source) as file:
        if target == card.layout:
            save_weights(out, file.tensors(), words_of(card, target))
            return Converted(identify(out), file.ignored)
        if card.family not in _FAMILIES or target not in LAYOUTS or card.layout not in LAYOUTS:
            raise UnknownKind(
                f"{source.name} ({card.family or '?'}, {card.kind}, {card.layout or '?'} names) cannot be "
                f"renamed to {target}. Leave the layout out to write it as safetensors under its own names."
            )
        if card.kind == "model":
            return _split(card, file, out)
        return _rename(card, file, out, target)


def _rename(card: FileCard, file: TensorFile, out: Path, layout: str) -> Converted:
    """Write one network under the other names."""
    if card.kind not in _PARTS:
        raise UnknownKind(f"{card.path.name} is a {card.kind}; a control, unet, vae or text can be renamed.")
    part = _PARTS[card.kind]
    names = {key: key.removeprefix(part.prefix) for key in file.contents.entries}
    table = (part.to_diffusers if layout == "diffusers" else part.to_ldm)(names.values())
    prefix = part.prefix if layout == "ldm" else ""
    tensors = {prefix + table[name]: file.tensor(key) for key, name in names.items() if name in table}
    if not tensors:
        raise KeyMismatch(f"{card.path.name} has no tensor that {layout} has a name for. Give a file of one network.")
    save_weights(out, _fitted(tensors, layout), words_of(card, layout))
    return Converted(identify(out), tuple(key for key, name in names.items() if name not in table))


def _split(card: FileCard, file: TensorFile, out: Path) -> Converted:
    """Write a single-file model as a diffusers folder."""
    taken: set[str] = set()
    index: dict[str, object] = {"_class_name": "StableDiffusionPipeline", **configs.PIPELINE}
    own = configs.OWN.get(card.family, {})
    for part in (_UNET, _VAE, _TEXT):
        tensors, used = _text_of(file) if part is _TEXT and card.family == "sd2" else _part_of(card, file, part)
        taken |= used
        folder = out / part.folder
        folder.mkdir(parents=True, exist_ok=True)
        told = configs.class_name(part.folder) | part.config(tensors)
        _write_json(folder / "config.json", told | (own[part.folder](told) if part.folder in own else {}))
        save_safetensors(folder / f"{part.stem}.safetensors", tensors, {"format": "pt"})
    (out / "scheduler").mkdir(exist_ok=True)
    _write_json(out / "scheduler" / "scheduler_config.json", configs.scheduler_config(card.prediction))
    _write_json(out / "model_index.json", index)  # last: a folder without it is not listed as a model
    return Converted(identify(out), tuple(key for key in file.contents.entries if key not in taken))


def _part_of(card: FileCard, file: TensorFile, part: _Part) -> tuple[dict[str, Tensor], set[str]]:
    """Return a network's tensors by diffusers' names, and the names that they have in the file."""
    names = {key.removeprefix(part.prefix): key for key in file.contents.entries if key.startswith(part.prefix)}
    table = part.to_diffusers(names)
    if not table:
        raise KeyMismatch(f"{card.path.name} has no tensors under {part.prefix}... Give a complete checkpoint.")
    tensors = _fitted({new: file.tensor(names[name]) for name, new in table.items()}, "diffusers")
    return tensors, {names[name] for name in table}


def _text_of(file: TensorFile) -> tuple[dict[str, Tensor], set[str]]:
    """Return OpenCLIP's text tower likewise."""
    keys = [key for key in file.contents.entries if key.startswith(openclip.PREFIX)]
    tensors = {key.removeprefix(openclip.PREFIX): file.tensor(key) for key in keys}
    if not keys:
        raise KeyMismatch(f"{file.path.name} has no tensors under {openclip.PREFIX}... Give a complete checkpoint.")
    return _from_openclip(tensors), {openclip.PREFIX + name for name in openclip.used_names(tensors)}


def _join(card: FileCard, out: Path) -> Converted:
    """Write a diffusers folder as a single-file model."""
    tensors: dict[str, Tensor] = {}
    left_out: list[str] = []
    for part in (_UNET, _VAE, _TEXT):
        given = _part_tensors(card.path / part.folder)
        if part is _TEXT and card.family == "sd2":
            tensors |= {openclip.PREFIX + name: tensor for name, tensor in _to_openclip(given).items()}
            continue
        table = part.to_ldm(given)
        tensors |= _fitted({part.prefix + new: given[name] for name, new in table.items()}, "ldm")
        left_out += [f"{part.folder}/{name}" for name in given if name not in table]
    save_weights(out, tensors, words_of(replace(card, metadata={}), "ldm"))
    return Converted(identify(out), tuple(left_out))


def _part_tensors(folder: Path) -> dict[str, Tensor]:
    files = (folder / f"{stem}{suffix}" for stem in _STEMS for suffix in (".safetensors", ".bin"))
    found = next((file for file in files if file.is_file()), None)
    if found is None:
        raise KeyMismatch(f"{folder} has no weights ({', '.join(_STEMS)}). Fetch the folder completely.")
    return open_file(found).tensors()


def _fitted(tensors: Mapping[str, Tensor], layout: str) -> dict[str, Tensor]:
    """Return the tensors, the VAE's attention as matrices (diffusers) or as 1x1 convolutions (ldm)."""
    wanted = 2 if layout == "diffusers" else 4
    return {
        name: tensor.reshape(tensor.shape[:2] + (1,) * (wanted - 2))
        if tensor.ndim in (2, 4) and tensor.ndim != wanted and _ATTENTION.search(name)
        else tensor
        for name, tensor in tensors.items()
    }


def _write_json(path: Path, value: Mapping[str, object]) -> None:
    write_atomically(path, lambda temporary: temporary.write_text(json.dumps(value, indent=2) + "\n", "utf-8"))
