"""What an upscaler is: a network that makes a picture larger by a whole number.

A kind is one module in this folder (or of another package, by the entry point group `disegno.upscalers`) with

    def recognises(card: FileCard) -> bool             is this file of this kind?
    def open(path: Path, memory: Memory) -> Upscaler   its weights, once a process
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from disegno.core.errors import UnknownKind
from disegno.weights.tensor_file import TensorFile

_WRAPPERS = ("params_ema.", "params.", "model_ema.", "netG.", "module.")  # what trainers put before every name


@dataclass(frozen=True)
class Upscaler:
    """An open network. `scale`: how many times larger its result is; `multiple`: what sides of a picture must be."""

    name: str
    scale: int
    net: nn.Module
    multiple: int = 1

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return the pictures, (b 3 kh kw), float32, of (b 3 h w) in [0, 1]. It may overshoot."""
        weight = next(self.net.parameters())
        return self.net(pixels.to(weight)).float()


def unwrapped(file: TensorFile) -> dict[str, Tensor]:
    """Return the file's tensors without their trainer's prefix: of the averaged weights where it has both."""
    keys = list(file.contents.entries)
    prefix = next((prefix for prefix in _WRAPPERS if any(key.startswith(prefix) for key in keys)), "")
    return {key.removeprefix(prefix): file.tensor(key) for key in keys if key.startswith(prefix)}


def renamed(name: str, tensors: Mapping[str, Tensor], rules: tuple[tuple[str, str], ...]) -> dict[str, Tensor]:
    """Return the tensors by new names: the first rule (pattern, replacement) that fits. Raises UnknownKind."""
    found: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        new = next((re.sub(pattern, by, key) for pattern, by in rules if re.fullmatch(pattern, key)), None)
        if new is None:
            raise UnknownKind(f"{name} has the tensor {key}, which no upscaler of its kind that is known here has.")
        found[new] = tensor
    return found
