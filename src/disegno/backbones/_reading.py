"""The parts of a model, read from one file of the original layout or from a diffusers folder.

Sizes are read from the tensors, so that a model of any width and depth opens. What leaves no trace in a tensor (the
number of heads) is the family's own, unless the header says otherwise: `disegno.config`, JSON with the optional keys
unet, vae, text (fields of the classes' configurations) and prediction_type.
"""

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from disegno.backbones._latent_diffusion import Config, Nets, Tensors
from disegno.backbones._vae_file import vae_in_file, vae_in_folder
from disegno.core.errors import WrongFamily
from disegno.weights.configs import unet_config
from disegno.weights.folders import identify_folder, is_folder_of_weights, yaml_prediction
from disegno.weights.json_table import read_json
from disegno.weights.keys import ldm
from disegno.weights.parts import folder_tensors, part_of
from disegno.weights.tensor_file import TensorFile

_FAMILY_MARKS = {
    "cond_stage_model.transformer.": "sd1",
    "cond_stage_model.model.": "sd2",
    "conditioner.": "sdxl",
    "model.diffusion_model.label_emb.": "sdxl",
    "model.diffusion_model.joint_blocks.": "sd3",
    "joint_blocks.": "sd3",
    "label_emb.": "sdxl",
}
_BARE = ("input_blocks.0.0.weight", "conv_in.weight")  # of a UNet alone, by the original's names and by diffusers'

_LATENT_CHANNELS = 4  # where a UNet's configuration does not say it: diffusers' default


def shapes_of(tensors: Tensors) -> dict[str, tuple[int, ...]]:
    """Return each tensor's shape."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


# ---- one file of the original layout


def check_family(file: TensorFile, family: str, own: tuple[str, ...] = ()) -> None:
    """Raise WrongFamily where the file has another family's marks. `own`: what begins names of this one's, too."""
    keys = [key for key in file.contents.entries if not key.startswith(own)]
    for prefix, other in _FAMILY_MARKS.items():
        if other != family and any(key.startswith(prefix) for key in keys):
            raise WrongFamily(
                f"{file.path.name} is for {other}, not for {family}: it has {prefix}... Open it as {other}."
            )


def told_prediction(file: TensorFile, told: Config) -> str | None:
    """Return what the output means: by our header, modelspec's, ComfyUI's marker key, or A1111's yaml beside it.

    None where nothing tells.
    """
    if "prediction_type" in told:
        return str(told["prediction_type"])
    words = file.metadata
    spec = words.get("modelspec.prediction_type") or words.get("modelspec.predict_key")
    if spec in ("v", "v_prediction") or words.get("modelspec.architecture", "").endswith("-v") or "v_pred" in file:
        return "v"
    by_yaml = yaml_prediction(file.path)
    return "epsilon" if spec == "epsilon" and by_yaml is None else by_yaml


def nets_of(
    file: TensorFile, told: Config, vae: Path | None, own: Callable[[Config], Config] = lambda sizes: {}
) -> Nets:
    """Return a checkpoint's UNet and VAE: EMA weights are not used. `own`: what the family adds to the UNet's sizes.

    `vae`: the file or folder of one, where the checkpoint brings none. Raises KeyMismatch, WrongFamily.
    """
    unet = _unet_of(file.lazily())
    sizes = unet_config(unet)
    config = sizes | own(sizes) | told.get("unet", {})
    tensors, vae_config = vae_in_file(file, told.get("vae", {}), int(config["out_channels"]), vae)
    return Nets(unet, tensors, config, vae_config)


def _unet_of(file: TensorFile) -> dict[str, Tensor]:
    """Return a UNet's tensors, of a checkpoint or of a file of it alone. Raises KeyMismatch."""
    bare = next((name for name in _BARE if name in file), None)
    if bare is None or any(key.startswith(ldm.UNET_PREFIX) for key in file.contents.entries):
        return part_of(file, ldm.UNET_PREFIX, ldm.unet_names)
    return part_of(file, "", ldm.unet_names if bare == _BARE[0] else lambda names: {name: name for name in names})


# ---- a diffusers folder


def check_folder(path: Path, family: str) -> None:
    """Raise WrongFamily where the folder says that it is of another family."""
    other = identify_folder(path).family if is_folder_of_weights(path) else ""
    if other not in ("", family):
        raise WrongFamily(f"{path.name} is for {other}, not for {family}. Open it as {other}.")


def folder_nets(path: Path, vae: Path | None) -> Nets:
    """Return the UNet and the VAE of a folder. `vae`: another's, where it brings none. Raises CorruptFile."""
    config = read_json(path / "unet" / "config.json")
    tensors, vae_config = vae_in_folder(path, int(config.get("out_channels", _LATENT_CHANNELS)), vae)
    return Nets(folder_tensors(path, "unet"), tensors, config, vae_config)
