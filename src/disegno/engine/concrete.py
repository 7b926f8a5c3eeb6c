"""What a request leaves open, filled in: by the model's defaults, by the picture that is changed, by chance."""

import random
from dataclasses import replace

from disegno.backbones.base import Backbone
from disegno.core.errors import RequestError
from disegno.core.hires import target_size
from disegno.core.request import NUM_SEEDS, Hires, InitImage, Request, Tiles
from disegno.engine.album import Album
from disegno.engine.canvas import size_for
from disegno.engine.few_steps import in_few_steps
from disegno.engine.guiding import check_guide
from disegno.engine.regions import check_regions
from disegno.engine.seamless import require_edges
from disegno.engine.wording import Worded
from disegno.samplers.base import SamplerSpec
from disegno.samplers.catalogue import all_samplers, find_sampler, resolve_names

MAX_SIDE = 4096  # of Request.width and height
VAE_WHOLE_PIXELS = 1024 * 1024  # larger pictures go through the VAE in parts, unless the request says otherwise:
VAE_TILE = 512  # at 1024 px Stable Diffusion's decoder takes 3 GiB in float32, at 512 px 0.8
_TOLD = ("crop_top", "crop_left", "beauty", "plainness")  # to Stable Diffusion XL and its refiner
_OF_A_MASK = ("fill", "mask_mode", "mask_blur", "padding", "mask_weight")


def check_beforehand(request: Request, album: Album) -> None:
    """Raise what needs no open model to be known: a sampler or schedule that is not there, a picture that is none."""
    for each in filter(None, (request, request.hires)):
        resolve_names(each.sampler, each.schedule)
    init = request.init
    of_units = (source for unit in request.controls for source in (unit.image, unit.mask, unit.region))
    for source in (init and init.image, init and init.mask, *of_units):
        if source:
            album.channels(source)
    check_regions(request.regions, album)


def concrete(request: Request, backbone: Backbone, album: Album) -> Request:
    """Return the request with the model's own defaults for what it leaves open, and its seeds drawn.

    One for few steps says what that means for the model. Raises RequestError.
    """
    own = backbone.defaults
    require_edges(request, backbone)
    check_guide(request, backbone)
    if request.few_steps:
        request, own = in_few_steps(request, backbone)
    schedule = request.schedule or (None if request.sampler else own.schedule)
    sampler, schedule = resolve_names(request.sampler or own.sampler, schedule)
    width, height = _size(request, backbone, album)
    filled = replace(
        request,
        width=width,
        height=height,
        steps=request.steps or own.steps,
        cfg=own.cfg if request.cfg is None else request.cfg,
        sampler=sampler,
        schedule=schedule,
        seed=random.randrange(NUM_SEEDS) if request.seed == -1 else request.seed,
        subseed=random.randrange(NUM_SEEDS) if request.subseed == -1 else request.subseed,
        init=request.init and _init(request.init),
    )
    filled = replace(filled, hires=filled.hires and _hires(filled.hires, filled))
    return replace(filled, tiles=_tiles(filled, backbone), vae_tile=_vae_tile(filled, album))


def _size(request: Request, backbone: Backbone, album: Album) -> tuple[int, int]:
    own = backbone.defaults
    width, height = request.width or own.width, request.height or own.height
    if request.init is not None:
        given = request.width, request.height
        most = _most(request.init, album) if _only_enlarges(request) else (own.width, own.height)
        width, height = size_for(request.init, given, most, album)
    if max(width, height) > MAX_SIDE or min(width, height) < 64:
        raise RequestError(
            f"The canvas would be {width} x {height} pixels; each side must be from 64 to {MAX_SIDE}. Give a size."
        )
    backbone.check_size(width, height)
    return width, height


def _only_enlarges(request: Request) -> bool:
    """Return whether a picture is enlarged and nothing of it is drawn: then it is so from its own size on."""
    init, hires = request.init, request.hires
    return bool(init and hires and not (init.denoise or hires.denoise or init.mask or init.outpaint))


def _most(init: InitImage, album: Album) -> tuple[int, int]:
    """Return a picture's own (width, height), within what a canvas may be."""
    height, width = album.channels(init.image).shape[:2]
    scale = min(1.0, MAX_SIDE / max(width, height))
    return int(width * scale), int(height * scale)


def _init(init: InitImage) -> InitImage:
    return replace(
        init,
        fill=init.fill or ("fill" if init.outpaint else "original"),
        mask_blur_y=init.mask_blur if init.mask_blur_y is None else init.mask_blur_y,
    )


