"""A picture that is changed again and again, drawn loop by loop."""

from collections.abc import Iterator
from dataclasses import replace

from disegno.core.errors import RequestError
from disegno.core.loopback import Loops, loop_denoises, next_loop
from disegno.core.request import Request
from disegno.core.result import Progress, Result
from disegno.core.settings import Settings
from disegno.engine.generate import generate
from disegno.engine.record import data_uri
from disegno.engine.studio import Studio


def draw_loops(
    request: Request,
    loops: Loops,
    *,
    studio: Studio | None = None,
    settings: Settings | None = None,
    preview_every: int = 0,
) -> Iterator[Progress | Result]:
    """Yield progress and the Result of each loop. Raises DisegnoError; closing the iterator interrupts.

    `preview_every`: as of `generate`.
    """
    init = request.init
    if init is None or init.outpaint is not None or request.hires is not None or request.batch != 1:
        raise RequestError(
            "A loop changes one picture, and keeps its size: give one (--from), one at a time, with no outpainting and"
            " no hires pass."
        )
    denoises = loop_denoises(init.denoise, loops)
    asked, studio = replace(request, init=replace(init, denoise=denoises[0])), studio or Studio(settings)
    for n, after in enumerate((*denoises[1:], 0.0)):
        for event in generate(asked, studio=studio, preview_every=preview_every):
            if isinstance(event, Result):
                yield event
                asked = next_loop(event.request, request, data_uri(event.images[0]), after)
            else:
                yield replace(event, stage=f"{event.stage} {n + 1} of {loops.num}", part=n, num_parts=loops.num)
