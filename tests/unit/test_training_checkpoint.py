"""A checkpoint is whole or absent: after a kill or a power cut at any call, with a failing disk, or damaged later."""

import errno
import io
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from disegno.training import checkpoint
from disegno.training.checkpoint import Checkpoint, newest, path_of, prune, save

pytestmark = pytest.mark.unit

CALLS = ((os, "fsync"), (os, "rename"), (os, "mkdir"), (os, "rmdir"), (os, "unlink"), (io, "open"))


def _made(step: int) -> Checkpoint:
    tensors = {
        "weights": {"w": torch.full((40,), float(step))},
        "optimiser": {"w|exp_avg": torch.full((9,), 2.0 * step)},
    }
    return Checkpoint(step, tensors, {"step": step, "loss": 0.1 * step})


def _found(folder: Path) -> int:
    """Return the step of what is there, whole in every byte."""
    found = newest(folder).checkpoint
    assert found is not None
    made = _made(found.step)
    assert found.state == made.state
    assert all(torch.equal(found.tensors[k][n], t) for k, named in made.tensors.items() for n, t in named.items())
    return found.step


@contextmanager
def _watched(monkeypatch: pytest.MonkeyPatch, before: Callable[[str, Any], None]) -> Iterator[None]:
    """Call `before(name, path)` before every call that changes the disk; not before its own."""
    busy: list[bool] = []

    def watched(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(first: Any, *rest: Any, **named: Any) -> Any:
            writes = name != "open" or any(c in str(rest[0] if rest else named.get("mode", "r")) for c in "wax+")
            if writes and not busy:
                busy.append(True)
                try:
                    before(name, Path(f"/proc/self/fd/{first}").readlink() if isinstance(first, int) else first)
                finally:
                    busy.clear()
            return real(first, *rest, **named)

        return call

    with monkeypatch.context() as patch:
        for module, name in CALLS:
            patch.setattr(module, name, watched(name, getattr(module, name)))
        yield


def _lose_power(folder: Path, synced: set[str], old: set[str], how: str) -> None:
    """Do to files that were never brought to the disk what a power cut may do."""
    for path in folder.rglob("*"):
        inside = str(path.relative_to(folder))
        if path.is_file() and inside not in synced | old:
            data = path.read_bytes()
            path.write_bytes({"empty": b"", "zeroed": bytes(len(data)), "torn": data[: len(data) // 2]}[how])


@pytest.mark.parametrize("how", ["kill", "empty", "zeroed", "torn"])
def test_a_stop_at_any_call_leaves_the_old_one_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    save(folder, _made(1))
    save(folder, _made(2))
    old = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    synced: set[str] = set()
    seen: list[int] = []

    def before(name: str, path: Any) -> None:
        copy = tmp_path / f"at-{len(seen)}"
        shutil.copytree(folder, copy)
        if how != "kill":
            _lose_power(copy, synced, old, how)
        seen.append(_found(copy))
        if name == "fsync":
            inside = os.path.relpath(path, folder)
            synced.update({inside, inside.replace(".tmp", "")})

    with _watched(monkeypatch, before):
        save(folder, _made(3))
        prune(folder, 1)
    assert len(seen) >= 10 and set(seen) <= {2, 3} and seen[0] == 2
    assert _found(folder) == 3


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EACCES])
def test_a_failing_call_is_raised_and_leaves_a_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    for failing in range(40):
        folder = tmp_path / f"{failing}"
        folder.mkdir()
        save(folder, _made(2))
        calls: list[str] = []

        def before(name: str, path: Any, calls: list[str] = calls, failing: int = failing) -> None:
            calls.append(name)
            if len(calls) == failing + 1:
                raise OSError(number, os.strerror(number), str(path))

        with _watched(monkeypatch, before):
            try:
                save(folder, _made(3))
                was_raised = False
            except OSError as error:
                was_raised = error.errno == number
        if len(calls) <= failing:
            break
        assert was_raised
        assert _found(folder) in (2, 3)
    else:
        pytest.fail("more calls than were tried")
    assert failing >= 8


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a bit": lambda path: path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]),
    "its last bit": lambda path: path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 128])),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "halved": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "zeroed": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "gone": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a pickle": lambda path: path.write_bytes(b"\x80\x04cposix\nsystem\n(S'touch /tmp/never'\ntR."),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", ["weights.safetensors", "optimiser.safetensors", "state.json", "manifest.json"])
def test_a_damaged_newest_one_is_set_aside_and_said(tmp_path: Path, file: str, damage: str) -> None:
    save(tmp_path, _made(1))
    save(tmp_path, _made(2))
    DAMAGES[damage](path_of(tmp_path, 2) / file)
    found = newest(tmp_path)
    assert found.checkpoint is not None and found.checkpoint.step == 1
    assert len(found.warnings) == 1 and "step-00000002.bad" in found.warnings[0]
    assert (tmp_path / "step-00000002.bad").is_dir()
    save(tmp_path, _made(2))
    assert _found(tmp_path) == 2


def test_a_manifest_that_names_other_files_is_refused(tmp_path: Path) -> None:
    """It may not lead out of its folder."""
    path = save(tmp_path, _made(1))
    manifest = path / "manifest.json"
    manifest.write_text(manifest.read_text("utf-8").replace("weights.safetensors", "../../etc/passwd"), "utf-8")
    assert newest(tmp_path).checkpoint is None


def test_old_ones_go_and_unfinished_ones_too(tmp_path: Path) -> None:
    for step in range(1, 6):
        save(tmp_path, _made(step))
    (tmp_path / "step-00000009.tmp").mkdir()
    prune(tmp_path)
    assert _found(tmp_path) == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000004", "step-00000005"]


def test_every_dtype_and_number_comes_back_as_it_was(tmp_path: Path) -> None:
    tensors = {
        "half": torch.tensor([1.1], dtype=torch.bfloat16),
        "bytes": torch.arange(256, dtype=torch.uint8),
        "count": torch.tensor(7),
        "none": torch.empty(0),
    }
    state = {"loss": 0.1 + 0.2, "small": 5e-324, "text": "ü", "none": None}
    save(tmp_path, Checkpoint(12, {"weights": tensors}, state))
    found = newest(tmp_path).checkpoint
    assert found is not None and found.state == state
    assert all(
        torch.equal(found.tensors["weights"][n], t) and found.tensors["weights"][n].dtype == t.dtype
        for n, t in tensors.items()
    )
    assert checkpoint.num_bytes({"weights": tensors}) == 2 + 256 + 8
