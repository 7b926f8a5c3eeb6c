"""Stable Diffusion 2.x: OpenCLIP's text tower, heads of 64 channels; epsilon at 512 px, v at 768 px.

From a diffusers folder, or from one file of the original layout (safetensors or ckpt); its variants for inpainting (9
channels) are known by their shapes. What a file may say of itself: see `_reading.py`. A file that does not say what its
output means is asked: see `probed`.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTextConfig

from disegno.backbones._latent_diffusion import (
    Config,
    LatentDiffusion,
    Nets,
    Tensors,
    fingerprint,
    noise_table_of,
    open_nets,
    prediction_of,
)
from disegno.backbones._reading import (
    check_family,
    folder_nets,
    folder_tensors,
    nets_of,
    read_json,
    shapes_of,
    told_of,
    told_prediction,
)
from disegno.backbones.base import Defaults
from disegno.core.errors import KeyMismatch, RequestError, WrongFamily
from disegno.memory import Memory
from disegno.text.clip import OPENCLIP_PAD, config_of, open_clip
from disegno.weights.configs import heads_of_64
from disegno.weights.keys import ldm, openclip
from disegno.weights.load import open_file

FAMILY = "sd2"
DEFAULTS = Defaults(512, 512, steps=20, cfg=7.0, sampler="DPM++ 2M", schedule="automatic")
SIZES = {"epsilon": 512, "v": 768}  # in pixels: what each was trained at
_LATENT_CHANNELS = 4


@dataclass(frozen=True)
class Parts:
    """A model, read. `text_config`: its penultimate layer is the last one here. `prediction`: None: nothing tells."""

    nets: Nets
    text: Tensors
    text_config: CLIPTextConfig
    scheduler: Config
    prediction: str | None


def open(path: Path | None, memory: Memory) -> LatentDiffusion:
    """Return the model in a folder or file. Raises ModelFileError about it, RequestError without a path."""
    if path is None:
        raise RequestError("Stable Diffusion 2.x ships no weights with this program: give a model file or folder.")
    parts = read_folder(path) if path.is_dir() else read_file(path)
    memory = memory.without_fp16()  # the attention's logits of 2.1 are beyond float16
    unet, vae = open_nets(parts.nets, path.name, memory)
    warnings = list[str]()
    told = parts.prediction
    if told is None:
        told = probed(unet)
        warnings.append(_doubt(path.name, told))
    prediction = prediction_of(told, path.name)
    return LatentDiffusion(
        family=FAMILY,
        name=path.name,
        prediction=prediction,
        table=noise_table_of(parts.scheduler, path.name),
        defaults=replace(DEFAULTS, width=SIZES[prediction.name], height=SIZES[prediction.name]),
        net=unet,
        vae=vae,
        text=open_clip(parts.text, parts.text_config, memory, f"The text encoder of {path.name}", OPENCLIP_PAD),
        memory=memory,
        fingerprint=fingerprint(parts.nets.unet, parts.nets.vae, parts.text),
        warnings=warnings,
    )


def _doubt(name: str, found: str) -> str:
    other = "epsilon" if found == "v" else "v"
    return (
        f"{name} does not say what its output means; a trial says {found}. If the pictures are noise or flat colour,"
        f" give --prediction {other}."
    )


@torch.no_grad()
def probed(unet: UNet2DConditionModel) -> str:
    """Return what the output means, by what the net says of a flat, barely noisy picture at the last timestep.

    A1111 parity: is_using_v_parameterization_for_sd2. There epsilon is about x itself; v is about -x0, far below. The
    published variants for inpainting and depth are epsilon.
    """
    if int(unet.config["in_channels"]) != _LATENT_CHANNELS:
        return "epsilon"
    x = torch.full((1, _LATENT_CHANNELS, 8, 8), 0.5, device=unet.device, dtype=unet.dtype)
    tokens = x.new_full((1, 2, int(unet.config["cross_attention_dim"])), 0.5)
    out = unet(x, torch.tensor([999], device=unet.device), encoder_hidden_states=tokens, return_dict=False)[0]
    return "v" if float((out - x).float().mean()) < -1 else "epsilon"


def read_file(path: Path) -> Parts:
    """Return the parts of a checkpoint: pruned or whole, with EMA weights (not used) or without."""
    with open_file(path) as file:
        check_family(file, FAMILY)
        told = told_of(file)
        nets = nets_of(file, told, heads_of_64)
        keys = [key for key in file.contents.entries if key.startswith(openclip.PREFIX)]
        text = openclip.used({key.removeprefix(openclip.PREFIX): file.tensor(key) for key in keys})
        if not text:
            raise KeyMismatch(f"{path.name} has no text encoder ({openclip.PREFIX}...). Use a complete checkpoint.")
        return Parts(
            nets=nets,
            text=text,
            text_config=config_of(shapes_of(text), told.get("text", {}).get("num_attention_heads"), act="gelu"),
            scheduler={"rescale_betas_zero_snr": "ztsnr" in file},
            prediction=told_prediction(file, told),
        )


def read_folder(path: Path) -> Parts:
    """Return the parts of a diffusers folder."""
    text_config = read_json(path / "text_encoder" / "config.json")
    if text_config.get("hidden_size") == 768:
        raise WrongFamily(f"{path.name} is for sd1, not for {FAMILY}: its text encoder is 768 wide. Open it as sd1.")
    text = folder_tensors(path, "text_encoder")
    scheduler = read_json(path / "scheduler" / "scheduler_config.json")
    told = scheduler.get("prediction_type")
    return Parts(
        nets=folder_nets(path),
        text={new: text[name] for name, new in ldm.text_names(text).items()},
        text_config=CLIPTextConfig.from_dict(text_config),
        scheduler=scheduler,
        prediction=None if told is None else str(told),
    )
