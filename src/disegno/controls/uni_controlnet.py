"""Uni-ControlNet (Zhao et al. 2023, arXiv 2305.16322): any of seven local conditions at once, and a picture's content.

The local adapter is a copy of the encoder that sees x and one stack of all conditions, zeros where one is absent: units
of one file that are used alike are one evaluation. The global adapter turns what CLIP sees in a picture into tokens
behind the text, which the local adapter then reads too; the negative prompt has those of nothing seen.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import TypeVar

import torch
from diffusers import ControlNetModel
from torch import Tensor, nn

from disegno.controls._net import layers_of, open_net, run, weight_of
from disegno.controls._uni_nets import FeatureExtractor, FeatureNorm, GlobalAdapter, Modulation, extractor_of, global_of
from disegno.controls.base import Body, Condition, Control, Host, Layers, add, add_suffixes, key_of
from disegno.core.errors import KeyMismatch, RequestError, WrongFamily
from disegno.diffusion.call import Call, Suffix
from disegno.memory import Memory
from disegno.text.clip_vision import ClipVision, open_clip_vision
from disegno.weights.card import FileCard
from disegno.weights.shapes import require_shapes, sides
from disegno.weights.uni_controlnet_files import CHANNELS, CONDITIONS, CONTENT, MECHANISM, Local, read_uni

families = ("sd1", "diorama")
settings = ("clip",)  # what `open` wants of the settings

N = TypeVar("N", bound=nn.Module)


def recognises(card: FileCard) -> bool:
    """Return whether the file holds a local or a global adapter."""
    return card.mechanism == MECHANISM


@dataclass(frozen=True, eq=False)
class LocalAdapter:
    """The local adapter, open. `norms`: of each replaced norm, shallow to deep, two a level."""

    net: ControlNetModel
    extractor: FeatureExtractor
    norms: nn.ModuleDict
    fingerprint: str
    lock: Lock = field(default_factory=Lock, repr=False)

    @property
    def places(self) -> dict[str, int]:
        """Name of a replaced norm -> which of the extractor's features it reads."""
        levels = list(dict.fromkeys(name.rpartition(".")[0] for name in self.names))
        return {name: levels.index(name.rpartition(".")[0]) for name in self.names}

    @property
    def names(self) -> list[str]:
        return [name.replace("/", ".") for name in self.norms]

    def maps(self, stack: Tensor) -> dict[str, Tensor]:
        """Return what stands in the encoder's norms under these conditions, by name. stack: (b 21 h w)."""
        features = self.extractor(stack)
        maps: dict[str, Tensor] = {}
        for name, level in self.places.items():
            maps[f"{name}.gamma"], maps[f"{name}.beta"] = self.norms[name.replace(".", "/")](features[level])
        return maps


def open_local(name: str, local: Local, backbone: Body, memory: Memory, fingerprint: str = "") -> LocalAdapter:
    """Return the local adapter with these weights, frozen and placed. Raises WrongFamily, KeyMismatch."""

    def alter(net: ControlNetModel) -> None:
        for norm in local.norms:
            resnet, _, which = norm.rpartition(".")
            net.get_submodule(resnet).add_module(which, FeatureNorm())

    net = open_net(name, local.encoder, backbone, memory, alter=alter)
    first, num = "pre_extractor.0.weight", CHANNELS * len(CONDITIONS)
    if first in local.features:
        width, _, *kernel = sides(name, local.features, first, 4)
        require_shapes(name, local.features, {first: (width, num, *kernel)})
    extractor = _built(extractor_of, local.features, f"The feature extractor of {name}", memory)
    norms = {norm.replace(".", "/"): _modulation(name, norm, own, memory) for norm, own in local.norms.items()}
    return LocalAdapter(net, extractor, nn.ModuleDict(norms), fingerprint)


