"""UniControl (Qin et al. 2023, arXiv 2305.11147): one ControlNet for thirteen tasks, each with a stem of its own.

Both published files (v1.0, v1.1) have one layout and two forwards; both are loaded by the authors' own programs with
v1.0's, which is the default here. A header word `disegno.forward` of v1.1 chooses the other.

Several tasks at once: each is evaluated by itself and weighed by its strength, as other controls are; or, for units
that say `mix`, once for the weighted mean of the stems' features. (The authors describe that in an answer, issue 10 of
salesforce/UniControl, without a program; their concatenated instructions change nothing, see `_modulation`.)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import cast, get_args

import torch
from diffusers import ControlNetModel
from torch import Tensor

from disegno.controls._modulation import HintBlock, Version, folded_hint, folded_zeros, scales
from disegno.controls._net import layers_of, open_net, run, weight_of
from disegno.controls.base import Condition, Control, Layers, ReadingHost, add, key_of
from disegno.core.errors import UnknownKind, WrongFamily
from disegno.diffusion.call import Call
from disegno.memory import Memory
from disegno.weights.card import FileCard
from disegno.weights.unicontrol_files import MECHANISM, TASKS, UniControlFile, read_unicontrol, tasks_in

families = ("sd1", "diorama")

DEFAULT: Version = "v1.0"


def recognises(card: FileCard) -> bool:
    """Return whether the file is a UniControl."""
    return card.mechanism == MECHANISM


@dataclass(frozen=True, eq=False)
class UniControl:
    """A prepared condition. `features`: of its task's stem, (1 32 h/2 w/2); `block`: what makes a hint of them."""

    net: ControlNetModel
    block: HintBlock
    features: Tensor
    key: str
    sees_x: bool = True
    positive_only: bool = False

    @cached_property
    def hint(self) -> Tensor:
        """What is added to x, (1 c h/8 w/8): it depends on nothing else."""
        with torch.no_grad():
            return self.block.shared(self.features)

    def __call__(self, call: Call) -> Call:
        """Return the call with this control's residuals added."""
        return add(call, run(self.net, call.x, self.hint, call.t, call.tokens))

    def mixed(self, others: Sequence[Control], weights: Sequence[float]) -> Control | None:
        """Return all as one: the weighted mean of the stems' features. None where they are not of one file."""
        own = [self, *(other for other in others if isinstance(other, UniControl) and other.net is self.net)]
        if len(own) <= len(others):
            return None
        shares = [weight / sum(weights) for weight in weights]
        parts = [one.features * share for one, share in zip(own, shares, strict=True)]
        key = key_of("mixed", *(part for one, share in zip(own, shares, strict=True) for part in (one.key, f"{share}")))
        return UniControl(self.net, self.block, torch.stack(parts).sum(dim=0), key)


@dataclass(frozen=True)
class UniControlController:
    """The net, its modulation folded in. `file`: what the stems are made of, when a task is first asked for."""

    name: str
    annotator: str | None
    net: ControlNetModel
    file: UniControlFile
    factors: Mapping[str, Tensor]
    version: Version
    tasks: Mapping[str, str | None]
    fingerprint: str
    memory: Memory
    blocks: dict[str, HintBlock] = field(default_factory=dict[str, HintBlock], repr=False)

    def layers(self, task: str) -> Layers:
        """Return what a unit's layers weigh."""
        return layers_of(self.net)

    def prepare(self, condition: Condition) -> UniControl:
        """Return the control for one condition, `condition.task`."""
        block = self.block(condition.task)
        image = condition.image if condition.mask is None else condition.image * (1 - condition.mask)  # a black hole
        with torch.no_grad():
            features = block.stem(image.to(weight_of(block)))
        key = key_of(MECHANISM, self.fingerprint, condition.task, condition.key)
        return UniControl(self.net, block, features, key)

    def block(self, task: str) -> HintBlock:
        """Return the hint block of a task."""
        if task not in self.blocks:
            weights = folded_hint(self.file.own, self.factors, list(TASKS).index(task), self.version)
            block = HintBlock({name: weight.float() for name, weight in weights.items()})
            self.blocks[task] = self.memory.place(block).requires_grad_(False)
        return self.blocks[task]


def open(path: Path, backbone: ReadingHost, memory: Memory) -> UniControlController:
    """Return the UniControl in this file. Raises UnknownKind, WrongFamily, KeyMismatch, CorruptFile."""
    file = read_unicontrol(path)
    version = forward_of(path.name, file.words)
    feature = backbone.encode_text([""]).tokens[0, 0].float().cpu()
    return fold(path.stem, file, feature, version, backbone, memory)


def forward_of(name: str, words: Mapping[str, str]) -> Version:
    """Return the forward that a file's header chooses, v1.0 where it says nothing. Raises UnknownKind."""
    told = words.get("disegno.forward", DEFAULT)
    if told not in get_args(Version):
        raise UnknownKind(f"{name} wants the forward {told!r}; known are {', '.join(get_args(Version))}.")
    return cast(Version, told)


def fold(
    name: str, file: UniControlFile, feature: Tensor, version: Version, backbone: ReadingHost, memory: Memory
) -> UniControlController:
    """Return the control net for a task feature, (d)."""
    own = {key: tensor.float() for key, tensor in file.own.items()}
    wanted = own["task_id_hypernet.0.weight"].shape[1]
    if len(feature) != wanted:
        raise WrongFamily(
            f"{name} reads text states of width {wanted}, those of {backbone.name} ({backbone.family}) are"
            f" {len(feature)} wide. Choose a UniControl that was made for {backbone.family}."
        )
    factors = scales(own, feature)
    encoder = {key: tensor.float() for key, tensor in file.encoder.items()}
    net = open_net(name, {**file.encoder, **folded_zeros(encoder, factors)}, backbone, memory)
    told = file.words.get("disegno.tasks", "").split()
    tasks = {task: TASKS[task] for task in tasks_in(own) if not told or task in told}
    return UniControlController(
        name,
        file.words.get("disegno.annotator"),
        memory.pack(net),
        UniControlFile({}, own, file.words, file.sha256),
        factors,
        version,
        tasks,
        key_of(file.sha256, version),
        memory,
    )
