"""Stable Diffusion 1.x: from a diffusers folder, or from one file of the original layout (safetensors or ckpt).

Sizes are read from the tensors, so that a model of any width and depth opens. What leaves no trace in a tensor (the
number of heads) is that of Stable Diffusion, unless the header says otherwise: `disegno.config`, JSON with the optional
keys unet, vae, text (fields of the classes' configurations) and prediction_type.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from torch import Tensor
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
from disegno.backbones.base import Defaults
from disegno.core.errors import CorruptFile, KeyMismatch, RequestError, WrongFamily
from disegno.memory import Memory
from disegno.text.clip import config_of, open_clip
from disegno.weights.configs import unet_config, vae_config
from disegno.weights.keys import ldm
from disegno.weights.load import open_file
from disegno.weights.tensor_file import TensorFile

FAMILY = "sd1"
CONFIG_KEY = "disegno.config"
DEFAULTS = Defaults(512, 512, steps=20, cfg=7.0, sampler="DPM++ 2M", schedule="automatic")

_OTHER_FAMILIES = {
    "cond_stage_model.model.": "sd2",
    "conditioner.": "sdxl",
    "model.diffusion_model.joint_blocks.": "sd3",
}
_BESIDE_THE_VAE = ("loss.", "model_ema.")  # of its training
_FOLDER_FILES = {
    "unet": (
        "diffusion_pytorch_model.safetensors",
        "diffusion_pytorch_model.fp16.safetensors",
        "diffusion_pytorch_model.bin",
    ),
    "text_encoder": ("model.safetensors", "model.fp16.safetensors", "pytorch_model.bin"),
}
_FOLDER_FILES["vae"] = _FOLDER_FILES["unet"]


@dataclass(frozen=True)
class Parts:
    """A model, read: its nets, its text encoder, and what its output means."""

    nets: Nets
    text: Tensors
    text_config: CLIPTextConfig
    scheduler: Config


def open(path: Path | None, memory: Memory) -> LatentDiffusion:
    """Return the model in a folder or file. Raises ModelFileError about it, RequestError without a path."""
    if path is None:
        raise RequestError("Stable Diffusion 1.x ships no weights with this program: give a model file or folder.")
    parts = read_folder(path) if path.is_dir() else read_file(path)
    unet, vae = open_nets(parts.nets, path.name, memory)
    return LatentDiffusion(
        family=FAMILY,
        name=path.name,
        prediction=prediction_of(parts.scheduler.get("prediction_type", "epsilon"), path.name),
        table=noise_table_of(parts.scheduler, path.name),
        defaults=DEFAULTS,
        net=unet,
        vae=vae,
        text=open_clip(parts.text, parts.text_config, memory, f"The text encoder of {path.name}"),
        memory=memory,
        fingerprint=fingerprint(parts.nets.unet, parts.nets.vae, parts.text),
    )


# ---- one file of the original layout


def read_file(path: Path) -> Parts:
    """Return the parts of a checkpoint: pruned or whole, with EMA weights (not used) or without."""
    with open_file(path) as file:
        _check_family(path.name, file.keys())
        told = _told(file)
        unet = _part(file, ldm.UNET_PREFIX, ldm.unet_names)
        vae = _part(file, ldm.VAE_PREFIX, ldm.vae_names, _BESIDE_THE_VAE)
        text = {
            new: file.tensor(key) for key, new in ldm.text_names(file.keys()).items() if key.startswith("cond_stage")
        }
        if not text:
            raise KeyMismatch(f"{path.name} has no text encoder (cond_stage_model...). Use a complete checkpoint.")
        configs = unet_config(unet) | told.get("unet", {}), vae_config(vae) | told.get("vae", {})
        return Parts(
            nets=Nets(unet, _fitted_vae(vae), *configs),
            text=text,
            text_config=config_of(_shapes(text), told.get("text", {}).get("num_attention_heads")),
            scheduler={"prediction_type": _told_prediction(file, told), "rescale_betas_zero_snr": "ztsnr" in file},
        )


def _check_family(name: str, keys: Sequence[str]) -> None:
    for prefix, family in _OTHER_FAMILIES.items():
        if any(key.startswith(prefix) for key in keys):
            raise WrongFamily(f"{name} is for {family}, not for {FAMILY}: it has {prefix}... Open it as {family}.")


def _told(file: TensorFile) -> Config:
    text = file.metadata.get(CONFIG_KEY, "{}")
    try:
        told = json.loads(text)
    except ValueError as error:
        raise CorruptFile(f"{file.path.name}: its {CONFIG_KEY} is not JSON ({error}). Fetch the file again.") from error
    if not isinstance(told, dict):
        raise CorruptFile(f"{file.path.name}: its {CONFIG_KEY} is not a JSON object. Fetch the file again.")
    return cast(Config, told)


def _told_prediction(file: TensorFile, told: Config) -> str:
    """Return what the output means: by our header, modelspec's, ComfyUI's marker key, or A1111's yaml beside it."""
    if "prediction_type" in told:
        return str(told["prediction_type"])
    spec = file.metadata.get("modelspec.prediction_type") or file.metadata.get("modelspec.predict_key")
    yaml = file.path.with_suffix(".yaml")
    by_yaml = yaml.is_file() and re.search(r"parameterization:\s*[\"']?v\b", yaml.read_text("utf-8", "replace"))
    return "v" if spec == "v" or "v_pred" in file or by_yaml else "epsilon"


