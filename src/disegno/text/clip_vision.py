"""What CLIP sees in a picture: the projected feature of its image tower, not normalised (Radford et al. 2021)."""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from disegno.core.errors import ModelFileError
from disegno.memory import Memory
from disegno.text.described import described
from disegno.weights.json_table import read_json
from disegno.weights.load import load_file, open_file

log = logging.getLogger(__name__)

FILES = ("model.safetensors", "pytorch_model.bin")  # the first that is there; both are read as data
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # Radford et al. 2021's code


_VISION, _PROJECTION = "vision_model.", "visual_projection."
_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")
_HEADS = {768: 12, 1024: 16, 1280: 16, 1664: 16}  # of a published tower, by its width: ViT-B, L, H, bigG
_QUICK = (768, 1024)  # OpenAI's own; the larger ones are OpenCLIP's


@dataclass(frozen=True)
class ClipVision:
    """An open image tower."""

    net: CLIPVisionModelWithProjection

    @property
    def width(self) -> int:
        """How many numbers it gives."""
        return int(self.net.config.projection_dim)

    @torch.inference_mode()
    def seen(self, image: Tensor) -> Tensor:
        """Return what it sees, (1 d), float32. image: (1 3 h w), RGB in [0, 1]; its middle square is looked at."""
        return self.embedding(self.shown(image))

    @property
    def size(self) -> int:
        """The side of the square that it is shown, in pixels."""
        return cast(int, self.net.config.image_size)

    @torch.inference_mode()
    def embedding(self, shown: Tensor) -> Tensor:
        """Return what it gives for what it is shown (1 3 s s), (1 d), float32."""
        shown = shown.to(next(self.net.parameters()))
        return cast(Tensor, self.net(pixel_values=cast(torch.FloatTensor, shown)).image_embeds).float()

    @torch.inference_mode()
    def penultimate(self, shown: Tensor) -> Tensor:
        """Return the states before the last layer for what it is shown (1 3 s s), (1 n d), float32."""
        shown = shown.to(next(self.net.parameters()))
        out = self.net(pixel_values=cast(torch.FloatTensor, shown), output_hidden_states=True)
        return cast("tuple[Tensor, ...]", out.hidden_states)[-2].float()

    def shown(self, image: Tensor) -> Tensor:
        """Return what the net is shown, (1 3 s s): the short side at its size, the middle, its own normalisation."""
        size = self.size
        scale = size / min(image.shape[2:])
        high, wide = (max(size, round(side * scale)) for side in image.shape[2:])
        small = F.interpolate(image.float(), (high, wide), mode="bicubic", antialias=True).clamp(0, 1)
        top, left = (high - size) // 2, (wide - size) // 2
        cut = small[:, :, top : top + size, left : left + size]
        mean, std = (torch.tensor(values, device=image.device).view(1, 3, 1, 1) for values in (MEAN, STD))
        return (cut - mean) / std


def open_clip_vision(path: Path, memory: Memory, dtype: torch.dtype = torch.float32) -> ClipVision:
    """Return the image tower of the CLIP in a folder as transformers lays it out, or in a file with its names alone.

    One with the text tower will do. Raises ModelFileError where it is none, CorruptFile, KeyMismatch.
    """
    file, config = _weights_in(path), vision_config(path)
    if file is None or config is None:
        raise ModelFileError(
            f"{path} holds no CLIP: config.json and {' or '.join(FILES)} were expected, as in the folder of"
            " openai/clip-vit-large-patch14; or a file of its image tower."
        )
    tensors = {
        name: tensor.to(dtype)
        for name, tensor in load_file(file).items()
        if name.startswith((_VISION, _PROJECTION)) and not name.endswith(".position_ids")
    }
    net = memory.build(lambda: CLIPVisionModelWithProjection(config), tensors, path.name, dtype)
    return ClipVision(net)


def _weights_in(path: Path) -> Path | None:
    return path if path.is_file() else next((path / name for name in FILES if (path / name).is_file()), None)


def vision_config(path: Path) -> CLIPVisionConfig | None:
    """Return the configuration of the image tower in a folder or a file, read from JSON or shapes; None: it has none.

    Raises CorruptFile where a folder's description is none, and as `open_file`.
    """
    if path.is_file():
        with open_file(path) as file:
            return _by_shapes({name: entry.shape for name, entry in file.contents.entries.items()})
    if not (path / "config.json").is_file():
        return None
    told = read_json(path / "config.json")
    own = told.get("vision_config")  # beside the text tower's
    return described(CLIPVisionConfig, own if isinstance(own, dict) else told, str(path / "config.json"))


def _by_shapes(shapes: Mapping[str, tuple[int, ...]]) -> CLIPVisionConfig | None:
    """Return the configuration of a published image tower by its shapes; None for others."""
    patches, places = (shapes.get(f"{_VISION}embeddings.{name}_embedding.weight", ()) for name in ("patch", "position"))
    projection = shapes.get(f"{_PROJECTION}weight", ())
    fc1 = shapes.get(f"{_VISION}encoder.layers.0.mlp.fc1.weight", ())
    if len(patches) != 4 or not all(len(shape) == 2 for shape in (places, projection, fc1)) or patches[0] not in _HEADS:
        return None
    width, patch = patches[0], patches[3]
    return CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=fc1[0],
        num_hidden_layers=sum(name.endswith(".mlp.fc1.weight") and name.startswith(_VISION) for name in shapes),
        num_attention_heads=_HEADS[width],
        image_size=patch * math.isqrt(places[0] - 1),
        patch_size=patch,
        projection_dim=projection[0],
        hidden_act="quick_gelu" if width in _QUICK else "gelu",
    )


def find_clip_vision(places: Iterable[Path], fits: Callable[[CLIPVisionConfig], bool]) -> Path | None:
    """Return the first CLIP that fits: a place itself, or what lies in it; None. Files that cannot be read are none."""
    for path in (each for place in places for each in _within(place)):
        try:
            config = vision_config(path) if _weights_in(path) is not None else None
        except ModelFileError as error:
            log.warning("%s is passed over: %s", path, error)
            continue
        if config is not None and fits(config):
            return path
    return None


def _within(place: Path) -> Iterator[Path]:
    """Yield a folder of a CLIP, or a file; of another folder, those in it."""
    if place.is_file() or (place / "config.json").is_file():
        yield place
    elif place.is_dir():
        inner = sorted(place.iterdir())
        yield from (each for each in inner if each.suffix in _SUFFIXES or (each / "config.json").is_file())
