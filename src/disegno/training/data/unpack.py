"""A data set's zip from a stranger, unpacked into a folder: whole or not at all, and no more than was allowed.

Only plain files with the suffixes of data sets are taken, under names that stay inside the folder. What a header says
of sizes is checked before anything is written, and what really comes out is counted while it is.
"""

import shutil
import stat
import struct
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile, ZipInfo

from disegno.core.each import PICTURE_SUFFIXES
from disegno.core.errors import BadData, RequestError, ResourceError
from disegno.training.data.root import MAX_DEPTH, MAX_PICTURE_BYTES, safe_parts

TAKEN = frozenset({*PICTURE_SUFFIXES, ".txt", ".caption", ".json", ".jsonl", ".csv", ".tar"})
LEFT_OUT = {
    "unsafe": "names that lead out of the folder, links and devices",
    "other": "files that no data set has",
    "locked": "files that are encrypted, or packed in another way than zip's own",
    "double": "files of a name that is taken",
}
_PART_CHARS = 120
_DIRECTORY_BYTES = 64 << 20  # of the list of members, which is read at once: half a million of them
_END, _END_64, _LOCATOR_64 = b"PK\5\6", b"PK\6\6", b"PK\6\7"
_END_BYTES, _END_64_BYTES, _COMMENT_BYTES = 22, 56, 65535
_RESERVE_BYTES = 256 << 20
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Bounds:
    """What an archive may become: files, bytes in all, bytes of one picture or text."""

    files: int = 200_000
    num_bytes: int = 16 << 30
    file_bytes: int = MAX_PICTURE_BYTES


@dataclass(frozen=True)
class UnpackProgress:
    """So many of the files have been written."""

    done: int
    num_files: int


@dataclass(frozen=True)
class Unpacked:
    """What was written. `left_out`: how many of each kind of LEFT_OUT."""

    num_files: int
    num_bytes: int
    left_out: Mapping[str, int]


def unpack(archive: Path, out: Path, bounds: Bounds) -> Iterator[UnpackProgress | Unpacked]:
    """Yield progress, then what was written to the new folder `out`. Raises BadData, RequestError, ResourceError."""
    if out.exists():
        raise RequestError(f"There is a data set {out.name} already. Choose another name.")
    temporary = out.with_name(f".{out.name}.unpacking")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with archive.open("rb") as file:
            _require_small_directory(file)
            with ZipFile(file) as opened:
                yield from _unpack(opened, temporary, bounds)
        temporary.rename(out)
    except (BadZipFile, zlib.error, EOFError, NotImplementedError, UnicodeError, struct.error) as error:
        raise BadData(f"The archive is no zip, or is damaged ({str(error)[:100]}). Pack and send it again.") from error
    except OSError as error:
        raise ResourceError(f"The data set cannot be written ({error.strerror}).") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _unpack(opened: ZipFile, out: Path, bounds: Bounds) -> Iterator[UnpackProgress | Unpacked]:
    members, left_out = _members(opened.infolist())
    _require_within(members, bounds, out.parent)
    out.mkdir(parents=True)
    num_bytes = 0
    for done, (name, info) in enumerate(members.items()):
        if done % 50 == 0:
            yield UnpackProgress(done, len(members))
        target = out.joinpath(*PurePosixPath(name).parts)
        target.parent.mkdir(parents=True, exist_ok=True)
        with opened.open(info) as source, target.open("xb") as file:
            while chunk := source.read(_CHUNK):
                num_bytes += len(chunk)
                if num_bytes > bounds.num_bytes or file.tell() + len(chunk) > info.file_size:
                    raise BadData("The archive holds more than it says. Nothing of it was kept.")
                file.write(chunk)
    yield Unpacked(len(members), num_bytes, left_out)


