"""From a concrete request to runs: the noise levels that are walked, what they start from, and what is held."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from disegno.backbones.base import Backbone
from disegno.core.request import InpaintFill, MaskMode, Request
from disegno.diffusion.inpaint import FILLS, Inpaint
from disegno.diffusion.noise import ImageNoise, Variation, start_latents
from disegno.diffusion.schedules import AUTOMATIC, Spacing, find_schedule, plan_sigmas, start_step
from disegno.diffusion.told import Told
from disegno.engine.batch import Run, View
from disegno.engine.concrete import sampler_of
from disegno.engine.guiding import guidance_of
from disegno.engine.texts import Texts
from disegno.loras.apply import NO_LORAS, Loras
from disegno.samplers.base import Options, Plan, SamplerSpec


@dataclass(frozen=True)
class Begin:
    """A picture that sampling starts from.

    `latents`: (1 or b, c h w). `mask`: (1 1 h w), 1 is drawn anew; None: all of it.
    """

    latents: Tensor
    denoise: float
    exact_steps: bool = False
    noise: float = 1.0
    extra_noise: float = 0.0
    mask: Tensor | None = None
    mask_mode: MaskMode = "binary"
    fill: InpaintFill = "original"


@dataclass(frozen=True)
class Material:
    """What the runs of a phase are made of. `size`: of the latents, (h, w). `extra`: what the net is shown beside x.

    `texts`, `loras`: of each image.
    """

    texts: Texts
    size: tuple[int, int]
    views: tuple[View, ...]
    begin: Begin | None = None
    extra: Tensor | None = None
    loras: tuple[Loras, ...] = ()


@dataclass(frozen=True)
class Walk:
    """The noise levels of a plan, (n + 1,), and those of them that are walked."""

    planned: Tensor
    sigmas: Tensor


def walk_of(request: Request, spec: SamplerSpec, backbone: Backbone, begin: Begin | None) -> Walk:
    """Return the noise levels: all of a plan, or where a picture is changed, its last part.

    A1111 parity: setup_img2img_steps; of its samplers over timesteps, whose last level is none of its own, the level
    that the picture is noised to. (A1111 then tells the net the level below; we tell it the right one.)
    """
    assert request.steps is not None
    spacing = Spacing(sdxl=backbone.family == "sdxl")
    if begin is None:
        sigmas = plan_sigmas(spec, request.schedule, request.steps, backbone.table, spacing)
        return Walk(sigmas, sigmas)
    start = start_step(request.steps, begin.denoise, begin.exact_steps)
    sigmas = plan_sigmas(spec, request.schedule, start.steps, backbone.table, spacing)
    own_levels = find_schedule(request.schedule) is AUTOMATIC and spec.levels is not None
    ends_above = own_levels and float(sigmas[-1]) > float(backbone.table.sigmas[0]) * 1.01
    surplus = len(sigmas) - start.steps - (0 if ends_above else 1)
    first = min(start.first + max(surplus, 0), len(sigmas) - 2)
    return Walk(sigmas, sigmas[first:])


def runs_of(
    request: Request, backbone: Backbone, material: Material, seeds: Sequence[int], subseeds: Sequence[int]
) -> tuple[Run, ...]:
    """Return the runs of these seeds' images, not started: one for each set of LoRAs.

    One an image where the sampler looks at x.
    """
    adaptive, groups = sampler_of(request, backbone).adaptive, dict[object, list[int]]()
    for i, loras in enumerate(material.loras or (NO_LORAS,) * len(seeds)):
        groups.setdefault(i if adaptive else loras.key, []).append(i)
    return tuple(
        replace(
            _run(request, backbone, _rows_of(material, group), [seeds[i] for i in group], [subseeds[i] for i in group]),
            images=tuple(group),
            seeds=tuple(seeds[i] for i in group),
        )
        for group in groups.values()
    )


def _rows_of(material: Material, group: list[int]) -> Material:
    """Return the material of some of the images."""
    begin = material.begin
    if begin is not None and len(begin.latents) > 1:
        begin = replace(begin, latents=begin.latents[group])
    loras = tuple(material.loras[i] for i in group) if material.loras else ()
    return replace(material, begin=begin, texts=material.texts.of(group), loras=loras)


def _run(request: Request, backbone: Backbone, material: Material, seeds: list[int], subseeds: list[int]) -> Run:
    spec, begin = sampler_of(request, backbone), material.begin
    walk = walk_of(request, spec, backbone, begin)
    shape = (backbone.latent_channels, *material.size)
    noise = ImageNoise(
        shape,
        seeds,
        subseeds,
        source=request.noise_source,
        variation=Variation(request.subseed_strength, _seed_size(request, backbone), request.seed_delta),
        sigmas=walk.planned,
        walked=walk.sigmas,
        device=material.texts.device,
    )
    x, inpaint = _start(request, backbone, begin, noise, walk)
    plan = Plan(walk.sigmas, noise, backbone.prediction.alpha, backbone.table, _options(request))
    guidance = guidance_of(request, backbone, spec.cfg_divisor)
    left_out = len(walk.planned) - len(walk.sigmas)
    run = Run(
        sampling=spec.sample(x, plan),
        texts=material.texts,
        guidance=replace(guidance, still=max(0, guidance.still - left_out)),  # the plan's first steps, from noise on
        sigmas=walk.sigmas,
        inpaint=inpaint,
        seamless=request.seamless,
        freeu=request.freeu,
        told=Told(request.crop_top, request.crop_left, request.beauty, request.plainness),
    )
    return _asking_with(run, material)


def taken_over(run: Run, request: Request, backbone: Backbone, material: Material) -> Run:
    """Return a run that rests, as another model goes on with it. `material`: of all images."""
    own = _rows_of(material, list(run.images))
    guidance = guidance_of(request, backbone, sampler_of(request, backbone).cfg_divisor)
    guidance = replace(guidance, still=run.guidance.still)
    return _asking_with(replace(run, texts=own.texts, guidance=guidance, rests=None, resting=False), own)


def _asking_with(run: Run, material: Material) -> Run:
    """Return the run with what the model is shown beside x, and the LoRAs that it wears."""
    views, loras = material.views, material.loras[0] if material.loras else NO_LORAS
    if len(views) == 1 and views[0].window is None:
        return replace(run, controls=views[0].controls, windows=(), extra=material.extra, loras=loras)
    return replace(run, controls=(), windows=views, extra=material.extra, loras=loras)


def _start(
    request: Request, backbone: Backbone, begin: Begin | None, noise: ImageNoise, walk: Walk
) -> tuple[Tensor, Inpaint | None]:
    """Return what sampling starts from, (b c h w), and what is held meanwhile."""
    spec, first = sampler_of(request, backbone), noise.start_noise()
    sigma, alpha = walk.sigmas[0], backbone.prediction.alpha(walk.sigmas[0])
    if begin is None:
        return start_latents(first, sigma, alpha, unit_variance=spec.over_timesteps), None
    latents = begin.latents.to(first)
    if begin.mask is not None:  # A1111 parity: the hole's noise is each seed's own first noise, without variation
        own = ImageNoise(noise.shape, noise.seeds, source=request.noise_source, device=noise.device)
        latents = FILLS[begin.fill](latents, begin.mask.to(first), own.start_noise())
    first = first * begin.noise  # A1111 parity: of the extra noise, too
    x = start_latents(first, sigma, alpha, latents) + first * begin.extra_noise
    held = None if begin.mask is None else Inpaint(latents, begin.mask.to(first), begin.mask_mode)
    return x, held


def latents_of(backbone: Backbone) -> tuple[object, ...]:
    """Return what tells a model's latents from others."""
    config = getattr(backbone.vae, "config", {})
    scale, shift = config.get("scaling_factor"), config.get("shift_factor") or 0.0
    return backbone.latent_channels, backbone.downscale, scale, shift


def inpaints(backbone: Backbone) -> bool:
    """Return whether the net is shown the mask, and the picture without what is masked."""
    return backbone.in_channels == 2 * backbone.latent_channels + 1


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
