"""Another VAE than a model came with: a file of the original layout or of diffusers', or a folder of diffusers'."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL
from torch import Tensor

from disegno.backbones._autoencoder import build_autoencoder, fitted_vae
from disegno.backbones._fingerprint import fingerprint
from disegno.core.errors import KeyMismatch, WrongFamily
from disegno.memory import Memory
from disegno.weights.configs import vae_config
from disegno.weights.keys import ldm
from disegno.weights.load import open_file
from disegno.weights.parts import folder_tensors, read_json
from disegno.weights.quantised import dequantise_rows

BESIDE_THE_VAE = ("loss.", "model_ema.")  # of its training
# What no shape tells. The first two belong to the net's latents, and so to the model, whatever the VAE's own file says.
_OF_THE_MODEL = ("scaling_factor", "shift_factor")
_AS_THE_MODEL = ("norm_num_groups", "act_fn")


def open_vae(path: Path, own: AutoencoderKL, memory: Memory) -> tuple[AutoencoderKL, str]:
    """Return the VAE of a file or folder, placed, for a model whose own is `own`; and its name by content.

    Raises KeyMismatch, CorruptFile, WrongFamily where its latents are of another size.
    """
    tensors, told = _folder(path) if path.is_dir() else (_file(path), {})
    config = vae_config(tensors) | {name: own.config[name] for name in _AS_THE_MODEL} | told
    config |= {name: own.config[name] for name in _OF_THE_MODEL if name in own.config}
    _check_latents(path.name, config, own.config)
    vae = memory.build(lambda: build_autoencoder(config), tensors, f"The VAE {path.name}", memory.policy.vae_dtype)
    return vae, fingerprint(tensors)


def beside_own(fingerprint: str, vae: str) -> str:
    """Return the name by content of a model with another VAE."""
    return hashlib.sha256(f"{fingerprint} vae {vae}".encode()).hexdigest()


def _folder(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors = folder_tensors(path, "")
    names = ldm.modern_vae_names(tensors)
    config = {name: value for name, value in read_json(path / "config.json").items() if not name.startswith("_")}
    return fitted_vae({names[name]: tensor for name, tensor in tensors.items()}), config


def _file(path: Path) -> dict[str, Tensor]:
    """Return a file's tensors by diffusers' names. What lies beside the VAE, of its training, is left out."""
    with open_file(path) as file:
        whole = {name.removeprefix(ldm.VAE_PREFIX): name for name in file.contents.entries}
        wanted = {short: name for short, name in whole.items() if not short.startswith(BESIDE_THE_VAE)}
        original = any(short.startswith(("encoder.down.", "decoder.up.")) for short in wanted)
        names = ldm.vae_names(wanted) if original else ldm.modern_vae_names(wanted)
        if unknown := [short for short in wanted if short not in names]:
            raise KeyMismatch(
                f"{path.name} has {len(unknown)} tensors that a VAE of Stable Diffusion has not:"
                f" {', '.join(unknown[:8])}. Give a VAE's own file."
            )
        tensors = {new: file.tensor(wanted[short]) for short, new in names.items()}
    return fitted_vae(dequantise_rows(tensors))


def _check_latents(name: str, config: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Raise WrongFamily where a VAE's latents are of another size than the model's."""
    for what, of in (("channels", _channels), ("pixels a cell, on a side", _downscale)):
        if of(config) != of(own):
            raise WrongFamily(
                f"The VAE {name} makes latents of {of(config)} {what}, the model draws {of(own)}."
                " Choose a VAE of the model's family, or leave it out."
            )


def _channels(config: Mapping[str, Any]) -> int:
    return int(config["latent_channels"])


def _downscale(config: Mapping[str, Any]) -> int:
    return 2 ** (len(config["block_out_channels"]) - 1)
