"""Guidance beside the prompt's: away from what a weakened net says, and gentler ways to weigh the prompt."""

from typing import Annotated

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

_CONFIG = ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


@dataclass(frozen=True, kw_only=True, config=_CONFIG)
class Guide:
    """How the estimate is guided beside `cfg`. Each weakened net costs one more row for each part of the prompt."""

    pag: Annotated[float, Field(ge=0.0, le=100.0)] = 0.0
    """Perturbed attention guidance (Ahn et al. 2024): how far to go away from what the net says where its middle
    self-attentions see every place alone; 0 is off, 3 is usual. For models with a UNet; also without a prompt."""
    pag_start: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """The share of the steps after which it begins."""
    pag_end: Annotated[float, Field(ge=0.0, le=1.0)] = 1.0
    """The share of the steps before which it ends."""
    slg: Annotated[float, Field(ge=0.0, le=100.0)] = 0.0
    """Skip layer guidance (Stability AI, for Stable Diffusion 3.5 medium): how far to go away from what the net says
    without some of its blocks; 0 is off, 2.8 is usual. For Stable Diffusion 3."""
    slg_layers: tuple[Annotated[int, Field(ge=0)], ...] = (7, 8, 9)
    """The blocks that are left out, counted from 0."""
    slg_start: Annotated[float, Field(ge=0.0, le=1.0)] = 0.01
    """The share of the steps after which it begins."""
    slg_end: Annotated[float, Field(ge=0.0, le=1.0)] = 0.2
    """The share of the steps before which it ends."""
    apg: bool = False
    """Adaptive projected guidance (Sadat et al. 2024): without what guidance only adds to contrast and saturation; for
    a high `cfg`."""
    apg_norm: Annotated[float, Field(ge=0.0)] = 15.0
    """The most that the difference between prompt and negative prompt may measure (its norm); 0: no limit."""
    apg_momentum: Annotated[float, Field(ge=-1.0, le=1.0)] = -0.5
    """How much of the differences before is added to it; below 0: taken away."""
    apg_parallel: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """How much of the part is kept that points where the estimate does: 1 keeps all, and is plain guidance."""
    zero_star: bool = False
    """CFG-Zero* (Fan et al. 2025): the negative prompt's velocity is scaled to fit the prompt's. For flow models:
    Stable Diffusion 3."""
    zero_steps: Annotated[int, Field(ge=0, le=1000)] = 0
    """How many of the first steps do not move at all (CFG-Zero*'s zero initialisation): of those from pure noise on, so
    that where a picture is drawn over they count with the steps that are left out."""

    def __post_init__(self) -> None:
        if self.apg and self.zero_star:
            raise ValueError("apg and zero_star are two ways to weigh the negative prompt: choose one")
        if self.zero_steps and not self.zero_star:
            raise ValueError("zero_steps belongs to zero_star: turn that on")
        for name in ("pag", "slg"):
            if getattr(self, f"{name}_start") >= getattr(self, f"{name}_end"):
                raise ValueError(f"{name}_start must lie before {name}_end, or it would never act")
        if self.slg and not self.slg_layers:
            raise ValueError("slg leaves blocks out: say which, with slg_layers")


def steps_of_forge(start: float, end: float, num_steps: int) -> tuple[float, float] | None:
    """Return the shares of the steps after and before which the same steps act as in Forge; None: none does.

    There step k of N acts where start <= k / (N - 1) <= end; here where start < k / N < end, or start is 0.
    """
    acting = [k for k in range(num_steps) if start <= k / max(num_steps - 1, 1) <= end]
    if not acting:
        return None
    first, last = acting[0], acting[-1]
    begins = round((first - 0.5) / num_steps, 6) if first else 0.0
    return begins, round((last + 0.5) / num_steps, 6) if last < num_steps - 1 else 1.0
