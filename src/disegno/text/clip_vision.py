"""What CLIP sees in a picture: the projected feature of its image tower, not normalised (Radford et al. 2021)."""

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from disegno.core.errors import CorruptFile, ModelFileError
from disegno.memory import Memory
from disegno.weights.load import load_file

FILES = ("model.safetensors", "pytorch_model.bin")  # the first that is there; both are read as data
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # Radford et al. 2021's code


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
        weight = next(self.net.parameters())
        shown = self.shown(image).to(weight)
        return cast(Tensor, self.net(pixel_values=cast(torch.FloatTensor, shown)).image_embeds).float()

    def shown(self, image: Tensor) -> Tensor:
        """Return what the net is shown, (1 3 s s): the short side at its size, the middle, its own normalisation."""
        size = cast(int, self.net.config.image_size)
        scale = size / min(image.shape[2:])
        high, wide = (max(size, round(side * scale)) for side in image.shape[2:])
        small = F.interpolate(image.float(), (high, wide), mode="bicubic", antialias=True).clamp(0, 1)
        top, left = (high - size) // 2, (wide - size) // 2
        cut = small[:, :, top : top + size, left : left + size]
        mean, std = (torch.tensor(values, device=image.device).view(1, 3, 1, 1) for values in (MEAN, STD))
        return (cut - mean) / std


def open_clip_vision(folder: Path, memory: Memory) -> ClipVision:
    """Return the image tower of the CLIP in a folder as transformers lays it out; one with the text tower will do.

    Raises ModelFileError where it is none, KeyMismatch.
    """
    file = next((folder / name for name in FILES if (folder / name).is_file()), None)
    if file is None or not (folder / "config.json").is_file():
        raise ModelFileError(
            f"{folder} holds no CLIP: config.json and {' or '.join(FILES)} were expected, as in the folder of"
            " openai/clip-vit-large-patch14."
        )
    try:
        config = CLIPVisionConfig.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, TypeError) as error:
        raise CorruptFile(f"{folder / 'config.json'} is no description of a CLIP ({error}).") from error
    own = ("vision_model.", "visual_projection.")
    tensors = {
        name: tensor.float()
        for name, tensor in load_file(file).items()
        if name.startswith(own) and not name.endswith(".position_ids")
    }
    net = memory.build(lambda: CLIPVisionModelWithProjection(config), tensors, folder.name, torch.float32)
    return ClipVision(net)