def _members(infos: list[ZipInfo]) -> tuple[dict[str, ZipInfo], dict[str, int]]:
    """Return the files that are taken, by name below the folder, and how many of each kind are not."""
    taken: dict[str, ZipInfo] = {}
    lost: Counter[str] = Counter()
    seen: set[str] = set()
    for info in infos:
        if info.is_dir():
            continue
        name, why = _name_of(info)
        if why is None and name and name.lower() in seen:
            why = "double"
        if why is not None:
            lost[why] += 1
        elif name:
            seen.add(name.lower())
            taken[name] = info
    tops = {name.partition("/")[0] if "/" in name else "" for name in taken}
    if len(tops) == 1 and (top := tops.pop()) and top.lower() != "train":  # people pack the folder, not what is in it
        taken = {name.removeprefix(f"{top}/"): info for name, info in taken.items()}
    return taken, dict(lost)


def _name_of(info: ZipInfo) -> tuple[str, str | None]:
    """Return a member's name, "" for other programs' leavings, and why it is left out: a kind of LEFT_OUT."""
    try:
        parts = safe_parts(info.filename)
    except BadData:
        return "", "unsafe"
    mode = info.external_attr >> 16
    if (mode and stat.S_IFMT(mode) not in (0, stat.S_IFREG)) or len(parts) > MAX_DEPTH:
        return "", "unsafe"
    if any(part.startswith(".") or part == "__MACOSX" for part in parts):
        return "", None
    if any(len(part) > _PART_CHARS or not part.isprintable() for part in parts):
        return "", "unsafe"
    if PurePosixPath(parts[-1]).suffix.lower() not in TAKEN:
        return "", "other"
    if info.flag_bits & 1 or info.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
        return "", "locked"
    return "/".join(parts), None


def _require_within(members: Mapping[str, ZipInfo], bounds: Bounds, folder: Path) -> None:
    """Refuse what is too much by its own words. Raises BadData, ResourceError."""
    num_bytes = sum(info.file_size for info in members.values())
    if not members:
        raise BadData(f"There is no file of a data set in the archive. Known are: {', '.join(sorted(TAKEN))}.")
    if len(members) > bounds.files or num_bytes > bounds.num_bytes:
        raise BadData(
            f"The archive has {len(members)} files of {num_bytes} bytes; at most {bounds.files} of"
            f" {bounds.num_bytes} bytes are unpacked. Send less, or put the folder on the server."
        )
    for name, info in members.items():
        if info.file_size > bounds.file_bytes and not name.lower().endswith(".tar"):
            raise BadData(f"A file has {info.file_size} bytes unpacked; at most {bounds.file_bytes} are read of one.")
    if shutil.disk_usage(folder).free < num_bytes + _RESERVE_BYTES:
        raise ResourceError(f"There is no room for {num_bytes} bytes on the disk.")


def _require_small_directory(file: BinaryIO) -> None:
    """Refuse an archive whose list of members alone is too much to read. Raises BadData."""
    size = file.seek(0, 2)
    start = max(0, size - _END_BYTES - _COMMENT_BYTES - 20)
    file.seek(start)
    tail = file.read()
    at = tail.rfind(_END)
    if at < 0 or at + _END_BYTES > len(tail):
        raise BadData("This is no zip. Pack the data set's folder as one, and send that.")
    sizes = [*struct.unpack_from("<I", tail, at + 12)]
    if at >= 20 and tail[at - 20 : at - 16] == _LOCATOR_64:  # zipfile believes it, whatever the end itself says
        (place,) = struct.unpack_from("<Q", tail, at - 12)
        for begin in (place, start + at - 20 - _END_64_BYTES):  # where it is said to be, and where zipfile looks
            file.seek(max(0, min(begin, size)))
            whole = file.read(_END_64_BYTES)
            if len(whole) == _END_64_BYTES and whole[:4] == _END_64:
                sizes += struct.unpack_from("<Q", whole, 40)
    if sizes[0] == 0xFFFFFFFF and len(sizes) > 1:  # "see there"
        del sizes[0]
    if max(sizes) > _DIRECTORY_BYTES:
        raise BadData("The archive lists too many files. Put the folder on the server instead.")
    file.seek(0)
