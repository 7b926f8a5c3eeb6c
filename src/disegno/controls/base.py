"""What a control is: `open` once a process, `prepare` once a generation, a frozen Control once a step.

A mechanism is one module in this folder (or of another package, by the entry point group `disegno.controls`) with

    families: tuple[str, ...]                                 the backbones it can serve
    def recognises(card: FileCard) -> bool                    is this file of this mechanism?
    def open(path, backbone, memory, **parts) -> Controller   its weights, once a process

`parts`: what else the mechanism needs, already open (a CtrLoRA condition: `base`). A control is written at full
strength, for every row that it is given: strength, span and mode are put around it by `strength.py`.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from disegno.core.errors import RequestError
from disegno.core.request import ControlUnit
from disegno.diffusion.call import Call, ImagePrompt, Residuals, Suffix


@dataclass(frozen=True)
class Condition:
    """What a controller is shown: the condition at the size of the canvas, and its name by content."""

    image: Tensor  # 1 3 h w, float32, RGB in [0, 1]
    key: str  # sha256 of the pixels
    mask: Tensor | None = None  # 1 1 h w, 1 where a control that inpaints is to fill; None: nowhere
    task: str = ""  # which of a control's conditions it is, where the control knows several


class Body(Protocol):
    """What a control's net must fit; every Backbone is one."""

    @property
    def family(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def net(self) -> nn.Module: ...
    @property
    def fingerprint(self) -> str: ...


class Host(Body, Protocol):
    """What a control asks of the backbone that it serves; every Backbone is one."""

    def encode_image(self, images: Tensor) -> Tensor: ...


class States(Protocol):
    """Text states, by a backbone's text encoder: (b n d)."""

    @property
    def tokens(self) -> Tensor: ...


class ReadingHost(Host, Protocol):
    """A backbone whose text encoder a control asks too; every Backbone is one."""

    def encode_text(self, prompts: Sequence[str]) -> States: ...


class Control(Protocol):
    """One prepared condition: `Call -> Call`, at full strength."""

    @property
    def sees_x(self) -> bool:
        """False: what it adds depends on condition, t, text and what SDXL is told besides: it is shared over seeds."""
        ...

    @property
    def key(self) -> str:
        """Names weights and condition by content: with (t, text) the key of what it adds, where `sees_x` is false."""
        ...

    @property
    def positive_only(self) -> bool:
        """True: acts on the rows of the positive prompt only (models with global average pooling)."""
        ...

    def __call__(self, call: Call) -> Call:
        """Return the call with this control's residuals (or tokens, or net) added."""
        ...


@runtime_checkable
class Joining(Protocol):
    """A control that is evaluated once with others of its file, as it was trained to be."""

    def join(self, other: Control) -> Control | None:
        """Return both as one control, or None where they are not of one file, or show the same condition twice."""
        ...


@runtime_checkable
class Mixing(Protocol):
    """A control that can be evaluated once for the weighted mean of several conditions' features."""

    def mixed(self, others: Sequence[Control], weights: Sequence[float]) -> Control | None:
        """Return this one and the others as one, by these weights; None where they are not of one file."""
        ...


@runtime_checkable
class ManyTasks(Protocol):
    """A controller that knows several conditions: which one a picture is, is said by `Condition.task`.

    `tasks`: their names, each with the annotator of this program that makes it, where there is one.
    """

    @property
    def tasks(self) -> Mapping[str, str | None]: ...


@runtime_checkable
class Looking(Protocol):
    """A controller that looks at a picture as a whole: it is shown it in its own size, not fitted to the canvas."""

    @property
    def looks(self) -> bool: ...


@dataclass(frozen=True)
class Layers:
    """How many weights a unit's `layers` are; what they weigh, with the number in it; and in which order they stand.

    `stacks`: fewer of them may be given, one for each stack of layers; 0: no.
    """

    num: int
    what: str = "adds {} residuals to this model"
    order: str = "shallow to deep, the middle last"
    stacks: int = 0

    def require(self, given: Sequence[float], name: str = "") -> None:
        """Raise RequestError where there are more weights or fewer."""
        if len(given) not in (self.num, self.stacks or self.num):
            raise RequestError(
                f"{f'The control {name!r}' if name else 'A control'} was given {len(given)} layer weights, but"
                f" {self.what.format(self.num)}. Give {self.stacks or self.num}, {self.order}."
            )


def block_of(layer: str) -> str:
    """Return the name of the block that a layer stands in, of an attention its transformer: SDXL's 70 are in 11."""
    parts = layer.split(".")
    return ".".join(parts[: 3 if parts[0] == "mid_block" else 4])


_ORDER = "the encoder's, the decoder's, the middle's last"
_PARTS = ("down_blocks", "up_blocks", "mid_block")


def in_order(layers: Iterable[str]) -> list[str]:
    """Return those of the encoder, of the decoder, of the middle; what stands elsewhere is left out."""
    kept = [name for name in layers if name.startswith(_PARTS)]
    return sorted(kept, key=lambda name: _PARTS.index(name.partition(".")[0]))


def block_layers(names: Iterable[str]) -> Layers:
    """Return the layers of what acts within the blocks that layers of these names stand in."""
    return Layers(len({block_of(name) for name in names}), "adds to {} blocks of this model", _ORDER)


def attention_layers(names: Iterable[str]) -> Layers:
    """Return the layers of what is read by the cross-attentions of these names."""
    names = list(names)
    return Layers(
        len(names), "{} cross-attentions of this model read it", _ORDER, len({block_of(name) for name in names})
    )


@runtime_checkable
class Layered(Protocol):
    """A controller whose layers may be weighed one by one."""

    def layers(self, task: str) -> Layers | None:
        """Return what `layers` of a unit are; None where its task has none."""
        ...


class Controller(Protocol):
    """A control's weights, open in memory, for one backbone."""

    @property
    def name(self) -> str: ...
    @property
    def annotator(self) -> str | None:
        """The annotator that its training used, if it is known."""
        ...

    def prepare(self, condition: Condition) -> Control:
        """Return the control for one condition."""
        ...


def add(call: Call, residuals: Residuals) -> Call:
    """Return the call with these residuals beside those that it has."""
    return replace(call, residuals=residuals if call.residuals is None else call.residuals + residuals)


def add_suffixes(call: Call, own: Sequence[Suffix]) -> Call:
    """Return the call with a suffix behind each row's text, beside those that it has."""
    before = call.suffixes or ((),) * len(call.rows)
    return replace(call, suffixes=tuple((*some, one) for some, one in zip(before, own, strict=True)))


def add_image_prompts(call: Call, own: Sequence[ImagePrompt]) -> Call:
    """Return the call with an image prompt for each row, beside those that it has."""
    before = call.image_prompts or ((),) * len(call.rows)
    return replace(call, image_prompts=tuple((*some, one) for some, one in zip(before, own, strict=True)))


def in_vain(unit: ControlUnit, fields: Collection[str], params: Collection[str]) -> list[str]:
    """Return what a unit says that means nothing to its control: of these fields, and all but these parameters."""
    given = {
        "annotate": (unit.annotate or "none").lower() != "none",
        "mode": unit.mode != "balanced",
        "region": unit.region is not None,
        "layers": bool(unit.layers),
        "mix": unit.mix,
        "base": unit.base is not None,
    }
    return [name for name in fields if given[name]] + [name for name in unit.params if name not in params]


def key_of(*parts: str) -> str:
    """Return one name for all of these contents together, sha256 in hex."""
    return sha256("\n".join(parts).encode()).hexdigest()
