"""Diorama, the built-in model: Stable Diffusion 1.x in small, with MiniLM's token states for text.

A folder of it holds

    model.json            family, version, unet and vae (configurations), prediction_type, schedule (a scheduler's
                          configuration, diffusers' names), defaults, conditions (name -> file), and where there is
                          one, preview: the file of a tiny decoder
    unet.safetensors      diffusers' names; float16, or row-wise int8 with `X.scale` beside `X`
    vae.safetensors       the same; vae may say decoder_block_out_channels where its decoder is wider than its encoder
    text.safetensors, tokenizer.json      MiniLM: see `disegno.text.minilm`
    basecn.safetensors    the Base ControlNet of the conditions, if there are any
    few.safetensors       a LoRA for few steps, where model.json has few_steps: lora (the file, or null), steps,
                          cfg, sampler, schedule
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from disegno.backbones._fingerprint import fingerprint
from disegno.backbones._latent_diffusion import (
    LatentDiffusion,
    Nets,
    Tensors,
    noise_table_of,
    open_nets,
    prediction_of,
)
from disegno.backbones.base import Defaults
from disegno.core.errors import CorruptFile, ResourceError, WrongFamily
from disegno.memory import Memory
from disegno.text import minilm
from disegno.text.learnt import TextOptions
from disegno.weights.built_in import built_in_folder, conditions_of, defaults_of, few_steps_of
from disegno.weights.json_table import read_json
from disegno.weights.load import open_file
from disegno.weights.quantised import dequantise_rows

FAMILY = "diorama"

_NO_SKIP = f"clip_skip {{}} was passed over: {FAMILY} has no CLIP."
_FALLBACK = Defaults(128, 128, steps=20, cfg=4.0, sampler="DDIM", schedule="automatic")


@dataclass(frozen=True)
class MiniText:
    """MiniLM as a backbone's text encoder."""

    encoder: minilm.TextEncoder

    def read(self, prompts: Sequence[str], skip: int) -> tuple[Tensor, list[str]]:
        """Return the token states, (b 48 384), and what was cut off or passed over."""
        cut = [end for prompt in prompts if (end := self.encoder.truncated(prompt))]
        warnings = [f"The text encoder reads {minilm.NUM_TOKENS} tokens: {end!r} was cut off." for end in cut]
        if skip != 1:
            warnings.append(_NO_SKIP.format(skip))
        return self.encoder.encode(prompts), warnings

    def read_prompt(self, text: str, options: TextOptions) -> tuple[Tensor, list[str]]:
        """Return the token states of a prompt of any length, (1 48k 384), and what was passed over."""
        warnings = [f"The embedding {each.name!r} is CLIP's: its name was taken as text." for each in options.learnt]
        if options.clip_skip != 1:
            warnings.append(_NO_SKIP.format(options.clip_skip))
        return self.encoder.encode_prompt(text, options), warnings

    @property
    def nets(self) -> Mapping[str, nn.Module]:
        """Return the network, by what LoRAs call it."""
        return {"te": self.encoder.network}


def open(path: Path | None, memory: Memory) -> LatentDiffusion:
    """Return the built-in model, or the one in a folder. Raises ModelFileError, ResourceError where it is not there."""
    folder = path or built_in_folder()
    about = _read_about(folder)
    unet, vae = (_tensors(folder / f"{part}.safetensors") for part in ("unet", "vae"))
    nets = Nets(unet, vae, about["unet"], about["vae"])
    net, autoencoder = open_nets(nets, FAMILY, memory)
    encoder = minilm.TextEncoder.open(folder)
    memory.place(encoder.network, torch.float32)
    return LatentDiffusion(
        family=FAMILY,
        name=FAMILY if path is None else path.name,
        prediction=prediction_of(about["prediction_type"], FAMILY),
        table=noise_table_of(about["schedule"], FAMILY),
        defaults=_defaults(defaults_of(folder, about)),
        net=net,
        vae=autoencoder,
        text=MiniText(encoder),
        memory=memory,
        fingerprint=fingerprint(unet, vae, encoder.network.state_dict()),
        conditions=conditions_of(folder, about),
        base_control=base if (base := folder / "basecn.safetensors").is_file() else None,
        few_steps=few_steps_of(folder, about),
        preview=folder / Path(str(about["preview"])).name if "preview" in about else None,
    )


def _defaults(given: Mapping[str, Any]) -> Defaults:
    return replace(_FALLBACK, **{field.name: given[field.name] for field in fields(Defaults) if field.name in given})


def _read_about(folder: Path) -> Mapping[str, Any]:
    file = folder / "model.json"
    if not file.is_file():
        raise ResourceError(
            f"{folder} has no model.json: the {FAMILY} model is not installed there. Reinstall disegno."
        )
    try:
        about = read_json(file)
        family, *_ = (about[key] for key in ("family", "unet", "vae", "prediction_type", "schedule"))
    except KeyError as error:
        raise CorruptFile(f"{file} is no description of a model ({error}). Reinstall it.") from error
    if family != FAMILY:
        raise WrongFamily(f"{folder.name} is for {family}, not for {FAMILY}. Open it as {family}.")
    return about


def _tensors(file: Path) -> Tensors:
    return dequantise_rows(open_file(file).tensors())
