"""Between pictures of 8 bits and tensors."""

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from disegno.annotators.maps import Picture


def to_pixels(picture: Picture | Image.Image) -> Tensor:
    """Return a picture (h w 3) as numbers in [0, 1], (1 3 h w), float32."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 255


def to_pictures(pixels: Tensor) -> list[Image.Image]:
    """Return each picture of (b 3 h w), in [0, 1], rounded to 8 bits."""
    array = (pixels.clamp(0, 1) * 255).round().to("cpu", torch.uint8)
    return [Image.fromarray(rearrange(image, "c h w -> h w c").numpy()) for image in array]
