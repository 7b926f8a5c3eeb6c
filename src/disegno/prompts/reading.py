"""From what a person wrote to what is encoded: one image's texts, part by part and step by step."""

from collections.abc import Sequence
from dataclasses import dataclass

from disegno.core.errors import RequestError
from disegno.core.request import LoraUse
from disegno.prompts.comments import without_comments
from disegno.prompts.composition import split_parts
from disegno.prompts.files import PromptFiles
from disegno.prompts.networks import LORA_KINDS, Tag, cut_tags, lora_of
from disegno.prompts.schedule import Span, schedule
from disegno.prompts.styles import Style, merge_styles
from disegno.prompts.wildcards import fill_wildcards

MAX_PARTS = 128  # each is evaluated by itself at every step


@dataclass(frozen=True)
class Written:
    """One image's prompt and negative prompt in full: styles and wildcards are in, comments are out."""

    prompt: str
    negative: str
    warnings: tuple[str, ...] = ()


def write_out(prompt: str, negative: str, styles: Sequence[Style], seed: int, files: PromptFiles) -> Written:
    """Return the texts in full. What comes back can be written out again, and stays as it is. Raises RequestError."""
    prompt = merge_styles([style.prompt for style in styles], prompt)
    negative = merge_styles([style.negative for style in styles], negative)
    prompt, doubts = fill_wildcards(prompt, seed, "prompt", files)
    negative, more = fill_wildcards(negative, seed, "negative", files)
    return Written(without_comments(prompt), without_comments(negative), tuple(dict.fromkeys((*doubts, *more))))


@dataclass(frozen=True)
class Line:
    """A text over the steps, and how much it counts."""

    spans: tuple[Span, ...]
    weight: float = 1.0


@dataclass(frozen=True)
class Wording:
    """One image's texts, read: the parts of its prompt, its negative prompt, and the LoRAs that the prompt names."""

    parts: tuple[Line, ...]
    negative: Line
    loras: tuple[LoraUse, ...] = ()
    warnings: tuple[str, ...] = ()


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
    prompt, tags = cut_tags(written.prompt)
    parts = split_parts(prompt)
    if len(parts) > MAX_PARTS:
        raise RequestError(f"The prompt has {len(parts)} parts between AND; at most {MAX_PARTS} are drawn together.")
    return Wording(
        parts=tuple(Line(steps.spans(part.text), part.weight) for part in parts),
        negative=Line(steps.spans(written.negative)),
        loras=tuple(lora_of(tag) for tag in tags if tag.kind in LORA_KINDS),
        warnings=(*written.warnings, *_doubts(written, tags, [part.weight for part in parts])),
    )


def _doubts(written: Written, tags: Sequence[Tag], weights: Sequence[float]) -> list[str]:
    """Return what may not be what was meant."""
    doubts = [
        f"{tag} was left out: there are no extra networks of the kind {tag.kind!r} here, only LoRAs (lora)."
        for tag in tags
        if tag.kind not in LORA_KINDS
    ]
    if len(weights) == 1 and weights[0] != 1:
        doubts.append(
            f"The prompt ends in :{weights[0]:g}, which is its weight, as in A1111: guidance is multiplied by it."
            " Write \\: for a colon of the text."
        )
    if found := [tag for tag in cut_tags(written.negative)[1] if tag.kind in LORA_KINDS]:
        doubts.append(f"{found[0]} in the negative prompt is text: name a LoRA in the prompt, with a weight below 0.")
    return doubts
