"""The phases of a generation: what each one opens and prepares, and what lies between two of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from disegno.annotators.maps import Picture
from disegno.backbones.base import Backbone
from disegno.controls.strength import joined
from disegno.core.errors import RequestError
from disegno.core.request import ControlPass, ControlUnit, InitImage, Request
from disegno.diffusion.inpaint import inpainting_channels
from disegno.engine.album import Album
from disegno.engine.batch import Run, View
from disegno.engine.canvas import Canvas
from disegno.engine.depth import depth_channel, sees_depth
from disegno.engine.guiding import edits
from disegno.engine.masks import latent_mask
from disegno.engine.pixels import to_pictures, to_pixels
from disegno.engine.regions import places_of
from disegno.engine.runs import Begin, Material, inpaints, runs_of, taken_over
from disegno.engine.seamless import going_round
from disegno.engine.studio import Studio
from disegno.engine.tiles import Tiling, in_parts, windows
from disegno.engine.units import Prepared, Scene, check, prepare, with_doubts
from disegno.engine.wording import Encoded, Worded, all_uses_of, encode

PICTURES_AT_ONCE = 8  # decoded
VAE_OVERLAP = 4  # a part shares this part of its side with the next one


@dataclass(frozen=True)
class Job:
    """A concrete request, and what it is carried out with. `idle`: places of controls that do not fit its model."""

    request: Request
    backbone: Backbone
    studio: Studio
    album: Album
    seeds: tuple[int, ...]
    subseeds: tuple[int, ...]
    worded: Worded
    canvas: Canvas | None = None
    idle: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Phase:
    """A part of a generation that samples: its runs are to be stepped until all have ended.

    `part` of `num_parts`: which of the generation's phases this is, from 0. `which`: the pass that it is of. `scene`:
    where its controls act. `told`: what its prompts said. `skipped`: steps that its runs had done before it.
    """

    runs: tuple[Run, ...]
    backbone: Backbone
    num_steps: int
    stage: str = "drawing"
    part: int = 0
    num_parts: int = 1
    which: ControlPass = "first"
    scene: Scene | None = None
    prepared: tuple[Prepared, ...] = ()
    warnings: tuple[str, ...] = ()
    told: Encoded | None = None
    skipped: int = 0

    def step(self) -> int:
        """Return how many of its steps every run has done."""
        return min(run.step() for run in self.runs) - self.skipped

    @property
    def stopped(self) -> bool:
        """Whether its runs were to end as they stood."""
        return any(run.stopped for run in self.runs)

    def latents(self) -> Tensor:
        """Return what the ended runs have drawn, (b c h w), image by image.

        Raises RequestError where that is no picture.
        """
        places = torch.tensor([image for run in self.runs for image in run.images])
        latents = torch.cat([run.latents for run in self.runs if run.latents is not None])
        latents = latents[places.argsort().to(latents.device)]
        if not latents.isfinite().all():
            raise RequestError(
                "The model produced numbers that are no picture (NaN or infinite). Try --dtype fp32, a lower --cfg,"
                " or verify the model's file with `disegno models verify FILE`."
            )
        return latents


# ---- pictures and latents


def _tiling(request: Request, unit: int) -> Tiling | None:
    """Return how the VAE works through a picture: in parts of `vae_tile` pixels, each cell `unit` of them."""
    size = (request.vae_tile or 0) // unit
    return Tiling(size, size // VAE_OVERLAP) if size else None


def encoded(picture: Picture | Image.Image, job: Job) -> Tensor:
    """Return a picture's latents, (1 c h w), float32."""
    return _encoded(to_pixels(picture) * 2 - 1, job)


def _encoded(pixels: Tensor, job: Job) -> Tensor:
    tiling, backbone = _tiling(job.request, 1), job.backbone
    with going_round(backbone.vae, job.request.seamless):
        return torch.cat([in_parts(backbone.encode_image, one[None], tiling, 1 / backbone.downscale) for one in pixels])


@torch.inference_mode()
def pictures_of(latents: Tensor, job: Job) -> list[Image.Image]:
    """Return the pictures that latents (b c h w) stand for."""
    downscale = job.backbone.downscale
    tiling = _tiling(job.request, downscale)
    with going_round(job.backbone.vae, job.request.seamless):
        pixels = [in_parts(job.backbone.decode, few, tiling, downscale) for few in latents.split(PICTURES_AT_ONCE)]
    return to_pictures(torch.cat(pixels))


# ---- what a phase is made of


