"""Loopback: a picture is changed again and again, each time from what came of it before (A1111's script)."""

from dataclasses import dataclass, replace
from math import cos, pi, sin
from typing import Literal, get_args

from disegno.core.errors import RequestError
from disegno.core.request import SEEDS, Request

LoopCurve = Literal["linear", "aggressive", "lazy"]
CURVES: tuple[LoopCurve, ...] = get_args(LoopCurve)
MAX_LOOPS = 32  # A1111 parity: of its slider


@dataclass(frozen=True)
class Loops:
    """How often a picture is changed. `last`: how much the last loop draws anew; None: as the first one.

    `curve`: how it gets there: aggressive, most of the way early; lazy, late.
    """

    num: int
    last: float | None = None
    curve: LoopCurve = "linear"


def loop_denoises(first: float, loops: Loops) -> tuple[float, ...]:
    """Return how much each loop draws anew, from `first` on, (loops.num,); of a single loop, `first`.

    Raises RequestError.
    """
    last = first if loops.last is None else loops.last
    if not 1 <= loops.num <= MAX_LOOPS:
        raise RequestError(f"A picture is looped 1 to {MAX_LOOPS} times, not {loops.num}.")
    shares = (n / max(loops.num - 1, 1) for n in range(loops.num))
    walked = {"linear": lambda x: x, "aggressive": lambda x: sin(x * pi / 2), "lazy": lambda x: 1 - cos(x * pi / 2)}
    return tuple(first + (last - first) * walked[loops.curve](share) for share in shares)


def next_loop(drawn: Request, request: Request, image: str, denoise: float) -> Request:
    """Return what changes the picture of a loop: `image`, a data URI. `drawn`: the loop's own concrete request.

    A1111 parity: the next seed, the same subseed, the same size; and what is masked begins as it is from the second
    loop on.
    """
    assert request.init is not None
    init = replace(request.init, image=image, denoise=denoise, fill="original" if request.init.mask else None)
    seed = (drawn.seed + 1) % SEEDS
    return replace(request, width=drawn.width, height=drawn.height, seed=seed, subseed=drawn.subseed, init=init)
