"""T2I-Adapter's files (Mou et al. 2023, arXiv 2302.08453): a small net that looks at a condition once a picture.

    published   t2iadapter_canny_sd14v1.pth ...: `conv_in.*`, `body.0.block1.*`; the light one (colour) has no conv_in,
                and `body.0.body.0.block1.*`
    diffusers   T2IAdapter's: `adapter.conv_in.*`, `adapter.body.0.resnets.0.block1.*`, a file or its folder; so are
                A1111's t2i-adapter_diffusers_xl_canny.safetensors ...

Our names are diffusers' without the prefix. The published full nets count their blocks through all features: how many
a feature has is told by how many features there are, one for each of the model's levels, and of SDXL one more.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from disegno.core.errors import KeyMismatch, UnknownKind
from disegno.weights.parts import weights_of

MECHANISM = "t2i-adapter"
PIXELS = 8  # a side of the square of pixels that becomes one place of the latent
XL_PIXELS = 16  # of SDXL: one place of its second level
_PREFIX = "adapter."
_FLAT = re.compile(r"body\.(\d+)\.(block[12]\.(?:weight|bias))")
_FLAT_IN = re.compile(r"body\.(\d+)\.(in_conv\.(?:weight|bias))")
_LIGHT = re.compile(r"body\.(\d+)\.body\.(\d+)\.(.*)")
_OURS = re.compile(r"body\.(\d+)\.resnets\.(\d+)\.(.*)")
_BLOCK = re.compile(r"body\.(\d+)\.")


@dataclass(frozen=True)
class T2iFile:
    """A file, read: its tensors by our names. `words`: of its header."""

    tensors: Mapping[str, Tensor]
    words: Mapping[str, str]
    fingerprint: str


def read_t2i(path: Path, num_features: int) -> T2iFile:
    """Return the adapter in this file or folder, for a model that takes so many features.

    Raises UnknownKind where it is none, KeyMismatch where its blocks cannot be shared among the features.
    """
    read, files, fingerprint = weights_of(path)
    names = names_of(read, num_features)
    if not any(name.startswith("body.") for name in names.values()):
        raise UnknownKind(f"{path.name} holds no T2I-Adapter. Give such a file.")
    return T2iFile({new: read[key] for key, new in names.items()}, files[0].metadata, fingerprint)


def names_of(keys: Iterable[str], num_features: int) -> dict[str, str]:
    """Return key in the file -> our name. Raises KeyMismatch."""
    own = {key: key.removeprefix(_PREFIX) for key in keys}
    if any(_FLAT.fullmatch(name) for name in own.values()):
        return _of_features(own, num_features)
    return {key: _LIGHT.sub(r"body.\1.resnets.\2.\3", name) for key, name in own.items()}


def _of_features(own: Mapping[str, str], num_features: int) -> dict[str, str]:
    """Return the names of blocks that are counted through all features, feature by feature. Raises KeyMismatch."""
    num = 1 + max(int(match[1]) for name in own.values() if (match := _BLOCK.match(name)))
    if not num_features or num % num_features:
        raise KeyMismatch(f"The T2I-Adapter has {num} blocks, which {num_features} features cannot share alike.")
    each = num // num_features

    def renamed(name: str) -> str:
        if match := _FLAT.fullmatch(name):
            level, place = divmod(int(match[1]), each)
            return f"body.{level}.resnets.{place}.{match[2]}"
        if match := _FLAT_IN.fullmatch(name):
            return f"body.{int(match[1]) // each}.{match[2]}"
        return name

    return {key: renamed(name) for key, name in own.items()}


def originals_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a full adapter's tensors under the published names: blocks counted through all features."""
    each = 1 + max(int(match[2]) for name in tensors if (match := _OURS.fullmatch(name)))

    def renamed(name: str) -> str:
        if match := _OURS.fullmatch(name):
            return f"body.{int(match[1]) * each + int(match[2])}.{match[3]}"
        if match := _FLAT_IN.fullmatch(name):
            return f"body.{int(match[1]) * each}.{match[2]}"
        return name

    return {renamed(name): tensor for name, tensor in tensors.items()}
