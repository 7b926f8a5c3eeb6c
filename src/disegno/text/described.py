"""Configurations of transformers' classes, from the JSON that comes with weights."""

from collections.abc import Mapping
from typing import Any, TypeVar

from transformers import PreTrainedConfig

from disegno.core.errors import CorruptFile

C = TypeVar("C", bound=PreTrainedConfig)


def described(kind: type[C], told: Mapping[str, Any], where: str) -> C:
    """Return the configuration that a table tells. `where`: it stands. Raises CorruptFile where it is none."""
    try:
        return kind.from_dict(dict(told))
    except Exception as error:  # the class, its checks and Python each raise their own
        said = " ".join(str(error).split())[:160]
        raise CorruptFile(f"{where} is no description of a {kind.model_type} ({said}). Fetch it again.") from error
