"""A Request becomes pictures: `generate` is the one door of the engine."""

import platform
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from PIL import Image
from torch import Tensor

from disegno import __version__
from disegno.backbones.base import Backbone
from disegno.core.request import Request
from disegno.core.result import Progress, Result, Timing
from disegno.core.settings import Settings
from disegno.diffusion.noise import batch_seeds
from disegno.engine.album import Album, needs_sources
from disegno.engine.batch import Batch
from disegno.engine.canvas import open_canvas
from disegno.engine.concrete import check_beforehand, concrete, passed_over, unheard
from disegno.engine.depth import check_depth, sees_depth
from disegno.engine.guiding import edits
from disegno.engine.labels import labels_of
from disegno.engine.phases import Job, Phase, first_phase, pictures_of
from disegno.engine.pixels import to_pictures
from disegno.engine.preview import Decoder, previews_of
from disegno.engine.relay import Relay, open_relay
from disegno.engine.second_pass import Second, enlarged, open_second, second_phase
from disegno.engine.studio import Studio
from disegno.engine.units import Prepared
from disegno.engine.wording import regions_in_full, told_in_full, word

__all__ = ["Drawing", "Phase", "draw", "environment", "generate", "sample", "to_pictures"]

Drawing = Generator[Phase, None, Result]
_STOPPED = "It was stopped in the first pass: the hires pass was left out."


@torch.inference_mode()
def open_job(request: Request, studio: Studio, album: Album) -> Job:
    """Return the request, concrete, with its model and its picture open. Raises DisegnoError."""
    backbone = studio.backbone_of(request)
    request = concrete(studio.in_one_spelling(request), backbone, album)
    assert request.width and request.height
    check_depth(request, backbone)
    seeds, subseeds = batch_seeds(request.seed, request.subseed, request.subseed_strength, request.batch)
    canvas = request.init and open_canvas(request.init, request.width, request.height, album)
    worded = word(request, seeds, studio)
    return Job(request, backbone, studio, album, tuple(seeds), tuple(subseeds), worded, canvas)


def sample(phase: Phase, decoder: Decoder | None = None, preview_every: int = 1) -> Iterator[Progress]:
    """Yield progress after every step until all runs have ended; closing this generator stops them.

    `decoder`: with one, what is being drawn is shown at every `preview_every`-th step.
    """
    batch = Batch(phase.backbone)
    began, done = time.perf_counter(), 0
    progress = Progress(0, phase.num_steps, phase.stage, part=phase.part, num_parts=phase.num_parts)
    yield progress
    try:
        for run in phase.runs:
            batch.add(run)
        while batch.runs:
            batch.step()
            step = phase.step()
            if step > done:
                done = step
                left = (time.perf_counter() - began) / done * (phase.num_steps - done)
                previews = previews_of(phase.runs, decoder) if decoder and done % preview_every == 0 else ()
                yield replace(progress, step=done, seconds_left=left, previews=previews)
    finally:
        for run in batch.runs:
            run.stop()


