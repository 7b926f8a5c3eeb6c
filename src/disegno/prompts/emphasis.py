"""Emphasis: how much each part of a prompt counts. (a) is 1.1 times, [a] is 1/1.1 times, (a:1.3) is 1.3 times.

Brackets nest and multiply; those that are not closed act to the end; a backslash takes a bracket, or any character, as
it is. `BREAK` begins a new chunk of the text encoder.
"""

import re
from typing import NamedTuple

import numpy as np

from disegno.core.request import Emphasis

ROUND, SQUARE = 1.1, 1 / 1.1
BREAK, BREAK_WEIGHT = "BREAK", -1.0

_TOKEN = re.compile(
    r"\\(?P<escaped>[()\[\]\\]?)|(?P<open>[(\[])|:\s*(?P<weight>[+-]?[.\d]+)\s*\)|(?P<close>[)\]])|[^\\()\[\]:]+|:"
)
_BREAK_WORD = re.compile(r"\bBREAK\b")


class Piece(NamedTuple):
    """A run of text of one weight; of weight -1 and the text BREAK, a chunk's end."""

    text: str
    weight: float

    @property
    def is_break(self) -> bool:
        """Return whether a chunk ends here. A1111 parity: inside brackets the weight is no longer -1: it is a word."""
        return self.text == BREAK and self.weight == BREAK_WEIGHT


def parse_emphasis(text: str) -> list[Piece]:
    """Return the text's pieces in order, neighbours of one weight joined; at least one."""
    pieces = _Pieces()
    for token in _TOKEN.finditer(text):
        pieces.take(token)
    return pieces.finished()


def parse_pieces(text: str, emphasis: Emphasis) -> list[Piece]:
    """Return the text's pieces in a mode of emphasis: where it is "none", brackets and BREAK are text."""
    return [Piece(text, 1.0)] if emphasis == "none" else parse_emphasis(text)


def uses_emphasis(text: str) -> bool:
    """Return whether anything in the text weighs more or less than 1."""
    return any(piece.weight != 1.0 and not piece.is_break for piece in parse_emphasis(text))


class _Pieces:
    """What has been read so far. Weights are changed by ranges: one numpy operation for each closed bracket."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.factors: list[tuple[int, int, float]] = []  # from piece, to piece, times: in A1111's order
        self.starts: dict[str, list[int]] = {"(": [], "[": []}  # where the open brackets began
        self.breaks: set[int] = set()

    def take(self, token: re.Match[str]) -> None:
        escaped, opener, weight, closer = token["escaped"], token["open"], token["weight"], token["close"]
        if escaped is not None:
            self.texts.append(escaped)
        elif opener:
            self.starts[opener].append(len(self.texts))
        elif weight and self.starts["("] and (times := _number(weight)) is not None:
            self._close("(", times)
        elif closer == ")" and self.starts["("]:
            self._close("(", ROUND)
        elif closer == "]" and self.starts["["]:
            self._close("[", SQUARE)
        elif weight and self.starts["("]:  # (a:1.2.3): upstream fails; here the text stands, and the bracket closes
            self._words(token[0][:-1])
            self._close("(", ROUND)
        else:
            self._words(token[0])

    def _close(self, opener: str, times: float) -> None:
        self.factors.append((self.starts[opener].pop(), len(self.texts), times))

    def _words(self, text: str) -> None:
        """Take plain text, cut at each BREAK; the white space around one belongs to it."""
        parts = _BREAK_WORD.split(text)
        for n, part in enumerate(parts):
            if n:
                self.breaks.add(len(self.texts))
                self.texts.append(BREAK)
                part = part.lstrip()
            self.texts.append(part.rstrip() if n < len(parts) - 1 else part)

    def _weights(self) -> list[float]:
        weights = np.ones(len(self.texts))
        weights[list(self.breaks)] = BREAK_WEIGHT
        unclosed = [(start, ROUND) for start in self.starts["("]] + [(start, SQUARE) for start in self.starts["["]]
        with np.errstate(over="ignore", invalid="ignore"):
            for start, end, times in (*self.factors, *((start, len(weights), times) for start, times in unclosed)):
                weights[start:end] *= times
        return weights.tolist()

    def finished(self) -> list[Piece]:
        merged: list[tuple[list[str], float]] = []
        for text, weight in zip(self.texts, self._weights(), strict=True):
            if merged and merged[-1][1] == weight:
                merged[-1][0].append(text)
            else:
                merged.append(([text], weight))
        return [Piece("".join(texts), weight) for texts, weight in merged] or [Piece("", 1.0)]


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
