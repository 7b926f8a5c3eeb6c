"""How strongly, when, and on which prompt a control acts: the wrapper that the engine puts around any Control.

A strength multiplies what a control adds, whichever way it acts: its residuals, its tokens behind the text, what the
cross-attentions read of it, what is added to what layers are given, or what its net beside the model's adds to each
block. Of a reference it is how much of the
net takes it up, of a correction how much of it is made.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from disegno.controls.base import Control, Joining, Layers, Mixing, attention_layers, block_layers, block_of
from disegno.core.curve import Point, parse_curve, value_at
from disegno.core.request import ControlMode, ControlUnit
from disegno.diffusion.call import Call, Correction, ImagePrompt, Reference, Residuals, Row, Shift, Stream, Suffix

T = TypeVar("T")

SOFT_DECAY = 0.825  # per layer, counted back from the middle (ControlNet's guess mode; A1111's control modes)
_SOFT: dict[ControlMode, bool] = {"balanced": False, "prompt": True, "control": True}
_POSITIVE_ONLY: dict[ControlMode, bool] = {"balanced": False, "prompt": False, "control": True}


def layer_scales(
    strength: float, mode: ControlMode, num_residuals: int, soft: Sequence[float] = ()
) -> tuple[float, ...]:
    """Return what each residual is multiplied by, shallow to deep, the middle last: w, or w * 0.825^(n-1-i).

    `soft`: a mechanism's own, instead of the powers of 0.825.

    Zhang et al. 2023, guess mode, for any number of residuals. A1111 parity: "My prompt is more important" and
    "ControlNet is more important"; not its SDXL quirk: the first 10 of 13 scales, which weakens the middle too.
    """
    if not _SOFT[mode]:
        return (strength,) * num_residuals
    soft = soft or [SOFT_DECAY ** (num_residuals - 1 - i) for i in range(num_residuals)]
    return tuple(strength * factor for factor in soft)


@dataclass(frozen=True)
class Use:
    """How a control is used. `start` and `end` are shares of the steps.

    `curve`: what the strength is multiplied by on the way. `layers`: a weight for each residual, instead of strength
    and mode's own. `region`: where it acts, (1 1 h w) in [0, 1], as large as the picture or smaller. `mix`: one
    evaluation with the others that say so and are used alike; the strength is then also its share in their mean.
    """

    strength: float = 1.0
    start: float = 0.0
    end: float = 1.0
    mode: ControlMode = "balanced"
    curve: tuple[Point, ...] = ()
    layers: tuple[float, ...] = ()
    region: Tensor | None = None
    mix: bool = False

    @classmethod
    def of(cls, unit: ControlUnit) -> "Use":
        """Return how the request wants this control used."""
        return cls(unit.strength, unit.start, unit.end, unit.mode, parse_curve(unit.curve), unit.layers, mix=unit.mix)

    def reaches(self, row: Row) -> bool:
        """Return whether the control acts on this row: its prompt, and start <= progress < end (an end of 1 is in)."""
        in_span = self.start <= row.progress and (row.progress < self.end or self.end == 1.0)
        is_on = any(self.layers) if self.layers else self.strength != 0
        return is_on and in_span and self.value(row) != 0 and (row.positive or not _POSITIVE_ONLY[self.mode])

    def value(self, row: Row) -> float:
        """Return the curve's value at this row's share of the steps."""
        return value_at(self.curve, row.progress)

    def is_like(self, other: "Use") -> bool:
        """Return whether both are the same use."""
        a, b = self.region, other.region
        same = a is b or (a is not None and b is not None and torch.equal(a, b))
        return same and replace(self, region=None) == replace(other, region=None)

    def scales(self, num_residuals: int, soft: Sequence[float] = ()) -> tuple[float, ...]:
        """Return what each residual is multiplied by, before the curve. `soft`: see `layer_scales`.

        Raises RequestError.
        """
        if not self.layers:
            return layer_scales(self.strength, self.mode, num_residuals, soft)
        Layers(num_residuals).require(self.layers)
        return self.layers


@dataclass(frozen=True)
class Used:
    """A control as it is used; itself a Control. Evaluated on the rows that it reaches; the others stay bit-equal."""

    control: Control
    use: Use

    @property
    def sees_x(self) -> bool:
        return self.control.sees_x

    @property
    def key(self) -> str:
        return self.control.key

    @property
    def positive_only(self) -> bool:
        return self.control.positive_only or _POSITIVE_ONLY[self.use.mode]

    def __call__(self, call: Call) -> Call:
        """Return the call with the control's residuals added to the rows that it reaches; the same call without any."""
        reached = [i for i, row in enumerate(call.rows) if self._reaches(row)]
        if not reached:
            return call
        index = torch.tensor(reached, device=call.x.device)
        few = take_rows(call, index)
        own = self.control(few)
        beside = own.suffixes != few.suffixes or own.image_prompts != few.image_prompts
        inside = own.streams or own.references or own.corrections or own.shifts
        acts = own.residuals is not None or inside or beside
        assert acts, f"{self.control} added nothing"
        none = ((),) * len(call.rows)
        weights = Weights(self.use, tuple(self.use.value(call.rows[i]) for i in reached))
        return replace(
            call,
            residuals=call.residuals if own.residuals is None else add_rows(call, weights.of(own.residuals), index),
            suffixes=_put(call.suffixes or none, own.suffixes, reached, weights.of_suffix),
            image_prompts=_put(call.image_prompts or none, own.image_prompts, reached, weights.of_image_prompt),
            streams=(*call.streams, *(weights.on(stream, index) for stream in own.streams)),
            references=(*call.references, *(weights.of_reference(one, index) for one in own.references)),
            corrections=(*call.corrections, *(weights.of_correction(one, index) for one in own.corrections)),
            shifts=(*call.shifts, *(weights.of_shift(one, index) for one in own.shifts)),
        )

    def _reaches(self, row: Row) -> bool:
        return self.use.reaches(row) and (row.positive or not self.control.positive_only)


