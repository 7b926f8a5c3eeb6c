"""The parameters with which the drawings of a control's training were made: what it is shown by itself, too."""

import json
from dataclasses import replace

from disegno.annotators import ANNOTATORS
from disegno.annotators.base import make_params
from disegno.core.errors import RequestError
from disegno.core.request import ControlUnit, Scalar
from disegno.weights.card import FileCard

_SCALARS = (bool, int, float, str)


def taught_params(card: FileCard) -> dict[str, Scalar]:
    """Return the parameters of its annotator that a control's file names.

    What is said of an annotator that is not here, or what it does not have or cannot do, counts for nothing.
    """
    try:
        said = json.loads(card.metadata.get("disegno.params", "{}"))
    except (ValueError, RecursionError):
        return {}
    if not card.annotator or card.annotator not in ANNOTATORS or not isinstance(said, dict):
        return {}
    module = ANNOTATORS.load(card.annotator)
    taught: dict[str, Scalar] = {}
    for name, value in said.items():
        try:
            if isinstance(value, _SCALARS):
                make_params(module, {name: value})
                taught[name] = value
        except RequestError:
            continue
    return taught


def as_taught(unit: ControlUnit, annotator: str, card: FileCard) -> ControlUnit:
    """Return the unit with what its control's file says of this annotator, under what the unit itself gives."""
    return replace(unit, params=taught_params(card) | unit.params) if card.annotator == annotator else unit
