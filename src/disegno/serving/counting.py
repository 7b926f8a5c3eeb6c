"""`/v1/tokens`: how long a prompt is for a model, counted at once: no model is asked, and no torch is loaded."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Annotated

from fastapi import APIRouter, Request
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as checked_dataclass
from tokenizers import Tokenizer

from disegno.core.errors import RequestError
from disegno.prompts.comments import without_comments
from disegno.prompts.composition import split_parts
from disegno.prompts.emphasis import parse_emphasis
from disegno.prompts.networks import cut_tags
from disegno.prompts.schedule import schedule
from disegno.serving.app import Door, jobs_of, render_plainly
from disegno.serving.settings import Limits
from disegno.serving.words import Catalogue
from disegno.text import clip_tokens
from disegno.text.chunks import Learnt, Name, Ruler, chunks_of

STEPS = 20  # what a schedule's shares are counted by; its longest text is nearly always the same for any number

router = APIRouter(prefix="/v1")

_CONFIG = ConfigDict(use_attribute_docstrings=True, extra="forbid")


@checked_dataclass(frozen=True, config=_CONFIG)
class Text:
    """A prompt, and the model that will read it."""

    text: Annotated[str, Field(max_length=Limits.prompt_chars)]
    model: str = "diorama"


@checked_dataclass(frozen=True, config=_CONFIG)
class Count:
    """How long a prompt is: that of its parts and moments which is the longest. Null where the encoder is not known."""

    tokens: int | None
    room: int | None
    """What fits into the chunks that it fills."""
    chunks: int | None
    networks: int
    """How many LoRAs it names."""
    problem: str | None = None
    """Why it cannot be read."""


@dataclass(frozen=True)
class Reader:
    """How the text encoder of a family cuts a text."""

    tokenize: Callable[[str], Sequence[int]]
    ruler: Ruler
    takes_learnt: bool = False


@cache
def _reader(family: str) -> Reader | None:
    if family == "diorama":
        tokenizer = Tokenizer.from_file(str(files("disegno").joinpath("data/diorama/tokenizer.json")))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        frame = len(tokenizer.encode("").ids)
        comma = tokenizer.token_to_id(",")
        length = 48 - frame  # minilm.NUM_TOKENS, which is not imported: it is beside torch
        return Reader(
            lambda text: tokenizer.encode(text, add_special_tokens=False).ids,
            Ruler(length, -1 if comma is None else comma),
        )
    if family in (
        "sd1",
        "sd2",
        "sdxl",
        "sd3",
    ):  # two CLIPs cut alike; T5's pieces are longer, and it reads more of them
        ruler = Ruler(clip_tokens.LENGTH - 2, clip_tokens.COMMA_ID)
        return Reader(clip_tokens.token_ids, ruler, takes_learnt=family != "sd3")
    return None


def _learnt(catalogue: Catalogue, family: str) -> Learnt:
    ours = [card for card in catalogue.files if card.kind == "embedding" and card.family in (None, "", family)]
    cards = [card for card in ours if card.vectors is not None]
    names = [Name(tuple(clip_tokens.token_ids(card.name)), card.name, (card.vectors or (1, 0))[0]) for card in cards]
    return Learnt(tuple(name for name in names if name.ids))


def count(given: Text, catalogue: Catalogue) -> Count:
    """Return how long the prompt is."""
    family = next((card.family for card in catalogue.models if card.name == given.model), None)
    reader = _reader(family or "")
    text, tags = cut_tags(without_comments(given.text))
    if reader is None:
        return Count(None, None, None, len(tags))
    learnt = _learnt(catalogue, family or "") if reader.takes_learnt else None
    try:
        texts = {span.text for part in split_parts(text) for span in schedule(part.text, STEPS)}
        cut = [chunks_of(parse_emphasis(each), reader.tokenize, reader.ruler, learnt) for each in texts]
    except RequestError as error:
        return Count(None, None, None, len(tags), str(error))
    longest = max(cut, key=lambda chunks: (len(chunks), sum(len(chunk.ids) for chunk in chunks)))
    return Count(sum(len(chunk.ids) for chunk in longest), len(longest) * reader.ruler.length, len(longest), len(tags))


@router.post("/tokens", tags=["models"])
def tokens(body: Text, request: Request) -> Count:
    """Count a prompt's tokens as the model's text encoder will, emphasis, schedules and embeddings included."""
    return count(body, jobs_of(request).catalogue)


DOOR = Door(router, ("/v1/tokens",), render_plainly)
