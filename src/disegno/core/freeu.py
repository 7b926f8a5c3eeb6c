"""FreeU: a UNet's decoder that listens more to its own features and less to its skip connections."""

from typing import Annotated, Literal, NamedTuple

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

_CONFIG = ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class Factors(NamedTuple):
    """What is multiplied by how much, the strength in it."""

    b1: float
    b2: float
    s1: float
    s2: float


@dataclass(frozen=True, kw_only=True, config=_CONFIG)
class FreeU:
    """How a UNet's two deep decoder levels weigh what they join (Si et al. 2023). Costs next to nothing."""

    strength: Annotated[float, Field(ge=0.0, le=2.0)] = 1.0
    """How much of what its factors change is; 0 is off, 1 all of it. For models with a UNet."""
    b1: Annotated[float, Field(ge=-1.0, le=3.0)] = 1.3
    """What the deepest level's own features are multiplied by, in half of their channels."""
    b2: Annotated[float, Field(ge=-1.0, le=3.0)] = 1.4
    """The same of the next level."""
    s1: Annotated[float, Field(ge=-1.0, le=4.0)] = 0.9
    """What the low frequencies of the deepest level's skip connections are multiplied by."""
    s2: Annotated[float, Field(ge=-1.0, le=4.0)] = 0.2
    """The same of the next level."""
    version: Literal[1, 2] = 2
    """2: features are multiplied where they are strong, and less elsewhere; 1: everywhere."""
    start: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """The share of the steps after which it begins."""
    end: Annotated[float, Field(ge=0.0, le=1.0)] = 1.0
    """The share of the steps before which it ends."""

    def __post_init__(self) -> None:
        if self.start >= self.end:
            raise ValueError("start must lie before end, or it would never act")

    @property
    def factors(self) -> Factors:
        """Return the factors as the strength leaves them."""
        own = (self.b1, self.b2, self.s1, self.s2)
        return Factors(*(round(1 + (each - 1) * self.strength, 6) for each in own))
