"""A tiny world to teach in, for tests and documents: pairs that are drawn from a seed, and a Base ControlNet.

A picture is a disc of one of six colours on a ground of another; its condition is the disc in white on black. So the
condition says where, and the caption which colours.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from diffusers import ControlNetModel

from disegno.backbones.miniature import SD1, Miniature, draw
from disegno.backbones.miniature_sdxl import Sdxl
from disegno.core.request import Scalar
from disegno.memory import build_empty
from disegno.training.pairs import Picture, Sample
from disegno.weights.save import save_safetensors

COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 180, 60),
    "blue": (50, 80, 220),
    "yellow": (235, 210, 50),
    "white": (240, 240, 240),
    "black": (20, 20, 20),
}
_NOT_OF_A_CONTROL = ("sample_size", "out_channels", "up_block_types")


@dataclass(frozen=True)
class Discs:
    """Pairs of discs (`Pairs`), in memory. `canvas`: width, height in pixels; `outline`: its rim for a condition."""

    num: int
    canvas: tuple[int, int] = (64, 64)
    seed: int = 0
    outline: bool = False
    name: str = "discs"
    annotator: str | None = None
    params: Mapping[str, Scalar] = field(default_factory=dict[str, Scalar])
    resolution: int | None = None

    def __len__(self) -> int:
        return self.num

    def key(self, index: int) -> str:
        return f"{index:04d}"

    def digest(self, index: int) -> str:
        sample = self.read(index)
        parts = sample.target.tobytes(), sample.condition.tobytes(), sample.caption.encode()
        return hashlib.sha256(b"\0".join(parts)).hexdigest()

    def target_digest(self, index: int) -> str:
        return hashlib.sha256(self.read(index).target.tobytes()).hexdigest()

    def caption(self, index: int) -> str:
        return self.read(index).caption

    def read(self, index: int) -> Sample:
        rng = np.random.default_rng((self.seed, index))
        colour, ground = rng.choice(list(COLOURS), 2, replace=False)
        width, height = self.canvas
        radius = int(min(width, height) * rng.uniform(0.15, 0.3))
        centre = int(rng.integers(radius, width - radius)), int(rng.integers(radius, height - radius))
        target = _disc(np.full((height, width, 3), COLOURS[ground], np.uint8), centre, radius, COLOURS[colour], -1)
        thickness = max(2, width // 32) if self.outline else -1
        condition = _disc(np.zeros((height, width, 3), np.uint8), centre, radius, (255, 255, 255), thickness)
        return Sample(target, condition, f"a {colour} disc on {ground}")

    def size(self, index: int) -> tuple[int, int]:
        return self.canvas


def _disc(
    picture: Picture, centre: tuple[int, int], radius: int, colour: tuple[int, int, int], thickness: int
) -> Picture:
    drawn = cv2.circle(picture, centre, radius, colour, thickness, cv2.LINE_AA)
    return np.asarray(drawn, np.uint8)


def write_base(path: Path, made: Miniature | Sdxl = SD1, seed: int = 7, gain: float = 1.0) -> Path:
    """Return `path`, now a Base ControlNet for the miniature. `gain`: of its zero convolutions; 0 is a new one's."""
    config = {key: value for key, value in made.unet_config.items() if key not in _NOT_OF_A_CONTROL}
    family = "sdxl" if isinstance(made, Sdxl) else "sd1"
    drawn = draw(build_empty(lambda: ControlNetModel(**config)), seed)
    tensors = {
        name: tensor * gain if name.startswith(("controlnet_down", "controlnet_mid")) else tensor
        for name, tensor in drawn.items()
        if not name.startswith("controlnet_cond_embedding.")
    }
    save_safetensors(path, tensors, {"disegno.mechanism": "ctrlora-base", "disegno.family": family})
    return path
