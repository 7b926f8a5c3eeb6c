"""A stage's state in pieces of at most 15 MiB, for a machine that takes in and gives back only small files.

What travels is the newest checkpoint where it is small enough: then the training goes on exactly. Where it is not, the
weights travel in 16 bits, and the next slice begins from them with a new optimiser and a new warm-up: it says so.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path

MOST_BYTES = 15 * 2**20
INDEX = "shards.json"


def split(files: dict[str, Path], out: Path, note: dict[str, object]) -> list[Path]:
    """Return pieces of an archive of these files (name in it -> path), and an index with a hash of each."""
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("shard-*"):
        old.unlink()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, path in sorted(files.items()):
            tar.add(path, name, filter=_without_time)
    data = buffer.getvalue()
    pieces: dict[str, str] = {}
    for number, begin in enumerate(range(0, len(data), MOST_BYTES)):
        piece = data[begin : begin + MOST_BYTES]
        name = f"shard-{number:02}"
        (out / name).write_bytes(piece)
        pieces[name] = hashlib.sha256(piece).hexdigest()
    (out / INDEX).write_text(json.dumps({**note, "pieces": pieces}, indent=1) + "\n", "utf-8")
    return [out / INDEX, *(out / name for name in pieces)]


def _without_time(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.mtime, member.uid, member.gid, member.uname, member.gname = 0, 0, 0, "", ""
    return member


def join(folder: Path, out: Path) -> dict[str, object]:
    """Unpack the pieces into `out` and return their note. Raises ValueError where one is missing or damaged."""
    note = json.loads((folder / INDEX).read_text("utf-8"))
    parts: list[bytes] = []
    for name, digest in sorted(note["pieces"].items()):
        data = (folder / name).read_bytes() if (folder / name).exists() else b""
        if hashlib.sha256(data).hexdigest() != digest:
            raise ValueError(f"{folder / name} is missing or damaged. Bring all files of that slice.")
        parts.append(data)
    with tarfile.open(fileobj=io.BytesIO(b"".join(parts))) as tar:
        tar.extractall(out, filter="data")
    return note


def size_mib(paths: Iterable[Path]) -> float:
    """Return how much files take."""
    return sum(path.stat().st_size for path in paths if path.is_file()) / 2**20
