"""A card for a file of weights that is given away: what it is, in Markdown, from its header and its content alone."""

import json
import re
from collections.abc import Iterator

from disegno.weights.card import FileCard

_WORD_CHARS = 300
_LICENCES = ("modelspec.license", "disegno.licence")
_NOT_SHOWN = ("modelspec.thumbnail", "format")  # a picture as text; what says nothing


def card_text(card: FileCard, sha256: str) -> str:
    """Return the card. Words of the header are shown, and never obeyed: strangers wrote them."""
    name = card.name or card.path.stem
    licence = next((card.metadata[word] for word in _LICENCES if card.metadata.get(word)), "")
    facts = {
        "kind": card.kind,
        "mechanism": card.mechanism,
        "model family": card.family,
        "condition drawn by": card.annotator or "",
        "conditions": ", ".join(card.tasks),
        "names of the tensors": card.layout,
        "numbers": card.dtype,
        "tensors": str(card.num_tensors or ""),
        "rank": str(card.rank or ""),
        "its Base ControlNet's SHA-256": card.base_sha256 or "",
        "licence": licence or "not said",
        "bytes": str(card.num_bytes),
        "SHA-256": sha256,
    }
    parts = [f"# {_line(name)}", _table({key: text for key, text in facts.items() if text})]
    if measured := _measured(card):
        parts += ["## Measured when it was taught", _table(measured)]
    if card.kind == "control":
        parts += ["## Use", f"    disegno generate PROMPT --control {_line(card.path.stem)}=PICTURE"]
    words = {key: text for key, text in sorted(card.metadata.items()) if key not in _NOT_SHOWN}
    if words:
        parts += ["## What its header says", _table(words)]
    return "\n\n".join(parts) + "\n"


def _measured(card: FileCard) -> dict[str, str]:
    try:
        found = json.loads(card.metadata.get("disegno.metrics", ""))
    except (ValueError, RecursionError):
        return {}
    numbers = found.items() if isinstance(found, dict) else ()
    return {str(key).replace("_", " "): f"{value:.4g}" for key, value in numbers if isinstance(value, int | float)}


def _table(rows: dict[str, str]) -> str:
    return "\n".join(["| | |", "|---|---|", *_lines(rows)])


def _lines(rows: dict[str, str]) -> Iterator[str]:
    for key, text in rows.items():
        yield f"| {_line(key)} | {_line(text)} |"


def _line(text: str) -> str:
    """Return a stranger's text as one line in which Markdown and HTML mean nothing."""
    shown = "".join(c if c.isprintable() else " " for c in text[:_WORD_CHARS])
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", shown) + ("…" if len(text) > _WORD_CHARS else "")
