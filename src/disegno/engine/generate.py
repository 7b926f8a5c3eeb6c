"""A Request becomes pictures: `generate` is the one door of the engine."""

import platform
import random
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from disegno import __version__
from disegno.backbones.base import Backbone
from disegno.core.errors import RequestError
from disegno.core.request import ControlUnit, Request
from disegno.core.result import Progress, Result, Timing
from disegno.core.settings import Settings
from disegno.diffusion.denoiser import Guidance
from disegno.diffusion.noise import ImageNoise, Variation, batch_seeds, start_latents
from disegno.diffusion.schedules import plan_sigmas
from disegno.engine.batch import Batch, Run, Texts
from disegno.engine.studio import Studio
from disegno.engine.units import Prepared, prepare
from disegno.samplers.base import Options, Plan, SamplerSpec
from disegno.samplers.catalogue import find_sampler, resolve_names

NUM_SEEDS = 4294967294  # A1111 parity: a random seed is drawn from [0, this)
DECODE_ROWS = 8  # pictures decoded at once


@dataclass(frozen=True)
class Started:
    """A request, concrete and opened: its runs are ready to be stepped."""

    request: Request
    runs: tuple[Run, ...]
    backbone: Backbone
    prepared: tuple[Prepared, ...]
    num_steps: int
    seeds: tuple[int, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Phase:
    """A part of a generation that samples: its runs are to be stepped until all have ended."""

    runs: tuple[Run, ...]
    backbone: Backbone
    num_steps: int
    stage: str = "drawing"

    def step(self) -> int:
        """Return how many steps every run has done."""
        return min(run.step() for run in self.runs)


Drawing = Generator[Phase, None, Result]


def concrete(request: Request, backbone: Backbone) -> Request:
    """Return the request with the model's own defaults for what it leaves open, and its seeds drawn.

    Raises RequestError.
    """
    own = backbone.defaults
    schedule = request.schedule or (None if request.sampler else own.schedule)
    sampler, schedule = resolve_names(request.sampler or own.sampler, schedule)
    filled = replace(
        request,
        width=request.width or own.width,
        height=request.height or own.height,
        steps=request.steps or own.steps,
        cfg=own.cfg if request.cfg is None else request.cfg,
        sampler=sampler,
        schedule=schedule,
        seed=random.randrange(NUM_SEEDS) if request.seed == -1 else request.seed,
        subseed=random.randrange(NUM_SEEDS) if request.subseed == -1 else request.subseed,
    )
    assert filled.width and filled.height
    backbone.check_size(filled.width, filled.height)
    return filled


def refuse_unbuilt(request: Request) -> None:
    """Raise RequestError for a field that nothing carries out yet: what was asked is never silently left out."""
    unset = Request()
    new = ("init", "hires", "tiles", "vae_tile", "image_cfg", "prompts", "negatives", "styles", "loras")
    new += ("emphasis", "comma_backtrack", "pad_texts", "old_timelines")
    asked = [name for name in new if getattr(request, name) != getattr(unset, name)]
    plain = ControlUnit(name="", image="")
    for name in ("region", "mask", "passes", "crop"):
        asked += [f"controls.{name}" for unit in request.controls if getattr(unit, name) != getattr(plain, name)]
    if asked:
        raise RequestError(f"This version cannot carry out: {', '.join(dict.fromkeys(asked))}. Leave it out.")


def _sampler(request: Request, backbone: Backbone) -> SamplerSpec:
    assert request.sampler is not None
    spec = find_sampler(request.sampler)
    if backbone.prediction.name not in spec.predictions:
        meant = ", ".join(spec.predictions)
        raise RequestError(
            f"The sampler {spec.name} has no meaning for a {backbone.prediction.name} model; it is for: {meant}."
        )
    return spec


def _texts(request: Request, backbone: Backbone, studio: Studio) -> tuple[Texts, tuple[str, ...]]:
    positive = studio.texts(backbone, request.prompt, request.clip_skip)
    negative = studio.texts(backbone, request.negative, request.clip_skip)
    texts = Texts(
        positive.tokens, negative.tokens, positive.keys[0], negative.keys[0], positive.pooled, negative.pooled
    )
    return texts, tuple(dict.fromkeys((*positive.warnings, *negative.warnings)))


def _latent_size(request: Request, backbone: Backbone) -> tuple[int, int]:
    assert request.width and request.height
    return request.height // backbone.downscale, request.width // backbone.downscale


def _seed_size(request: Request, backbone: Backbone) -> tuple[int, int] | None:
    if not (request.seed_width and request.seed_height):
        return None
    return request.seed_height // backbone.downscale, request.seed_width // backbone.downscale


def _options(request: Request) -> Options:
    return Options(
        eta=request.eta,
        s_churn=request.churn,
        s_tmin=request.churn_min,
        s_tmax=request.churn_max or float("inf"),
        s_noise=request.churn_noise,
    )


def _run(
    request: Request,
    backbone: Backbone,
    texts: Texts,
    prepared: tuple[Prepared, ...],
    seeds: list[int],
    subseeds: list[int],
) -> Run:
    """Return the run of these seeds' images, not started."""
    assert request.steps is not None and request.cfg is not None
    spec, device = _sampler(request, backbone), texts.positive.device
    sigmas = plan_sigmas(spec, request.schedule, request.steps, backbone.table)
    noise = ImageNoise(
        (backbone.latent_channels, *_latent_size(request, backbone)),
        seeds,
        subseeds,
        source=request.noise_source,
        variation=Variation(request.subseed_strength, _seed_size(request, backbone), request.seed_delta),
        sigmas=sigmas,
        device=device,
    )
    alpha = backbone.prediction.alpha
    x = start_latents(noise.start_noise(), sigmas[0], alpha(sigmas[0]), unit_variance=spec.over_timesteps)
    plan = Plan(sigmas, noise, alpha, backbone.table, _options(request))
    return Run(
        sampling=spec.sample(x, plan),
        texts=texts,
        guidance=Guidance(request.cfg / spec.cfg_divisor, request.cfg_rescale),
        sigmas=sigmas,
        controls=tuple(p.control for p in prepared),
    )


@torch.inference_mode()
def start(request: Request, studio: Studio) -> Started:
    """Return the request, opened and ready to be stepped.

    Raises every error that a request can cause before sampling.
    """
    refuse_unbuilt(request)
    backbone = studio.backbone(request.model)
    request = concrete(request, backbone)
    assert request.steps is not None
    prepared = tuple(prepare(unit, request, backbone, studio) for unit in request.controls)
    texts, warnings = _texts(request, backbone, studio)
    warnings = (*warnings, *(warning for p in prepared for warning in p.warnings))
    seeds, subseeds = batch_seeds(request.seed, request.subseed, request.subseed_strength, request.batch)
    groups = (
        [[i] for i in range(request.batch)] if _sampler(request, backbone).adaptive else [list(range(request.batch))]
    )
    runs = tuple(
        _run(request, backbone, texts, prepared, [seeds[i] for i in group], [subseeds[i] for i in group])
        for group in groups
    )
    return Started(request, runs, backbone, prepared, len(runs[0].sigmas) - 1, tuple(seeds), warnings)


def sample(phase: Phase) -> Iterator[Progress]:
    """Yield progress after every step until all runs have ended; closing this generator stops them."""
    batch = Batch(phase.backbone)
    began, done = time.perf_counter(), 0
    yield Progress(0, phase.num_steps, phase.stage)
    try:
        for run in phase.runs:
            batch.add(run)
        while batch.runs:
            batch.step()
            step = phase.step()
            if step > done:
                done = step
                left = (time.perf_counter() - began) / done * (phase.num_steps - done)
                yield Progress(done, phase.num_steps, phase.stage, left)
    finally:
        for run in batch.runs:
            run.stop()


@torch.inference_mode()
def decode(started: Started) -> tuple[tuple[Image.Image, ...], tuple[str, ...]]:
    """Return the pictures of the ended runs, and warnings of the decoding."""
    latents = torch.cat([run.latents for run in started.runs if run.latents is not None])
    if not latents.isfinite().all():
        raise RequestError(
            "The model produced numbers that are no picture (NaN or infinite). Try --dtype fp32, a lower --cfg,"
            " or verify the model's file with `disegno models verify FILE`."
        )
    pixels = torch.cat([started.backbone.decode(part) for part in latents.split(DECODE_ROWS)])
    return tuple(to_pictures(pixels)), tuple(getattr(started.backbone, "warnings", ()))


def to_pictures(pixels: Tensor) -> list[Image.Image]:
    """Return each picture of (b 3 h w), in [0, 1], rounded to 8 bits."""
    array = (pixels.clamp(0, 1) * 255).round().to("cpu", torch.uint8)
    return [Image.fromarray(rearrange(image, "c h w -> h w c").numpy()) for image in array]


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


def draw(request: Request, studio: Studio) -> Drawing:
    """Return the generation as a coroutine: it yields each phase that samples, and is resumed when its runs have ended.

    Whoever drives it may step the runs of many generations in one batch. Raises DisegnoError.
    """
    times = [time.perf_counter()]
    backbone = studio.backbone(request.model)
    times.append(time.perf_counter())
    started = start(request, studio)
    times.append(time.perf_counter())
    yield Phase(started.runs, backbone, started.num_steps)
    times.append(time.perf_counter())
    images, warnings = decode(started)
    times.append(time.perf_counter())
    return Result(
        images=images,
        request=started.request,
        seeds=started.seeds,
        conditions=tuple(p.condition for p in started.prepared),
        warnings=tuple(dict.fromkeys((*started.warnings, *warnings))),
        environment=environment(studio, backbone),
        timing=Timing(*(end - begin for begin, end in pairwise(times))),
    )


def _drive(drawing: Drawing) -> Generator[Progress, None, Result]:
    """Yield progress while this one generation is stepped to its end; returns its result."""
    while True:
        try:
            phase = next(drawing)
        except StopIteration as end:
            return end.value
        yield from sample(phase)


def generate(
    request: Request, *, studio: Studio | None = None, settings: Settings | None = None
) -> Iterator[Progress | Result]:
    """Yield Progress after every step, then the Result. Raises DisegnoError; closing the iterator interrupts.

    `studio`: what is already open, for a second generation; without one, everything is opened with `settings`.
    """
    yield Progress(0, 0, "opening")
    studio = studio or Studio(settings)
    with studio.lock:
        result = yield from _drive(draw(request, studio))
    yield result
