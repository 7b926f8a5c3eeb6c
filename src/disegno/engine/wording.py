"""From a Request's prompts to the text states of its images: written out, read, and encoded, each text once."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from disegno.backbones.base import Backbone, TextStates
from disegno.core.errors import RequestError
from disegno.core.request import Hires, LoraUse, Region, Request
from disegno.diffusion.call import Where
from disegno.engine.studio import Studio
from disegno.engine.texts import ImageTexts, Texts, Timeline
from disegno.loras.apply import NO_LORAS, Loras
from disegno.prompts.reading import Line, RegionWording, Steps, Wording, Written, read, write_out
from disegno.samplers.catalogue import find_sampler
from disegno.text.learnt import LearntVectors, TextOptions, squeezed

MAX_STATES = 1 << 18  # tokens of all texts of a request, over all steps: 0.8 GiB of CLIP's states in float32


Uses = tuple[LoraUse, ...]


@dataclass(frozen=True)
class Worded:
    """The prompts of a request's images, in full and read."""

    written: tuple[Written, ...]
    wordings: tuple[Wording, ...]


def word(request: Request, seeds: Sequence[int], studio: Studio, part: int = 0) -> Worded:
    """Return the prompts of a concrete request's images, in full and read. `part`: 1 for the hires pass.

    Raises RequestError, UnknownName about what they name.
    """
    if part:
        request = _second(request)
    files, steps = studio.prompt_files(), _steps(request, part)
    styles = files.chosen(request.styles)
    prompts = request.prompts or (request.prompt,) * request.batch
    negatives = request.negatives or (request.negative,) * request.batch
    words = zip(*(region.prompts or (region.prompt,) * request.batch for region in request.regions), strict=True)
    regions = list(words) if request.regions else [()] * request.batch
    written = tuple(
        write_out(prompt, negative, styles, seed, files, some)
        for prompt, negative, seed, some in zip(prompts, negatives, seeds, regions, strict=True)
    )
    written = _in_full(written, request.hires) if part and request.hires else written
    once = {each: read(each, steps) for each in dict.fromkeys(written)}
    return Worded(written, tuple(once[each] for each in written))


def _in_full(written: tuple[Written, ...], hires: Hires) -> tuple[Written, ...]:
    """Return what the hires pass's images are drawn by: the texts that it has in full, where it has them."""
    if hires.prompts:
        written = tuple(replace(each, prompt=text) for each, text in zip(written, hires.prompts, strict=True))
    if hires.negatives:
        written = tuple(replace(each, negative=text) for each, text in zip(written, hires.negatives, strict=True))
    return written


def told_in_full(hires: Hires, worded: Worded) -> Hires:
    """Return the hires pass with its own texts in full, where they are not simply its prompt and negative prompt."""
    prompts = tuple(each.prompt for each in worded.written) if hires.prompts or hires.prompt is not None else ()
    negatives = tuple(each.negative for each in worded.written) if hires.negatives or hires.negative is not None else ()
    return replace(
        hires,
        prompts=() if set(prompts) <= {hires.prompt} else prompts,
        negatives=() if set(negatives) <= {hires.negative} else negatives,
    )


def regions_in_full(regions: Sequence[Region], worded: Worded) -> tuple[Region, ...]:
    """Return the regions with their words in full, where they are not simply what was asked."""
    texts = zip(*(each.regions for each in worded.written), strict=True)
    pairs = zip(regions, texts, strict=True) if regions else ()
    return tuple(replace(one, prompts=() if set(some) == {one.prompt} else some) for one, some in pairs)


def _second(request: Request) -> Request:
    """Return the request with the hires pass's own prompts in place of the first one's."""
    assert request.hires is not None
    if request.hires.prompt is not None:
        request = replace(request, prompt=request.hires.prompt, prompts=())
    if request.hires and request.hires.negative is not None:
        request = replace(request, negative=request.hires.negative, negatives=())
    return request


def _steps(request: Request, part: int) -> Steps:
    """Return what schedules are counted by: calls of the model. A1111 parity: all of the plan's, also in img2img."""
    assert request.steps and request.sampler
    first, second, hires = request.steps * find_sampler(request.sampler).evals_per_step, None, request.hires
    if part and hires and hires.steps and hires.sampler:
        second = hires.steps * find_sampler(hires.sampler).evals_per_step
    return Steps(first, second, request.old_timelines)


@dataclass(frozen=True)
class Encoded:
    """The texts of a phase's images, and the LoRAs of each. `learnt`: the learnt vectors that the texts name."""

    texts: Texts
    loras: tuple[Loras, ...]
    learnt: tuple[LearntVectors, ...]
    warnings: tuple[str, ...]


