"""From a request to the guidance of its runs, and which of it a model can follow."""

from dataclasses import replace

from disegno.backbones.base import Backbone, JoinsSkips, Weakens
from disegno.core.errors import RequestError
from disegno.core.freeu import FreeU
from disegno.core.guide import Guide
from disegno.core.request import Request
from disegno.diffusion.call import Joins, Weakness
from disegno.diffusion.denoiser import Away, Guidance, within
from disegno.diffusion.guidance import Projection


def edits(backbone: Backbone) -> bool:
    """Return whether the net is shown the picture that it edits by instruction (instruct-pix2pix)."""
    return backbone.in_channels == 2 * backbone.latent_channels


def check_guide(request: Request, backbone: Backbone) -> None:
    """Raise RequestError where a request's guidance, or FreeU, has no meaning for the model."""
    if request.freeu is not None:
        if not isinstance(backbone, JoinsSkips):
            raise RequestError(f"freeu is for models with a UNet, and {backbone.name} has none. Leave it out.")
        backbone.check_joins()
    guide = request.guide
    if guide is None:
        return
    if guide.apg and edits(backbone):
        raise RequestError(f"{backbone.name} weighs the picture too, and apg is for the prompt alone. Leave it out.")
    if guide.zero_star and backbone.prediction.name != "flow":
        raise RequestError(
            f"zero_star is for flow models (Stable Diffusion 3), and {backbone.name} is a {backbone.prediction.name}"
            " model. Leave it out, or say apg."
        )
    for away in _away(guide):
        if not isinstance(backbone, Weakens):
            raise RequestError(f"{backbone.name} cannot be weakened: leave out pag and slg.")
        backbone.check_weakness(away.weakness)


def guidance_of(request: Request, backbone: Backbone, divisor: float) -> Guidance:
    """Return a concrete request's guidance. `divisor`: of its cfg, of the sampler's meaning (`cfg_divisor`)."""
    assert request.cfg is not None
    image_cfg = request.image_cfg if edits(backbone) else None
    pauses = request.cfg_start, request.negative_min, request.negative_min_all
    own = Guidance(request.cfg / divisor, request.cfg_rescale, image_cfg, *pauses)
    guide = request.guide
    if guide is None:
        return own
    projection = Projection(guide.apg_norm, guide.apg_momentum, guide.apg_parallel) if guide.apg else None
    return replace(own, away=_away(guide), projection=projection, fits=guide.zero_star, still=guide.zero_steps)


def _away(guide: Guide) -> tuple[Away, ...]:
    pag = Away(Weakness(attention=True), guide.pag, guide.pag_start, guide.pag_end)
    slg = Away(Weakness(without=guide.slg_layers), guide.slg, guide.slg_start, guide.slg_end)
    return tuple(away for away in (pag, slg) if away.scale)


def joins_of(freeu: FreeU | None, progress: float) -> Joins | None:
    """Return how a UNet joins its skip connections when `progress` of the steps are done; None: as it was taught."""
    if freeu is None or not freeu.strength or not within(progress, freeu.start, freeu.end):
        return None
    b1, b2, s1, s2 = freeu.factors
    return Joins((b1, b2), (s1, s2), adapts=freeu.version == 2)
