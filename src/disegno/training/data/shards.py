"""Which tars a pattern names, as webdataset writes them, and the pairs in them."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np

from disegno.core.errors import BadData
from disegno.core.request import Scalar
from disegno.core.settings import load_settings
from disegno.training.data.card import Card
from disegno.training.data.dataset import Dataset
from disegno.training.data.fetch import fetch
from disegno.training.data.formats.listing import Options
from disegno.training.data.formats.webdataset import CONDITION, JSON, TEXT, Shard, TarRows, index_shard
from disegno.training.data.making import Annotate
from disegno.training.data.problems import Problem

MAX_SHARDS = 100_000

Told = Callable[[str, int, int], None]
"""Is told what is done while a data set opens: a stage, how much of how much."""


@dataclass(frozen=True)
class Share:
    """Which shards are this process's: every `world`-th, from `rank` on."""

    rank: int = 0
    world: int = 1


def is_pattern(spec: str) -> bool:
    """Return whether the spec names tars: one, several by braces or a star, or by URL."""
    return is_url(spec) or ".tar" in Path(spec.partition("::")[0]).name or "::" in spec


def is_url(spec: str) -> bool:
    """Return whether the spec has a scheme, known or not."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*:(//|(?!\\)..)", spec) is not None


def expand(pattern: str) -> list[str]:
    """Return the names that a pattern spells: {000..127} counts, {a,b} lists, :: joins. Raises BadData."""
    names: list[str] = []
    for part in pattern.split("::"):
        pieces = re.split(r"\{([^{}]*)\}", part)
        choices = [_choices(piece) if i % 2 else [piece] for i, piece in enumerate(pieces)]
        num = len(names) + math.prod(len(choice) for choice in choices)
        if num > MAX_SHARDS:
            raise BadData(f"{part[:200]} names {num} shards; at most {MAX_SHARDS} are possible.")
        names += ["".join(parts) for parts in product(*choices)]
    return names


def _choices(braces: str) -> list[str]:
    counted = re.fullmatch(r"(\d{1,12})\.\.(\d{1,12})", braces)
    if counted is None:
        return braces.split(",")
    first, last = int(counted[1]), int(counted[2])
    if not 0 <= last - first < MAX_SHARDS:
        raise BadData(
            f"{{{braces}}} counts from {first} to {last}; up, and to at most {MAX_SHARDS} shards, is possible."
        )
    width = len(counted[1])
    return [f"{number:0{width}d}" for number in range(first, last + 1)]


def open_shards(
    names: list[str], name: str, options: Options, share: Share, told: Told, cache_dir: Path | None, card: Card | None
) -> Dataset:
    """Return the pairs in the tars of this process's share. `names`: paths and URLs. Raises BadData."""
    own = names[share.rank :: share.world]
    if not own:
        raise BadData(
            f"{name} has {len(names)} shards for {share.world} processes; each needs one. Use fewer processes."
        )
    folder = (cache_dir or load_settings().cache_dir) / "shards"
    paths = [_path(name, folder, told) for name in own]
    shards, problems = list[Shard](), list[Problem]()
    for number, path in enumerate(paths):
        shard, wrong = index_shard(path)
        shards.append(shard)
        problems += wrong
        told("indexing", number + 1, len(paths))
    return _dataset(name, _settled(shards, problems, options.caption), options, problems, card)


def shard_names(spec: str, urls: bool) -> list[str]:
    """Return every shard's path or URL, in the pattern's order. Raises BadData."""
    names: list[str] = []
    for name in expand(spec):
        if is_url(name):
            if not name.lower().startswith(("http://", "https://")):
                raise BadData(f"{name[:200]} is no http or https address, and others are not opened.")
            if not urls:
                raise BadData("Data sets by URL are not opened here. Name a folder or file.")
            names.append(name)
        elif any(c in name for c in "*?["):
            path = Path(name).expanduser()
            found = sorted(str(match) for match in path.parent.glob(path.name))
            if not found:
                raise BadData(f"No file is called {name}.")
            names += found
        else:
            names.append(name)
    return names


def _path(name: str, folder: Path, told: Told) -> Path:
    """Return where a shard lies on this machine, fetched if it has to be."""
    if is_url(name):
        return fetch(name, folder, lambda done, of: told(f"fetching {name.rpartition('/')[2]}", done, of))
    return Path(name).expanduser()


def _settled(shards: Sequence[Shard], problems: list[Problem], caption: str | None) -> TarRows:
    """Return the rows that have what others have: a condition, and a caption unless one is given for all."""
    shards = _with(shards, (CONDITION,), "missing_condition", problems)
    if caption is None:
        shards = _with(shards, (TEXT, JSON), "missing_caption", problems)
    return TarRows.of(shards, caption)


def _with(shards: Sequence[Shard], roles: tuple[int, ...], kind: str, problems: list[Problem]) -> list[Shard]:
    """Return the rows with one of these members; all rows where none has any."""
    have = [np.max(shard.places[:, roles, 0], axis=1) >= 0 for shard in shards]
    if not any(mask.any() for mask in have):
        return list(shards)
    kept: list[Shard] = []
    for shard, mask in zip(shards, have, strict=True):
        marked = list(zip(shard.keys, map(bool, mask), strict=True))
        problems += [Problem(kind, f"{shard.name}/{key}") for key, there in marked if not there]
        kept.append(replace(shard, keys=[key for key, there in marked if there], places=shard.places[mask]))
    return kept


def _dataset(name: str, rows: TarRows, options: Options, problems: list[Problem], card: Card | None) -> Dataset:
    if not len(rows):
        raise BadData(f"{name} has no pair that can be used: its members are called neither NAME.jpg nor NAME.png.")
    if options.annotator is None or rows.condition(0) is not None:
        annotator, params = (card.annotator, card.params) if card else (None, dict[str, Scalar]())
        return Dataset(name, "webdataset", rows, annotator, params, None, tuple(problems), card)
    make = Annotate.of(options.annotator, options.params)
    return Dataset(name, "webdataset", rows, make.name, make.params, make, tuple(problems))