def acting(job: Job, which: ControlPass) -> list[tuple[int, ControlUnit]]:
    """Return the controls that act in a pass, each with its place. A1111 parity: of a single pass, all of them."""
    hires = job.request.hires
    passes = ("both", which) if hires is not None and hires.denoise else get_args(ControlPass)
    units = enumerate(job.request.controls)
    return [(place, unit) for place, unit in units if unit.passes in passes and place not in job.idle]


def _prepared(job: Job, scene: Scene, which: ControlPass) -> tuple[Prepared, ...]:
    return with_doubts(
        [replace(prepare(unit, scene, job.backbone, job.studio), place=place) for place, unit in acting(job, which)]
    )


def check_files(job: Job, which: ControlPass) -> None:
    """Raise what would stop a pass that is drawn later: its LoRAs, its controls, their pictures and annotators."""
    every = (some for wording in job.worded.wordings for some in all_uses_of(job.request, wording, job.backbone))
    for uses in dict.fromkeys(every):
        job.studio.require_loras(job.backbone, uses)
    request = job.request
    assert request.width and request.height
    scene = _scene(job, request.width, request.height, job.canvas)
    for _, unit in acting(job, which):
        check(unit, scene, job.backbone, job.studio)


@torch.inference_mode()
def rehearse(job: Job, width: int, height: int, which: ControlPass) -> None:
    """Raise what would stop the controls that act in a later pass alone: they are prepared, and kept for it.

    `width`, `height`: of that pass, in pixels.
    """
    scene = _scene(job, width, height, job.canvas, which)
    for _, unit in acting(job, which):
        if unit.passes == which:
            prepare(unit, scene, job.backbone, job.studio)


def _views(prepared: Sequence[Prepared], scene: Scene, downscale: int) -> tuple[View, ...]:
    """Return the parts that the canvas is drawn in, each with the controls that see it."""
    if not scene.windows:
        return (View(joined(p.controls[0] for p in prepared)),)
    return tuple(
        View(joined(p.controls[n] for p in prepared), window.scaled(1 / downscale))
        for n, window in enumerate(scene.windows)
    )


