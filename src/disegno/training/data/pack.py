"""Pairs packed into tars, as webdataset reads them: for disks that like few large files, and for several machines."""

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from disegno.core.errors import BadData, RequestError, ResourceError
from disegno.core.files import write_atomically
from disegno.training.data.card import CARD, card_text
from disegno.training.data.dataset import Dataset

_SUFFIXES = (
    (b"\x89PNG", "png"),
    (b"\xff\xd8", "jpg"),
    (b"RIFF", "webp"),
    (b"BM", "bmp"),
    (b"GIF8", "gif"),
    (b"II*\0", "tif"),
    (b"MM\0*", "tif"),
    (b"P", "ppm"),
)


@dataclass(frozen=True)
class PackProgress:
    """So many pairs are packed, `num_lost` could not be read."""

    done: int
    num_rows: int
    num_lost: int


def pack(pairs: Dataset, out: Path, rows_each: int = 1000) -> Iterator[PackProgress]:
    """Yield progress while OUT/pairs-000000.tar and so on are written, each whole or not at all; no pixel is changed.

    The same pairs give the same bytes. Raises RequestError where `out` is not empty, ResourceError.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        empty = not any(out.iterdir())
    except OSError as error:
        raise ResourceError(f"{out} cannot be used as a folder ({error.strerror}). Choose another one.") from error
    if not empty:
        raise RequestError(f"{out} is not empty. Choose a new folder.")
    if pairs.card is not None:
        text = card_text(pairs.card)
        write_atomically(out / CARD, lambda path: path.write_text(text, "utf-8", newline="\n"))
    lost = 0
    for number, begin in enumerate(range(0, len(pairs), rows_each)):
        packed: list[int] = []
        end = min(begin + rows_each, len(pairs))
        path = out / f"pairs-{number:06d}.tar"
        write_atomically(path, lambda at, rows=range(begin, end), done=packed: _write(at, pairs, rows, done))
        lost += end - begin - len(packed)
        yield PackProgress(end, len(pairs), lost)


def _write(path: Path, pairs: Dataset, rows: range, done: list[int]) -> None:
    """Write a tar of these rows; those that were written are added to `done`."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for index in rows:
            try:
                target, condition = pairs.rows.target(index), pairs.rows.condition(index)
                caption = pairs.caption(index)
            except BadData:
                continue
            if condition is None:
                raise BadData("Pictures without conditions are no pairs. Make them with `disegno dataset build`.")
            parts = ((_suffix(target), target), (f"cond.{_suffix(condition)}", condition), ("txt", caption.encode()))
            for suffix, data in parts:
                member = tarfile.TarInfo(f"{index:08d}.{suffix}")  # of nobody and no time: equal bytes
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
            done.append(index)


def _suffix(data: bytes) -> str:
    return next((suffix for mark, suffix in _SUFFIXES if data.startswith(mark)), "png")