def _part(
    file: TensorFile,
    prefix: str,
    names_of: Callable[[Iterable[str]], Mapping[str, str]],
    ignored: tuple[str, ...] = (),
) -> dict[str, Tensor]:
    """Return the tensors under a prefix, by their new names. Raises KeyMismatch with the names that have none."""
    names = [key.removeprefix(prefix) for key in file.contents.entries if key.startswith(prefix)]
    names = [name for name in names if not name.startswith(ignored)]
    table = names_of(names)
    if not table:
        raise KeyMismatch(f"{file.path.name} has no tensors under {prefix}... Use a complete checkpoint.")
    if unknown := [name for name in names if name not in table]:
        raise KeyMismatch(
            f"{file.path.name} has {len(unknown)} tensors that Stable Diffusion 1.x has not: "
            f"{', '.join(prefix + name for name in unknown[:8])}. It may be of another family."
        )
    return {new: file.tensor(prefix + name) for name, new in table.items()}


def _shapes(tensors: Tensors) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _fitted_vae(vae: Tensors) -> dict[str, Tensor]:
    """Return the VAE's tensors with the attention's 1x1 convolutions as linear layers."""
    return {
        name: ldm.fitted(tensor, tuple(tensor.shape[:2])) if ".attentions." in name and tensor.ndim == 4 else tensor
        for name, tensor in vae.items()
    }


# ---- a diffusers folder


def read_folder(path: Path) -> Parts:
    """Return the parts of a diffusers folder."""
    unet, text, vae = (_folder_tensors(path, part) for part in ("unet", "text_encoder", "vae"))
    vae_names = ldm.modern_vae_names(vae)
    text_config = _json(path / "text_encoder" / "config.json")
    if text_config.get("hidden_size") == 1024:
        raise WrongFamily(f"{path.name} is for sd2, not for {FAMILY}: its text encoder is 1024 wide. Open it as sd2.")
    return Parts(
        nets=Nets(
            unet=unet,
            vae=_fitted_vae({vae_names[name]: tensor for name, tensor in vae.items()}),
            unet_config=_json(path / "unet" / "config.json"),
            vae_config=_json(path / "vae" / "config.json"),
        ),
        text={new: text[name] for name, new in ldm.text_names(text).items()},
        text_config=CLIPTextConfig.from_dict(text_config),
        scheduler=_json(path / "scheduler" / "scheduler_config.json"),
    )


def _json(path: Path) -> Config:
    try:
        return cast(Config, json.loads(path.read_text("utf-8")))
    except (OSError, ValueError) as error:
        raise CorruptFile(f"{path} cannot be read as JSON ({error}). A diffusers model folder has it.") from error


def _folder_tensors(path: Path, part: str) -> dict[str, Tensor]:
    names = _FOLDER_FILES[part]
    for name in names:
        if (file := path / part / name).is_file():
            return open_file(file).tensors()
    raise CorruptFile(f"{path / part} has no weights. A diffusers model folder has one of: {', '.join(names)}.")
