"""Checkpoints: whole or absent, whatever happens while one is written; safetensors and JSON, so that none runs code.

    checkpoints/step-00000500/    or step-00000500-seen, where what was learned by that step has been looked at, too
        weights.safetensors ...   tensors, one file a kind
        state.json                what else is needed to go on
        manifest.json             each file's size and SHA-256, written last

Written beside its place as step-00000500.tmp, every file and the folder brought to the disk, renamed in one step, read
back; only then may older ones go. A damaged one is set aside as step-00000500.bad, and the one before it is taken.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from torch import Tensor

from disegno.core.errors import CorruptFile, ModelFileError
from disegno.weights.load import open_file
from disegno.weights.stream import safetensors_bytes

log = logging.getLogger(__name__)

KEPT = 2
_MANIFEST, _STATE = "manifest.json", "state.json"
_NAME = re.compile(r"step-(\d{8,})(-seen)?")
_FILE = re.compile(r"[a-z_]+\.safetensors|state\.json")
_MAX_JSON_BYTES = 64 << 20


@dataclass(frozen=True)
class Checkpoint:
    """A training at the end of a step. `tensors`: kind -> name -> tensor. `state`: JSON. `seen`: after a look there."""

    step: int
    tensors: Mapping[str, Mapping[str, Tensor]]
    state: Mapping[str, object]
    seen: bool = False


@dataclass(frozen=True)
class Found:
    """The newest whole checkpoint, or None, and what was damaged, in plain words."""

    checkpoint: Checkpoint | None
    warnings: tuple[str, ...] = ()


def path_of(folder: Path, step: int, seen: bool = False) -> Path:
    """Return where the checkpoint of a step lies."""
    return folder / f"step-{step:08}{'-seen' if seen else ''}"


def save(folder: Path, checkpoint: Checkpoint) -> Path:
    """Return where the checkpoint now lies, whole and on the disk; one of the same name that is whole is left alone.

    Raises OSError where it could not be written; what was there before is then as it was.
    """
    path = path_of(folder, checkpoint.step, checkpoint.seen)
    if path.exists() and not is_whole(path):
        _set_aside(path)
    if not path.exists():
        temporary = path.with_name(f"{path.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            _fill(temporary, checkpoint)
            temporary.rename(path)
        except OSError:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    sync(folder)
    if not is_whole(path):
        _set_aside(path)
        raise OSError(f"{path} reads back as other bytes than were written: the disk is failing.")
    return path


def newest(folder: Path) -> Found:
    """Return the newest whole checkpoint. Damaged ones are set aside and named; unfinished ones are removed."""
    for left in folder.glob("step-*.tmp"):
        shutil.rmtree(left, ignore_errors=True)
    warnings: list[str] = []
    for path in reversed(_listed(folder)):
        try:
            return Found(load(path), tuple(warnings))
        except ModelFileError as error:
            aside = _set_aside(path)
            warnings.append(f"{error} It was set aside as {aside.name}; the one before it is used.")
            log.warning(warnings[-1])
    return Found(None, tuple(warnings))


def last_step(folder: Path) -> int:
    """Return the step of the newest checkpoint, by its name alone; 0 where there is none."""
    return max((_moment(path)[0] for path in _listed(folder)), default=0)


def load(path: Path) -> Checkpoint:
    """Return the checkpoint in this folder, every byte checked. Raises ModelFileError."""
    manifest = _checked(path)
    state = _json(path / _STATE)
    tensors = {Path(name).stem: open_file(path / name).tensors() for name in manifest if name != _STATE}
    return Checkpoint(_moment(path)[0], tensors, state, _moment(path)[1])


def is_whole(path: Path) -> bool:
    """Return whether every file of a checkpoint is as its manifest says."""
    try:
        _checked(path)
    except ModelFileError:
        return False
    return True


def prune(folder: Path, kept: int = KEPT) -> None:
    """Remove all but the newest `kept` checkpoints. Raises OSError."""
    for path in _listed(folder)[:-kept]:
        shutil.rmtree(path)


def num_bytes(tensors: Mapping[str, Mapping[str, Tensor]]) -> int:
    """Return about how many bytes a checkpoint with these tensors takes."""
    return sum(t.numel() * t.dtype.itemsize for kind in tensors.values() for t in kind.values())


def sync(path: Path) -> None:
    """Bring a folder's list of names to the disk (Windows has no such call)."""
    if os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _fill(folder: Path, checkpoint: Checkpoint) -> None:
    folder.mkdir()
    files = {f"{kind}.safetensors": safetensors_bytes(t, {}) for kind, t in checkpoint.tensors.items() if t}
    manifest = {name: _write(folder / name, pieces) for name, pieces in files.items()}
    manifest[_STATE] = _write(folder / _STATE, [_text(checkpoint.state)])
    _write(folder / _MANIFEST, [_text(manifest)])
    sync(folder)


def _text(value: object) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True, allow_nan=False).encode()


def _write(path: Path, pieces: Iterable[bytes | memoryview]) -> dict[str, object]:
    """Return the size and hash of what is now on the disk."""
    digest, size = hashlib.sha256(), 0
    with path.open("wb") as file:
        for piece in pieces:
            digest.update(piece)
            size += file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": size, "sha256": digest.hexdigest()}


def _checked(path: Path) -> dict[str, object]:
    """Return the manifest, after every file that it names was read and compared. Raises CorruptFile."""
    manifest = _json(path / _MANIFEST)
    if _STATE not in manifest or not all(_FILE.fullmatch(name) for name in manifest):
        raise CorruptFile(f"{path}: its manifest does not name what a checkpoint has.")
    for name, told in manifest.items():
        if _facts(path / name) != told:
            raise CorruptFile(f"{path}: {name} is not what was written: cut short, changed or missing.")
    return manifest


def _facts(path: Path) -> dict[str, object] | None:
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
            return {"bytes": file.tell(), "sha256": digest.hexdigest()}
    except OSError:
        return None


def _json(path: Path) -> dict[str, object]:
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise CorruptFile(f"{path} has more than {_MAX_JSON_BYTES} bytes.")
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CorruptFile(f"{path} cannot be read ({str(error)[:120]}).") from None
    if not isinstance(value, dict):
        raise CorruptFile(f"{path} is not a table.")
    return cast(dict[str, object], value)


def _moment(path: Path) -> tuple[int, bool]:
    found = _NAME.fullmatch(path.name)
    assert found
    return int(found[1]), found[2] is not None


def _listed(folder: Path) -> list[Path]:
    """Return the checkpoints, the oldest first."""
    return sorted((path for path in folder.glob("step-*") if _NAME.fullmatch(path.name)), key=_moment)


def _set_aside(path: Path) -> Path:
    """Return where a damaged checkpoint is now, out of the way; nothing is deleted."""
    number, aside = 2, path.with_name(f"{path.name}.bad")
    while aside.exists():
        aside, number = path.with_name(f"{path.name}.bad-{number}"), number + 1
    path.rename(aside)
    return aside
