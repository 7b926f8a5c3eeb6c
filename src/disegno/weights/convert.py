"""Writes a file of weights in another form: as safetensors, and under the original's (LDM's) or diffusers' names.

A file whose suffix is torch's (.ckpt) becomes torch's checkpoint: other programs choose their reader by it.

Every tensor keeps its bits; packed numbers (GGUF) become float16. The only changes of shape are those of the VAE's
attention, whose matrices the original stores as 1x1 convolutions, and of queries, keys and values that lie in one
tensor; under other names scaled 8-bit numbers become bfloat16. What has no name in the other form (schedule buffers,
EMA copies) is left out and listed.
"""

import json
import shutil
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from disegno.core.errors import KeyMismatch, UnknownKind
from disegno.core.files import make_folder
from disegno.weights import configs, control_lora_files, ctrlora_xl_files
from disegno.weights.card import FileCard
from disegno.weights.folders import yaml_prediction
from disegno.weights.identify import identify
from disegno.weights.json_table import read_json
from disegno.weights.keys import midas
from disegno.weights.layouts import DEPTH, MODELS, T5, VAE, XL_CLIP_L, Part, network_of, parts_of, pipeline_of
from disegno.weights.load import open_file
from disegno.weights.modelspec import REFINER, words_of
from disegno.weights.parts import CONFIG_KEY, folder_tensors, has_weights, told_of
from disegno.weights.save import save_safetensors, save_weights, write_atomically
from disegno.weights.scaled import unscaled
from disegno.weights.tensor_file import TensorFile

LAYOUTS = ("ldm", "diffusers")
_FAMILIES = (*MODELS, "diorama", "")
_ONE_FORM = (control_lora_files.MECHANISM, ctrlora_xl_files.MECHANISM)
_SCHEDULER = Path("scheduler", "scheduler_config.json")
_VOCABULARY, _VOCABULARIES = "tokenizer_3", ("tokenizer.json", "spiece.model")  # T5's, which no file of weights has
_OF_LATENTS = ("scaling_factor", "shift_factor")  # of a VAE: its tensors do not tell
# Empty tensors by which other programs, too, know what a file's names do not tell
_V_PREDICTION, _ZERO_SNR = "v_pred", "ztsnr"
_DRAWING = ("model", "unet")  # whose output a yaml beside it may tell
_UNTOLD = (
    "{} does not say what its output means, and so the folder does not: this program tries it, diffusers takes it for"
    ' epsilon. Of a model for 768 pixels write "prediction_type": "v_prediction" into {}.'
)


@dataclass(frozen=True)
class Converted:
    """What was written. `left_out`: names of the source that have no place in the new form.

    `doubts`: in plain words.
    """

    card: FileCard
    left_out: tuple[str, ...]
    doubts: tuple[str, ...] = ()


def convert(source: Path, out: Path, layout: str | None = None) -> Converted:
    """Write `source` to `out` under the names of `layout` (unset: its own), and say what was written.

    A whole model under diffusers' names is a folder. Raises UnknownKind where there is no table between the two forms,
    KeyMismatch where a name is not in it, and as `identify` and `save_safetensors`.
    """
    card = _told_beside(identify(source))
    target = layout or card.layout
    if source.is_dir() and card.kind == "model" and target == "ldm":
        return _join(card, out)
    if source.is_dir():
        raise UnknownKind(f"{source.name} is a folder with a {card.kind}; only a whole model becomes one file.")
    with open_file(source) as file:
        card = _of_gguf(card) if file.contents.format == "gguf" else card
        if target == card.layout:
            save_weights(out, file.tensors(), words_of(card, target))
            return Converted(identify(out), file.ignored)
        is_known = card.family in _FAMILIES and card.mechanism not in _ONE_FORM
        if not is_known or target not in LAYOUTS or card.layout not in LAYOUTS:
            raise UnknownKind(
                f"{source.name} ({card.family or '?'}, {card.kind}, {card.layout or '?'} names) cannot be "
                f"renamed to {target}. Leave the layout out to write it as safetensors under its own names."
            )
        if card.kind != "model":
            return _rename(card, file, out, target)
        if file.contents.format == "gguf" and not any(key.startswith(VAE.prefix) for key in file.contents.entries):
            return _rename(replace(card, kind="unet", metadata={}), file, out, target)  # a net alone
        return _split(card, file, out)


def _told_beside(card: FileCard) -> FileCard:
    """Return the card with what A1111's yaml beside a model's file says of its output, which the file may not."""
    if card.kind not in _DRAWING or card.path.is_dir() or card.prediction not in (None, "epsilon"):
        return card
    return replace(card, prediction=yaml_prediction(card.path) or card.prediction)


