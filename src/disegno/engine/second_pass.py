"""The second pass: the drawn picture is enlarged, and drawn over at the new size (A1111's hires fix)."""

from dataclasses import dataclass, replace

import torch
from PIL import Image
from torch import Tensor

from disegno.backbones.base import Backbone
from disegno.core.errors import RequestError
from disegno.core.hires import Target, target_size
from disegno.core.request import FILELESS, ControlUnit, Hires, Request, Tiles
from disegno.engine.depth import check_depth
from disegno.engine.few_steps import for_another, refines, saying
from disegno.engine.guiding import check_guide, edits
from disegno.engine.phases import Job, Phase, acting, check_files, encoded, picture_phase, pictures_of, rehearse
from disegno.engine.runs import Begin, latents_of
from disegno.engine.seamless import require_edges
from disegno.engine.upscale import Enlarge, LatentMode, enlarge_latents, find_upscaler, latent_mode
from disegno.engine.wording import word

Drawn = list[Image.Image]


@dataclass(frozen=True)
class Second:
    """A second pass, opened before the first begins. `enlarge`: a way of the latent space, or of pixels."""

    hires: Hires
    job: Job
    target: Target
    enlarge: LatentMode | Enlarge

    def cut(self, pictures: Drawn) -> Drawn:
        """Return enlarged pictures as they are where nothing is drawn over them: what is too much is cut off."""
        downscale, target = self.job.backbone.downscale, self.target
        height, width = (cells * downscale for cells in target.latent_size(downscale))
        left, top = target.cut_x // 2 * downscale, target.cut_y // 2 * downscale
        return [picture.crop((left, top, left + width, top + height)) for picture in pictures]


def open_second(job: Job) -> Second | None:
    """Return the second pass, its model and upscaler open; None where there is none. Raises DisegnoError."""
    hires, request = job.request.hires, job.request
    if hires is None:
        return None
    assert request.width and request.height
    target = target_size(hires, request.width, request.height, job.backbone.downscale)
    backbone = _backbone(job, hires)
    check_depth(request, backbone)
    require_edges(request, backbone)
    check_guide(request, backbone)
    mode = latent_mode(hires.upscaler)
    if mode is not None and latents_of(backbone) != latents_of(job.backbone):
        raise RequestError(
            f"{backbone.name} has other latents than {job.backbone.name}, so {hires.upscaler} cannot go from one to the"
            " other. Choose an upscaler of pixels, such as Lanczos."
        )
    height, width = target.latent_size(backbone.downscale)
    backbone.check_size(width * backbone.downscale, height * backbone.downscale)
    worded = word(request, job.seeds, job.studio, part=1)
    drawn, worded = for_another(job.backbone, backbone, _request(job, backbone, hires), worded)
    unfit = _unfit(job, backbone)
    said = (
        f"The control {unit.name} does nothing on the refiner {backbone.name}, whose net has other sizes."
        for unit in unfit.values()
    )
    drawing = replace(job, request=drawn, backbone=backbone, worded=saying(worded, said), idle=frozenset(unfit))
    second = Second(hires, drawing, target, mode or find_upscaler(hires.upscaler, job.studio))
    if hires.denoise:
        _check(second)
    return second


def _unfit(job: Job, second: Backbone) -> dict[int, ControlUnit]:
    """Return the controls of files, by their places, where SDXL's refiner draws the second pass."""
    if not refines(job.backbone, second):
        return {}
    return {place: unit for place, unit in acting(job, "hires") if unit.name not in FILELESS}


def _backbone(job: Job, hires: Hires) -> Backbone:
    """Return the second pass's model: the first one's as it is, with all that was said of it, where it is the same."""
    studio, request = job.studio, job.request
    if hires.model is None or studio.find_model(hires.model) == studio.find_model(request.model):
        return job.backbone
    return studio.backbone(hires.model, vae=request.vae)


def _check(second: Second) -> None:
    """Raise what would stop the second pass, before the first one is drawn."""
    job = second.job
    if edits(job.backbone):
        raise RequestError(
            f"{job.backbone.name} edits a picture by instruction, and a hires pass has none to give it: leave it out."
        )
    check_files(job, "hires")
    height, width = (cells * job.backbone.downscale for cells in second.target.latent_size(job.backbone.downscale))
    rehearse(job, width, height, "hires")


def _request(job: Job, backbone: Backbone, hires: Hires) -> Request:
    """Return what the second pass draws; its words come from `word`."""
    request = job.request
    return replace(
        request,
        model=hires.model or request.model,
        steps=hires.steps,
        sampler=hires.sampler,
        schedule=hires.schedule,
        cfg=hires.cfg,
        tiles=request.tiles and _tiles(request.tiles, job.backbone, backbone),
    )


def _tiles(tiles: Tiles, first: Backbone, second: Backbone) -> Tiles:
    """Return the parts that a second pass is drawn in: of its model's own size where the first one's were."""
    own, other = (min(model.defaults.width, model.defaults.height) for model in (first, second))
    return replace(tiles, size=other) if tiles.size == own else tiles


@torch.inference_mode()
def enlarged(second: Second, drawn: Tensor | Drawn, job: Job) -> Tensor | Drawn:
    """Return what the first pass drew, enlarged: latents (b c h w), or pictures, as the upscaler works on."""
    target, downscale = second.target, second.job.backbone.downscale
    if isinstance(second.enlarge, LatentMode):
        latents = drawn if isinstance(drawn, Tensor) else torch.cat([encoded(one, job) for one in drawn])
        size = target.height // downscale, target.width // downscale
        return middle(enlarge_latents(latents, *size, second.enlarge), target)
    pictures = pictures_of(drawn, job) if isinstance(drawn, Tensor) else drawn
    return [second.enlarge(picture, target.width, target.height) for picture in pictures]


@torch.inference_mode()
def second_phase(second: Second, large: Tensor | Drawn, part: int, num_parts: int) -> Phase:
    """Return the phase that draws over the enlarged pictures, the generation's `part` of `num_parts`."""
    latents = large if isinstance(large, Tensor) else _encoded(second, large)
    begin = Begin(latents, second.hires.denoise, exact_steps=True)
    phase = Phase((), second.job.backbone, 0, "enlarging", part, num_parts, "hires")
    return picture_phase(second.job, begin, phase)


def _encoded(second: Second, pictures: Drawn) -> Tensor:
    """Return the latents of enlarged pictures, cut to whole cells and then as the target says."""
    downscale = second.job.backbone.downscale
    width, height = (side // downscale * downscale for side in pictures[0].size)
    whole = [picture.crop((0, 0, width, height)) for picture in pictures]
    return middle(torch.cat([encoded(picture, second.job) for picture in whole]), second.target)


def middle(latents: Tensor, target: Target) -> Tensor:
    """Return what a target leaves of the enlarged latents (b c h w)."""
    height, width = latents.shape[-2:]
    top, left = target.cut_y // 2, target.cut_x // 2
    return latents[:, :, top : height - (target.cut_y - top), left : width - (target.cut_x - left)]
