"""webdataset's shards: plain tars whose members share a name up to the first dot; read in place, never unpacked.

    000123.jpg  000123.cond.png  000123.txt             or .json with a caption, prompt or text

Only where members lie is kept in memory, about 150 bytes a pair; so a set may be larger than memory.
"""

import json
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from disegno.core.each import PICTURE_SUFFIXES
from disegno.core.errors import BadData
from disegno.training.data.captions import MAX_CAPTION_BYTES, check_caption, decode_caption
from disegno.training.data.formats.folders import CAPTIONS, CONDITIONS, TARGETS
from disegno.training.data.lines import word
from disegno.training.data.problems import Fault, Problem
from disegno.training.data.root import MAX_PICTURE_BYTES, open_plain, shown
from disegno.training.data.tars import members

TARGET, CONDITION, TEXT, JSON = range(4)
"""What a member can be of its row."""
_TEXT_SUFFIXES = frozenset({"txt", *CAPTIONS})
_NOWHERE = (-1, 0) * 4
_MAX_JSON_BYTES = 1 << 20


@dataclass(frozen=True)
class Shard:
    """One tar. `places`: (rows, 4, 2), where each row's target, condition, text and JSON begin, and their bytes.

    A place of (-1, 0) is a member that is not there.
    """

    path: Path
    name: str
    keys: Sequence[str]
    places: NDArray[np.int64]


@dataclass(frozen=True)
class TarRows:
    """The rows of several tars, one after the other (`Rows`). `ends`: how many rows there are up to each tar's end."""

    shards: Sequence[Shard]
    ends: NDArray[np.int64]
    default_caption: str | None = None

    @classmethod
    def of(cls, shards: Sequence[Shard], default_caption: str | None) -> "TarRows":
        """Return the rows of these tars."""
        return cls(shards, np.cumsum([len(shard.keys) for shard in shards], dtype=np.int64), default_caption)

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def key(self, index: int) -> str:
        shard, row = self._find(index)
        return f"{shard.name}/{shard.keys[row]}"

    def target(self, index: int) -> bytes:
        return self._member(index, TARGET, MAX_PICTURE_BYTES) or b""

    def condition(self, index: int) -> bytes | None:
        return self._member(index, CONDITION, MAX_PICTURE_BYTES)

    def caption(self, index: int) -> str | None:
        """Return the row's caption. Raises Fault."""
        text = self._member(index, TEXT, MAX_CAPTION_BYTES)
        if text is not None:
            return decode_caption(text)
        fields = self._member(index, JSON, _MAX_JSON_BYTES)
        caption = None if fields is None else caption_of(fields)
        return self.default_caption if caption is None else caption

    def condition_name(self, index: int) -> str:
        return f"{self.key(index)}'s condition"

    def _find(self, index: int) -> tuple[Shard, int]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = int(np.searchsorted(self.ends, index, side="right"))
        shard = self.shards[number]
        return shard, index - int(self.ends[number]) + len(shard.keys)

    def _member(self, index: int, role: int, max_bytes: int) -> bytes | None:
        shard, row = self._find(index)
        begin, size = (int(n) for n in shard.places[row, role])
        if begin < 0:
            return None
        with open_plain(shard.path, shard.name) as file:
            file.seek(begin)
            data = file.read(min(size, max_bytes + 1))
        if len(data) < min(size, max_bytes + 1):
            raise BadData(f"{shown(self.key(index))} ends too early: its tar was cut off or changed. Fetch it again.")
        return data


def caption_of(fields: bytes) -> str | None:
    """Return the caption in a row's JSON, None where it has none. Raises Fault."""
    try:
        value: object = json.loads(fields)
    except (ValueError, RecursionError) as error:
        raise Fault("bad_caption", "The row's .json is not JSON.") from error
    fields_of = cast("dict[str, object]", value) if isinstance(value, dict) else {}
    try:
        text = word(fields_of, ("caption", "prompt", "text"))
    except BadData as error:
        raise Fault("bad_caption", f"In the row's .json, {error}.") from error
    return None if text is None else check_caption(text)


def index_shard(path: Path) -> tuple[Shard, list[Problem]]:
    """Return where the members of a tar lie, and which rows lack a target. Raises BadData."""
    name = path.name.removesuffix(".tar")
    keys: list[str] = []
    flat = array("q")  # eight numbers a row: a list of them would take ten times the memory
    with open_plain(path, path.name) as file:
        try:
            for member, begin, size in members(file):
                key, role = _role(member)
                if role is None:
                    continue
                if not keys or keys[-1] != key:
                    keys.append(key)
                    flat.extend(_NOWHERE)
                flat[8 * len(keys) - 8 + 2 * role], flat[8 * len(keys) - 7 + 2 * role] = begin, size
        except BadData as error:
            raise BadData(
                f"{shown(path.name)} is no whole, uncompressed tar. {error} Fetch it again, or unpack it with gunzip."
            ) from error
    table = np.array(flat, np.int64).reshape(-1, 4, 2)
    has_target = table[:, TARGET, 0] >= 0
    marked = list(zip(keys, map(bool, has_target), strict=True))
    problems = [Problem("missing_target", f"{name}/{key}") for key, there in marked if not there]
    return Shard(path, name, _unique([key for key, there in marked if there]), table[has_target]), problems


def _role(member: str) -> tuple[str, int | None]:
    """Return a member's key, and what it is of the row; None for what no pair needs."""
    folder, _, name = member.rpartition("/")
    stem, _, suffix = name.partition(".")
    *words, last = suffix.lower().split(".")
    key = f"{folder}/{stem}" if folder else stem
    if not stem:  # a hidden file
        return key, None
    if f".{last}" in PICTURE_SUFFIXES:
        roles = {CONDITION if w in CONDITIONS else TARGET if w in TARGETS else None for w in words} or {TARGET}
        return key, roles.pop() if len(roles) == 1 else None
    return key, TEXT if last in _TEXT_SUFFIXES else JSON if last == "json" else None


def _unique(keys: list[str]) -> list[str]:
    """Return the keys, those that occur again with their number."""
    seen: dict[str, int] = {}
    unique: list[str] = []
    for key in keys:
        seen[key] = seen.get(key, 0) + 1
        unique.append(key if seen[key] == 1 else f"{key}#{seen[key]}")
    return unique