def _of_gguf(card: FileCard) -> FileCard:
    """Return the card with the words that are true of another form too: of a net alone, that it is a model."""
    kept = {key: word for key, word in card.metadata.items() if key.startswith(("disegno.", "modelspec."))}
    return replace(card, metadata=kept | ({"disegno.kind": card.kind} if card.kind == "model" else {}))


def _rename(card: FileCard, file: TensorFile, out: Path, layout: str) -> Converted:
    """Write one network under the other names."""
    part = network_of(card.kind, card.family)
    if part is None:
        raise UnknownKind(f"{card.path.name} is a {card.kind}; a control, unet, vae or text can be renamed.")
    names = {key: key.removeprefix(part.prefix) for key in file.contents.entries}
    given = unscaled({name: file.tensor(key) for key, name in names.items()})
    there = layout == "diffusers"
    found, used = (part.to_diffusers(given), part.placed(given)) if there else _original(card, part, given)
    if not found:
        raise KeyMismatch(f"{card.path.name} has no tensor that {layout} has a name for. Give a file of one network.")
    tensors = found if there else {part.prefix + name: tensor for name, tensor in found.items()}
    save_weights(out, tensors, words_of(card, layout))
    return Converted(identify(out), tuple(key for key, name in names.items() if name not in used))


def _original(card: FileCard, part: Part, given: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Set[str]]:
    """Return a network's tensors by the original's names, and which of the given names have one. Raises KeyMismatch."""
    kept = part.kept(given)
    if part.whole and (lost := [name for name in given if name not in kept]):
        shown = ", ".join(lost[:4]) + (", ..." if len(lost) > 4 else "")
        raise KeyMismatch(
            f"{card.path.name}: {len(lost)} tensors of its {part.cls} have no name in the original form, which would"
            f" lack them: {shown}. Give a network of the original's kind, or keep diffusers' form."
        )
    return part.to_ldm(given), kept


# ---- one file -> folder


def _split(card: FileCard, file: TensorFile, out: Path) -> Converted:
    """Write a single-file model as a diffusers folder."""
    taken, told = _marks_of(card.family), told_of(file)
    index: dict[str, object] = {}
    for part in parts_of(card.family, any(key.startswith(XL_CLIP_L.prefix) for key in file.contents.entries)):
        tensors, used = _part_of(card, file, part)
        if not tensors:
            index |= {part.folder: [None, None]} if card.family == "sd3" else {}  # diffusers' word for none
            continue
        index[part.folder] = [part.library, part.cls]
        taken |= used
        folder = out / part.folder
        make_folder(folder)
        _write_json(folder / "config.json", _class_of(part) | part.config(tensors) | told.get(part.folder, {}))
        save_safetensors(folder / f"{part.stem}.safetensors", tensors, {"format": "pt"})
    scheduler = _scheduler_of(card, file, told)
    index["scheduler"] = ["diffusers", scheduler["_class_name"]]
    make_folder(out / "scheduler")
    _write_json(out / _SCHEDULER, scheduler)
    if index.get(T5.folder, [None, None]) != [None, None]:
        _copy_vocabulary(card.path.parent, out)
    if DEPTH.folder in index:
        _write_processor(out)
    pipeline = {"_class_name": pipeline_of(index)} | (_of_sdxl(index) if card.family == "sdxl" else {})
    _write_json(out / "model_index.json", pipeline | index)  # last: a folder without it is not listed as a model
    doubts = (_UNTOLD.format(card.path.name, out / _SCHEDULER),) if card.prediction is None else ()
    return Converted(identify(out), tuple(key for key in file.contents.entries if key not in taken), doubts)


def _marks_of(family: str) -> set[str]:
    """Return the marks of a family's files that a folder says in its own way."""
    return {_ZERO_SNR, _V_PREDICTION} if family == "sdxl" else {_ZERO_SNR}


