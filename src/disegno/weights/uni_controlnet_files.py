"""Uni-ControlNet's files (Zhao et al. 2023, arXiv 2305.16322): a local adapter, a global one, or both.

Published are whole checkpoints (Stable Diffusion, `local_adapter.*`, `global_adapter.*`) and, from training, one
adapter alone. Our own form has the same names without Stable Diffusion, so that the original program reads it too.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from disegno.core.errors import KeyMismatch
from disegno.weights.keys.ldm import Layout, layout_of, unet_names, unet_originals
from disegno.weights.load import open_file

MECHANISM = "uni-controlnet"
LOCAL_PREFIX, GLOBAL_PREFIX = "local_adapter.", "global_adapter."
CHANNELS = 3  # of one condition
# The order of the conditions in the stack, and the annotator of this program that makes each
CONDITIONS: Mapping[str, str | None] = {
    "canny": "canny",
    "mlsd": "straight_lines",
    "hed": "soft_edge",
    "sketch": "scribble",
    "openpose": None,
    "midas": None,
    "seg": "segments",
}
CONTENT = "content"
_EXTRACTOR = "feature_extractor."
_FDN = re.compile(r"input_blocks\.(\d+)\.0\.(norm_in|norm_out)\.(conv_gamma|conv_beta)\.(weight|bias)")
_FDN_NORMS = {"norm_in": "norm1", "norm_out": "norm2"}


@dataclass(frozen=True)
class Local:
    """The local adapter, read. `encoder`: by diffusers' names, without the replaced norms; `features`: the extractor.

    `norms`: name of a replaced norm -> its tensors (conv_gamma.weight ...); shallow to deep, two a level.
    """

    encoder: Mapping[str, Tensor]
    features: Mapping[str, Tensor]
    norms: Mapping[str, Mapping[str, Tensor]]


@dataclass(frozen=True)
class UniFile:
    """A file, read. `words`: of its header."""

    local: Local | None
    content: Mapping[str, Tensor] | None
    words: Mapping[str, str]
    sha256: str


def tasks_in(keys: Iterable[str]) -> tuple[str, ...]:
    """Return the conditions that a file with these names knows."""
    keys = list(keys)
    local = any(key.startswith(LOCAL_PREFIX) for key in keys)
    return (*(CONDITIONS if local else ()), *((CONTENT,) if any(k.startswith(GLOBAL_PREFIX) for k in keys) else ()))


def read_uni(path: Path) -> UniFile:
    """Return the adapters in this file. Raises KeyMismatch where the local one is incomplete."""
    with open_file(path) as file:
        own = _below(file.keys(), LOCAL_PREFIX)
        local = _local(path.name, {name: file.tensor(key) for name, key in own.items()}) if own else None
        content = {name: file.tensor(key) for name, key in _below(file.keys(), GLOBAL_PREFIX).items()}
        return UniFile(local, content or None, file.metadata, file.sha256())


def _below(keys: Iterable[str], prefix: str) -> dict[str, str]:
    return {key.removeprefix(prefix): key for key in keys if key.startswith(prefix)}


def _local(name: str, tensors: Mapping[str, Tensor]) -> Local:
    features = {key.removeprefix(_EXTRACTOR): t for key, t in tensors.items() if key.startswith(_EXTRACTOR)}
    if not features:
        raise KeyMismatch(f"{name} has a local adapter without {_EXTRACTOR}*: it is incomplete. Fetch it again.")
    layout = layout_of(tensors)
    places = {b: f"down_blocks.{i}.resnets.0" for i, b in enumerate(_first_blocks(layout))}
    norms: dict[str, dict[str, Tensor]] = {}
    for key, tensor in sorted(tensors.items(), key=lambda item: _number(item[0])):
        if (match := _FDN.fullmatch(key)) and int(match[1]) in places:
            norm = f"{places[int(match[1])]}.{_FDN_NORMS[match[2]]}"
            norms.setdefault(norm, {})[f"{match[3]}.{match[4]}"] = tensor
    encoder = {new: tensors[old] for old, new in unet_names(tensors, layout).items()}
    return Local(encoder, features, norms)


def _number(key: str) -> tuple[int, str]:
    match = _FDN.fullmatch(key)
    return (int(match[1]) if match else -1, key)


def _first_blocks(layout: Layout) -> list[int]:
    """Return the number of each level's first input block: 1, 4, 7, 10 in SD 1.x."""
    return [1 + sum(num + 1 for num in layout.res_blocks[:i]) for i in range(len(layout.res_blocks))]


def originals_of(local: Local) -> dict[str, Tensor]:
    """Return a local adapter's tensors by their published names: the inverse of reading."""
    names = unet_originals(local.encoder)
    tensors = {LOCAL_PREFIX + names[name]: tensor for name, tensor in local.encoder.items()}
    tensors |= {f"{LOCAL_PREFIX}{_EXTRACTOR}{name}": tensor for name, tensor in local.features.items()}
    places = {f"down_blocks.{i}.resnets.0": b for i, b in enumerate(_first_blocks(_layout(local.encoder)))}
    back = {new: old for old, new in _FDN_NORMS.items()}
    for norm, own in local.norms.items():
        resnet, _, which = norm.rpartition(".")
        at = f"{LOCAL_PREFIX}input_blocks.{places[resnet]}.0.{back[which]}"
        tensors |= {f"{at}.{name}": tensor for name, tensor in own.items()}
    return tensors


def _layout(encoder: Mapping[str, Tensor]) -> Layout:
    return layout_of(unet_originals(encoder).values())