@dataclass(frozen=True)
class Weights:
    """What a use makes of what a control adds. `values`: of its curve, for each row that it reaches."""

    use: Use
    values: tuple[float, ...]

    def of(self, own: Residuals) -> Residuals:
        """Return the residuals times the use's scales and each row's value of its curve; untouched where all are 1."""
        scaled = self._scaled(own, self.use.scales(len(own.down) + 1))
        return scaled if self.use.region is None else within(scaled, self.use.region)

    def _scaled(self, own: Residuals, scales: tuple[float, ...]) -> Residuals:
        if len(set(self.values)) == 1:
            scales = tuple(scale * self.values[0] for scale in scales)
            return own if set(scales) == {1.0} else own.scaled(scales)
        pairs = zip(own.down, scales, strict=False)
        weighed = [_by_row(d, [scale * value for value in self.values]) for d, scale in pairs]
        return Residuals(tuple(weighed), _by_row(own.mid, [scales[-1] * value for value in self.values]))

    def of_suffix(self, suffix: Suffix, place: int) -> Suffix:
        """Return a row's suffix times the strength and its value of the curve. `place`: among the reached rows."""
        return suffix.scaled(self.use.strength * self.values[place])

    def of_image_prompt(self, prompt: ImagePrompt, place: int) -> ImagePrompt:
        """Return a row's image prompt at the use's scales, times its value of the curve, within the use's region.

        An attention counts as the residual of its depth. Raises RequestError where there are other layers.
        """
        if self.use.layers:
            scales = _by_attention(self.use.layers, prompt)
        else:
            by_depth = self.use.scales(prompt.num_residuals)
            scales = tuple(by_depth[depth] for depth in prompt.depths)
        scales = tuple(scale * self.values[place] for scale in scales)
        return replace(prompt, scales=scales, region=self.use.region)

    def of_shift(self, shift: Shift, index: Tensor) -> Shift:
        """Return a control's shift for these rows of the whole call, weighed, within the use's region.

        A layer counts as the residual of its depth. Raises RequestError where there are other layers.
        """
        if self.use.layers:
            block_layers(shift.added).require(self.use.layers)
            blocks = dict(zip(dict.fromkeys(map(block_of, shift.added)), self.use.layers, strict=True))
            weights = {name: blocks[block_of(name)] for name in shift.added}
        else:
            by_depth = self.use.scales(shift.num_residuals)
            weights = {name: by_depth[shift.depths[name]] for name in shift.added}
        scales = {name: tuple(weight * value for value in self.values) for name, weight in weights.items()}
        return replace(shift, rows=index, scales=scales, region=self.use.region)

    def of_reference(self, reference: Reference, index: Tensor) -> Reference:
        """Return a control's reference for these rows of the whole call, with each row's share of the net."""
        pairs = zip(reference.shares, self.values, strict=True)
        shares = tuple(share * self.use.strength * value for share, value in pairs)
        return replace(reference, rows=index, shares=shares)

    def of_correction(self, correction: Correction, index: Tensor) -> Correction:
        """Return a control's correction for these rows of the whole call, with each row's share of it, 1 at most."""
        pairs = zip(correction.shares, self.values, strict=True)
        shares = tuple(min(share * self.use.strength * value, 1.0) for share, value in pairs)
        return replace(correction, rows=index, shares=shares, region=self.use.region)

    def on(self, stream: Stream, index: Tensor) -> Stream:
        """Return a control's stream at these rows of the whole call, each of its additions weighed as a residual is."""
        scales = self.use.scales(stream.num_residuals, stream.soft)
        region = self.use.region

        def weigh(i: int, x: Tensor) -> Tensor:
            scale = scales[stream.places.index(i) if stream.places else i]
            weighed = _by_row(x, [scale * value for value in self.values])
            return weighed if region is None else _kept(weighed, region)

        return replace(stream, rows=index, weigh=weigh)