def _scene(job: Job, width: int, height: int, canvas: Canvas | None, which: ControlPass = "first") -> Scene:
    """Return where the controls of a pass of this size act."""
    request, downscale, parts = job.request, job.backbone.downscale, ()
    assert request.width and request.height
    if request.tiles is not None and request.tiles.size and max(width, height) > request.tiles.size:
        size = request.tiles.size // downscale
        cells = windows(height // downscale, width // downscale, size, int(size * request.tiles.overlap))
        parts = tuple(cell.scaled(downscale) for cell in cells)
    return Scene(job.album, width, height, (request.width, request.height), canvas, parts, which)


def _equipped(
    job: Job, scene: Scene, begin: Begin | None, extra: Tensor | None, phase: Phase
) -> tuple[Phase, Material]:
    """Return the phase with what the model is asked with, and what its runs are made of."""
    if sees_depth(job.backbone):
        extra = depth_channel(job.request, scene, job.backbone)
    prepared = _prepared(job, scene, phase.which)
    size = scene.height // job.backbone.downscale, scene.width // job.backbone.downscale
    places, doubts = places_of(job.request, scene, size)
    told = encode(job.request, job.worded, job.backbone, job.studio, places)
    views = _views(prepared, scene, job.backbone.downscale)
    warnings = (*told.warnings, *doubts, *(warning for p in prepared for warning in p.warnings))
    equipped = replace(phase, scene=scene, prepared=prepared, warnings=warnings, told=told)
    return equipped, Material(told.texts, size, views, begin, extra, told.loras)


def _phase(job: Job, scene: Scene, begin: Begin | None, extra: Tensor | None, phase: Phase) -> Phase:
    """Return the phase with its runs."""
    phase, material = _equipped(job, scene, begin, extra, phase)
    runs = runs_of(job.request, job.backbone, material, job.seeds, job.subseeds)
    return replace(phase, runs=runs, num_steps=len(runs[0].sigmas) - 1)


@torch.inference_mode()
def continued(phase: Phase, job: Job) -> Phase:
    """Return the phase in which another model goes on with the runs of one that rest."""
    init, scene, canvas = job.request.init, phase.scene, job.canvas
    assert scene is not None
    if phase.which == "first" and init is not None and canvas is not None:
        extra = _extra(job, canvas, canvas.start(init), init)
    else:
        extra = _extra_without_picture(job, scene)
    done = phase.num_steps
    left = replace(
        phase, backbone=job.backbone, stage="refining", part=phase.part + 1, num_steps=0, skipped=done, runs=()
    )
    left, material = _equipped(job, scene, None, extra, left)
    runs = tuple(taken_over(run, job.request, job.backbone, material) if run.resting else run for run in phase.runs)
    return replace(left, runs=runs, num_steps=len(runs[0].sigmas) - 1 - done)


def first_phase(job: Job, num_parts: int = 1) -> Phase:
    """Return the phase that draws the picture, or draws over the one that is changed."""
    request = job.request
    assert request.width and request.height
    scene = _scene(job, request.width, request.height, job.canvas)
    if (init := request.init) is None or job.canvas is None:
        begin, extra = None, _extra_without_picture(job, scene)
    else:
        begin, extra = _begin(job, job.canvas, init)
    return _phase(job, scene, begin, extra, Phase((), job.backbone, 0, num_parts=num_parts))


def picture_phase(job: Job, begin: Begin, phase: Phase) -> Phase:
    """Return the phase that draws over latents of any size."""
    height, width = (side * job.backbone.downscale for side in begin.latents.shape[-2:])
    scene = _scene(job, width, height, job.canvas, phase.which)
    return _phase(job, scene, begin, _extra_without_picture(job, scene), phase)


def _begin(job: Job, canvas: Canvas, init: InitImage) -> tuple[Begin, Tensor | None]:
    """Return what sampling starts from, and what the net is shown beside it."""
    assert init.fill is not None
    start = canvas.start(init)
    latents = _latents(job, canvas, start, init)
    height, width = latents.shape[-2:]
    mask = None if canvas.mask is None else latent_mask(canvas.mask, height, width, init.mask_mode == "binary")
    begin = Begin(
        latents, init.denoise, init.exact_steps, init.noise, init.extra_noise, mask, init.mask_mode, init.fill
    )
    return begin, _extra(job, canvas, start, init)


def _latents(job: Job, canvas: Canvas, start: Picture, init: InitImage) -> Tensor:
    """Return the latents of the picture; where it is to be stretched there, of the picture at its own size."""
    if init.resize != "latent" or canvas.mask is not None:
        return encoded(start, job)
    downscale, own = job.backbone.downscale, job.album.rgb(init.image)
    height, width = (max(downscale, side // downscale * downscale) for side in own.shape[:2])
    latents = encoded(np.ascontiguousarray(own[:height, :width]), job)
    return F.interpolate(latents, size=tuple(side // downscale for side in start.shape[:2]), mode="bilinear")


def _unscaled(latents: Tensor, backbone: Backbone) -> Tensor:
    """Return latents as the VAE gives them: what editing models were trained to be shown."""
    return latents / float(getattr(backbone.vae, "config", {})["scaling_factor"])


def _extra(job: Job, canvas: Canvas, start: Picture, init: InitImage) -> Tensor | None:
    """Return what the net is shown beside x, (1 e h w): an inpainting or an editing model's channels."""
    if edits(job.backbone):
        return _unscaled(encoded(canvas.picture, job), job.backbone)
    if not inpaints(job.backbone):
        return None
    hole = torch.ones(start.shape[:2]) if canvas.mask is None else torch.from_numpy(canvas.mask) / 255
    hole = hole if init.mask_mode == "soft" else hole.round()  # A1111 parity: mask_round
    pixels = to_pixels(start) * 2 - 1
    seen = torch.lerp(pixels, pixels * (1 - hole), init.mask_weight)
    return _channels(job, hole, seen)


def _channels(job: Job, hole: Tensor, seen: Tensor) -> Tensor:
    """Return an inpainting model's channels. hole: (h w), seen: (1 3 h w), the picture without it, grey in the hole."""
    latents = _encoded(seen, job)
    cells = F.interpolate(hole[None, None], size=latents.shape[-2:])  # the nearest: as it was trained
    return inpainting_channels(cells, latents)


def _extra_without_picture(job: Job, scene: Scene) -> Tensor | None:
    """Return what the net is shown beside x where no picture is changed. Raises RequestError for an editing model."""
    if edits(job.backbone):
        raise RequestError(
            f"{job.backbone.name} edits a picture by instruction: give it one (--from PICTURE), or another model."
        )
    if not inpaints(job.backbone):
        return None
    return _channels(job, torch.ones(scene.height, scene.width), torch.zeros(1, 3, scene.height, scene.width))
