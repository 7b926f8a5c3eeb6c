"""What tells the depth of a picture, for a model that is shown depth: DPT (MiDaS), of a diffusers folder or one file.

Ranftl et al. 2021; transformers' DPTForDepthEstimation, and its own way of preparing a picture.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import DPTConfig, DPTForDepthEstimation
from transformers.models.dpt.image_processing_pil_dpt import DPTImageProcessorPil

from disegno.backbones._latent_diffusion import Config, Tensors
from disegno.backbones._reading import shapes_of
from disegno.core.errors import KeyMismatch
from disegno.memory import Memory
from disegno.text.described import described
from disegno.weights.json_table import read_json
from disegno.weights.keys import midas
from disegno.weights.parts import folder_tensors
from disegno.weights.tensor_file import TensorFile

_FOLDER = "depth_estimator"
_PROCESSOR = ("feature_extractor", "preprocessor_config.json")


@dataclass(frozen=True)
class DepthParts:
    """An estimator, read."""

    tensors: Tensors
    config: Config
    processor: Config


@dataclass(frozen=True)
class DepthEstimator:
    """An estimator, open: a `DepthReader`."""

    net: DPTForDepthEstimation
    processor: DPTImageProcessorPil

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return the depth of pictures (b 3 h w), RGB in [0, 1], at the estimator's own size, (b 1 h' w')."""
        pictures = [picture.numpy() for picture in (images * 255).round().byte().permute(0, 2, 3, 1).cpu()]
        prepare = cast(Any, self.processor)  # transformers' own keywords are untyped
        pixels = cast(Tensor, prepare(images=pictures, return_tensors="pt")["pixel_values"])
        depth = cast(Tensor, self.net(pixel_values=pixels.to(self.net.device, self.net.dtype)).predicted_depth)
        return depth[:, None].float().to(images.device)


def depth_in(path: Path) -> DepthParts | None:
    """Return the estimator in a model's folder; None where there is none. Raises CorruptFile."""
    if not (path / _FOLDER / "config.json").is_file():
        return None
    return DepthParts(
        tensors=folder_tensors(path, _FOLDER),
        config=read_json(path / _FOLDER / "config.json"),
        processor=read_json(path.joinpath(*_PROCESSOR)),
    )


def depth_in_file(file: TensorFile) -> DepthParts | None:
    """Return the estimator in a model's file; None where there is none. Raises KeyMismatch."""
    keys = [key for key in file.contents.entries if key.startswith(midas.PREFIX)]
    tensors = midas.from_original({key.removeprefix(midas.PREFIX): file.tensor(key) for key in keys})
    if not tensors:
        return None
    try:
        config = midas.config_of(shapes_of(tensors))
    except KeyError as error:
        raise KeyMismatch(f"The depth estimator of {file.path.name} has no tensor {error}. Fetch it again.") from error
    return DepthParts(tensors, config, midas.PROCESSOR | {"size": config["image_size"]})


def open_depth(parts: DepthParts, memory: Memory, what: str) -> DepthEstimator:
    """Return the estimator, in float32: it is asked once a picture. Raises KeyMismatch."""
    config = described(DPTConfig, parts.config, f"The configuration of {what[0].lower()}{what[1:]}")
    net = memory.build(lambda: DPTForDepthEstimation(config), parts.tensors, what, torch.float32)
    return DepthEstimator(net, cast(DPTImageProcessorPil, DPTImageProcessorPil.from_dict(parts.processor)))