def _by_attention(layers: Sequence[float], prompt: ImagePrompt) -> Sequence[float]:
    """Return a weight for each attention that reads an image prompt; given one for each, or for each stack of them.

    Raises RequestError where there are other layers.
    """
    attention_layers(prompt.read).require(layers)
    stacks = [block_of(name) for name in prompt.read]
    if len(layers) == len(stacks):
        return layers
    places = list(dict.fromkeys(stacks))
    return [layers[places.index(stack)] for stack in stacks]


def _put(
    before: Sequence[tuple[T, ...]], after: Sequence[tuple[T, ...]], reached: list[int], weigh: Callable[[T, int], T]
) -> tuple[tuple[T, ...], ...]:
    """Return what all of a call's rows have (`before`), with what a control gave the reached ones, weighed; () if none.

    `after`: of the reached rows, what they have at full strength.
    """
    rows = list(before)
    for place, row in enumerate(reached if after else ()):
        added = after[place][len(rows[row]) :]
        rows[row] = (*rows[row], *(weigh(one, place) for one in added))
    return tuple(rows) if any(rows) else ()


def _by_row(x: Tensor, factors: list[float]) -> Tensor:
    """Return x (r c h w), each row times its factor: the bits that one factor for all rows would give it."""
    return (x.float() * torch.tensor(factors, device=x.device).reshape(-1, 1, 1, 1)).to(x.dtype)


def within(residuals: Residuals, region: Tensor) -> Residuals:
    """Return the residuals, kept where the region (1 1 h w) is 1 and gone where it is 0, each at its own grid.

    A cell's share is the region's mean over it. (A1111 takes samples, and so misses what lies between them.)
    """
    return Residuals(tuple(_kept(d, region) for d in residuals.down), _kept(residuals.mid, region))


