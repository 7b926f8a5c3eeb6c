"""CtrLoRA (Xu et al. 2024, arXiv 2410.09400): one Base ControlNet for all conditions, and for each condition LoRA
matrices, its own zero convolutions and its own transformer norms.

The net is f(VAE latent of the condition, t, text): it has no hint block and never sees the noisy latent. The VAE is
shown the condition in [0, 1], not [-1, 1]: that is what the published weights were trained with. The original draws
from the posterior anew at every step; here its mode is taken once.

Under Stable Diffusion 3 the net is some of the transformer's blocks, and the zero convolutions are linear: `_joint.py`.

The base is opened once and never changes: a condition's weights stand in for the base's own during a call, and are gone
after it.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from threading import Lock
from weakref import WeakValueDictionary

import torch
from diffusers import ControlNetModel, SD3Transformer2DModel
from torch import Tensor, nn

from disegno.controls._joint import JointControl, open_joint
from disegno.controls._net import layers_of, open_net, run
from disegno.controls.base import Body, Condition, Host, Layers, add, key_of
from disegno.core.errors import KeyMismatch, RequestError, WrongFamily
from disegno.diffusion.call import Call, Residuals
from disegno.diffusion.patches import with_pooled
from disegno.diffusion.told import Told
from disegno.memory import Memory
from disegno.weights.card import FileCard
from disegno.weights.ctrlora_files import (
    FULL_MECHANISM,
    MECHANISM,
    ConditionFile,
    ConditionInfo,
    Part,
    read_base,
    read_condition,
)
from disegno.weights.keys.control import is_transformer_norm, is_zero_conv, lora_names

log = logging.getLogger(__name__)

families = ("sd1", "sd2", "sdxl", "sd3", "diorama")

_NO_HINT = torch.zeros(())


def recognises(card: FileCard) -> bool:
    """Return whether the file is a CtrLoRA condition; its base is opened by `open_base`."""
    return card.mechanism in (MECHANISM, FULL_MECHANISM)


def brings_base(card: FileCard) -> bool:
    """Return whether the file is a condition and its base in one: a Base ControlNet that was taught as a whole."""
    return card.mechanism == FULL_MECHANISM


@dataclass(frozen=True)
class Base:
    """A Base ControlNet, open. `modules`: its linear modules; `own`: its zero convolutions and transformer norms."""

    name: str
    sha256: str
    net: ControlNetModel | JointControl
    modules: tuple[str, ...]
    own: Mapping[str, Tensor]
    lock: Lock = field(default_factory=Lock, repr=False, compare=False)

    def residuals(
        self, weights: Mapping[str, Tensor], latent: Tensor, t: Tensor, tokens: Tensor, chosen: Sequence[Told] = ()
    ) -> Residuals:
        """Return the residuals with a condition's weights in place. latent: (b c h w), t: b, tokens: (b n d).

        `chosen`: what SDXL's is told of each row; none: the usual.
        """
        with self.lock:
            return run(self.net, latent, _NO_HINT, t, tokens, weights, chosen)


def open_base(path: Path, backbone: Body, memory: Memory) -> Base:
    """Return the Base ControlNet in this file. Raises UnknownKind, WrongFamily, KeyMismatch."""
    file = read_base(path)
    if isinstance(backbone.net, SD3Transformer2DModel):
        return base_of(file.name, file.sha256, open_joint(path.name, file.tensors, backbone.net, memory))
    net = memory.pack(open_net(path.name, file.tensors, backbone, memory, file.config), linears=False)
    return base_of(file.name, file.sha256, net)


def base_of(name: str, sha256: str, net: ControlNetModel | JointControl) -> Base:
    """Return the Base ControlNet that this net is."""
    linear = (name for name, module in net.named_modules() if isinstance(module, nn.Linear))
    modules = tuple(name for name in linear if not is_zero_conv(f"{name}.weight") and not _is_idle(net, name))
    own = {name: t for name, t in net.state_dict().items() if is_zero_conv(name) or is_transformer_norm(name)}
    own = {name: tensor for name, tensor in own.items() if not _is_idle(net, name)}
    return Base(name, sha256, net, modules, own)


def _is_idle(net: nn.Module, name: str) -> bool:
    return isinstance(net, JointControl) and net.is_idle(name)


@dataclass(frozen=True)
class Applied:
    """How much of a condition file found its place: `num_applied` of the file's `num_modules` pairs of matrices."""

    num_applied: int
    num_modules: int


