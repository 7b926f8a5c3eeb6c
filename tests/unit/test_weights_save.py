"""Writing files of weights: bit by bit, and all or nothing."""

import errno
import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from disegno.core.errors import KeyMismatch, ResourceError
from disegno.weights.load import load_file, open_file
from disegno.weights.safetensors_file import DTYPES
from disegno.weights.save import save_safetensors, write_atomically

pytestmark = pytest.mark.unit


def test_a_file_is_written_bit_by_bit(tmp_path: Path) -> None:
    base = torch.randn(4, 4)
    tensors = {
        "base": base,
        "view": base[1:],
        "transposed": base.T,
        "half": base.half(),
        "leaf": base.clone().requires_grad_(),
    }
    save_safetensors(tmp_path / "file.safetensors", tensors, {"disegno.name": "line"})
    with open_file(tmp_path / "file.safetensors") as file:
        assert file.metadata == {"disegno.name": "line"}
        assert all(torch.equal(file.tensor(key), tensor) for key, tensor in tensors.items())


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    """Every dtype of the format; whatever the order of names and words; readable by the format's own library."""
    tensors = {name: torch.arange(6).reshape(2, 3).to(dtype) for name, dtype in DTYPES.items()}
    tensors |= {"scalar": torch.tensor(1.5), "none": torch.empty(0, 4)}
    words = {f"word {i}": "ü" * i for i in range(9)}
    save_safetensors(tmp_path / "a", tensors, words)
    save_safetensors(tmp_path / "b", dict(reversed(tensors.items())), dict(reversed(words.items())))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    with safe_open(tmp_path / "a", "pt") as file:
        assert file.metadata() == words
        assert all(torch.equal(file.get_tensor(n).float(), t.float()) for n, t in tensors.items())
        assert all(
            file.get_tensor(n).dtype == t.dtype and file.get_tensor(n).shape == t.shape for n, t in tensors.items()
        )


def test_a_dtype_that_the_format_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(KeyMismatch, match="complex64"):
        save_safetensors(tmp_path / "a", {"w": torch.zeros(2, dtype=torch.complex64)}, {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    path = tmp_path / "file.safetensors"
    save_safetensors(path, {"w": torch.ones(4)}, {})

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os if moment == "fsync" else Path, moment, full)
    with pytest.raises(ResourceError, match="Free disk space"):
        save_safetensors(path, {"w": torch.zeros(4)}, {})
    monkeypatch.undo()
    assert load_file(path)["w"].sum() == 4
    assert [p.name for p in tmp_path.iterdir()] == ["file.safetensors"]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_kill_in_the_middle_leaves_the_old_file(tmp_path: Path) -> None:
    """A child that dies while it writes: the old file is whole, and what is left over is hidden."""
    path = tmp_path / "file.safetensors"
    save_safetensors(path, {"w": torch.ones(4)}, {})
    child = os.fork()
    if child == 0:
        write_atomically(path, lambda temporary: (temporary.write_bytes(b"half"), os._exit(9)))
    os.waitpid(child, 0)
    assert load_file(path)["w"].sum() == 4
    assert all(p == path or p.name.startswith(".") for p in tmp_path.iterdir())


def test_permissions_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    save_safetensors(path, {"w": torch.ones(4)}, {})
    path.chmod(0o640)
    save_safetensors(path, {"w": torch.ones(4)}, {})
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_missing_folder_is_a_typed_error(tmp_path: Path) -> None:
    with pytest.raises(ResourceError):
        save_safetensors(tmp_path / "missing" / "file.safetensors", {"w": torch.ones(1)}, {})
