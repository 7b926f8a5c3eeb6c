"""Folders of weights, known by their JSON files: `model_index.json` of a diffusers pipeline, `config.json` of one of
its networks, `model.json` of diorama.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from disegno.core.errors import UnknownKind
from disegno.weights.card import FileCard
from disegno.weights.json_table import read_json
from disegno.weights.kinds import CROSS_WIDTHS
from disegno.weights.union_files import MECHANISM, tasks_of

_OWN = "model.json"  # of diorama
_CLASSES = {
    "UNet2DConditionModel": ("unet", ""),
    "SD3Transformer2DModel": ("unet", ""),
    "AutoencoderKL": ("vae", ""),
    "ControlNetModel": ("control", "controlnet"),
    "SD3ControlNetModel": ("control", "controlnet"),
    "ControlNetUnionModel": ("control", "controlnet-union"),
    "ControlNetXSAdapter": ("control", "controlnet-xs"),
    "T2IAdapter": ("control", "t2i-adapter"),
    "CLIPTextModel": ("text", ""),
    "CLIPTextModelWithProjection": ("text", ""),
    "T5EncoderModel": ("text", ""),
    "BlipForConditionalGeneration": ("captioner", "blip"),
}
_DRAWING = ("UNet2DConditionModel", "SD3Transformer2DModel")  # the networks that a pipeline's may be
_SD2_PIPELINES = ("StableDiffusionPipeline", "StableDiffusionInpaintPipeline", "StableDiffusionDepth2ImgPipeline")
_SD3_CLASSES = ("SD3", "StableDiffusion3")
_BY_V = re.compile(r"parameterization:\s*[\"']?v\b")
_PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v", "flow_prediction": "flow"}
_ADAPTERS = {8: "sd1", 16: "sdxl"}  # by the side of the squares of pixels that a T2I-Adapter looks at
_DTYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}


def is_folder_of_weights(path: Path) -> bool:
    """Return whether a folder is a diffusers pipeline or network, or a model of diorama's kind."""
    return any((path / name).is_file() for name in ("model_index.json", "config.json", _OWN))


def identify_folder(path: Path) -> FileCard:
    """Return the folder's card, from its JSON files only. Raises UnknownKind, CorruptFile."""
    if (path / "model_index.json").is_file():
        return _pipeline(path)
    if (path / _OWN).is_file():
        return _own_model(path)
    if not (path / "config.json").is_file():
        raise UnknownKind(f"{path} has neither model_index.json nor config.json. Give a diffusers folder, or a file.")
    config = read_json(path / "config.json")
    names = config.get("architectures")
    name = str(config.get("_class_name") or (cast(list[object], names)[0] if isinstance(names, list) and names else ""))
    if name not in _CLASSES:
        known = ", ".join(_CLASSES)
        raise UnknownKind(f"{path.name} is a folder of the class {name!r}; this program knows {known}.")
    kind, mechanism = _CLASSES[name]
    return FileCard(
        path=path,
        kind=kind,
        mechanism=mechanism,
        family=_family(name, config),
        layout="diffusers",
        in_channels=_number(config, "in_channels"),
        dtype=_DTYPES.get(str(config.get("torch_dtype")), ""),
        num_bytes=_num_bytes(path),
        name=_name_of(path),
        tasks=tasks_of(_number(config, "num_control_type") or 0) if mechanism == MECHANISM else (),
    )


def _name_of(path: Path) -> str:
    """Return a folder's name; in Hugging Face's cache (models--owner--name/snapshots/commit) owner/name."""
    kind, _, name = path.parent.parent.name.partition("--")
    return name.replace("--", "/", 1) if kind == "models" and path.parent.name == "snapshots" else path.name


def _own_model(path: Path) -> FileCard:
    about = read_json(path / _OWN)
    if not isinstance(family := about.get("family"), str):  # other programs have files of this name, too
        raise UnknownKind(f"{path.name}/{_OWN} names no family: it is no description of a model.")
    told = str(about.get("prediction_type"))
    unet = about.get("unet")
    channels = _number(cast(dict[str, object], unet), "in_channels") if isinstance(unet, dict) else None
    return FileCard(
        path=path,
        kind="model",
        family=family,
        layout=family,
        prediction=_PREDICTIONS.get(told),
        in_channels=channels,
        num_bytes=_num_bytes(path),
        name=_name_of(path),
    )


def _pipeline(path: Path) -> FileCard:
    index = read_json(path / "model_index.json")
    name = str(index.get("_class_name"))
    part = next((path / p for p in ("unet", "transformer") if (path / p / "config.json").is_file()), None)
    if part is None:
        raise UnknownKind(f"{path.name} is a {name} folder without a unet or a transformer. Fetch it completely.")
    config = read_json(part / "config.json")
    if (drawing := config.get("_class_name", _DRAWING[0])) not in _DRAWING:
        raise UnknownKind(
            f"{path.name} is a {name} folder, which draws with a {drawing}; known are {', '.join(_DRAWING)}. Choose"
            " another model."
        )
    scheduler = path / "scheduler" / "scheduler_config.json"
    family = "sd2" if _reads_openclip(path) and name in _SD2_PIPELINES else _family(name, config)
    told = read_json(scheduler).get("prediction_type") if scheduler.is_file() else None
    return FileCard(
        path=path,
        kind="model",
        family=family,
        layout="diffusers",
        prediction="flow" if family == "sd3" else _PREDICTIONS.get(str(told)),
        in_channels=_number(config, "in_channels"),
        num_bytes=_num_bytes(path),
        name=_name_of(path),
        metadata={"pipeline": name},
    )


def _reads_openclip(path: Path) -> bool:
    """Return whether the text encoder is OpenCLIP's, as in Stable Diffusion 2: CLIP's own has quick_gelu."""
    config = path / "text_encoder" / "config.json"
    return config.is_file() and read_json(config).get("hidden_act") == "gelu"


def _family(name: str, config: Mapping[str, object]) -> str:
    if name.startswith(_SD3_CLASSES):
        return "sd3"
    if config.get("addition_embed_type") == "text_time":
        return "sdxl"
    if name == "T2IAdapter":
        return _ADAPTERS.get(_number(config, "downscale_factor") or 8, "")
    width = _number(config, "cross_attention_dim") or _number(config, "hidden_size")
    return CROSS_WIDTHS.get(width or 0, "sd1" if name == "StableDiffusionPipeline" else "")


def _number(config: Mapping[str, object], key: str) -> int | None:
    value = config.get(key)
    return value if isinstance(value, int) else None


def _num_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def yaml_prediction(path: Path) -> str | None:
    """Return what the output of a model's file means, by A1111's yaml beside it; None where there is none."""
    yaml = path.with_suffix(".yaml")
    if not yaml.is_file():
        return None
    return "v" if _BY_V.search(yaml.read_text("utf-8", "replace")) else "epsilon"
