"""ControlNet (Zhang et al. 2023): a copy of the encoder that sees the noisy latent and an image of the condition.

Opens v1.0 checkpoints (Stable Diffusion inside), v1.1 files, extracted ones with or without their prefix,
"difference" files (the open model's encoder is added), diffusers files and folders, of any depth and width.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import ControlNetModel
from torch import Tensor, nn

from disegno.controls._net import layers_of, open_net, run, weight_of
from disegno.controls.base import Body, Condition, Host, Layers, add, key_of
from disegno.core.errors import KeyMismatch, UnknownKind
from disegno.diffusion.call import Call, Residuals
from disegno.diffusion.patches import with_pooled
from disegno.memory import Memory
from disegno.weights.card import FileCard
from disegno.weights.json_table import read_json
from disegno.weights.keys.control import DIFFERENCE_MARK, HINT_PREFIX, control_keys, diffusers_names
from disegno.weights.parts import told_of, weights_of
from disegno.weights.shapes import require_shapes, sides

log = logging.getLogger(__name__)

_COLOURS = 3  # of the picture that a hint block is shown
families = ("sd1", "sd2", "sdxl", "diorama")


def recognises(card: FileCard) -> bool:
    """Return whether the file is a ControlNet."""
    return card.mechanism == "controlnet" and card.family != "sd3"


@dataclass(frozen=True)
class ControlNet:
    """A prepared ControlNet. `hint`: the condition's features, (1 c h/8 w/8): they depend on nothing else."""

    net: ControlNetModel
    hint: Tensor
    key: str
    positive_only: bool
    sees_x: bool = True

    def __call__(self, call: Call) -> Call:
        """Return the call with this control's residuals added."""
        residuals = run(self.net, call.x, self.hint, call.t, with_pooled(call.tokens, call.pooled))
        return add(call, _averaged(residuals) if self.positive_only else residuals)


def _averaged(residuals: Residuals) -> Residuals:
    """Return each residual's mean over space, at every place. A1111 parity: global average pooling (shuffle models)."""
    down = tuple(d.mean(dim=(2, 3), keepdim=True).expand_as(d) for d in residuals.down)
    return Residuals(down, residuals.mid.mean(dim=(2, 3), keepdim=True).expand_as(residuals.mid))


@dataclass(frozen=True)
class ControlNetController:
    """A ControlNet's weights. `stem`: image (1 3 h w) -> features (1 c h/8 w/8); `bgr`: it wants blue first."""

    name: str
    annotator: str | None
    net: ControlNetModel
    stem: nn.Module
    averages: bool
    bgr: bool
    fingerprint: str

    def layers(self, task: str) -> Layers:
        """Return what a unit's layers weigh."""
        return layers_of(self.net)

    def prepare(self, condition: Condition) -> ControlNet:
        """Return the control for one condition."""
        image = condition.image if condition.mask is None else _holed(condition.image, condition.mask)
        image = image.flip(1) if self.bgr else image
        hint = self.stem(image.to(weight_of(self.stem)))
        return ControlNet(self.net, hint, key_of("controlnet", self.fingerprint, condition.key), self.averages)


def _holed(image: Tensor, mask: Tensor) -> Tensor:
    """Return the image with -1 in its hole, (1 3 h w): what ControlNet 1.1's inpainting model was trained with."""
    return torch.where(mask > 0.5, -1.0, image)


def open(path: Path, backbone: Host, memory: Memory) -> ControlNetController:
    """Return the ControlNet in this file or folder. Raises UnknownKind, WrongFamily, KeyMismatch, CorruptFile."""
    whole = open_whole(path, backbone, memory)
    stem = whole.net.controlnet_cond_embedding
    whole.net.add_module("controlnet_cond_embedding", nn.Identity())
    return ControlNetController(
        name=path.stem,
        annotator=whole.words.get("disegno.annotator"),
        net=memory.pack(whole.net),
        stem=stem,
        averages=bool(whole.config.get("global_pool_conditions"))
        or "shuffle" in path.stem.lower(),  # A1111 parity: by the name
        bgr=whole.config.get("controlnet_conditioning_channel_order") == "bgr",
        fingerprint=whole.fingerprint,
    )


@dataclass(frozen=True)
class Whole:
    """A ControlNet with its hint block, as its file has it. `words`: of the header."""

    net: ControlNetModel
    config: Mapping[str, object]
    words: Mapping[str, str]
    fingerprint: str


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
    if not any(name.startswith(HINT_PREFIX) for name in names.values()):
        raise UnknownKind(
            f"{file_name} has no hint block: it is no ControlNet. A CtrLoRA base is opened with a condition."
        )
    tensors = {names[name]: read[key] for key, name in own.items() if name in names}
    first = f"{HINT_PREFIX}conv_in.weight"
    if first in tensors and (shape := sides(file_name, tensors, first, 4))[1] != _COLOURS:
        require_shapes(file_name, tensors, {first: (shape[0], _COLOURS, *shape[2:])})
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
