"""Stable Diffusion 2.x: OpenCLIP's text tower, heads of 64 channels; epsilon at 512 px, v at 768 px.

From a diffusers folder, or from one file of the original layout (safetensors or ckpt); its variants for inpainting (9
channels) and of depth (5: see `_depth.py`) are known by their shapes. What a file may say of itself: see `_reading.py`.
A file that does not say what its output means is asked: see `probed`.
"""

from dataclasses import replace
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from disegno.backbones import _one_clip
from disegno.backbones._depth import depth_in_file
from disegno.backbones._latent_diffusion import LatentDiffusion
from disegno.backbones._one_clip import Family, Parts, open_parts
from disegno.backbones._reading import check_family, nets_of, shapes_of, told_prediction
from disegno.backbones._vae_file import brings_vae
from disegno.backbones.base import Defaults
from disegno.core.errors import KeyMismatch, RequestError
from disegno.diffusion.prediction import Prediction
from disegno.memory import Memory
from disegno.text.clip import OPENCLIP_PAD, config_of
from disegno.weights.configs import heads_of_64
from disegno.weights.keys import openclip
from disegno.weights.load import open_file
from disegno.weights.parts import told_of
from disegno.weights.tensor_file import TensorFile

__all__ = ["FAMILY", "brings_vae", "open", "probed", "read_file", "read_folder"]

FAMILY = "sd2"
DEFAULTS = Defaults(512, 512, steps=20, cfg=7.0, sampler="DPM++ 2M", schedule="automatic")
SIZES = {"epsilon": 512, "v": 768}  # in pixels: what each was trained at
_LATENT_CHANNELS = 4
_PREFIXES = (openclip.PREFIX, openclip.SGM_PREFIX)


def open(path: Path | None, memory: Memory, vae: Path | None = None) -> LatentDiffusion:
    """Return the model in a folder or file. `vae`: the file or folder of one, where the model brings none.

    Raises ModelFileError about it, RequestError without a path.
    """
    if path is None:
        raise RequestError("Stable Diffusion 2.x ships no weights with this program: give a model file or folder.")
    parts = read_folder(path, vae) if path.is_dir() else read_file(path, vae)
    memory = memory.without_fp16()  # the attention's logits of 2.1 are beyond float16
    return open_parts(parts, path.name, memory, Family(FAMILY, OPENCLIP_PAD, _defaults, _tried))


def _defaults(prediction: Prediction) -> Defaults:
    return replace(DEFAULTS, width=SIZES[prediction.name], height=SIZES[prediction.name])


def _tried(unet: UNet2DConditionModel, name: str) -> tuple[str, list[str]]:
    found = probed(unet)
    return found, [_doubt(name, found)]


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


def _text_under(file: TensorFile, prefix: str) -> dict[str, Tensor]:
    keys = [key for key in file.contents.entries if key.startswith(prefix)]
    return openclip.used({key.removeprefix(prefix): file.tensor(key) for key in keys})


def read_file(path: Path, vae: Path | None = None) -> Parts:
    """Return the parts of a checkpoint: pruned or whole, with EMA weights (not used) or without."""
    with open_file(path) as file:
        check_family(file, FAMILY, (openclip.SGM_PREFIX,))
        told = told_of(file)
        nets = nets_of(file, told, vae, heads_of_64)
        text = next((found for prefix in _PREFIXES if (found := _text_under(file, prefix))), {})
        if not text:
            raise KeyMismatch(f"{path.name} has no text encoder ({openclip.PREFIX}...). Use a complete checkpoint.")
        return Parts(
            nets=nets,
            text=text,
            text_config=config_of(shapes_of(text), told.get("text", {}).get("num_attention_heads"), act="gelu"),
            scheduler={"rescale_betas_zero_snr": "ztsnr" in file},
            prediction=told_prediction(file, told),
            depth=depth_in_file(file),
        )


def read_folder(path: Path, vae: Path | None = None) -> Parts:
    """Return the parts of a diffusers folder. Its text encoder's penultimate layer is the last one there."""
    return _one_clip.read_folder(path, FAMILY, vae)
