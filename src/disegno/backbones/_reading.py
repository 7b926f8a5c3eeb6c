"""The parts of a model, read from one file of the original layout or from a diffusers folder.

Sizes are read from the tensors, so that a model of any width and depth opens. What leaves no trace in a tensor (the
number of heads) is the family's own, unless the header says otherwise: `disegno.config`, JSON with the optional keys
unet, vae, text (fields of the classes' configurations) and prediction_type.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import cast

from torch import Tensor

from disegno.backbones._latent_diffusion import Config, Nets, Tensors
from disegno.core.errors import CorruptFile, KeyMismatch, WrongFamily
from disegno.weights.configs import unet_config, vae_config
from disegno.weights.keys import ldm
from disegno.weights.load import open_file
from disegno.weights.tensor_file import TensorFile

CONFIG_KEY = "disegno.config"

_FAMILY_MARKS = {
    "cond_stage_model.transformer.": "sd1",
    "cond_stage_model.model.": "sd2",
    "conditioner.": "sdxl",
    "model.diffusion_model.joint_blocks.": "sd3",
}
_BESIDE_THE_VAE = ("loss.", "model_ema.")  # of its training
_DIFFUSERS_FILES = (
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.fp16.safetensors",
    "diffusion_pytorch_model.bin",
)
_TRANSFORMERS_FILES = ("model.safetensors", "model.fp16.safetensors", "pytorch_model.bin")


def shapes_of(tensors: Tensors) -> dict[str, tuple[int, ...]]:
    """Return each tensor's shape."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def fitted_vae(vae: Tensors) -> dict[str, Tensor]:
    """Return the VAE's tensors with the attention's 1x1 convolutions as linear layers."""
    return {
        name: ldm.fitted(tensor, tuple(tensor.shape[:2])) if ".attentions." in name and tensor.ndim == 4 else tensor
        for name, tensor in vae.items()
    }


# ---- one file of the original layout


def check_family(file: TensorFile, family: str) -> None:
    """Raise WrongFamily where the file has another family's marks."""
    keys = file.keys()
    for prefix, other in _FAMILY_MARKS.items():
        if other != family and any(key.startswith(prefix) for key in keys):
            raise WrongFamily(
                f"{file.path.name} is for {other}, not for {family}: it has {prefix}... Open it as {other}."
            )


def told_of(file: TensorFile) -> Config:
    """Return what the file's header says of its configuration. Raises CorruptFile."""
    text = file.metadata.get(CONFIG_KEY, "{}")
    try:
        told = json.loads(text)
    except ValueError as error:
        raise CorruptFile(f"{file.path.name}: its {CONFIG_KEY} is not JSON ({error}). Fetch the file again.") from error
    if not isinstance(told, dict):
        raise CorruptFile(f"{file.path.name}: its {CONFIG_KEY} is not a JSON object. Fetch the file again.")
    return cast(Config, told)


def told_prediction(file: TensorFile, told: Config) -> str | None:
    """Return what the output means: by our header, modelspec's, ComfyUI's marker key, or A1111's yaml beside it.

    None where nothing tells.
    """
    if "prediction_type" in told:
        return str(told["prediction_type"])
    words = file.metadata
    spec = words.get("modelspec.prediction_type") or words.get("modelspec.predict_key")
    yaml = file.path.with_suffix(".yaml")
    by_yaml = yaml.is_file() and re.search(r"parameterization:\s*[\"']?v\b", yaml.read_text("utf-8", "replace"))
    if spec in ("v", "v_prediction") or words.get("modelspec.architecture", "").endswith("-v") or "v_pred" in file:
        return "v"
    return "v" if by_yaml else "epsilon" if spec == "epsilon" or yaml.is_file() else None


def part_of(
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
            f"{file.path.name} has {len(unknown)} tensors that Stable Diffusion has not: "
            f"{', '.join(prefix + name for name in unknown[:8])}. It may be of another family."
        )
    return {new: file.tensor(prefix + name) for name, new in table.items()}


def vae_of(file: TensorFile) -> dict[str, Tensor]:
    """Return the VAE's tensors, by diffusers' names. Raises KeyMismatch."""
    return part_of(file, ldm.VAE_PREFIX, ldm.vae_names, _BESIDE_THE_VAE)


def nets_of(file: TensorFile, told: Config, own: Callable[[Config], Config] = lambda sizes: {}) -> Nets:
    """Return a checkpoint's UNet and VAE: EMA weights are not used. `own`: what the family adds to the UNet's sizes.

    Raises KeyMismatch.
    """
    unet, vae = part_of(file, ldm.UNET_PREFIX, ldm.unet_names), vae_of(file)
    sizes = unet_config(unet)
    configs = sizes | own(sizes) | told.get("unet", {}), vae_config(vae) | told.get("vae", {})
    return Nets(unet, fitted_vae(vae), *configs)


# ---- a diffusers folder


def read_json(path: Path) -> Config:
    """Return a configuration. Raises CorruptFile."""
    try:
        return cast(Config, json.loads(path.read_text("utf-8")))
    except (OSError, ValueError) as error:
        raise CorruptFile(f"{path} cannot be read as JSON ({error}). A diffusers model folder has it.") from error


def folder_tensors(path: Path, part: str) -> dict[str, Tensor]:
    """Return the tensors of a part of a folder, by the names that they have there. Raises CorruptFile."""
    names = _TRANSFORMERS_FILES if part.startswith("text_encoder") else _DIFFUSERS_FILES
    for name in names:
        if (file := path / part / name).is_file():
            return open_file(file).tensors()
        if (index := path / part / f"{name}.index.json").is_file():
            return _sharded(index)
    raise CorruptFile(f"{path / part} has no weights. A diffusers model folder has one of: {', '.join(names)}.")


def _sharded(index: Path) -> dict[str, Tensor]:
    """Return the tensors of several files, by the table that says which is where. Raises CorruptFile, KeyMismatch."""
    table = read_json(index).get("weight_map")
    places = cast(Mapping[str, object], table) if isinstance(table, dict) else {"": None}
    if not all(isinstance(place, str) for place in places.values()):
        raise CorruptFile(f"{index} has no weight_map, a table of file names. Fetch the folder again.")
    where = {name: Path(str(place)).name for name, place in places.items()}
    files = {name: open_file(index.parent / name) for name in dict.fromkeys(where.values())}
    return {name: files[place].tensor(name) for name, place in where.items()}


def folder_vae(path: Path) -> dict[str, Tensor]:
    """Return the VAE's tensors of a folder, by today's names. Raises CorruptFile."""
    vae = folder_tensors(path, "vae")
    names = ldm.modern_vae_names(vae)
    return fitted_vae({names[name]: tensor for name, tensor in vae.items()})


def folder_nets(path: Path) -> Nets:
    """Return the UNet and the VAE of a folder. Raises CorruptFile."""
    configs = read_json(path / "unet" / "config.json"), read_json(path / "vae" / "config.json")
    return Nets(folder_tensors(path, "unet"), folder_vae(path), *configs)
