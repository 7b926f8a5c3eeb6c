"""From what a person wrote to what is encoded: one image's texts, part by part and step by step."""

from collections.abc import Sequence
from dataclasses import dataclass

from disegno.core.errors import RequestError
from disegno.core.request import LoraUse
from disegno.prompts.comments import without_comments
from disegno.prompts.composition import Part, split_parts
from disegno.prompts.files import PromptFiles
from disegno.prompts.networks import LORA_KINDS, Tag, cut_tags, lora_of
from disegno.prompts.schedule import Span, schedule
from disegno.prompts.styles import Style, merge_styles
from disegno.prompts.wildcards import fill_wildcards

MAX_PARTS = 128  # each is evaluated by itself at every step


@dataclass(frozen=True)
class Written:
    """One image's prompt and negative prompt in full: styles and wildcards are in, comments are out.

    `regions`: the words of each region, without styles.
    """

    prompt: str
    negative: str
    warnings: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()


def write_out(
    prompt: str, negative: str, styles: Sequence[Style], seed: int, files: PromptFiles, regions: Sequence[str] = ()
) -> Written:
    """Return the texts in full. What comes back can be written out again, and stays as it is. Raises RequestError."""
    prompt = merge_styles([style.prompt for style in styles], prompt)
    negative = merge_styles([style.negative for style in styles], negative)
    prompt, doubts = fill_wildcards(prompt, seed, "prompt", files)
    negative, more = fill_wildcards(negative, seed, "negative", files)
    filled = [fill_wildcards(text, seed, f"region {n}", files) for n, text in enumerate(regions)]
    said = (*doubts, *more, *(doubt for _, some in filled for doubt in some))
    return Written(
        without_comments(prompt),
        without_comments(negative),
        tuple(dict.fromkeys(said)),
        tuple(without_comments(text) for text, _ in filled),
    )


@dataclass(frozen=True)
class Line:
    """A text over the steps, and how much it counts."""

    spans: tuple[Span, ...]
    weight: float = 1.0


@dataclass(frozen=True)
class RegionWording:
    """A region's words, read: their parts, and the LoRAs that they name."""

    parts: tuple[Line, ...]
    loras: tuple[LoraUse, ...] = ()


@dataclass(frozen=True)
class Wording:
    """One image's texts, read: the parts of its prompt, its negative prompt, and the LoRAs that the prompt names.

    `regions`: the words of each region.
    """

    parts: tuple[Line, ...]
    negative: Line
    loras: tuple[LoraUse, ...] = ()
    warnings: tuple[str, ...] = ()
    regions: tuple[RegionWording, ...] = ()


@dataclass(frozen=True)
class Steps:
    """What schedules are counted by: the calls of the first pass; in a second pass, also its own."""

    first: int
    second: int | None = None
    old: bool = False

    def spans(self, text: str) -> tuple[Span, ...]:
        """Return the text's spans."""
        return tuple(schedule(text, self.first, self.second, self.old))


def read(written: Written, steps: Steps) -> Wording:
    """Return the texts, read. Raises RequestError where a LoRA's tag cannot be read, or there are too many parts."""
    own, *regions = [_Prompt.of(text) for text in (written.prompt, *written.regions)]
    num = sum(len(prompt.parts) for prompt in (own, *regions))
    if num > MAX_PARTS:
        where = " and its regions have" if regions else " has"
        raise RequestError(f"The prompt{where} {num} parts between AND; at most {MAX_PARTS} are drawn together.")
    return Wording(
        parts=own.lines(steps),
        negative=Line(steps.spans(written.negative)),
        loras=own.loras,
        warnings=(*written.warnings, *_doubts(written, (own, *regions))),
        regions=tuple(RegionWording(each.lines(steps), each.loras) for each in regions),
    )


@dataclass(frozen=True)
class _Prompt:
    """A prompt in parts, and its tags."""

    parts: Sequence[Part]
    tags: Sequence[Tag]

    @classmethod
    def of(cls, text: str) -> "_Prompt":
        text, tags = cut_tags(text)
        return cls(split_parts(text), tags)

    def lines(self, steps: Steps) -> tuple[Line, ...]:
        return tuple(Line(steps.spans(part.text), part.weight) for part in self.parts)

    @property
    def loras(self) -> tuple[LoraUse, ...]:
        return tuple(lora_of(tag) for tag in self.tags if tag.kind in LORA_KINDS)


def _doubts(written: Written, prompts: Sequence[_Prompt]) -> list[str]:
    """Return what may not be what was meant. `prompts`: the image's own, and its regions'."""
    doubts = [
        f"{tag} was left out: there are no extra networks of the kind {tag.kind!r} here, only LoRAs (lora)."
        for prompt in prompts
        for tag in prompt.tags
        if tag.kind not in LORA_KINDS
    ]
    for n, prompt in enumerate(prompts):
        if len(prompt.parts) == 1 and (weight := prompt.parts[0].weight) != 1:
            called = f"Region {n}'s words end" if n else "The prompt ends"
            doubts.append(
                f"{called} in :{weight:g}, which is the weight, as in A1111: guidance is multiplied by it."
                " Write \\: for a colon of the text."
            )
    if found := [tag for tag in cut_tags(written.negative)[1] if tag.kind in LORA_KINDS]:
        doubts.append(f"{found[0]} in the negative prompt is text: name a LoRA in the prompt, with a weight below 0.")
    return doubts
