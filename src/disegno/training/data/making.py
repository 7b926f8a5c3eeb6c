"""What makes a condition from a picture: an annotator of the registry, by its name and parameters."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import cast

from pydantic import TypeAdapter

from disegno.annotators import ANNOTATORS
from disegno.annotators.base import annotate_at, make_params
from disegno.core.request import Scalar
from disegno.training.pairs import Picture


@dataclass(frozen=True)
class Annotate:
    """An annotator with all its parameters. `resolution`: of the short side it is shown; None is the picture's own."""

    name: str
    params: Mapping[str, Scalar]
    resolution: int | None = None

    @classmethod
    def of(cls, name: str, params: Mapping[str, Scalar], resolution: int | None = None) -> "Annotate":
        """Return it with checked parameters, those not given at their defaults. Raises RequestError."""
        module = ANNOTATORS.load(name)
        checked = make_params(module, params)
        every = cast("dict[str, Scalar]", TypeAdapter(type(checked)).dump_python(checked))
        return cls(name.lower().replace("_", "-"), every, resolution)

    @property
    def identity(self) -> str:
        """Return all that decides a drawing, as text."""
        return json.dumps([self.name, dict(self.params), self.resolution], sort_keys=True)

    @cached_property
    def _checked(self) -> object:
        return make_params(ANNOTATORS.load(self.name), self.params)

    def __call__(self, picture: Picture) -> Picture:
        return annotate_at(ANNOTATORS.load(self.name), picture, self._checked, self.resolution)