@dataclass(frozen=True, eq=False)
class Merged:
    """A condition's weights on its base, shared by all of its controls that live: parts of one canvas, say."""

    base: Base
    tensors: Mapping[str, Tensor]

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """What stands in for the base's weights, by name: merged when first used, freed with the last control."""
        return merged(self.base, self.tensors)


@dataclass(frozen=True)
class CtrLora:
    """A prepared condition. `latent`: what the VAE makes of it, (1 c h/8 w/8)."""

    base: Base
    merged: Merged
    latent: Tensor
    key: str
    sees_x: bool = False
    positive_only: bool = False

    def __call__(self, call: Call) -> Call:
        """Return the call with this control's residuals added."""
        assert self.latent.shape[-2:] == call.x.shape[-2:], f"condition {self.latent.shape}, canvas {call.x.shape}"
        latent = self.latent.expand(len(call.rows), -1, -1, -1)  # 1 c h w -> b c h w
        tokens, chosen = with_pooled(call.tokens, call.pooled), [row.told for row in call.rows]
        return add(call, self.base.residuals(self.merged.weights, latent, call.t, tokens, chosen))


def merged(base: Base, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the base's weights with a condition merged in: W + up down, in float32, then in the base's dtype.

    Merging costs as much as the matrices' own share of one evaluation of one row (SD 1.x, rank 128, 512 px: 33 GFLOP),
    so it pays from the second on. The base itself is only read.
    """
    weights = {name: tensors[name].to(own) for name, own in base.own.items()}
    for module in base.modules:
        down, up = lora_names(module)
        if down in tensors:
            weight = base.net.get_parameter(f"{module}.weight").detach()
            matrices = [tensors[name].to(weight.device, torch.float32) for name in (up, down)]
            weights[f"{module}.weight"] = torch.addmm(weight.float(), *matrices).to(weight.dtype)
    return weights


@dataclass(frozen=True)
class CtrLoraController:
    """A condition's weights, open: as the file has them until a control is called. `warnings`: in plain words."""

    base: Base
    tensors: Mapping[str, Tensor]
    info: ConditionInfo
    applied: Applied
    fingerprint: str
    backbone: Host
    warnings: tuple[str, ...] = ()
    live: WeakValueDictionary[str, Merged] = field(
        default_factory=WeakValueDictionary[str, Merged], repr=False, compare=False
    )

    @property
    def name(self) -> str:
        return self.info.name

    @property
    def annotator(self) -> str | None:
        return self.info.annotator

    def layers(self, task: str) -> Layers:
        """Return what a unit's layers weigh; under Stable Diffusion 3 the model's blocks, but for the last."""
        net = self.base.net
        return Layers(net.num_blocks - 1) if isinstance(net, JointControl) else layers_of(net)

    def prepare(self, condition: Condition) -> CtrLora:
        """Return the control for one condition."""
        image = condition.image if condition.mask is None else condition.image * (1 - condition.mask)  # a black hole
        latent = self.backbone.encode_image(image)  # in [0, 1]: see above
        key = key_of("ctrlora", self.base.sha256, self.fingerprint, self.backbone.fingerprint, condition.key)
        shared = self.live.get(self.fingerprint) or Merged(self.base, self.tensors)
        self.live[self.fingerprint] = shared
        return CtrLora(self.base, shared, latent, key)


def open(
    path: Path, backbone: Host, memory: Memory, base: Base | None = None, task: str | None = None
) -> CtrLoraController:
    """Return the condition in this file, on its open base. `task`: of a pretraining checkpoint with several conditions.

    Raises RequestError without a base, KeyMismatch where nothing of the file would apply or it would silently give no
    control, WrongFamily where it was made for another family or base.
    """
    if base is None:
        raise RequestError(
            f"{path.name} is a CtrLoRA condition: name its Base ControlNet (base), or put it in the library."
        )
    file = read_condition(path, task)
    if file.info.family not in (None, backbone.family):
        raise WrongFamily(
            f"{path.name} is for {file.info.family}, the open model is {backbone.family}. "
            f"Choose a condition for {backbone.family} or a model of {file.info.family}."
        )
    tensors, applied = _fitted(path.name, file, base)
    warnings = tuple(_doubts(path.name, file, applied, base))
    for warning in warnings:
        log.warning(warning)
    log.info("%s: %d of %d LoRA modules applied", path.name, applied.num_applied, applied.num_modules)
    fingerprint = key_of(file.sha256, task or "")
    return CtrLoraController(base, tensors, file.info, applied, fingerprint, backbone, warnings)


def _doubts(name: str, file: ConditionFile, applied: Applied, base: Base) -> Iterator[str]:
    """Yield what may make the condition work less well than it could."""
    if applied.num_applied < applied.num_modules:
        yield f"{name}: only {applied.num_applied} of its {applied.num_modules} LoRA modules are in {base.name}."
    info = file.info
    if not file.is_whole and info.base_sha256 not in (None, base.sha256):
        yield f"{name} was taught on another base ({info.base_sha256:.12}) than {base.name} ({base.sha256:.12})."


def _fitted(name: str, file: ConditionFile, base: Base) -> tuple[dict[str, Tensor], Applied]:
    """Return the condition's tensors for this base, complete, and how many of its LoRA modules the base has."""
    if file.is_whole:
        return dict(base.own), Applied(0, 0)
    shapes = _shapes(base, file.tensors)
    known = {key: tensor for key, tensor in file.tensors.items() if key in shapes}
    wrong = [f"{key} is {tuple(t.shape)}, expected {shapes[key]}" for key, t in known.items() if t.shape != shapes[key]]
    if wrong:
        faults = "; ".join(wrong[:4])
        raise KeyMismatch(f"{name} does not fit {base.name}: {faults} ({len(wrong)} in all). Use its own base.")
    left = {key: t for key, t in base.own.items() if _part(key) in file.info.from_base}
    if missing := sorted(shapes.keys() - known.keys() - left.keys()):
        raise KeyMismatch(
            f"{name} lacks {len(missing)} of its tensors ({', '.join(missing[:3])} ...). Without zero convolutions it "
            "would silently give no control. Use a complete file, or one whose header leaves them to the base "
            "(disegno.from_base)."
        )
    num_modules = sum(key.endswith(".down.weight") for key in file.tensors)
    applied = Applied(sum(lora_names(module)[0] in known for module in base.modules), num_modules)
    if not applied.num_applied:
        raise KeyMismatch(f"{name} applies to none of {base.name}'s {len(base.modules)} modules. Use its own base.")
    return left | known, applied


def _part(name: str) -> Part:
    return "zero_convs" if is_zero_conv(name) else "norms"


def _shapes(base: Base, tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the shape that each tensor of a condition must have on this base; a LoRA pair's rank is its `down`'s."""
    shapes = {name: tuple(own.shape) for name, own in base.own.items()}
    for module in base.modules:
        down, up = lora_names(module)
        if down in tensors or up in tensors:
            rank = len(tensors[down]) if down in tensors else 0
            out_width, in_width = base.net.get_parameter(f"{module}.weight").shape
            shapes[down], shapes[up] = (rank, in_width), (out_width, rank)
    return shapes
