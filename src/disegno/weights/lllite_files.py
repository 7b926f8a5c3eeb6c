"""ControlNet-LLLite's files (kohya-ss): for each layer of the UNet that is told of the drawing, a small net of its own.

    lllite_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.conditioning1.0 .2 .4     convolutions of the drawing
                                                                .down.0 .mid.0 .up.0       of the layer's input

The layer's name is without dots: the original's, as in published files, or diffusers'. The published ones
(controllllite_v01032064e_sdxl_canny.safetensors ...) hold those of attn1's q, k, v and attn2's q of SDXL's encoder and
middle, 136. Facts of kohya-ss/sd-scripts' networks/control_net_lllite.py.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from torch import Tensor

from disegno.core.errors import KeyMismatch, UnknownKind
from disegno.weights.load import open_file
from disegno.weights.shapes import sides

MECHANISM = "controlnet-lllite"
PREFIX = "lllite_unet_"
_CONDITIONING = re.compile(r"conditioning1\.\d+\.weight")
_SIDES = (2, 4)  # of a convolution's squares of pixels
_MAX_PIXELS = 64  # a side of what becomes one place of the deepest level: of Stable Diffusion 1


@dataclass(frozen=True)
class Sizes:
    """The sizes of one layer's net. `width`: of the layer's input; `hidden`: inside; `is_conv`: the layer is one.

    `squares`: of each convolution of the drawing, its channels and the side of its squares.
    """

    width: int
    hidden: int
    squares: tuple[tuple[int, int], ...]
    is_conv: bool


@dataclass(frozen=True)
class LlliteFile:
    """A file, read: its tensors, and the sizes of each layer's net, by the names that it has. `words`: its header's."""

    tensors: Mapping[str, Tensor]
    sizes: Mapping[str, Sizes]
    words: Mapping[str, str]
    sha256: str


def read_lllite(path: Path) -> LlliteFile:
    """Return the control in this file. Raises UnknownKind for another kind, KeyMismatch, and as `open_file`."""
    with open_file(path) as file:
        foreign = [key for key in file.keys() if not key.startswith(PREFIX)]  # noqa: SIM118
        if foreign:
            raise UnknownKind(
                f"{path.name} is no ControlNet-LLLite alone: {foreign[0][:60]!r} is none of its names"
                f" ({PREFIX}...). Give the file as it was published."
            )
        tensors = file.tensors()
        modules: dict[str, list[str]] = {}
        for key in tensors:
            module, _, rest = key.partition(".")
            modules.setdefault(module, []).append(rest)
        try:
            sizes = {module: _sizes(path.name, tensors, module, names) for module, names in modules.items()}
        except KeyError as error:
            raise KeyMismatch(
                f"{path.name} is an incomplete ControlNet-LLLite: it has no tensor {error}. Fetch it again."
            ) from error
        return LlliteFile(tensors, sizes, file.metadata, file.sha256())


def _sizes(name: str, tensors: Mapping[str, Tensor], module: str, names: list[str]) -> Sizes:
    """Return the sizes of a layer's net. Raises KeyError where it is not all there, KeyMismatch, UnknownKind."""
    down = f"{module}.down.0.weight"
    is_conv = tensors[down].ndim == 4
    hidden, width, *_ = sides(name, tensors, down, 4 if is_conv else 2)
    squares, num = list[tuple[int, int]](), sum(_CONDITIONING.fullmatch(each) is not None for each in names)
    for i in range(max(1, num)):
        key = f"{module}.conditioning1.{2 * i}.weight"
        channels, _, height, side = sides(name, tensors, key, 4)
        if height != side or side not in _SIDES:
            raise UnknownKind(
                f"{name} looks at squares of {height} x {side} pixels ({key}); of a ControlNet-LLLite they have sides"
                f" of {' or '.join(map(str, _SIDES))}. It is one of a kind that is not known: choose another one."
            )
        squares.append((channels, side))
        if prod(side for _, side in squares) > _MAX_PIXELS:
            raise UnknownKind(
                f"{name} makes more than {_MAX_PIXELS} x {_MAX_PIXELS} pixels one place ({module}), which no level of a"
                " model has. It is damaged, or of a kind that is not known: choose another one."
            )
    return Sizes(width, hidden, tuple(squares), is_conv)
