"""Loopback: a picture is changed again and again, each time from what came of it before (A1111's script)."""

from math import cos, pi, sin
from typing import Literal, get_args

from disegno.core.errors import RequestError

LoopCurve = Literal["linear", "aggressive", "lazy"]
CURVES: tuple[LoopCurve, ...] = get_args(LoopCurve)
MAX_LOOPS = 32  # A1111 parity: of its slider


def loop_denoises(first: float, last: float, loops: int, curve: LoopCurve = "linear") -> tuple[float, ...]:
    """Return how much each loop draws anew, from `first` to `last`, (loops,); of a single loop, `first`.

    Aggressive: most of the way is gone early; lazy: late. Raises RequestError.
    """
    if not 1 <= loops <= MAX_LOOPS:
        raise RequestError(f"A picture is looped 1 to {MAX_LOOPS} times, not {loops}.")
    shares = (n / max(loops - 1, 1) for n in range(loops))
    walked = {"linear": lambda x: x, "aggressive": lambda x: sin(x * pi / 2), "lazy": lambda x: 1 - cos(x * pi / 2)}
    return tuple(first + (last - first) * walked[curve](share) for share in shares)