def environment(studio: Studio, backbone: Backbone) -> dict[str, str]:
    """Return what decides a picture's last bits beside its request."""
    policy = studio.memory.policy
    return {
        "disegno": __version__,
        "torch": torch.__version__,
        "machine": platform.machine(),
        "device": str(policy.device),
        "dtype": {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[policy.dtype],
        "threads": str(torch.get_num_threads()),
        "model": backbone.fingerprint,
    }


def draw(request: Request, studio: Studio, album: Album | None = None) -> Drawing:
    """Return the generation as a coroutine: it yields each phase that samples, and is resumed when its runs have ended.

    Whoever drives it may step the runs of many generations in one batch, and may `finish` them: what was stopped is not
    enlarged. `album`: reads the pictures that the request
    names; unset: within the studio's limits. Raises every error that a request can cause before its first phase.
    """
    album = album or Album(studio.limits)
    check_beforehand(request, album)
    times = [time.perf_counter()]
    studio.backbone_of(request)
    times.append(time.perf_counter())
    job = open_job(request, studio, album)
    second = open_second(job)
    drawn, last, phases = unchanged(job), job, list[Phase]()
    relay, later, num_parts = _relays(job, second, drawn is None)
    first = _first(job, num_parts) if drawn is None else None
    times.append(time.perf_counter())
    if first is not None:
        drawn, last = yield from _sampled(first, job, relay, phases)
    assert drawn is not None
    stopped = any(phase.stopped for phase in phases)  # A1111 parity: what was interrupted is not enlarged
    if second is not None and not stopped:
        drawn, last = enlarged(second, drawn, last), second.job
        if second.hires.denoise:
            over = second_phase(second, drawn, len(phases), num_parts)
            drawn, last = yield from _sampled(over, second.job, later, phases)
    times.append(time.perf_counter())
    images = _finished(drawn, last, second)
    times.append(time.perf_counter())
    told = _told(job, second, _shown(phases))
    said = (text for phase in phases for text in phase.warnings)
    models = list({id(model): model for model in (job.backbone, *(phase.backbone for phase in phases))}.values())
    sees, is_sdxl = any(sees_depth(model) for model in models), any(model.family == "sdxl" for model in models)
    over = passed_over(job.request, edits(job.backbone), sees, is_sdxl)
    over += unheard(job.request, job.worded, edits(job.backbone))
    over += [_STOPPED] if second is not None and stopped else []
    warnings = (*said, *(text for model in models for text in model.warnings), *over)
    return Result(
        images=images,
        request=told,
        seeds=job.seeds,
        conditions=tuple(prepared.condition for prepared in _shown(phases)),
        warnings=tuple(dict.fromkeys(warnings)),
        environment=environment(studio, job.backbone),
        timing=Timing(*(end - begin for begin, end in pairwise(times))),
        sources=album.sources() if needs_sources(told) else {},
        prompts=tuple(written.prompt for written in job.worded.written),
        negatives=tuple(written.negative for written in job.worded.written),
        labels=labels_of(job, phases[0].told if phases else None, _shown(phases)),
    )


def _relays(job: Job, second: Second | None, draws: bool) -> tuple[Relay | None, Relay | None, int]:
    """Return what takes over in the first and in the hires pass, and of how many phases the generation is at most.

    `draws`: whether there is a first pass.
    """
    draws_over = second is not None and second.hires.denoise > 0
    first = open_relay(job, "first") if draws else None
    later = open_relay(second.job, "hires") if second is not None and draws_over else None
    return first, later, draws + draws_over + (first is not None) + (later is not None)


def _sampled(
    phase: Phase, job: Job, relay: Relay | None, phases: list[Phase]
) -> Generator[Phase, None, tuple[Tensor, Job]]:
    """Yield the phases of a pass, which are added to `phases`; return what was drawn, and with which model at last."""
    phases.append(phase if relay is None else relay.given(phase))
    yield phases[-1]
    if relay is not None and (left := relay.taken(phases[-1])) is not None:
        phases.append(left)
        yield left
        job = relay.job
    return phases[-1].latents(), job


def _shown(phases: Sequence[Phase]) -> list[Prepared]:
    """Return every control as it acted first, in the request's order."""
    first: dict[int, Prepared] = {}
    for prepared in (prepared for phase in phases for prepared in phase.prepared):
        first.setdefault(prepared.place, prepared)
    return [first[place] for place in sorted(first)]


def _told(job: Job, second: Second | None, shown: Sequence[Prepared]) -> Request:
    """Return the request as it was carried out: what its controls and its hires pass found out by themselves in it."""
    request, acted = job.request, {prepared.place: prepared for prepared in shown}
    units = tuple(acted[n].told(unit) if n in acted else unit for n, unit in enumerate(request.controls))
    hires = request.hires and second and told_in_full(request.hires, second.job.worded)
    return replace(request, controls=units, hires=hires, regions=regions_in_full(request.regions, job.worded))


def unchanged(job: Job) -> list[Image.Image] | None:
    """Return the picture itself, once for each image, where nothing of it is drawn anew; None: there is to draw."""
    if job.request.init is None or job.request.init.denoise or job.canvas is None:
        return None
    return [Image.fromarray(job.canvas.whole)] * job.request.batch


@torch.inference_mode()
def _first(job: Job, num_parts: int) -> Phase:
    return first_phase(job, num_parts)


@torch.inference_mode()
def _finished(drawn: Tensor | list[Image.Image], job: Job, second: Second | None) -> tuple[Image.Image, ...]:
    """Return the pictures that were drawn, put back where they belong."""
    init, canvas = job.request.init, job.canvas
    if isinstance(drawn, list):
        if second is None:
            return tuple(drawn)  # as they were given
        pictures = second.cut(drawn)
    else:
        pictures = pictures_of(drawn, job)
    if init is None or canvas is None:
        return tuple(pictures)
    return tuple(canvas.finish(picture, init) for picture in pictures)


def _drive(
    drawing: Drawing, preview_every: int, decoder_of: Callable[[Phase], Decoder]
) -> Generator[Progress, None, Result]:
    """Yield progress while this one generation is stepped to its end; returns its result."""
    while True:
        try:
            phase = next(drawing)
        except StopIteration as end:
            return end.value
        yield from sample(phase, decoder_of(phase) if preview_every else None, preview_every)


def generate(
    request: Request, *, studio: Studio | None = None, settings: Settings | None = None, preview_every: int = 0
) -> Iterator[Progress | Result]:
    """Yield Progress after every step, then the Result. Raises DisegnoError; closing the iterator interrupts.

    `studio`: what is already open, for a second generation; without one, everything is opened with `settings`.
    `preview_every`: show what is being drawn in the Progress of every so many steps; 0: never.
    """
    yield Progress(0, 0, "opening")
    studio = studio or Studio(settings)
    with studio.lock:
        opened = studio
        result = yield from _drive(
            draw(request, studio), preview_every, lambda phase: opened.preview_decoder(phase.backbone)
        )
    yield result
