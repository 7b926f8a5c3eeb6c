"""One evaluation of the net for the calls of several requests, where that leaves every picture as it would be alone.

Matrix kernels may sum in another order for another number of rows, so a picture could depend on who else is drawn at
the moment. On the machine this was written on, bfloat16 on AMX gives the same bits in any batch, float32 does not. So
it is tried out: the first time that a combination of shapes is met, it is evaluated both ways and compared.
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any, Literal
from weakref import ref

import torch
from torch import Tensor

from disegno.diffusion.call import Call, Correction, Residuals, Shift, Stream

Mode = Literal["exact", "auto", "always"]


def kind_of(call: Call) -> tuple[Hashable, ...]:
    """Return what calls of one evaluation have in common."""
    extra = None if call.extra is None else call.extra.shape[1:]
    # a reference is one call's own
    read = frozenset(call.num_suffixed), frozenset(call.num_prompted), call.references
    return (call.net, call.x.shape[1:], call.tokens.shape[1:], call.pooled is None, extra, read)


def _weight_of(call: Call) -> tuple[int, ...]:
    """Return what else decides how a call is evaluated: its rows, whether it has residuals, the nets beside it.

    And how many rows each control shifts its layers' inputs of.
    """
    return (len(call.rows), call.residuals is None, len(call.streams), *(len(shift.rows) for shift in call.shifts))


def _started(calls: Sequence[Call]) -> Iterator[tuple[Call, int]]:
    """Yield the calls, each with the row of the merged one where its own begin."""
    return zip(calls, accumulate((len(call.rows) for call in calls), initial=0), strict=False)


def _streams(calls: Sequence[Call]) -> tuple[Stream, ...]:
    """Return the streams of all, at the rows where their call's now stand."""
    return tuple(replace(own, rows=own.rows + start) for call, start in _started(calls) for own in call.streams)


def _corrections(calls: Sequence[Call]) -> tuple[Correction, ...]:
    """Return the corrections of all, at the rows where their call's now stand."""
    return tuple(replace(own, rows=own.rows + start) for call, start in _started(calls) for own in call.corrections)


def _shifts(calls: Sequence[Call]) -> tuple[Shift, ...]:
    """Return the shifts of all, at the rows where their call's now stand."""
    return tuple(replace(own, rows=own.rows + start) for call, start in _started(calls) for own in call.shifts)


def _zeros_for(call: Call, like: Residuals) -> Residuals:
    num = call.x.shape[0]
    return Residuals(
        tuple(d.new_zeros(num, *d.shape[1:]) for d in like.down), like.mid.new_zeros(num, *like.mid.shape[1:])
    )


def merged(calls: Sequence[Call]) -> Call:
    """Return one call with the rows of all; rows without residuals get zeros where others have some."""
    if len(calls) == 1:
        return calls[0]
    some = next((call.residuals for call in calls if call.residuals is not None), None)
    residuals = None
    if some is not None:
        parts = [call.residuals or _zeros_for(call, some) for call in calls]
        down = tuple(torch.cat(layer) for layer in zip(*(part.down for part in parts), strict=True))
        residuals = Residuals(down, torch.cat([part.mid for part in parts]))
    pooled = [call.pooled for call in calls if call.pooled is not None]
    extra = [call.extra for call in calls if call.extra is not None]
    return replace(
        calls[0],
        x=torch.cat([call.x for call in calls]),
        t=torch.cat([call.t for call in calls]),
        tokens=torch.cat([call.tokens for call in calls]),
        rows=tuple(row for call in calls for row in call.rows),
        pooled=torch.cat(pooled) if pooled else None,
        extra=torch.cat(extra) if extra else None,
        residuals=residuals,
        suffixes=tuple(own for call in calls for own in call.suffixes),
        streams=_streams(calls),
        image_prompts=tuple(own for call in calls for own in call.image_prompts),
        corrections=_corrections(calls),
        shifts=_shifts(calls),
    )


@dataclass
class Sharing:
    """How calls of different owners are evaluated.

    `exact`: each owner's by themselves. `always`: all at once. `auto`: all at once where that was found to give the
    same bits.
    """

    mode: Mode = "auto"
    _found: dict[int, tuple[ref[object], dict[Hashable, bool]]] = field(default_factory=dict[int, Any])

    def found(self, net: object) -> dict[Hashable, bool]:
        """Return what was found for this net, by shapes. A net that is gone is not held, and is forgotten."""
        model: object = getattr(net, "__self__", net)
        known = self._found.get(id(model))
        if known is None or known[0]() is not model:
            self._found = {key: value for key, value in self._found.items() if value[0]() is not None}
            known = self._found[id(model)] = (ref(model), {})
        return known[1]

    def run(self, parts: Sequence[Sequence[Call]]) -> list[Tensor]:
        """Return the net's output for each owner's calls, (r c h w) each. All the calls are of one kind."""
        calls = [merged(part) for part in parts]
        if len(calls) == 1 or self.mode == "exact":
            return [call.run() for call in calls]
        order = sorted(range(len(calls)), key=lambda i: _weight_of(calls[i]))
        found = self.found(calls[0].net)
        key = (kind_of(calls[0])[1:], tuple(_weight_of(calls[i]) for i in order))
        if self.mode == "auto" and found.get(key) is False:
            return [call.run() for call in calls]
        outs = merged([calls[i] for i in order]).run().split([len(calls[i].rows) for i in order])
        together = [outs[order.index(i)] for i in range(len(calls))]
        if self.mode == "always" or key in found:
            return together
        alone = [call.run() for call in calls]
        found[key] = all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
        return alone
