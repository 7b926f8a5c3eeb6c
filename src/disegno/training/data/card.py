"""A data set's card, dataset.json: how `dataset build` made it, for whoever teaches from it."""

from dataclasses import field
from typing import Annotated

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from disegno.core.errors import BadData
from disegno.core.request import Scalar, describe
from disegno.training.data.root import Root

CARD = "dataset.json"
MANIFEST = "prompt.json"
"""The list of pairs, one JSON object a line, as ControlNet and CtrLoRA read it; written when all else is there."""
_MAX_BYTES = 1 << 20

_CONFIG = ConfigDict(extra="ignore")


@dataclass(frozen=True, kw_only=True, config=_CONFIG)
class ScriptCard:
    """The Python file that drew the conditions: its name, and the sha256 of its text."""

    name: str
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


@dataclass(frozen=True, kw_only=True, config=_CONFIG)
class Card:
    """Everything that decides the pixels of a data set's pairs, beside the pictures themselves."""

    version: int = 1
    annotator: str | None = None
    params: dict[str, Scalar] = field(default_factory=dict[str, Scalar])
    script: ScriptCard | None = None
    width: int | None = None
    height: int | None = None
    buckets: bool = False
    resolution: int | None = None
    captions: str = "files"
    caption: str | None = None
    made_by: str = ""


_CARD: TypeAdapter[Card] = TypeAdapter(Card)


def card_text(card: Card) -> str:
    """Return the card as JSON text."""
    return _CARD.dump_json(card, indent=2).decode() + "\n"


def read_card(root: Root) -> Card | None:
    """Return the data set's card, None where it has none. Raises BadData."""
    if not (root.path / CARD).exists():
        return None
    try:
        return _CARD.validate_json(root.read(CARD, _MAX_BYTES))
    except ValidationError as error:
        raise BadData(f"{CARD} of {root.path.name} cannot be read: {describe(error)[:500]}.") from error
