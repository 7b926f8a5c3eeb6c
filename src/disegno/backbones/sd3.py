"""Stable Diffusion 3 and 3.5: from a diffusers folder, or from one file of Stability AI's layout.

Sizes are read from the tensors: medium, large, and 3.5 medium with a second attention in its first blocks. Text
encoders are in the file (`text_encoders.clip_l`, `.clip_g`, `.t5xxl`), or beside it as clip_l*, clip_g* and t5xxl*
files; one that is missing says nothing, which is said. T5's vocabulary (tokenizer.json or spiece.model) is looked for
at the same places. Header: `disegno.config`, JSON with the optional keys vae and shift; see `_reading.py`.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel
from torch import Tensor
from transformers import CLIPTextConfig

from disegno.backbones._fingerprint import fingerprint
from disegno.backbones._latent_diffusion import Config, Tensors
from disegno.backbones._mmdit import Mmdit
from disegno.backbones._reading import (
    check_family,
    check_folder,
    shapes_of,
)
from disegno.backbones._text_files import TextParts, beside, in_file, in_folder
from disegno.backbones._three_texts import ThreeTexts
from disegno.backbones._vae_file import brings_vae, vae_in_file, vae_in_folder
from disegno.backbones.base import Defaults
from disegno.core.errors import KeyMismatch, RequestError
from disegno.diffusion.prediction import PREDICTIONS
from disegno.diffusion.schedules import flow_table
from disegno.memory import Memory
from disegno.text.clip import END_ID, OPENCLIP_PAD, ClipText, config_of, open_clip, projected
from disegno.text.described import described
from disegno.text.t5 import T5Text, open_t5
from disegno.weights.configs import SHIFT
from disegno.weights.json_table import read_json
from disegno.weights.keys import mmdit
from disegno.weights.load import open_file
from disegno.weights.parts import folder_tensors, told_of
from disegno.weights.scaled import unscaled

__all__ = ["FAMILY", "Parts", "brings_vae", "net_of", "open", "open_texts", "read_file", "read_folder"]

FAMILY = "sd3"
DEFAULTS = Defaults(1024, 1024, steps=28, cfg=4.5, sampler="Euler", schedule="normal")
_LATENT_CHANNELS = 16  # where the transformer's configuration does not say it


@dataclass(frozen=True)
class Parts:
    """A model, read. `shift`: of its noise levels."""

    net: Tensors
    net_config: Config
    vae: Tensors
    vae_config: Config
    texts: TextParts
    shift: float


def open(path: Path | None, memory: Memory, vae: Path | None = None) -> Mmdit:
    """Return the model in a folder or file. `vae`: the file or folder of one, where the model brings none.

    Raises ModelFileError about it, RequestError without a path.
    """
    if path is None:
        raise RequestError("Stable Diffusion 3 ships no weights with this program: give a model file or folder.")
    parts, name = read_folder(path, vae) if path.is_dir() else read_file(path, vae), path.name
    memory = memory.without_fp16()  # the activations of 3.5 are beyond float16

    def transformer() -> SD3Transformer2DModel:
        with torch.device(
            "meta"
        ):  # positions are in the file; of 3.5 medium, 1.8 GB in float64 while they are worked out
            return cast(SD3Transformer2DModel, SD3Transformer2DModel.from_config(parts.net_config))

    def autoencoder() -> AutoencoderKL:
        return cast(AutoencoderKL, AutoencoderKL.from_config(parts.vae_config))

    net = memory.pack(memory.build(transformer, parts.net, f"The transformer of {name}"))
    text, warnings = open_texts(parts.texts, net, memory, name)
    used = [parts.texts.clip_l, parts.texts.clip_g, parts.texts.t5 if text.t5 else {}]
    own = fingerprint(parts.net, parts.vae, *used)
    if text.t5 and memory.policy.t5 == "int8":
        own = hashlib.sha256(f"{own} t5 in 8 bits".encode()).hexdigest()
    return Mmdit(
        family=FAMILY,
        name=name,
        prediction=PREDICTIONS["flow"],
        table=flow_table(parts.shift),
        defaults=DEFAULTS,
        net=net,
        vae=memory.build(autoencoder, parts.vae, f"The VAE of {name}", memory.policy.vae_dtype),
        text=text,
        memory=memory,
        fingerprint=own,
        warnings=warnings,
    )


# ---- text encoders


def open_texts(parts: TextParts, net: SD3Transformer2DModel, memory: Memory, name: str) -> tuple[ThreeTexts, list[str]]:
    """Return the encoders that there are, and what is said of those that are not. Raises KeyMismatch, CorruptFile."""
    t5, warnings = _t5(parts, memory, name)
    for what, tensors in (("CLIP-L", parts.clip_l), ("OpenCLIP-G", parts.clip_g)):
        if not tensors:
            warnings.append(f"{name} has no {what}, in it or beside it: the prompt is not read by it.")
    if parts.clip_g and "text_projection.weight" not in parts.clip_g:
        raise KeyMismatch(f"The OpenCLIP-G of {name} has no text_projection. Use a complete file.")
    texts = ThreeTexts(
        clip_l=_clip(parts.clip_l, parts.clip_l_config, "quick_gelu", memory, f"CLIP-L of {name}"),
        clip_g=_clip(parts.clip_g, parts.clip_g_config, "gelu", memory, f"OpenCLIP-G of {name}"),
        t5=t5,
        width=int(net.config["joint_attention_dim"]),
        pooled=int(net.config["pooled_projection_dim"]),
        device=memory.policy.device,
    )
    return texts, warnings


def _clip(tensors: Tensors, config: Config | None, act: str, memory: Memory, what: str) -> ClipText | None:
    if not tensors:
        return None
    own = {name: tensor for name, tensor in tensors.items() if name != "text_projection.weight"}
    made = (
        described(CLIPTextConfig, config, f"The configuration of {what}")
        if config
        else config_of(shapes_of(own), act=act)
    )
    pad = OPENCLIP_PAD if act == "gelu" else END_ID
    return projected(open_clip(own, made, memory, what, pad), tensors.get("text_projection.weight"))


def _t5(parts: TextParts, memory: Memory, name: str) -> tuple[T5Text | None, list[str]]:
    use = memory.policy.t5
    if use == "off":
        return None, []
    if not parts.t5:
        return None, [f"{name} has no T5, in it or beside it: long and exact prompts are followed less well."]
    if parts.tokenizer is None:
        return None, [
            f"{name}: T5's vocabulary was not found, so T5 is left out. Put T5's tokenizer.json or spiece.model"
            " (of the model's folder tokenizer_3) beside the file, or say --t5 off."
        ]
    where = memory.on_cpu() if use == "cpu" else memory
    return open_t5(parts.t5, parts.tokenizer, where, f"T5 of {name}"), []


# ---- one file


def read_file(path: Path, vae: Path | None = None) -> Parts:
    """Return the parts of one file, its text encoders in it or beside it."""
    with open_file(path) as file:
        check_family(file, FAMILY)
        told = told_of(file)
        prefix = mmdit.PREFIX if any(key.startswith(mmdit.PREFIX) for key in file.contents.entries) else ""
        keys = [key for key in file.contents.entries if key.startswith(prefix)]
        originals = unscaled({key.removeprefix(prefix): file.lazily().tensor(key) for key in keys})
        net = net_of(originals, path.name)
        config = mmdit.config_of(shapes_of(net))
        tensors, vae_config = vae_in_file(file, told.get("vae", {}), int(config["out_channels"]), vae)
        return Parts(
            net=net,
            net_config=config,
            vae=tensors,
            vae_config=vae_config,
            texts=beside(path, in_file(file)),
            shift=float(told.get("shift", SHIFT)),
        )


def net_of(originals: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Return the transformer's tensors by diffusers' names. Raises KeyMismatch about what is missing or unknown."""
    if unknown := mmdit.unknown_names(originals):
        raise KeyMismatch(
            f"{name} has {len(unknown)} tensors that Stable Diffusion 3 has not: {', '.join(unknown[:8])}. It may be"
            " of another family."
        )
    net = mmdit.from_original(originals)
    telling = ("pos_embed.proj.weight", "context_embedder.weight", "proj_out.weight", "pos_embed.pos_embed")
    if missing := [wanted for wanted in telling if wanted not in net]:
        raise KeyMismatch(f"{name} has no {', '.join(missing)}: the file is incomplete. Fetch it again.")
    return net


# ---- a diffusers folder


def read_folder(path: Path, vae: Path | None = None) -> Parts:
    """Return the parts of a diffusers folder; its text encoders may be left out."""
    check_folder(path, FAMILY)
    scheduler = path / "scheduler" / "scheduler_config.json"
    config = read_json(path / "transformer" / "config.json")
    tensors, vae_config = vae_in_folder(path, int(config.get("out_channels", _LATENT_CHANNELS)), vae)
    return Parts(
        net=folder_tensors(path, "transformer"),
        net_config=config,
        vae=tensors,
        vae_config=vae_config,
        texts=in_folder(path),
        shift=float(read_json(scheduler).get("shift", SHIFT)) if scheduler.is_file() else SHIFT,
    )