def passed_over(request: Request, edits: bool, sees_depth: bool, is_sdxl: bool) -> list[str]:
    """Return what a concrete request says that decides nothing, in plain words.

    `edits`, `sees_depth`, `is_sdxl`: whether a model of it does, or is.
    """
    init, doubts = request.init, list[str]()
    if init is not None and init.mask is None and init.outpaint is None:
        own = _init(InitImage(image=init.image))
        said = ", ".join(name for name in _OF_A_MASK if getattr(init, name) != getattr(own, name))
        doubts += [f"There is no mask, of which {said} is said: it was passed over."] if said else []
    if request.image_cfg != Request().image_cfg and not edits:
        doubts.append("image_cfg was passed over: it is for models that edit by instruction.")
    if edits and request.image_cfg != 1 and (request.cfg_start or request.negative_min):
        doubts.append(
            "cfg_start and negative_min were passed over: the picture that is edited is weighed at every step."
        )
    if bool(request.seed_width) != bool(request.seed_height):
        doubts.append("The noise was drawn as for the picture itself: seed_width and seed_height go together.")
    if (told := [name for name in _TOLD if getattr(request, name) != getattr(Request(), name)]) and not is_sdxl:
        doubts.append(f"What Stable Diffusion XL alone is told was passed over: {', '.join(told)}.")
    if (request.depth or request.depth_annotate) and not sees_depth:
        doubts.append("The depth map was passed over: it is for models that are shown one (Stable Diffusion 2 depth).")
    return doubts


def unheard(request: Request, worded: Worded, edits: bool) -> list[str]:
    """Return what is said of a concrete request's negative prompt where it decides nothing. `edits`: see above."""
    passes = [request, *([request.hires] if request.hires and request.hires.denoise else [])]
    heard = any(each.cfg != 1 or find_sampler(each.sampler or "").cfg_divisor != 1 for each in passes)
    mixed = any(len(each.parts) > 1 or any(part.weight != 1 for part in each.parts) for each in worded.wordings)
    if heard or mixed or edits or not any(each.negative.strip() for each in worded.written):
        return []
    return ["The negative prompt was passed over: at a guidance of 1 (cfg) nothing is kept away from."]


def _hires(hires: Hires, request: Request) -> Hires:
    sampler, schedule = resolve_names(hires.sampler or request.sampler, hires.schedule or request.schedule)
    cfg = request.cfg if hires.cfg is None else hires.cfg
    return replace(hires, steps=hires.steps or request.steps, sampler=sampler, schedule=schedule, cfg=cfg)


def _tiles(request: Request, backbone: Backbone) -> Tiles | None:
    own = backbone.defaults
    return request.tiles and replace(request.tiles, size=request.tiles.size or min(own.width, own.height))


def _vae_tile(request: Request, album: Album | None) -> int:
    """Return in which parts the VAE works: as asked, else at once up to VAE_WHOLE_PIXELS of what it is shown.

    `album`: reads the picture that is changed, which may be shown at its own size; None: that is not looked at.
    """
    if request.vae_tile is not None:
        return request.vae_tile
    if request.seamless:
        return 0
    assert request.width and request.height
    init, pixels = request.init, [request.width * request.height]
    if request.hires is not None:
        target = target_size(request.hires, request.width, request.height)
        pixels.append(target.width * target.height)
    if album and init is not None and init.resize == "latent" and init.mask is None and init.outpaint is None:
        height, width = album.channels(init.image).shape[:2]  # it is encoded at its own size
        pixels.append(width * height)
    return VAE_TILE if max(pixels) > VAE_WHOLE_PIXELS else 0


def following(request: Request) -> Request:
    """Return a concrete request, in which what would be filled in with the same follows from the rest again.

    So a change of the size decides anew in which parts the VAE works, and one of the first pass's steps, sampler or
    guidance is the second's too, where the same model draws that.
    """
    hires = request.hires
    if hires is not None and hires.model in (None, request.model):
        alike = (hires.sampler, hires.schedule) == (request.sampler, request.schedule)
        hires = replace(
            hires,
            steps=None if hires.steps == request.steps else hires.steps,
            cfg=None if hires.cfg == request.cfg else hires.cfg,
            sampler=None if alike else hires.sampler,
            schedule=None if alike else hires.schedule,
        )
    request = replace(request, hires=hires)
    if not (request.width and request.height) or request.vae_tile != _vae_tile(replace(request, vae_tile=None), None):
        return request
    return replace(request, vae_tile=None)


def sampler_of(request: Request, backbone: Backbone) -> SamplerSpec:
    """Return the request's sampler. Raises RequestError where it has no meaning for the model."""
    assert request.sampler is not None
    spec = find_sampler(request.sampler)
    if backbone.prediction.name not in spec.predictions:
        fitting = (each.name for each in all_samplers() if backbone.prediction.name in each.predictions)
        raise RequestError(
            f"The sampler {spec.name} has no meaning for a {backbone.prediction.name} model such as {backbone.name}; it"
            f" is for: {', '.join(spec.predictions)}. Choose one of: {', '.join(fitting)}."
        )
    return spec
