"""CtrLoRA-XL, the published CtrLoRA for SDXL: another rule than CtrLoRA's, so that neither opens the other's files.

Its net sees the noisy latent, and beside it the condition's: conv_in(x) + conv_in_condition(VAE latent). The VAE is
shown the condition in [-1, 1], as pictures are. The original draws from the posterior; here its mode is taken.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from threading import Lock
from weakref import WeakValueDictionary

import torch
from diffusers import ControlNetModel
from torch import Tensor
from torch.nn import functional as F

from disegno.controls._net import layers_of, open_net, run, weight_of
from disegno.controls.base import Condition, Host, Layers, add, key_of
from disegno.core.errors import KeyMismatch
from disegno.diffusion.call import Call
from disegno.diffusion.patches import with_pooled
from disegno.memory import Memory
from disegno.weights.card import FileCard
from disegno.weights.ctrlora_xl_files import CONV, MECHANISM, SCALE, Pair, XlFile, read_xl

families = ("sdxl",)


def recognises(card: FileCard) -> bool:
    """Return whether the file is a CtrLoRA-XL."""
    return card.mechanism == MECHANISM


@dataclass(frozen=True, eq=False)
class Merged:
    """A condition's matrices in the net's weights, shared by all of its controls that live: parts of a canvas, say."""

    net: ControlNetModel
    pairs: Mapping[str, Pair]

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """What stands in for the net's weights, by name: merged when first used, freed with the last control."""
        return {f"{module}.weight": _merged(self.net, module, pair) for module, pair in self.pairs.items()}


@dataclass(frozen=True, eq=False)
class CtrLoraXl:
    """A prepared condition. `hint`: of its latents, (1 c h/8 w/8): it depends on nothing else."""

    net: ControlNetModel
    merged: Merged
    hint: Tensor
    key: str
    lock: Lock
    sees_x: bool = True
    positive_only: bool = False

    def __call__(self, call: Call) -> Call:
        """Return the call with this control's residuals added."""
        tokens, chosen = with_pooled(call.tokens, call.pooled), [row.told for row in call.rows]
        with self.lock:
            return add(call, run(self.net, call.x, self.hint, call.t, tokens, self.merged.weights, chosen))


@dataclass(frozen=True)
class CtrLoraXlController:
    """The net, open. `live`: task -> its matrices in the net's weights, while a control of it lives."""

    name: str
    net: ControlNetModel
    file: XlFile
    backbone: Host
    lock: Lock = field(default_factory=Lock, repr=False, compare=False)
    live: WeakValueDictionary[str, Merged] = field(
        default_factory=WeakValueDictionary[str, Merged], repr=False, compare=False
    )
    annotator: str | None = None

    @property
    def tasks(self) -> Mapping[str, str | None]:
        return self.file.tasks

    def layers(self, task: str) -> Layers:
        """Return what a unit's layers weigh: the residuals."""
        return layers_of(self.net)

    def prepare(self, condition: Condition) -> CtrLoraXl:
        """Return the control for one condition, `condition.task`."""
        image = condition.image if condition.mask is None else condition.image * (1 - condition.mask)  # a black hole
        latent = self.backbone.encode_image(image * 2 - 1)
        like = weight_of(self.net)
        conv = {name: tensor.to(like) for name, tensor in self.file.conv.items()}
        hint = F.conv2d(latent.to(like), conv["weight"], conv["bias"], padding=1)  # 1 4 h w -> 1 c h w
        key = key_of(MECHANISM, self.file.fingerprint, self.backbone.fingerprint, condition.task, condition.key)
        shared = self.live.get(condition.task) or Merged(self.net, self.file.pairs[condition.task])
        self.live[condition.task] = shared
        return CtrLoraXl(self.net, shared, hint, key, self.lock)


def _merged(net: ControlNetModel, module: str, pair: Pair) -> Tensor:
    """Return a module's weight with its matrices in it: W + 2 B A, in float32, then in the net's dtype."""
    weight = net.get_parameter(f"{module}.weight").detach()
    down, up = (pair[half].to(weight.device, torch.float32) for half in ("A", "B"))
    return torch.addmm(weight.float(), up, down, alpha=SCALE).to(weight.dtype)


def open(path: Path, backbone: Host, memory: Memory) -> CtrLoraXlController:
    """Return the CtrLoRA-XL in this file or folder. Raises UnknownKind, WrongFamily, KeyMismatch, CorruptFile."""
    file = read_xl(path)
    net = memory.pack(open_net(path.name, file.net, backbone, memory), linears=False)
    _check_fits(path.name, file, net)
    return CtrLoraXlController(path.stem, net, file, backbone)


def _check_fits(name: str, file: XlFile, net: ControlNetModel) -> None:
    """Raise KeyMismatch where what is beside the net does not belong to it."""
    width, channels = net.config["block_out_channels"][0], net.config["in_channels"]
    found = {part: tuple(tensor.shape) for part, tensor in file.conv.items()}
    if found != {"weight": (width, channels, 3, 3), "bias": (width,)}:
        raise KeyMismatch(f"{name} has a {CONV} of another kind: {found}. Fetch it again.")
    shapes = {key: tuple(tensor.shape) for key, tensor in net.state_dict().items()}
    for task, pairs in file.pairs.items():
        for module, pair in pairs.items():
            both = (pair["B"].shape[0], pair["A"].shape[1])
            if shapes.get(f"{module}.weight") != both or pair["B"].shape[1] != pair["A"].shape[0]:
                raise KeyMismatch(f"{name}: the matrices of {task} do not fit {module}. Fetch the file again.")
