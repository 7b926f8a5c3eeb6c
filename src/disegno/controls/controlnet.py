"""ControlNet (Zhang et al. 2023): a copy of the encoder that sees the noisy latent and an image of the condition.

Opens v1.0 checkpoints (Stable Diffusion inside), v1.1 files, extracted ones with or without their prefix,
"difference" files (the open model's encoder is added), diffusers files and folders, of any depth and width.
"""

import logging
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from disegno.controls._hinted import ControlNet, ControlNetController, Whole, controller_of
from disegno.controls._net import open_net, require_colours
from disegno.controls.base import Body, Host, key_of
from disegno.core.errors import KeyMismatch
from disegno.memory import Memory
from disegno.weights.card import FileCard
from disegno.weights.json_table import read_json
from disegno.weights.keys.control import DIFFERENCE_MARK, control_keys, diffusers_names
from disegno.weights.parts import told_of, weights_of

__all__ = ["ControlNet", "ControlNetController", "families", "open", "open_whole", "recognises"]

log = logging.getLogger(__name__)

families = ("sd1", "sd2", "sdxl", "diorama")


def recognises(card: FileCard) -> bool:
    """Return whether the file is a ControlNet."""
    return card.mechanism == "controlnet" and card.family != "sd3"


def open(path: Path, backbone: Host, memory: Memory) -> ControlNetController:
    """Return the ControlNet in this file or folder. Raises UnknownKind, WrongFamily, KeyMismatch, CorruptFile."""
    return controller_of(path, open_whole(path, backbone, memory), memory)


def open_whole(path: Path, backbone: Body, memory: Memory) -> Whole:
    """Return the net in this file or folder. Raises UnknownKind, WrongFamily, KeyMismatch, CorruptFile."""
    read, files, fingerprint = weights_of(path)
    words = files[0].metadata
    told = read_json(path / "config.json") if path.is_dir() else {}
    config, tensors = told | told_of(files[0]), _tensors(path.name, read)
    if any(key.rpartition(".")[2] == DIFFERENCE_MARK for key in read):
        tensors = _with_encoder(path.name, tensors, backbone)
        fingerprint = key_of(fingerprint, backbone.fingerprint)
    return Whole(open_net(path.name, tensors, backbone, memory, config), config, words, fingerprint)


def _tensors(file_name: str, read: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the control net's tensors by diffusers' names. Raises UnknownKind without a hint block, KeyMismatch."""
    own = control_keys(read)
    names = diffusers_names(name for name in own.values() if name != DIFFERENCE_MARK)
    tensors = {names[name]: read[key] for key, name in own.items() if name in names}
    require_colours(file_name, tensors)
    if ignored := sorted(set(own.values()) - names.keys() - {DIFFERENCE_MARK}):
        log.warning("%s: %d tensors are of no ControlNet and ignored: %s", file_name, len(ignored), ignored[:8])
    return tensors


def _with_encoder(name: str, tensors: dict[str, Tensor], backbone: Body) -> dict[str, Tensor]:
    """Return the tensors of a "difference" file with the open model's encoder added, where it has the same tensor."""
    theirs = backbone.net.state_dict()
    if not any(key in theirs for key in tensors):
        raise KeyMismatch(f"{name} is a difference file, but nothing in it is in the open model. Open another model.")
    log.info("%s is a difference: the encoder of %s is added", name, backbone.name)
    return {key: t.float() + _first(theirs[key], t) if key in theirs else t for key, t in tensors.items()}


def _first(theirs: Tensor, ours: Tensor) -> Tensor:
    """Return a model's tensor, float32; of a model that inpaints or edits, the part for latents."""
    return (theirs[:, : ours.shape[1]] if theirs.shape != ours.shape else theirs).float().cpu()
