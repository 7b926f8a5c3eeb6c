"""How strongly, when, and on which prompt a control acts: the wrapper that the engine puts around any Control."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import reduce

import torch
from torch import Tensor
from torch.nn import functional as F

from disegno.controls.base import Control
from disegno.core.curve import Point, parse_curve, value_at
from disegno.core.errors import RequestError
from disegno.core.request import ControlMode, ControlUnit
from disegno.diffusion.call import Call, Residuals, Row

SOFT_DECAY = 0.825  # per layer, counted back from the middle (ControlNet's guess mode; A1111's control modes)
_SOFT: dict[ControlMode, bool] = {"balanced": False, "prompt": True, "control": True}
_POSITIVE_ONLY: dict[ControlMode, bool] = {"balanced": False, "prompt": False, "control": True}


def layer_scales(strength: float, mode: ControlMode, num_residuals: int) -> tuple[float, ...]:
    """Return what each residual is multiplied by, shallow to deep, the middle last: w, or w * 0.825^(n-1-i).

    Zhang et al. 2023, guess mode, for any number of residuals. A1111 parity: "My prompt is more important" and
    "ControlNet is more important"; not its SDXL quirk: the first 10 of 13 scales, which weakens the middle too.
    """
    if not _SOFT[mode]:
        return (strength,) * num_residuals
    return tuple(strength * SOFT_DECAY ** (num_residuals - 1 - i) for i in range(num_residuals))


@dataclass(frozen=True)
class Use:
    """How a control is used. `start` and `end` are shares of the steps.

    `curve`: what the strength is multiplied by on the way. `layers`: a weight for each residual, instead of strength
    and mode's own. `region`: where it acts, (1 1 h w) in [0, 1], as large as the picture or smaller.
    """

    strength: float = 1.0
    start: float = 0.0
    end: float = 1.0
    mode: ControlMode = "balanced"
    curve: tuple[Point, ...] = ()
    layers: tuple[float, ...] = ()
    region: Tensor | None = None

    @classmethod
    def of(cls, unit: ControlUnit) -> "Use":
        """Return how the request wants this control used."""
        return cls(unit.strength, unit.start, unit.end, unit.mode, parse_curve(unit.curve), unit.layers)

    def reaches(self, row: Row) -> bool:
        """Return whether the control acts on this row: its prompt, and start <= progress < end (an end of 1 is in)."""
        in_span = self.start <= row.progress and (row.progress < self.end or self.end == 1.0)
        is_on = any(self.layers) if self.layers else self.strength != 0
        return is_on and in_span and self.value(row) != 0 and (row.positive or not _POSITIVE_ONLY[self.mode])

    def value(self, row: Row) -> float:
        """Return the curve's value at this row's share of the steps."""
        return value_at(self.curve, row.progress)

    def scales(self, num_residuals: int) -> tuple[float, ...]:
        """Return what each residual is multiplied by, before the curve. Raises RequestError."""
        if not self.layers:
            return layer_scales(self.strength, self.mode, num_residuals)
        if len(self.layers) != num_residuals:
            raise RequestError(
                f"A control was given {len(self.layers)} layer weights, but adds {num_residuals} residuals to this"
                f" model. Give {num_residuals}, shallow to deep, the middle last."
            )
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
        own = self.control(take_rows(call, index)).residuals
        assert own is not None, f"{self.control} added no residuals: only those have a strength"
        scaled = _scaled(own, self.use, [self.use.value(call.rows[i]) for i in reached])
        if self.use.region is not None:
            scaled = within(scaled, self.use.region)
        return replace(call, residuals=add_rows(call, scaled, index))

    def _reaches(self, row: Row) -> bool:
        return self.use.reaches(row) and (row.positive or not self.control.positive_only)


def _scaled(own: Residuals, use: Use, values: list[float]) -> Residuals:
    """Return the residuals times the use's scales and each row's value of its curve; untouched where all are 1."""
    scales = use.scales(len(own.down) + 1)
    if len(set(values)) == 1:
        scales = tuple(scale * values[0] for scale in scales)
        return own if set(scales) == {1.0} else own.scaled(scales)
    weighed = [_by_row(d, [scale * value for value in values]) for d, scale in zip(own.down, scales, strict=False)]
    return Residuals(tuple(weighed), _by_row(own.mid, [scales[-1] * value for value in values]))


def _by_row(x: Tensor, factors: list[float]) -> Tensor:
    """Return x (r c h w), each row times its factor: the bits that one factor for all rows would give it."""
    return (x.float() * torch.tensor(factors, device=x.device).reshape(-1, 1, 1, 1)).to(x.dtype)


def within(residuals: Residuals, region: Tensor) -> Residuals:
    """Return the residuals, kept where the region (1 1 h w) is 1 and gone where it is 0, each at its own grid.

    A cell's share is the region's mean over it. (A1111 takes samples, and so misses what lies between them.)
    """
    shares: dict[tuple[int, int], Tensor] = {}

    def kept(x: Tensor) -> Tensor:
        size = (x.shape[-2], x.shape[-1])
        if size not in shares:
            shares[size] = F.adaptive_avg_pool2d(region, size)
        return (x.float() * shares[size].to(x.device)).to(x.dtype)

    return Residuals(tuple(kept(d) for d in residuals.down), kept(residuals.mid))


def apply(controls: Iterable[Control], call: Call) -> Call:
    """Return the call with every control's residuals, summed in this order."""
    return reduce(lambda so_far, control: control(so_far), controls, call)


def take_rows(call: Call, index: Tensor) -> Call:
    """Return the rows at `index` (r,) as a call of their own, with no residuals yet."""
    if len(index) == len(call.rows):
        return replace(call, residuals=None)
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
