"""Where a training is: what a checkpoint remembers beside its tensors."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from pydantic import TypeAdapter, ValidationError

from disegno.core.errors import CorruptFile
from disegno.training.base import Look
from disegno.training.convergence import score


@dataclass(frozen=True)
class Position:
    """After `step` steps. `size`: rows in one forward pass; `skipped`: steps that were not finite."""

    step: int = 0
    size: int = 1
    skipped: int = 0
    skipped_in_a_row: int = 0
    looks: tuple[Look, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def seen(self) -> bool:
        """Return whether what was learned by this step has been looked at."""
        return bool(self.looks) and self.looks[-1].step == self.step

    @property
    def best(self) -> Look | None:
        """Return the best look so far, the first of equals; None before there was one."""
        scored = [(value, look) for look in self.looks if (value := score(look)) is not None]
        return max(scored, key=lambda pair: pair[0])[1] if scored else None


_POSITION: TypeAdapter[Position] = TypeAdapter(Position)


def to_state(position: Position) -> dict[str, object]:
    """Return the position as JSON's tables and lists; every number comes back as it was."""
    return cast(dict[str, object], _POSITION.dump_python(position, mode="json"))


def from_state(state: Mapping[str, object]) -> Position:
    """Return the position that `to_state` wrote. Raises CorruptFile."""
    try:
        return _POSITION.validate_python(dict(state), strict=False)
    except ValidationError as error:
        raise CorruptFile(f"The checkpoint's state.json is not of this program ({str(error)[:200]}).") from None
