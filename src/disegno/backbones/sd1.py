"""Stable Diffusion 1.x: from a diffusers folder, or from one file of the original layout (safetensors or ckpt).

What a file may say of itself: see `_reading.py`.
"""

from dataclasses import dataclass
from pathlib import Path

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
    CONFIG_KEY,
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
from disegno.text.clip import config_of, open_clip
from disegno.weights.keys import ldm
from disegno.weights.load import open_file

__all__ = ["CONFIG_KEY", "FAMILY", "Parts", "open", "read_file", "read_folder"]

FAMILY = "sd1"
DEFAULTS = Defaults(512, 512, steps=20, cfg=7.0, sampler="DPM++ 2M", schedule="automatic")


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


def read_file(path: Path) -> Parts:
    """Return the parts of a checkpoint: pruned or whole, with EMA weights (not used) or without."""
    with open_file(path) as file:
        check_family(file, FAMILY)
        told = told_of(file)
        nets = nets_of(file, told)
        text = {
            new: file.tensor(key) for key, new in ldm.text_names(file.keys()).items() if key.startswith("cond_stage")
        }
        if not text:
            raise KeyMismatch(f"{path.name} has no text encoder (cond_stage_model...). Use a complete checkpoint.")
        prediction = told_prediction(file, told) or "epsilon"
        return Parts(
            nets=nets,
            text=text,
            text_config=config_of(shapes_of(text), told.get("text", {}).get("num_attention_heads")),
            scheduler={"prediction_type": prediction, "rescale_betas_zero_snr": "ztsnr" in file},
        )


def read_folder(path: Path) -> Parts:
    """Return the parts of a diffusers folder."""
    text_config = read_json(path / "text_encoder" / "config.json")
    if text_config.get("hidden_size") == 1024:
        raise WrongFamily(f"{path.name} is for sd2, not for {FAMILY}: its text encoder is 1024 wide. Open it as sd2.")
    text = folder_tensors(path, "text_encoder")
    return Parts(
        nets=folder_nets(path),
        text={new: text[name] for name, new in ldm.text_names(text).items()},
        text_config=CLIPTextConfig.from_dict(text_config),
        scheduler=read_json(path / "scheduler" / "scheduler_config.json"),
    )
