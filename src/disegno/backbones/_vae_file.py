"""A model's VAE, and one that it did not come with: a file of the original layout or of diffusers', or a folder."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL
from torch import Tensor

from disegno.backbones._autoencoder import build_autoencoder, channels_of, downscale_of, fitted_vae
from disegno.backbones._fingerprint import fingerprint
from disegno.core.errors import CorruptFile, KeyMismatch, WrongFamily
from disegno.memory import Memory
from disegno.weights.configs import vae_config
from disegno.weights.json_table import read_json
from disegno.weights.keys import ldm
from disegno.weights.load import open_file
from disegno.weights.parts import folder_tensors, has_weights, part_of
from disegno.weights.quantised import dequantise_rows
from disegno.weights.tensor_file import TensorFile

_BESIDE_THE_VAE = ("loss.", "model_ema.")  # of its training
_ORIGINAL = ("encoder.down.", "decoder.up.")
# What no shape tells. The first two belong to the net's latents, and so to the model, whatever the VAE's own file says.
_OF_THE_MODEL = ("scaling_factor", "shift_factor")
_AS_THE_MODEL = ("norm_num_groups", "act_fn")

Read = tuple[dict[str, Tensor], dict[str, Any]]  # a VAE's tensors by today's names, and its configuration


def open_vae(path: Path, own: AutoencoderKL, memory: Memory) -> tuple[AutoencoderKL, str]:
    """Return the VAE of a file or folder, placed, for a model whose own is `own`; and its name by content.

    Raises KeyMismatch, CorruptFile, WrongFamily where its latents are of another size.
    """
    tensors, told = _read(path)
    config = vae_config(tensors) | {name: own.config[name] for name in _AS_THE_MODEL} | told
    config |= {name: own.config[name] for name in _OF_THE_MODEL if name in own.config}
    _check_channels(path.name, config, channels_of(own.config))
    _check_levels(path.name, config, own.config)
    vae = memory.build(lambda: build_autoencoder(config), tensors, f"The VAE {path.name}", memory.policy.vae_dtype)
    return vae, fingerprint(tensors)


def beside_own(fingerprint: str, vae: str) -> str:
    """Return the name by content of a model with another VAE."""
    return hashlib.sha256(f"{fingerprint} vae {vae}".encode()).hexdigest()


def brings_vae(path: Path) -> bool:
    """Return whether a model's file or folder has a VAE in it. Raises CorruptFile."""
    if path.is_dir():
        return has_weights(path, "vae")
    with open_file(path) as file:
        return _in_file(file)


def vae_in_file(file: TensorFile, told: Mapping[str, Any], channels: int, other: Path | None) -> Read:
    """Return a checkpoint's VAE, or `other`, a file or folder, where it brings none.

    `told`: what the header says of it; `channels`: of the latents that the model draws. Raises KeyMismatch,
    WrongFamily.
    """
    if _in_file(file):
        tensors = vae_of(file, ldm.VAE_PREFIX)
        return tensors, vae_config(tensors) | dict(told)
    if other is None:
        raise KeyMismatch(
            f"{file.path.name} has no VAE, no tensors under {ldm.VAE_PREFIX}... Name one (the field vae, --vae FILE),"
            f" or put it beside the model's file as {file.path.stem}.vae.safetensors."
        )
    tensors, config = _named(other, channels)
    return tensors, config | dict(told)


def vae_in_folder(path: Path, channels: int, other: Path | None) -> Read:
    """Return the VAE of a diffusers folder, or `other` where it brings none. Raises CorruptFile, WrongFamily."""
    if has_weights(path, "vae"):
        return folder_vae(path, "vae"), read_json(path / "vae" / "config.json")
    if other is None:
        raise CorruptFile(
            f"{path / 'vae'} has no weights: the model has no VAE. Name one (the field vae, --vae FILE), or put it"
            " there."
        )
    return _named(other, channels)


def folder_vae(path: Path, part: str) -> dict[str, Tensor]:
    """Return the VAE's tensors of a part of a folder, by today's names. Raises CorruptFile, KeyMismatch."""
    vae = folder_tensors(path, part)
    names = ldm.modern_vae_names(vae)
    return fitted_vae({names[name]: tensor for name, tensor in vae.items()})


def vae_of(file: TensorFile, prefix: str) -> dict[str, Tensor]:
    """Return the VAE's tensors under a prefix, of either layout, by diffusers' names. Raises KeyMismatch.

    What lies beside it, of its training, is left out.
    """
    original = any(key.startswith(_ORIGINAL, len(prefix)) for key in file.contents.entries if key.startswith(prefix))
    names_of = ldm.vae_names if original else ldm.modern_vae_names
    return fitted_vae(part_of(file, prefix, names_of, _BESIDE_THE_VAE))


def _in_file(file: TensorFile) -> bool:
    return any(key.startswith(ldm.VAE_PREFIX) for key in file.contents.entries)


def _read(path: Path) -> Read:
    """Return the VAE of a file or folder of its own; its configuration as far as the folder says it."""
    if path.is_dir():
        told = read_json(path / "config.json")
        return folder_vae(path, ""), {name: value for name, value in told.items() if not name.startswith("_")}
    with open_file(path) as file:
        return dequantise_rows(vae_of(file, ldm.VAE_PREFIX if _in_file(file) else "")), {}


def _named(path: Path, channels: int) -> Read:
    """Return the VAE of a file or folder for a model that brings none, in the scale of the model's family."""
    tensors, told = _read(path)
    config = vae_config(tensors) | {name: value for name, value in told.items() if name not in _OF_THE_MODEL}
    _check_channels(path.name, config, channels)
    return tensors, config


def _check_channels(name: str, config: Mapping[str, Any], channels: int) -> None:
    """Raise WrongFamily where a VAE's latents have other channels than the model draws."""
    if channels_of(config) != channels:
        raise _misfit(name, f"{channels_of(config)} channels", channels)


def _check_levels(name: str, config: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Raise WrongFamily where a VAE's latents are of another size than the model's."""
    if downscale_of(config) != downscale_of(own):
        raise _misfit(name, f"{downscale_of(config)} pixels a cell, on a side", downscale_of(own))


def _misfit(name: str, found: str, wanted: int) -> WrongFamily:
    return WrongFamily(
        f"The VAE {name} makes latents of {found}, the model draws {wanted}."
        " Choose a VAE of the model's family, or leave it out."
    )
