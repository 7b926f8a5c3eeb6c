"""UniControl's files (Qin et al. 2023, arXiv 2305.11147): one ControlNet for thirteen tasks.

Published are whole checkpoints, v1.0 and v1.1, with one layout (`control_model.*` beside Stable Diffusion). Our own
form has the same names without Stable Diffusion, so that the original program's control net takes it.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from disegno.core.errors import KeyMismatch
from disegno.weights.keys.control import control_keys
from disegno.weights.keys.ldm import CONTROL_PREFIX, unet_names, unet_originals
from disegno.weights.load import open_file
from disegno.weights.shapes import require_shapes, sides

MECHANISM = "unicontrol"
# In the order of the stems, each with the annotator of this program that makes its conditions
TASKS: Mapping[str, str | None] = {
    "hed": "soft_edge",
    "canny": "canny",
    "seg": "segments",
    "depth": None,
    "normal": None,
    "openpose": None,
    "img": None,
    "hedsketch": "scribble",
    "bbox": "boxes",
    "outpainting": "outpainting",
    "grayscale": "grayscale",
    "blur": "blur",
    "inpainting": "inpainting",
}
_ZERO = "controlnet_down_blocks."
_OWN = ("task_id_", "input_hint_block_")
_STEM = re.compile(r"(?:.*\.)?input_hint_block_list_moe\.(\d+)\.")
_STEM_LAYERS = (0, 2, 4)
_STEM_SHAPES = ((16, 3), (16, 16), (32, 16))  # outputs, inputs of 3 x 3 convolutions
_SHARED_SHAPES = ((32, 32), (96, 32), (96, 96), (256, 96))


@dataclass(frozen=True)
class UniControlFile:
    """A file, read. `encoder`: by diffusers' names; `own`: stems, HyperNet and what it modulates, by published ones."""

    encoder: Mapping[str, Tensor]
    own: Mapping[str, Tensor]
    words: Mapping[str, str]
    sha256: str


def tasks_in(keys: Iterable[str]) -> tuple[str, ...]:
    """Return the tasks that a file with these names has a stem for."""
    numbers = {int(match[1]) for key in keys if (match := _STEM.match(key))}
    return tuple(task for number, task in enumerate(TASKS) if number in numbers)


def stem_prefix(task: str) -> str:
    """Return what the names of a task's stem begin with."""
    return f"input_hint_block_list_moe.{list(TASKS).index(task)}."


def read_unicontrol(path: Path) -> UniControlFile:
    """Return the control net in this file. Raises KeyMismatch where what makes it UniControl is not whole."""
    with open_file(path) as file:
        keys = {name: key for key, name in control_keys(file.keys()).items()}
        own = {name: file.tensor(key) for name, key in keys.items() if name.startswith(_OWN)}
        encoder = {new: file.tensor(keys[name]) for name, new in unet_names(keys).items()}
        if missing := sorted(_wanted(encoder, own) - own.keys()):
            raise KeyMismatch(
                f"{path.name} lacks {len(missing)} tensors of UniControl's: {', '.join(missing[:4])} ..."
                " Use a complete file."
            )
        require_shapes(path.name, encoder | own, _shapes(path.name, encoder, own))
        return UniControlFile(encoder, own, file.metadata, file.sha256())


def _shapes(name: str, encoder: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a file's own tensors and of the zero convolutions that they modulate."""
    num = sum(key.startswith(_ZERO) and key.endswith(".weight") for key in encoder)
    zeros = [sides(name, encoder, f"{_ZERO}{k}.weight", 4)[0] for k in range(num)]
    width = sides(name, encoder, "conv_in.weight", 4)[0]
    hidden, feature = sides(name, own, "task_id_hypernet.0.weight", 2)
    modulated = {f"{_ZERO}{k}.weight": (channels, channels, 1, 1) for k, channels in enumerate(zeros)}
    return own_shapes(zeros, width, feature, hidden) | modulated


def _wanted(encoder: Iterable[str], own: Iterable[str]) -> set[str]:
    """Return the names of what every task needs, and of the stems that are there."""
    num = sum(name.startswith(_ZERO) and name.endswith(".weight") for name in encoder)
    modules = [f"task_id_hypernet.{i}" for i in (0, 2)] + [f"task_id_layernet.{k}" for k in range(num)]
    modules += [f"task_id_layernet_zeroconv_{i}" for i in (0, 1)]
    modules += [f"input_hint_block_zeroconv_{i}.{j}" for i in (0, 1) for j in (0, 1)]
    modules += [f"input_hint_block_share.{i}" for i in (0, 2, 4, 6)]
    modules += [f"{stem_prefix(task)}{layer}" for task in tasks_in(own) or TASKS for layer in _STEM_LAYERS]
    return {f"{module}.{part}" for module in modules for part in ("weight", "bias")}


def own_shapes(zeros: Sequence[int], width: int, feature: int, hidden: int) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of what UniControl adds to an encoder.

    `zeros`: the widths of its zero convolutions, the middle's not counted; `width`: of its first level; `feature`: of
    a text state; `hidden`: of the HyperNet.
    """
    convs = {
        f"{stem_prefix(task)}{i}": shape for task in TASKS for i, shape in zip(_STEM_LAYERS, _STEM_SHAPES, strict=True)
    }
    convs |= {f"input_hint_block_share.{i}": shape for i, shape in zip((0, 2, 4, 6), _SHARED_SHAPES, strict=True)}
    convs |= {f"input_hint_block_zeroconv_0.{j}": (32, 32) for j in (0, 1)}
    convs |= {f"input_hint_block_zeroconv_1.{j}": (width, 256) for j in (0, 1)}
    linears = {"task_id_hypernet.0": (hidden, feature), "task_id_hypernet.2": (hidden, hidden)}
    linears |= {f"task_id_layernet.{k}": (channels, hidden) for k, channels in enumerate(zeros)}
    linears |= {"task_id_layernet_zeroconv_0": (32, hidden), "task_id_layernet_zeroconv_1": (256, hidden)}
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in (convs | linears).items():
        shapes[f"{name}.weight"] = (*shape, 3, 3) if name in convs else shape
        shapes[f"{name}.bias"] = shape[:1]
    return shapes


def originals_of(encoder: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return all tensors by their published names: the inverse of reading."""
    names = unet_originals(encoder)
    tensors = {names[name]: tensor for name, tensor in encoder.items()} | dict(own)
    return {CONTROL_PREFIX + name: tensor for name, tensor in tensors.items()}