def _built(make: Callable[[Mapping[str, Tensor]], N], tensors: Mapping[str, Tensor], name: str, memory: Memory) -> N:
    """Return the net that `make` makes for these tensors, with them in it. Raises KeyMismatch."""

    def made() -> N:
        try:
            return make(tensors)
        except KeyError as error:
            raise KeyMismatch(f"{name} is incomplete: it has no tensor {error}. Use a complete file.") from error

    return memory.build(made, tensors, name)


def _modulation(name: str, norm: str, own: Mapping[str, Tensor], memory: Memory) -> Modulation:
    if "conv_gamma.weight" not in own:
        raise KeyMismatch(f"{name} lacks {norm}'s conv_gamma.weight. Use a complete file.")
    width, features = sides(f"{norm} of {name}", own, "conv_gamma.weight", 4)[:2]
    return memory.build(lambda: Modulation(features, width), own, f"{norm} of {name}")


@dataclass(frozen=True, eq=False)
class LocalControl:
    """Prepared local conditions. `stack`: (1 21 h w); `shown`: which of them are in it."""

    adapter: LocalAdapter
    stack: Tensor
    shown: frozenset[str]
    key: str
    sees_x: bool = True
    positive_only: bool = False

    @cached_property
    def maps(self) -> dict[str, Tensor]:
        """What stands in the encoder's norms: it depends on the conditions only."""
        with torch.no_grad():
            return self.adapter.maps(self.stack.to(weight_of(self.adapter.extractor)))

    def __call__(self, call: Call) -> Call:
        """Return the call with the adapter's residuals added; it reads the file's own content tokens, where any are."""
        maps = self.maps
        with self.adapter.lock:
            parts = [
                (index, run(self.adapter.net, call.x[index], _NO_HINT, call.t[index], tokens, maps))
                for index, tokens in self._told(call)
            ]
        if len(parts) == 1:
            return add(call, parts[0][1])
        order = torch.cat([index for index, _ in parts]).argsort()
        layers = zip(*((*own.down, own.mid) for _, own in parts), strict=True)
        down = [torch.cat(layer).index_select(0, order) for layer in layers]
        return add(call, type(parts[0][1])(tuple(down[:-1]), down[-1]))

    def _told(self, call: Call) -> list[tuple[Tensor, Tensor]]:
        """Return the rows in groups of one length of text: their places, and the tokens that the adapter reads."""
        suffixes = call.suffixes or ((),) * len(call.rows)
        told = [
            torch.cat([own, *(s.tokens.to(own) for s in more if s.source == self.adapter.fingerprint)])
            for own, more in zip(call.tokens, suffixes, strict=True)
        ]
        groups: dict[int, list[int]] = {}
        for i, tokens in enumerate(told):
            groups.setdefault(len(tokens), []).append(i)
        return [
            (torch.tensor(group, device=call.x.device), torch.stack([told[i] for i in group]))
            for group in groups.values()
        ]

    def join(self, other: Control) -> Control | None:
        """Return both as one stack; None where they are of different files, or show one condition twice."""
        if not isinstance(other, LocalControl) or other.adapter is not self.adapter or self.shown & other.shown:
            return None
        key = key_of(self.key, other.key)
        return LocalControl(self.adapter, self.stack + other.stack, self.shown | other.shown, key)


_NO_HINT = torch.zeros(())


@dataclass(frozen=True, eq=False)
class ContentControl:
    """A picture's content. `positive`, `negative`: the tokens behind the prompt and the negative prompt, (m n)."""

    positive: Suffix
    negative: Suffix
    key: str
    sees_x: bool = True  # nothing to share: the tokens are made once
    positive_only: bool = False
    adds_tokens: bool = True

    def __call__(self, call: Call) -> Call:
        """Return the call with the tokens behind every row's text."""
        return add_suffixes(call, [self.positive if row.positive else self.negative for row in call.rows])


