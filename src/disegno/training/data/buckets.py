"""Canvases of about one area, by aspect ratio, and which of them a picture belongs to. Pure arithmetic.

The idea is NovelAI's aspect-ratio bucketing (2022): a batch holds pictures of one shape, and no picture is cropped to
a square for it. Here the two pictures of a pair share their canvas, so they also share their crop (`align.py`).
"""

import math
from collections.abc import Iterable

from disegno.core.errors import RequestError

Size = tuple[int, int]  # width, height

MAX_CROP = 1.5
"""A picture whose aspect ratio is further from its nearest canvas's than this factor would lose over a third."""


def usual_step(width: int, height: int) -> int:
    """Return what sides are multiples of at this size, in pixels.

    64 (latents of 8 pixels a side, halved three times by Stable Diffusion's net), or 32 for canvases below 256 pixels
    (the built-in model's net halves them twice).
    """
    return 64 if min(width, height) >= 256 else 32


def make_buckets(width: int, height: int, step: int | None = None, max_aspect: float = 2.5) -> tuple[Size, ...]:
    """Return the canvases (width, height), from the widest to the tallest, for training at width x height.

    Sides are multiples of `step`; no area is larger than width x height; no side is more than `max_aspect` times the
    other. width x height itself is always there. `step`: unset is `usual_step`. Raises RequestError.
    """
    step = step or usual_step(width, height)
    if min(width, height) < step or width % step or height % step:
        raise RequestError(
            f"Buckets of {width}x{height} were asked for; both sides must be multiples of {step}, at least {step}."
        )
    area = width * height
    short_sides = range(step, math.isqrt(area) + 1, step)
    landscapes = [(area // short // step * step, short) for short in short_sides]
    kept = [(long, short) for long, short in landscapes if long <= max_aspect * short]
    both = {(width, height), *kept, *((short, long) for long, short in kept)}
    return tuple(sorted(both, key=lambda size: (-size[0] / size[1], size)))


def nearest_bucket(size: Size, buckets: Iterable[Size]) -> Size | None:
    """Return the bucket whose aspect ratio is nearest to that of a picture of `size`; None where all are too far."""
    ratio = size[0] / size[1]
    distance, bucket = min((abs(math.log(ratio * h / w)), (w, h)) for w, h in buckets)
    return bucket if distance <= math.log(MAX_CROP) else None
