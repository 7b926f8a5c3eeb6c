"""What is added to what a UNet's layers are given, while it is evaluated (ControlNet-LLLite).

y = layer(x + sum over the controls of scale * added(x)). Each control sees x as it is without the others, so that
their order changes nothing: sd-webui-controlnet's rule; kohya-ss's own program lets each see what the one before made.
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from disegno.backbones._levels import level_of
from disegno.diffusion.call import Shift, Size


@dataclass(frozen=True)
class _Given:
    """What layers are given instead of all rows: `rows` of the call, and of each its own `num` tokens, then others."""

    rows: Tensor
    num: int


_GIVEN: ContextVar[_Given | None] = ContextVar("given", default=None)


@contextmanager
def shifting(net: nn.Module, shifts: Sequence[Shift], x: Tensor) -> Generator[None]:
    """Within, the net's layers are given what the shifts make of it. x: (b c h w). One thread at a time.

    Afterwards no hook is left; where no row has a shift nothing is done.
    """
    size = (x.shape[2], x.shape[3])
    by_layer: dict[str, list[Shift]] = {}
    for shift in shifts:
        for name in shift.added:
            if any(shift.scales.get(name, (1.0,))):
                by_layer.setdefault(name, []).append(shift)
    shares: dict[tuple[int, Size], Tensor] = {}
    hooks = [(net.get_submodule(name), _Shifting(name, own, size, shares)) for name, own in by_layer.items()]
    handles = [cast(Any, layer).register_forward_pre_hook(hook) for layer, hook in hooks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def given(rows: Sequence[int], num: int) -> Generator[None]:
    """Within, layers are given these rows of the call alone; of each, the first `num` tokens are the picture's own."""
    token = _GIVEN.set(_Given(torch.tensor(rows), num))
    try:
        yield
    finally:
        _GIVEN.reset(token)


@dataclass(frozen=True)
class _Shifting:
    """The hook of a layer. `size`: of the latents. `shares`: of each region at each level, found once for all."""

    layer: str
    shifts: Sequence[Shift]
    size: Size
    shares: dict[tuple[int, Size], Tensor]

    def __call__(self, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return what the layer is given, first (b n d) or (b c h w). Rows that no shift reaches keep their bits."""
        x: Tensor = args[0]
        only = _GIVEN.get()
        out, num = x, x.shape[1] if only is None else only.num
        for shift in self.shifts:
            here = shift if only is None else shift.among(only.rows)
            if here is not None:
                out = self._added(out, x, here, num)
        return (out, *args[1:])

    def _added(self, out: Tensor, x: Tensor, shift: Shift, num: int) -> Tensor:
        """Return `out` with what a shift makes of x added at its rows. `num`: tokens of the picture's own."""
        rows = shift.rows.to(x.device)
        own = x if len(rows) == len(x) else x.index_select(0, rows)
        own = own if x.ndim == 4 else own[:, :num]
        size = (x.shape[2], x.shape[3]) if x.ndim == 4 else level_of(self.size, num)
        more = self._weighed(shift.added[self.layer](own, size), shift, size).to(x.dtype)
        if x.ndim == 3 and num < x.shape[1]:
            more = F.pad(more, (0, 0, 0, x.shape[1] - num))
        return out + more if len(rows) == len(x) else out.index_add(0, rows, more)

    def _weighed(self, more: Tensor, shift: Shift, size: Size) -> Tensor:
        """Return what is added times each row's scale, within the region."""
        scales = shift.scales.get(self.layer) or (1.0,)
        if len(set(scales)) > 1:
            factors = torch.tensor(scales, device=more.device)
            more = more.float() * factors.reshape(-1, *(1,) * (more.ndim - 1))
        elif scales[0] != 1:
            more = more.float() * scales[0]
        if shift.region is not None:
            share = self._share(shift.region, size).to(more.device)
            more = more.float() * (share if more.ndim == 4 else share.reshape(1, -1, 1))
        return more

    def _share(self, region: Tensor, size: Size) -> Tensor:
        """Return the region's mean over each place of a level, (1 1 h w)."""
        key = (id(region), size)
        if key not in self.shares:
            self.shares[key] = F.adaptive_avg_pool2d(region, size)
        return self.shares[key]
