"""What comes back while a generation runs, and when it has ended."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from disegno.core.request import Request

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Progress:
    """One step has been done. `seconds_left` is an estimate, None before the first step.

    `part` of `num_parts`: which pass this is, from 0. `previews`: what the images look like by now, where asked for.
    """

    step: int
    num_steps: int
    stage: str = "sampling"
    seconds_left: float | None = None
    part: int = 0
    num_parts: int = 1
    previews: "tuple[Image, ...]" = ()


@dataclass(frozen=True)
class Timing:
    """Where the time went, in seconds."""

    open_seconds: float = 0.0
    prepare_seconds: float = 0.0
    sample_seconds: float = 0.0
    decode_seconds: float = 0.0


@dataclass(frozen=True)
class Result:
    """Images and the concrete request that made them: no None is left, and the seed is known.

    `conditions`: what each control was really shown, in the order of `request.controls`.
    `warnings`: what was ignored or changed, in plain words.
    `environment`: what else decides the bits: dtype, device, versions.
    `prompts`, `negatives`: each image's own, in full: styles and wildcards are in them.
    `labels`: names and hashes of the files of weights, as A1111 writes them beside a picture.
    `sources`: the files that the request names as data URIs, by path, where it cannot be made again without them.
    """

    images: "tuple[Image, ...]"
    request: Request
    seeds: tuple[int, ...]
    conditions: "tuple[Image, ...]" = ()
    warnings: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict[str, str])
    timing: Timing = field(default_factory=Timing)
    sources: dict[str, str] = field(default_factory=dict[str, str])
    prompts: tuple[str, ...] = ()
    negatives: tuple[str, ...] = ()
    labels: dict[str, str] = field(default_factory=dict[str, str])
