"""Another VAE than a model came with: a file of the original layout or of diffusers', or a folder of diffusers'."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL
from torch import Tensor

from disegno.backbones._autoencoder import build_autoencoder, channels_of, downscale_of, fitted_vae
from disegno.backbones._fingerprint import fingerprint
from disegno.core.errors import WrongFamily
from disegno.memory import Memory
from disegno.weights.configs import vae_config
from disegno.weights.json_table import read_json
from disegno.weights.keys import ldm
from disegno.weights.load import open_file
from disegno.weights.parts import folder_tensors, part_of
from disegno.weights.quantised import dequantise_rows
from disegno.weights.tensor_file import TensorFile

_BESIDE_THE_VAE = ("loss.", "model_ema.")  # of its training
_ORIGINAL = ("encoder.down.", "decoder.up.")
# What no shape tells. The first two belong to the net's latents, and so to the model, whatever the VAE's own file says.
_OF_THE_MODEL = ("scaling_factor", "shift_factor")
_AS_THE_MODEL = ("norm_num_groups", "act_fn")


def open_vae(path: Path, own: AutoencoderKL, memory: Memory) -> tuple[AutoencoderKL, str]:
    """Return the VAE of a file or folder, placed, for a model whose own is `own`; and its name by content.

    Raises KeyMismatch, CorruptFile, WrongFamily where its latents are of another size.
    """
    tensors = folder_vae(path, "") if path.is_dir() else _file(path)
    told = read_json(path / "config.json") if path.is_dir() else {}
    config = vae_config(tensors) | {name: own.config[name] for name in _AS_THE_MODEL}
    config |= {name: value for name, value in told.items() if not name.startswith("_")}
    config |= {name: own.config[name] for name in _OF_THE_MODEL if name in own.config}
    _check_latents(path.name, config, own.config)
    vae = memory.build(lambda: build_autoencoder(config), tensors, f"The VAE {path.name}", memory.policy.vae_dtype)
    return vae, fingerprint(tensors)


def beside_own(fingerprint: str, vae: str) -> str:
    """Return the name by content of a model with another VAE."""
    return hashlib.sha256(f"{fingerprint} vae {vae}".encode()).hexdigest()


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


def _file(path: Path) -> dict[str, Tensor]:
    with open_file(path) as file:
        whole = any(key.startswith(ldm.VAE_PREFIX) for key in file.contents.entries)
        return dequantise_rows(vae_of(file, ldm.VAE_PREFIX if whole else ""))


def _check_latents(name: str, config: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Raise WrongFamily where a VAE's latents are of another size than the model's."""
    for what, of in (("channels", channels_of), ("pixels a cell, on a side", downscale_of)):
        if of(config) != of(own):
            raise WrongFamily(
                f"The VAE {name} makes latents of {of(config)} {what}, the model draws {of(own)}."
                " Choose a VAE of the model's family, or leave it out."
            )
