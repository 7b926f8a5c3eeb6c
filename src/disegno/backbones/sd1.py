"""Stable Diffusion 1.x: from a diffusers folder, or from one file of the original layout (safetensors or ckpt).

What a file may say of itself: see `_reading.py`.
"""

from pathlib import Path

from disegno.backbones import _one_clip
from disegno.backbones._beside import clips_beside
from disegno.backbones._latent_diffusion import LatentDiffusion
from disegno.backbones._one_clip import Family, Parts, open_parts
from disegno.backbones._reading import check_family, nets_of, shapes_of, told_prediction
from disegno.backbones._vae_file import brings_vae
from disegno.backbones.base import Defaults
from disegno.core.errors import KeyMismatch, RequestError
from disegno.memory import Memory
from disegno.text.clip import END_ID, config_of
from disegno.weights.keys import ldm
from disegno.weights.load import open_file
from disegno.weights.parts import CONFIG_KEY, told_of

__all__ = ["CONFIG_KEY", "FAMILY", "Parts", "brings_vae", "open", "read_file", "read_folder"]

FAMILY = "sd1"
DEFAULTS = Defaults(512, 512, steps=20, cfg=7.0, sampler="DPM++ 2M", schedule="automatic")
_OWN = Family(FAMILY, END_ID, defaults=lambda _: DEFAULTS, tried=lambda _, name: ("epsilon", []))


def open(path: Path | None, memory: Memory, vae: Path | None = None) -> LatentDiffusion:
    """Return the model in a folder or file. `vae`: the file or folder of one, where the model brings none.

    Raises ModelFileError about it, RequestError without a path.
    """
    if path is None:
        raise RequestError("Stable Diffusion 1.x ships no weights with this program: give a model file or folder.")
    return open_parts(read_folder(path, vae) if path.is_dir() else read_file(path, vae), path.name, memory, _OWN)


def read_file(path: Path, vae: Path | None = None) -> Parts:
    """Return the parts of a checkpoint: pruned or whole, with EMA weights (not used) or without; or of a net alone.

    Where it has no text encoder, CLIP-L's file beside it is used.
    """
    with open_file(path) as file:
        check_family(file, FAMILY)
        told = told_of(file)
        nets = nets_of(file, told, vae)
        text = {
            new: file.tensor(key) for key, new in ldm.text_names(file.keys()).items() if key.startswith("cond_stage")
        }
        text = text or clips_beside(path, ["clip_l"]).get("clip_l", {})
        if not text:
            raise KeyMismatch(
                f"{path.name} has no text encoder (cond_stage_model...). Use a complete checkpoint, or put CLIP-L's own"
                " file beside it, as clip_l.safetensors."
            )
        return Parts(
            nets=nets,
            text=text,
            text_config=config_of(shapes_of(text), told.get("text", {}).get("num_attention_heads")),
            scheduler={"rescale_betas_zero_snr": "ztsnr" in file},
            prediction=told_prediction(file, told),
        )


def read_folder(path: Path, vae: Path | None = None) -> Parts:
    """Return the parts of a diffusers folder."""
    return _one_clip.read_folder(path, FAMILY, vae)
