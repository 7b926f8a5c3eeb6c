"""Stability AI's Control-LoRA files: a ControlNet as low-rank differences to the encoder of the model that is open.

    lora_controlnet                         the mark: an empty tensor
    X.up, X.down                            of each matrix and convolution that the model has too, (o r) and (r i), of
                                            convolutions (o r 1 1) and (r i kh kw): its weight is the model's + up down
    X.weight, X.bias                        biases, norms, and what the model has not (hint block, zero convolutions),
                                            whole; what the file does not have is the model's

Names are the original's. Nothing is multiplied by a scale. Ranks differ by layer: at most what its sides allow. Facts
of Stability-AI/stability-ComfyUI-nodes' ControlLoraSave, ComfyUI's ControlLora and sd-webui-controlnet's
controlnet_lora.py.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from torch import Tensor

from disegno.core.errors import KeyMismatch, UnknownKind
from disegno.weights.keys.control import control_keys, diffusers_names
from disegno.weights.parts import weights_of

log = logging.getLogger(__name__)

MECHANISM = "control-lora"
MARK = "lora_controlnet"
UP, DOWN = ".up", ".down"
_WEIGHT = ".weight"


@dataclass(frozen=True)
class Pair:
    """A weight's difference, up down. up: (o r), down: (r i) or (r i kh kw)."""

    up: Tensor
    down: Tensor

    @property
    def rank(self) -> int:
        return self.down.shape[0]


@dataclass(frozen=True)
class ControlLoraFile:
    """A file, read, by diffusers' names. `whole`: tensors; `pairs`: module -> its weight's difference."""

    whole: Mapping[str, Tensor]
    pairs: Mapping[str, Pair]
    words: Mapping[str, str]
    fingerprint: str


def read_control_lora(path: Path) -> ControlLoraFile:
    """Return what is in this file. Raises UnknownKind where it is none, KeyMismatch where two halves do not fit."""
    read, files, fingerprint = weights_of(path)
    if MARK not in read:
        raise UnknownKind(f"{path.name} is no Control-LoRA: it has no tensor {MARK}. Give such a file.")
    own = {name: read[key] for key, name in control_keys(key for key in read if key != MARK).items()}
    names = diffusers_names(own)  # what follows a module's name is kept
    whole = {new: own[name] for name, new in names.items() if not name.endswith((UP, DOWN))}
    halves = {new: own[name] for name, new in names.items() if name.endswith((UP, DOWN))}
    modules = dict.fromkeys(new.rpartition(".")[0] for new in halves)
    pairs = {module: _pair(path.name, module, whole, halves) for module in modules}
    if ignored := sorted(own.keys() - names.keys()):
        log.warning("%s: %d tensors are of no ControlNet and ignored: %s", path.name, len(ignored), ignored[:8])
    return ControlLoraFile(whole, pairs, files[0].metadata, fingerprint)


def _pair(name: str, module: str, whole: Mapping[str, Tensor], halves: Mapping[str, Tensor]) -> Pair:
    """Return a module's pair. Raises KeyMismatch where a half is missing, or they are not (o r) and (r ...)."""
    up, down = halves.get(f"{module}{UP}"), halves.get(f"{module}{DOWN}")
    if up is None or down is None:
        there = UP if down is None else DOWN
        raise KeyMismatch(f"{name} is incomplete: of {module} it has {there} alone. Fetch it again.")
    if f"{module}{_WEIGHT}" in whole:
        raise KeyMismatch(f"{name} has both a weight of {module} and a difference to the model's. Fetch it again.")
    if up.ndim < 2 or down.ndim < 2 or prod(up.shape[1:]) != down.shape[0] or 0 in (*up.shape, *down.shape):
        raise KeyMismatch(
            f"{name}: {module} has up {tuple(up.shape)} and down {tuple(down.shape)}, expected (o r) and (r i)."
            " Fetch the file again."
        )
    return Pair(up.flatten(1), down)
