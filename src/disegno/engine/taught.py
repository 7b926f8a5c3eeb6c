"""The parameters with which the drawings of a control's training were made: what it is shown by itself, too."""

import json
from dataclasses import replace

from disegno.annotators import ANNOTATORS
from disegno.annotators.base import make_params
from disegno.core.errors import RequestError
from disegno.core.request import ControlUnit, Scalar
from disegno.weights.card import FileCard

_SCALARS = (bool, int, float, str)


def as_taught(unit: ControlUnit, annotator: str, card: FileCard) -> ControlUnit:
    """Return the unit with the parameters that its control's file names, under those that the unit gives.

    What a file says of another annotator, or what this one does not have or cannot do, counts for nothing.
    """
    if card.annotator != annotator:
        return unit
    try:
        said = json.loads(card.metadata.get("disegno.params", "{}"))
    except ValueError:
        return unit
    module = ANNOTATORS.load(annotator)
    taught: dict[str, Scalar] = {}
    for name, value in said.items() if isinstance(said, dict) else ():
        try:
            if isinstance(value, _SCALARS):
                make_params(module, {name: value})
                taught[name] = value
        except RequestError:
            continue
    return replace(unit, params=taught | unit.params)