def _scheduler_of(card: FileCard, file: TensorFile, told: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration of a file's noise levels."""
    if card.prediction == "flow":
        return configs.flow_scheduler_config(float(told.get("shift", configs.SHIFT)))
    noise = {"rescale_betas_zero_snr": True} if _ZERO_SNR in file else {}
    return configs.scheduler_config(card.prediction) | noise | (configs.SDXL_SCHEDULER if card.family == "sdxl" else {})


def _of_sdxl(index: Mapping[str, object]) -> dict[str, object]:
    """Return what SDXL's pipeline is told: an empty negative prompt is zeros; the parts that the refiner lacks."""
    if XL_CLIP_L.folder in index:
        return {"force_zeros_for_empty_prompt": True}
    none = [None, None]  # diffusers' word
    lacking: dict[str, object] = {XL_CLIP_L.folder: none, "tokenizer": none}
    return lacking | {"force_zeros_for_empty_prompt": False, "requires_aesthetics_score": True}


def _write_processor(out: Path) -> None:
    """Write how a picture is prepared for an estimator of depth."""
    make_folder(out / "feature_extractor")
    size = read_json(out / DEPTH.folder / "config.json")["image_size"]
    _write_json(out / "feature_extractor" / "preprocessor_config.json", midas.PROCESSOR | {"size": size})


def _class_of(part: Part) -> dict[str, str]:
    """Return what a configuration says of its class: diffusers wants to read it, transformers not."""
    return {"_class_name": part.cls} if part.library == "diffusers" else {}


def _part_of(card: FileCard, file: TensorFile, part: Part) -> tuple[dict[str, Tensor], set[str]]:
    """Return a network's tensors by diffusers' names, and the names that they have in the file."""
    names = part.keys_in(file.contents.entries)
    given = unscaled({name: file.tensor(key) for name, key in names.items()})
    used = part.placed(given)
    if not used and part.optional:
        return {}, set()
    if not used:
        raise KeyMismatch(f"{card.path.name} has no tensors under {part.prefix}... Give a complete checkpoint.")
    scales = names.keys() - given.keys()
    return part.to_diffusers(given), {names[name] for name in (*used, *scales)}


# ---- folder -> one file


def _join(card: FileCard, out: Path) -> Converted:
    """Write a diffusers folder as a single-file model."""
    tensors: dict[str, Tensor] = {}
    left_out: list[str] = []
    parts = parts_of(card.family, has_weights(card.path, XL_CLIP_L.folder))
    for part in parts:
        if part.optional and not has_weights(card.path, part.folder):
            continue
        given = folder_tensors(card.path, part.folder)
        found, kept = _original(card, part, given)
        tensors |= {part.prefix + name: tensor for name, tensor in found.items()}
        left_out += [f"{part.folder}/{name}" for name in given if name not in kept]
    tensors |= _marked(card)
    own = {"modelspec.architecture": REFINER} if card.family == "sdxl" and XL_CLIP_L not in parts else {}
    words = words_of(replace(card, metadata=own), "ldm")
    if told := _untold(card, parts):
        words[CONFIG_KEY] = json.dumps(told)
    save_weights(out, tensors, words)
    if any(name.startswith(T5.prefix) for name in tensors):
        _copy_vocabulary(card.path, out.parent)
    return Converted(identify(out), tuple(left_out))


def _marked(card: FileCard) -> dict[str, Tensor]:
    """Return the marks that a folder's file carries."""
    told = read_json(path) if (path := card.path / _SCHEDULER).is_file() else {}
    says = {_V_PREDICTION: card.prediction == "v", _ZERO_SNR: bool(told.get("rescale_betas_zero_snr"))}
    return {mark: torch.zeros(0) for mark in sorted(_marks_of(card.family)) if says[mark]}


def _untold(card: FileCard, parts: Sequence[Part]) -> dict[str, Any]:
    """Return what a folder's configurations say that a file's names and shapes do not."""
    told: dict[str, Any] = {}
    own, tensors = read_json(card.path / VAE.folder / "config.json"), folder_tensors(card.path, VAE.folder)
    usual = next(part for part in parts if part.folder == VAE.folder).config(tensors)
    if other := {name: own[name] for name in _OF_LATENTS if own.get(name) != usual.get(name) and name in own}:
        told["vae"] = other
    if card.family == "sd3" and (card.path / _SCHEDULER).is_file():
        shift = float(read_json(card.path / _SCHEDULER).get("shift", configs.SHIFT))
        told |= {"shift": shift} if shift != configs.SHIFT else {}
    return told


def _copy_vocabulary(source: Path, target: Path) -> None:
    """Copy T5's vocabulary, which is no tensor, to where a model in `target` looks for it, unless one is there."""
    for name in _VOCABULARIES:
        own, new = source / _VOCABULARY / name, target / _VOCABULARY / name
        if own.is_file() and not new.exists():
            make_folder(new.parent)
            shutil.copyfile(own, new)


def _write_json(path: Path, value: Mapping[str, object]) -> None:
    write_atomically(path, lambda temporary: temporary.write_text(json.dumps(value, indent=2) + "\n", "utf-8"))
