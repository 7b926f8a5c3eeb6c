"""Few steps: a model that draws in a handful of them, by a LoRA that it brings or as it is, and what they want."""

from collections.abc import Callable, Iterable
from dataclasses import replace

from disegno.backbones.base import Backbone, Defaults, Refines
from disegno.core.errors import RequestError
from disegno.core.request import Hires, LoraUse, Request
from disegno.engine.wording import Worded
from disegno.prompts.reading import Wording


def in_few_steps(request: Request, backbone: Backbone) -> tuple[Request, Defaults]:
    """Return the request with the model's own LoRA, if any, in place of `few_steps`, and what fills in the rest.

    Where the request names that LoRA already, that one acts; where an image's prompt does, `encode` sees to it. A
    picture is changed in all of the steps: a share of a handful would begin too far up, and keep nothing of it.
    Raises RequestError where the model brings none, or where the hires pass is drawn by another model and does not
    say how.
    """
    few = backbone.few_steps
    if few is None:
        raise RequestError(
            f"{backbone.name} brings nothing to draw in few steps with. Leave few_steps out, or give a LoRA that was"
            f" made for it (LCM, for {backbone.family}): --lora NAME --steps 4 --sampler LCM --cfg 1."
        )
    if request.refiner is not None:
        raise RequestError(
            f"{backbone.name} was taught to draw in few steps, and its refiner was not. Leave out few_steps or refiner."
        )
    hires = request.hires
    if hires is not None and hires.model not in (None, request.model):
        if hires.steps is None or hires.cfg is None:
            raise RequestError(
                f"{few.steps} steps at guidance {few.cfg:g} are what {backbone.name} wants; the hires pass is drawn by"
                f" {hires.model}. Say its steps and its guidance too."
            )
        hires = _as_without(hires, request, backbone.defaults)
    named = {use.name for use in request.loras}
    added = () if few.name is None or few.name in named else (LoraUse(name=few.name),)
    own = replace(backbone.defaults, steps=few.steps, cfg=few.cfg, sampler=few.sampler, schedule=few.schedule)
    init = request.init and replace(request.init, exact_steps=True)
    return replace(request, few_steps=False, loras=(*request.loras, *added), init=init, hires=hires), own


def _as_without(hires: Hires, request: Request, own: Defaults) -> Hires:
    """Return another model's hires pass with the names that it would have had, not those of the few steps."""
    sampler = hires.sampler or request.sampler or own.sampler
    return replace(hires, sampler=sampler, schedule=hires.schedule or request.schedule or own.schedule)


def for_another(first: Backbone, second: Backbone, request: Request, worded: Worded) -> tuple[Request, Worded]:
    """Return what a second pass draws, by another model: without what is the first one's alone.

    That is the LoRA that only the first one brings; where the second one is a refiner of other nets (SDXL's), all.
    """
    if refines(first, second):
        return _on_refiner(second, request, worded)
    own, others = (model.few_steps.name if model.few_steps else None for model in (first, second))
    if own is None or own == others:
        return request, worded

    def without(uses: tuple[LoraUse, ...]) -> tuple[LoraUse, ...]:
        return tuple(use for use in uses if use.name != own)

    return replace(request, loras=without(request.loras)), _wearing(worded, without)


def _wearing(worded: Worded, of: Callable[[tuple[LoraUse, ...]], tuple[LoraUse, ...]]) -> Worded:
    """Return the wordings with other LoRAs: what `of` makes of each set that they name."""

    def wearing(wording: Wording) -> Wording:
        regions = tuple(replace(region, loras=of(region.loras)) for region in wording.regions)
        return replace(wording, loras=of(wording.loras), regions=regions)

    return replace(worded, wordings=tuple(wearing(wording) for wording in worded.wordings))


def _on_refiner(refiner: Backbone, request: Request, worded: Worded) -> tuple[Request, Worded]:
    """Return the request without LoRAs, which is said. A1111 parity: none acts on SDXL's refiner."""
    texts = [text for each in worded.wordings for text in (each, *each.regions)]
    uses = [use for some in (request.loras, *(text.loras for text in texts)) for use in some]
    left = dict.fromkeys(use.name for use in uses)
    words = [f"The LoRA {name!r} does nothing on the refiner {refiner.name}, whose nets are others." for name in left]
    return replace(request, loras=()), saying(_wearing(worded, lambda _: ()), words)


def saying(worded: Worded, words: Iterable[str]) -> Worded:
    """Return the wordings with these warnings, too."""
    said = tuple(words)
    wordings = tuple(replace(each, warnings=(*each.warnings, *said)) for each in worded.wordings)
    return replace(worded, wordings=wordings)


def refines(first: Backbone, second: Backbone) -> bool:
    """Return whether the second model is a refiner of the first one's family, with other nets: SDXL's."""
    return first.family == second.family and _is_refiner(second) and not _is_refiner(first)


def _is_refiner(model: Backbone) -> bool:
    return isinstance(model, Refines) and model.refines