def _kept(x: Tensor, region: Tensor) -> Tensor:
    share = F.adaptive_avg_pool2d(region, (x.shape[-2], x.shape[-1]))
    return (x.float() * share.to(x.device)).to(x.dtype)


def joined(controls: Iterable[Control]) -> tuple[Control, ...]:
    """Return the controls in the order in which they act: those that add tokens first, for others may read these.

    Those of one file that are used alike become one, evaluated once, where their mechanism was trained with several
    conditions together; and those that are to be mixed.
    """
    out = list[Control]()
    for control in sorted(mixed(controls), key=lambda control: not adds_tokens(control)):
        for i, other in enumerate(out):
            if (both := _both(other, control)) is not None:
                out[i] = both
                break
        else:
            out.append(control)
    return tuple(out)


def mixed(controls: Iterable[Control]) -> list[Control]:
    """Return the controls; those of one file that are to be mixed, and are used alike, as one.

    It is as strong as the strongest. Those without strength are no part of it: they are as if they were not there.
    """
    groups: list[list[Control]] = []
    for control in controls:
        fitting = next((group for group in groups if _mixture([*group, control]) is not None), None)
        if fitting is None:
            groups.append([control])
        else:
            fitting.append(control)
    return [_mixture(group) or group[0] for group in groups]


def _mixture(group: Sequence[Control]) -> Control | None:
    used = [one for one in group if isinstance(one, Used) and one.use.mix and one.use.strength]
    if len(used) < max(2, len(group)):
        return None
    first, *others = used
    weights = [one.use.strength for one in used]
    uses = [replace(one.use, strength=first.use.strength) for one in others]
    if not isinstance(first.control, Mixing) or not all(first.use.is_like(use) for use in uses):
        return None
    both = first.control.mixed([one.control for one in others], weights)
    return None if both is None else Used(both, replace(first.use, strength=max(weights)))


def adds_tokens(control: Control) -> bool:
    """Return whether a control acts by tokens behind the text: it has no place, and no layers."""
    return bool(getattr(control.control if isinstance(control, Used) else control, "adds_tokens", False))


def _both(a: Control, b: Control) -> Control | None:
    if not (isinstance(a, Used) and isinstance(b, Used) and isinstance(a.control, Joining) and a.use.is_like(b.use)):
        return None
    both = a.control.join(b.control)
    return None if both is None else Used(both, a.use)


def apply(controls: Iterable[Control], call: Call) -> Call:
    """Return the call with every control's residuals, summed in this order."""
    return reduce(lambda so_far, control: control(so_far), controls, call)


def take_rows(call: Call, index: Tensor) -> Call:
    """Return the rows at `index` (r,) as a call of their own, with no residuals yet."""
    if len(index) == len(call.rows):
        return replace(call, residuals=None, streams=(), references=(), corrections=(), shifts=())
    return call.take(index)


def add_rows(call: Call, own: Residuals, index: Tensor) -> Residuals:
    """Return the call's residuals with `own` added at its rows `index` (r,); the bits of all other rows are kept."""
    num_rows = len(call.rows)
    if len(index) == num_rows:
        return own if call.residuals is None else call.residuals + own
    if call.residuals is None:
        return Residuals(tuple(_spread(d, index, num_rows) for d in own.down), _spread(own.mid, index, num_rows))
    theirs = call.residuals
    down = tuple(_into(a, b, index) for a, b in zip(theirs.down, own.down, strict=True))
    return Residuals(down, _into(theirs.mid, own.mid, index))


def _spread(own: Tensor, index: Tensor, num_rows: int) -> Tensor:
    """Return (b c h w): zero, but for the rows `index`."""
    return own.new_zeros((num_rows, *own.shape[1:])).index_copy_(0, index, own)


def _into(theirs: Tensor, own: Tensor, index: Tensor) -> Tensor:
    """Return (b c h w): theirs, with own added at the rows `index`."""
    return theirs.index_add(0, index, own.to(theirs.dtype))
