"""What SDXL's nets are told beside latents, timestep and text: the pooled text, and sizes in pixels.

Podell et al. 2023, 2.2: a picture's size before it was scaled, where its crop began, and the size that it is drawn at.
What is drawn here was never scaled or cropped. The refiner is told how beautiful it is to be, in place of the last.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

NUM_SIZES = 6  # numbers that a base model is told
CELL = 8  # pixels of a latent's cell, on one side
BEAUTY, PLAINNESS = 6.0, 2.5  # A1111 parity: of a prompt's rows, and of a negative prompt's


def is_told(config: Mapping[str, Any]) -> bool:
    """Return whether a net with this configuration is told the pooled text and sizes (diffusers' words)."""
    return config.get("addition_embed_type") == "text_time"


def pooled_width(config: Mapping[str, Any]) -> int:
    """Return the width of the pooled text that such a net is told, beside a base model's sizes."""
    return int(config["projection_class_embeddings_input_dim"]) - NUM_SIZES * int(config["addition_time_embed_dim"])


def told_size(pooled: Tensor, x: Tensor) -> dict[str, Tensor]:
    """Return what a base model's nets are told, by diffusers' names. pooled: (b p), x: (b c h/8 w/8)."""
    height, width = (CELL * side for side in x.shape[-2:])
    return _told(pooled, [(height, width, 0, 0, height, width)] * len(x))


def told_beauty(pooled: Tensor, x: Tensor, positive: tuple[bool, ...]) -> dict[str, Tensor]:
    """Return what the refiner is told. `positive`: of each row, whether it is of a prompt."""
    height, width = (CELL * side for side in x.shape[-2:])
    return _told(pooled, [(height, width, 0, 0, BEAUTY if wanted else PLAINNESS) for wanted in positive])


def _told(pooled: Tensor, numbers: list[tuple[float, ...]]) -> dict[str, Tensor]:
    return {"text_embeds": pooled, "time_ids": torch.tensor(numbers, device=pooled.device, dtype=torch.float32)}