def encode(
    request: Request, worded: Worded, backbone: Backbone, studio: Studio, places: Sequence[Where] = ()
) -> Encoded:
    """Return the images' texts, encoded with the LoRAs that each one names. Raises DisegnoError about a LoRA.

    `places`: where the prompt and each region hold; none: there are no regions.
    """
    uses = [uses_of(request, wording, backbone) for wording in worded.wordings]
    every = [some for wording in worded.wordings for some in all_uses_of(request, wording, backbone)]
    encoders = {some: _Encoder(request, backbone, studio, some) for some in dict.fromkeys(every)}

    def image(own: Uses, wording: Wording) -> ImageTexts:
        texts = encoders[own].texts(wording.parts, wording.negative)
        if not places:
            return texts
        held = zip(wording.regions, places[1:], strict=True)
        regions = (_in_region(encoders, own, region, wording.negative, where) for region, where in held)
        return replace(texts, where=places[0], regions=tuple(regions))

    images = {pair: image(*pair) for pair in dict.fromkeys(zip(uses, worded.wordings, strict=True))}
    said = [warning for wording in worded.wordings for warning in wording.warnings]
    said += [warning for encoder in encoders.values() for warning in (*encoder.loras.warnings, *encoder.warnings)]
    learnt = {each.sha256: each for encoder in encoders.values() for each in encoder.named}
    return Encoded(
        texts=Texts(tuple(images[pair] for pair in zip(uses, worded.wordings, strict=True))),
        loras=tuple(encoders[some].loras for some in uses),
        learnt=tuple(learnt.values()),
        warnings=tuple(dict.fromkeys(said)),
    )


def _in_region(
    encoders: "Mapping[Uses, _Encoder]", own: Uses, region: RegionWording, negative: Line, where: Where
) -> ImageTexts:
    """Return a region's texts; `own`: the LoRAs of its image."""
    worn = with_own(own, region)
    loras = None if worn == own else encoders[worn].loras
    return replace(encoders[worn].texts(region.parts, negative), where=where, loras=loras)


def with_own(uses: Uses, region: RegionWording) -> Uses:
    """Return the LoRAs where a region holds: those of its image, but for what its words say of them, and its own."""
    named = {use.name for use in region.loras}
    return (*(use for use in uses if use.name not in named), *region.loras)


def all_uses_of(request: Request, wording: Wording, backbone: Backbone) -> list[Uses]:
    """Return the sets of LoRAs of an image: its own, then each region's."""
    own = uses_of(request, wording, backbone)
    return [own, *(with_own(own, region) for region in wording.regions)]


def uses_of(request: Request, wording: Wording, backbone: Backbone) -> Uses:
    """Return the LoRAs of an image: the request's, and those of its prompt, which names the few steps' own once."""
    few = backbone.few_steps
    own = few and few.name
    again = own is not None and any(use.name == own for use in wording.loras)
    return (*(use for use in request.loras if not (again and use.name == own)), *wording.loras)


class _Encoder:
    """What encodes one request's texts with a set of LoRAs: each distinct text once, also over requests.

    `named`, `warnings`: the learnt vectors that the texts so far have named, and what was said of them.
    """

    def __init__(self, request: Request, backbone: Backbone, studio: Studio, uses: Sequence[LoraUse]) -> None:
        self.request, self.backbone, self.studio = request, backbone, studio
        self.loras: Loras = studio.loras(backbone, uses) if uses else NO_LORAS
        self.named: list[LearntVectors] = []
        self.warnings: list[str] = []
        self._num_states = 0

    def texts(self, parts: Sequence[Line], negative: Line) -> ImageTexts:
        """Return a prompt's parts and its negative prompt."""
        timelines = tuple(self._timeline(part) for part in parts)
        empty = self._states("") if self.request.pad_texts else None
        return ImageTexts(timelines, self._timeline(negative, is_negative=True), empty)

    def _timeline(self, line: Line, is_negative: bool = False) -> Timeline:
        """Return a text over the calls. A1111 parity: a negative prompt is silent where it never says anything."""
        silent = is_negative and not any(span.text.strip() for span in line.spans)
        states = {text: self._states(text, silent) for text in dict.fromkeys(span.text for span in line.spans)}
        return Timeline(line.spans, tuple(states[span.text] for span in line.spans), line.weight)

    def _states(self, text: str, silent: bool = False) -> TextStates:
        request, where = self.request, squeezed(text.replace("\\", ""))  # a name's brackets are written with one
        named = tuple(each for each in self._learnt[0] if any(squeezed(name) in where for name in each.names))
        options = TextOptions(request.clip_skip, request.emphasis, request.comma_backtrack, named, silent)
        states = self.studio.prompt_states(self.backbone, text, options, self.loras)
        self._num_states += states.tokens.shape[1]
        if self._num_states > MAX_STATES:
            raise RequestError(
                f"The prompts come to more than {MAX_STATES} tokens over all steps and pictures. Make them shorter, or"
                " let them change less often."
            )
        self.named += named
        self.warnings += (*states.warnings, *self._strangers_in(text))
        return states

    @cached_property
    def _learnt(self) -> tuple[list[LearntVectors], dict[str, str]]:
        return self.studio.learnt(self.backbone)

    def _strangers_in(self, text: str) -> list[str]:
        """Return what is said of a text's words that are embeddings which it cannot have."""
        words = set(re.findall(r"[\w\-]+", text.lower()))
        return [
            f"The embedding {name!r} {why}: its name was taken as text."
            for name, why in self._learnt[1].items()
            if name.lower() in words
        ]
