"""Wildcards: __name__ becomes a line of the file name.txt, chosen by the picture's seed: the same seed, the same line.

A line may hold wildcards itself. One that has no file stays as it is written, and is named in a warning.
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches

from disegno.core.errors import RequestError
from disegno.prompts.files import PromptFiles

MARK = "__"
MAX_DEPTH = 16
MAX_CHARACTERS = 1 << 20
_NAME = re.compile(r"\w[\w \-./*]{0,199}(?<! )")


def fill_wildcards(text: str, seed: int, role: str, files: PromptFiles) -> tuple[str, list[str]]:
    """Return the text with its wildcards filled in, and warnings. Raises RequestError where they have no end.

    `role` keeps a prompt's choices and its negative prompt's apart. The choice is a hash's: equal on every machine.
    """
    filling = _Filling(seed, role, files)
    return filling.filled(text, 0), list(dict.fromkeys(filling.warnings))


@dataclass
class _Filling:
    """One text on its way: how many wildcards were chosen so far, and which had no file."""

    seed: int
    role: str
    files: PromptFiles
    warnings: list[str] = field(default_factory=list[str])
    num_chosen: int = 0
    num_characters: int = 0

    def filled(self, text: str, depth: int) -> str:
        if depth > MAX_DEPTH:
            raise RequestError(f"The wildcards in {text[:60]!r} hold each other without end. Take one out of its file.")
        done = list[str]()
        for word, is_name in _words(text):
            done.append(self._line(word, depth) if is_name else word)
            self.num_characters += len(done[-1])
            if self.num_characters > MAX_CHARACTERS:
                raise RequestError(f"The prompt has more than {MAX_CHARACTERS} characters, its wildcards filled in.")
        return "".join(done)

    def _line(self, name: str, depth: int) -> str:
        lines = self.files.lines(name)
        if lines:
            return self.filled(lines[self._choice(name, len(lines))], depth + 1)
        near = get_close_matches(name, self.files.wildcards, n=3, cutoff=0.5)
        hint = f" Near: {', '.join(near)}." if near else ""
        self.warnings.append(f"There is no wildcard {name!r}: {MARK}{name}{MARK} was taken as text.{hint}")
        return f"{MARK}{name}{MARK}"

    def _choice(self, name: str, num: int) -> int:
        self.num_chosen += 1
        digest = hashlib.sha256(f"{self.seed} {self.role} {self.num_chosen} {name}".encode()).digest()
        return int.from_bytes(digest[:8], "big") % num


def _words(text: str) -> Iterator[tuple[str, bool]]:
    """Yield the text in pieces, and of each whether it is a wildcard's name."""
    done = start = 0
    while (start := text.find(MARK, start)) >= 0 and (end := text.find(MARK, start + len(MARK))) >= 0:
        if not _NAME.fullmatch(text, start + len(MARK), end):
            start += 1
            continue
        yield text[done:start], False
        yield text[start + len(MARK) : end], True
        done = start = end + len(MARK)
    yield text[done:], False
