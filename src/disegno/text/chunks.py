"""A prompt in chunks of an encoder's length: which tokens, which weights, and where learnt vectors stand.

A1111 parity: a chunk that is full is cut after its last comma, where one lies near its end; BREAK ends a chunk; the
vectors of one name are never cut apart.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from disegno.core.errors import RequestError
from disegno.prompts.emphasis import Piece

MAX_CHUNKS = 256  # of one text: CLIP takes about 20 ms for each, and everything attends to all of them


class Fix(NamedTuple):
    """Learnt vectors that stand in for the tokens of a chunk, from `offset` on (not counting the start)."""

    offset: int
    name: str
    num_vectors: int


@dataclass(frozen=True)
class Chunk:
    """The words of one chunk: without start, end and padding."""

    ids: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()
    fixes: tuple[Fix, ...] = ()


class Name(NamedTuple):
    """A name of learnt vectors (textual inversion), as the tokens that it is written with."""

    ids: tuple[int, ...]
    name: str
    num_vectors: int


@dataclass(frozen=True)
class Learnt:
    """The names of learnt vectors that a prompt may hold."""

    names: tuple[Name, ...] = ()

    @cached_property
    def _by_first(self) -> dict[int, list[Name]]:
        found: dict[int, list[Name]] = {}
        for name in sorted(self.names, key=lambda name: len(name.ids), reverse=True):
            found.setdefault(name.ids[0], []).append(name)
        return found

    def at(self, ids: Sequence[int], place: int) -> Name | None:
        """Return the longest name whose tokens begin here."""
        some = self._by_first.get(ids[place], ())
        return next((name for name in some if tuple(ids[place : place + len(name.ids)]) == name.ids), None)


@dataclass(frozen=True)
class Ruler:
    """What an encoder's chunks are like: their length in words, and the comma's token."""

    length: int
    comma: int
    backtrack: int = 20


@dataclass
class _Chunks:
    """The chunks that are full, and the one that is being filled."""

    ruler: Ruler
    full: list[Chunk] = field(default_factory=list[Chunk])
    ids: list[int] = field(default_factory=list[int])
    weights: list[float] = field(default_factory=list[float])
    fixes: list[Fix] = field(default_factory=list[Fix])
    last_comma: int = -1

    def end(self) -> None:
        if len(self.full) == MAX_CHUNKS:
            raise RequestError(
                f"A prompt has more than {MAX_CHUNKS} chunks of {self.ruler.length} tokens. Make it shorter."
            )
        self.full.append(Chunk(tuple(self.ids), tuple(self.weights), tuple(self.fixes)))
        self.ids, self.weights, self.fixes, self.last_comma = [], [], [], -1

    def make_room(self, num: int) -> None:
        """End the chunk where `num` more words do not fit."""
        if len(self.ids) + num > self.ruler.length:
            self.end()

    def break_at_comma(self) -> None:
        """Where the chunk is full and a comma lies near its end: let the words after it begin the next one."""
        since = len(self.ids) - self.last_comma
        if len(self.ids) < self.ruler.length or self.last_comma < 0 or since > self.ruler.backtrack:
            return
        cut = self.last_comma + 1
        ids, weights = self.ids[cut:], self.weights[cut:]
        fixes = [fix._replace(offset=fix.offset - cut) for fix in self.fixes if fix.offset >= cut]
        self.ids, self.weights = self.ids[:cut], self.weights[:cut]
        self.fixes = [fix for fix in self.fixes if fix.offset < cut]
        self.end()
        self.ids, self.weights, self.fixes = ids, weights, fixes

    def add(self, id: int, weight: float) -> None:
        if id == self.ruler.comma:
            self.last_comma = len(self.ids)
        elif self.ruler.backtrack:
            self.break_at_comma()
        self.make_room(1)
        self.ids.append(id)
        self.weights.append(weight)

    def add_learnt(self, name: str, num: int, weight: float) -> None:
        if num > self.ruler.length:
            raise RequestError(
                f"The embedding {name!r} has {num} vectors; a chunk of the text has {self.ruler.length}. Leave it out."
            )
        if self.ruler.backtrack:
            self.break_at_comma()
        self.make_room(num)
        self.fixes.append(Fix(len(self.ids), name, num))
        self.ids += [0] * num
        self.weights += [weight] * num


def chunks_of(
    pieces: Sequence[Piece], tokenize: Callable[[str], Sequence[int]], ruler: Ruler, learnt: Learnt | None = None
) -> list[Chunk]:
    """Return the text's chunks, at least one. Raises RequestError where they, or learnt vectors, are too many."""
    chunks, learnt = _Chunks(ruler), learnt or Learnt()
    for piece in pieces:
        if piece.is_break:
            chunks.end()
            continue
        ids, place = tokenize(piece.text), 0
        while place < len(ids):
            found = learnt.at(ids, place)
            if found is None:
                chunks.add(ids[place], piece.weight)
                place += 1
            else:
                chunks.add_learnt(found.name, found.num_vectors, piece.weight)
                place += len(found.ids)
    if chunks.ids or not chunks.full:
        chunks.end()
    return chunks.full