@dataclass(frozen=True, eq=False)
class ContentAdapter:
    """The global adapter, open. `width`: of the text's tokens; `clip`: the folder of the CLIP that looks, if any."""

    name: str
    net: GlobalAdapter
    width: int
    fingerprint: str
    clip: Path | None
    memory: Memory

    @cached_property
    def vision(self) -> ClipVision:
        """The CLIP that looks at pictures, opened when it is first asked. Raises RequestError, ModelFileError."""
        if self.clip is None:
            raise RequestError(
                f"{self.name}: to see a picture's content it needs the CLIP that it was trained with. Name its folder"
                " in the setting clip (DISEGNO_CLIP=clip-vit-large-patch14), or leave out task=content."
            )
        vision, wanted = open_clip_vision(self.clip, self.memory), self.net.norm1.normalized_shape[0]
        if vision.width != wanted:
            raise WrongFamily(
                f"{self.name} reads {wanted} numbers of a picture; {self.clip.name} gives {vision.width}."
                " Use openai/clip-vit-large-patch14."
            )
        return vision

    @torch.no_grad()
    def control(self, seen: Tensor, key: str) -> ContentControl:
        """Return the control for what CLIP saw, (1 d)."""
        both = torch.cat([seen, torch.zeros_like(seen)]).to(weight_of(self.net))
        tokens = self.net(both).reshape(2, -1, self.width)  # positive and negative, m n
        source = self.fingerprint
        return ContentControl(Suffix(tokens[0], source), Suffix(tokens[1], source), key_of(source, CONTENT, key))


@dataclass(frozen=True)
class UniController:
    """The adapters of one file."""

    name: str
    annotator: str | None
    local: LocalAdapter | None
    content: ContentAdapter | None
    tasks: Mapping[str, str | None]
    fingerprint: str

    def layers(self, task: str) -> Layers | None:
        """Return what a unit's layers weigh; nothing of a picture's content, which acts by the text."""
        return None if task == CONTENT or self.local is None else layers_of(self.local.net)

    def prepare(self, condition: Condition) -> Control:
        """Return the control for one condition, `condition.task`."""
        if condition.task == CONTENT:
            assert self.content is not None, "tasks names what the file has"
            return self.content.control(self.content.vision.seen(condition.image), condition.key)
        assert self.local is not None
        place, num = list(CONDITIONS).index(condition.task) * CHANNELS, CHANNELS * len(CONDITIONS)
        stack = condition.image.new_zeros(1, num, *condition.image.shape[2:])
        stack[:, place : place + CHANNELS] = condition.image
        key = key_of(MECHANISM, self.fingerprint, condition.task, condition.key)
        return LocalControl(self.local, stack, frozenset((condition.task,)), key)


def open(path: Path, backbone: Host, memory: Memory, clip: Path | None = None) -> UniController:
    """Return the adapters in this file. `clip`: a folder with the CLIP that looks at pictures, for their content.

    Raises WrongFamily, KeyMismatch, CorruptFile.
    """
    file = read_uni(path)
    local = file.local and open_local(path.name, file.local, backbone, memory, file.sha256)
    width = int(getattr(backbone.net, "config", {})["cross_attention_dim"])
    content = None
    if (tensors := file.content) is not None:
        if len(tensors.get("ff2.net.2.weight", ())) % width:
            raise WrongFamily(
                f"{path.name}: its content tokens are not as wide as the text of {backbone.name} ({width})."
                f" Choose a file for {backbone.family}."
            )
        net = _built(global_of, tensors, f"The global adapter of {path.name}", memory)
        content = ContentAdapter(path.name, net, width, file.sha256, clip, memory)
    told = file.words.get("disegno.tasks", "").split()
    tasks = {name: annotator for name, annotator in CONDITIONS.items() if local and (not told or name in told)}
    if content is not None:
        tasks[CONTENT] = None
    return UniController(path.stem, file.words.get("disegno.annotator"), local, content, tasks, file.sha256)
