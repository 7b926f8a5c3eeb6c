"""The file of what was learned: its header says what it is and how it was made, and it never holds a NaN."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from torch import Tensor

from disegno import __version__
from disegno.training.base import Facts
from disegno.weights.card import FileCard
from disegno.weights.finite import require_finite
from disegno.weights.modelspec import words_of
from disegno.weights.save import save_safetensors

Layout = Literal["diffusers", "ldm"]
_OWN = "disegno."


def told(facts: Facts, mechanism: str | None, family: str, **more: str) -> dict[str, str]:
    """Return the words `disegno.*` of a header; what is not known is left out. No path is in it.

    `mechanism`: of a control; None for a part of a model.
    """
    words = {
        "mechanism": mechanism,
        "family": family,
        "name": facts.name,
        "annotator": facts.annotator,
        "params": json.dumps(dict(facts.params), sort_keys=True) if facts.params else None,
        "training_pairs": str(facts.training_pairs) if facts.training_pairs else None,
        "steps": str(facts.steps),
        "metrics": json.dumps({k: round(v, 6) for k, v in sorted(facts.metrics.items())}) if facts.metrics else None,
        "licence": facts.licence or None,
        "made_by": f"disegno {__version__}",
        **more,
    }
    return {f"{_OWN}{name}": word for name, word in words.items() if word is not None}


def condition_path(path: Path, task: str) -> Path:
    """Return where a task's condition file lies, beside the base's."""
    return path.with_name(f"{path.stem}_{task}{path.suffix}") if task else path.with_stem(f"{path.stem}_condition")


def save_control(
    path: Path, tensors: Mapping[str, Tensor], words: Mapping[str, str], layout: Layout = "diffusers"
) -> None:
    """Write a control's tensors with these words, whole or not at all. `layout`: whose names these are.

    Raises CorruptFile where a number is NaN or infinite: no file is written then, and an old one stays as it was.
    ResourceError where the disk is full.
    """
    require_finite(path.name, tensors)
    card = FileCard(
        path=path,
        kind="control",
        mechanism=words[f"{_OWN}mechanism"],
        family=words[f"{_OWN}family"],
        layout=layout,
        name=words[f"{_OWN}name"],
        annotator=words.get(f"{_OWN}annotator"),
        metadata=words,
    )
    licence = {"modelspec.license": words[f"{_OWN}licence"]} if f"{_OWN}licence" in words else {}
    save_safetensors(path, tensors, words_of(card, layout) | licence)
