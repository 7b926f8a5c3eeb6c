"""CtrLoRA-XL's files (Savlim/CtrLoRA-XL): a Base ControlNet for SDXL with its conditions' LoRA matrices in it.

    conv_in_condition.*                     beside conv_in: it sees the condition's latents, conv_in the noisy ones
    X.base_layer.weight                     of X's own, where X is adapted; other names are ControlNetModel's
    X.lora_A.TASK.weight, X.lora_B.TASK.weight      of a condition, (r in) and (out r), as peft has them

What the matrices are multiplied by, the files do not say: alpha / r, and in the authors' program alpha is 2 r.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from disegno.core.errors import KeyMismatch
from disegno.weights.parts import weights_of

MECHANISM = "ctrlora-xl"
SCALE = 2.0
CONV = "conv_in_condition"
# By what the authors call a condition, the annotator of this program that makes it
_ANNOTATORS = {
    "canny": "canny",
    "grayscale": "grayscale",
    "illusion": "illusion",
    "jpeg": "jpeg",
    "mlsd": "straight_lines",
    "palette": "palette",
    "pixel": "pixelate",
}
_MATRIX = re.compile(r"(?P<module>.+)\.lora_(?P<half>[AB])\.(?P<task>[^.]+)\.weight")
_BASE_LAYER = ".base_layer."

Pair = Mapping[str, Tensor]
"""A module's matrices: "A" (r in) and "B" (out r)."""


@dataclass(frozen=True)
class XlFile:
    """A file, read. `net`: by diffusers' names; `conv`: of conv_in_condition; `pairs`: task -> module -> matrices."""

    net: Mapping[str, Tensor]
    conv: Mapping[str, Tensor]
    pairs: Mapping[str, Mapping[str, Pair]]
    fingerprint: str

    @property
    def tasks(self) -> dict[str, str | None]:
        """Return the conditions, each with the annotator of this program that makes it, where there is one."""
        return {task: _ANNOTATORS.get(task) for task in self.pairs}


def tasks_in(keys: Iterable[str]) -> tuple[str, ...]:
    """Return the conditions that a file with these names knows."""
    found = (match["task"] for key in keys if (match := _MATRIX.fullmatch(key)))
    return tuple(sorted(set(found)))


def read_xl(path: Path) -> XlFile:
    """Return what is in this file or folder. Raises KeyMismatch where no condition is in it, or a half is missing."""
    read, _, fingerprint = weights_of(path)
    pairs: dict[str, dict[str, dict[str, Tensor]]] = {}
    net: dict[str, Tensor] = {}
    for key, tensor in read.items():
        if match := _MATRIX.fullmatch(key):
            pairs.setdefault(match["task"], {}).setdefault(match["module"], {})[match["half"]] = tensor
        else:
            net[key.replace(_BASE_LAYER, ".")] = tensor
    if not pairs:
        raise KeyMismatch(
            f"{path.name} is CtrLoRA-XL's Base ControlNet alone: no condition's LoRA matrices are in it. Give a"
            " checkpoint that has both, or teach a condition here, on a base of this program."
        )
    halves = [f"{module} ({task})" for task, own in pairs.items() for module, pair in own.items() if len(pair) < 2]
    if halves:
        raise KeyMismatch(f"{path.name} has one LoRA matrix of two for {', '.join(halves[:3])}. Fetch it again.")
    conv = {name.removeprefix(f"{CONV}."): net.pop(name) for name in [*net] if name.startswith(f"{CONV}.")}
    return XlFile(net, conv, {task: pairs[task] for task in sorted(pairs)}, fingerprint)
