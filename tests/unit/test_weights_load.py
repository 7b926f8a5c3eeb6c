"""Reading files of weights: the formats, the index, and what a reader must not depend on."""

import hashlib
import os
import time
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file as library_load
from safetensors.torch import save_file

from disegno.core.errors import CorruptFile, KeyMismatch, ModelFileError, UnknownKind, UnsafeFile
from disegno.weights.finite import not_finite, require_finite
from disegno.weights.load import load_file, open_file
from disegno.weights.save import save_safetensors

pytestmark = pytest.mark.unit

DTYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
)


def _one_of_each() -> dict[str, torch.Tensor]:
    numbers = torch.randn(3, 5, generator=torch.Generator().manual_seed(1)) * 3
    return {str(dtype): numbers.to(dtype) for dtype in DTYPES} | {
        "scalar": torch.tensor(2.0),
        "none": torch.zeros(0, 4),
    }


def _bytes(tensor: torch.Tensor) -> bytes:
    return (
        tensor.contiguous().view(torch.uint8).numpy().tobytes()
        if tensor.numel() and tensor.ndim
        else str(tensor).encode()
    )


def test_safetensors_are_read_as_the_library_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    save_file(_one_of_each(), path, metadata={"a": "б"})
    theirs = library_load(path)
    with open_file(path) as file:
        assert file.metadata == {"a": "б"}
        assert sorted(file.keys()) == sorted(theirs)
        for key, tensor in theirs.items():
            assert (file.shape(key), file.dtype(key)) == (tuple(tensor.shape), tensor.dtype)
            assert _bytes(file.tensor(key)) == _bytes(tensor)
        assert file.sha256() == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_misaligned_tensor_is_read(tmp_path: Path) -> None:
    header = (
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"F32","shape":[1],"data_offsets":[1,5]}}'
    )
    body = b"\x07" + torch.tensor([2.5]).numpy().tobytes()
    (tmp_path / "file.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + body)
    assert load_file(tmp_path / "file.safetensors")["b"].item() == 2.5


def test_the_format_is_decided_by_the_first_bytes(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "file.safetensors")
    save_safetensors(tmp_path / "file.ckpt", {"w": torch.ones(2)}, {})
    for path in tmp_path.iterdir():
        assert load_file(path)["w"].tolist() == [1, 1]


def test_opening_reads_no_tensor(tmp_path: Path) -> None:
    """A sparse file of 64 GiB opens at once: only its header is touched."""
    size = 64 << 30
    header = f'{{"w":{{"dtype":"U8","shape":[{size}],"data_offsets":[0,{size}]}}}}'.encode()
    path = tmp_path / "file.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(path, 8 + len(header) + size)
    begin = time.process_time()
    with open_file(path) as file:
        assert file.shape("w") == (size,)
    assert time.process_time() - begin < 0.1


def test_what_was_opened_is_what_is_read(tmp_path: Path) -> None:
    """A file put in the place of the one that was checked changes nothing."""
    path = tmp_path / "file.safetensors"
    save_safetensors(path, {"w": torch.ones(1000)}, {})
    with open_file(path) as file:
        save_safetensors(path, {"w": torch.zeros(1000)}, {})
        assert file.tensor("w").sum() == 1000


def test_writing_to_a_tensor_changes_no_file(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    save_safetensors(path, {"w": torch.ones(4)}, {})
    load_file(path)["w"].zero_()
    assert load_file(path)["w"].sum() == 4


def test_no_descriptor_stays_open(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    save_safetensors(path, {"w": torch.ones(4)}, {})
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        open_file(path)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1


def test_an_unknown_tensor_is_a_typed_error(tmp_path: Path) -> None:
    save_safetensors(tmp_path / "file.safetensors", {"w": torch.ones(4)}, {})
    with open_file(tmp_path / "file.safetensors") as file, pytest.raises(KeyMismatch, match="no tensor named 'v'"):
        file.tensor("v")


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "missing", tmp_path, tmp_path / "pipe"):
        with pytest.raises(ModelFileError):
            open_file(path)


def test_finite_numbers() -> None:
    sound = {"big": torch.full((9,), 6e4, dtype=torch.float16), "int": torch.arange(3), "none": torch.zeros(0)}
    assert not_finite(sound) == []
    bad = {"nan": torch.tensor([1.0, float("nan")]), "inf": torch.tensor([float("inf"), float("-inf")]).half()}
    fp8 = {"fp8": torch.tensor([float("nan")]).to(torch.float8_e4m3fn)}
    assert not_finite(sound | bad | fp8) == ["nan", "inf", "fp8"]
    with pytest.raises(CorruptFile, match=r"line\.ckpt holds NaN .* in 2 of 2 tensors: nan, inf"):
        require_finite("line.ckpt", bad)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\n  <html><head>" + bytes(40), "a web page. .* signed in"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        (b"Access to model X is restricted. You must have access to it", "text: 'Access to model X"),
        (b"FUGG" + bytes(40), "a GGUF file of a big-endian machine. Convert it to safetensors there"),
        (b"\x89HDF" + bytes(40), "an HDF5 file. This program reads safetensors, torch checkpoints and GGUF"),
        (b"Rar!\x1a\x07\x01" + bytes(40), "a RAR archive. Unpack it"),
        (b"\x08\x07\x12\x07pytorch" + bytes(40), "an ONNX file"),
        (bytes(64), "neither safetensors, a torch checkpoint nor GGUF"),
    ],
)
def test_what_is_no_file_of_weights_is_called_by_its_name(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(CorruptFile, match=words):
        open_file(tmp_path / "x.safetensors")


def test_an_archive_of_a_file_and_a_hypernetwork_are_called_by_their_names(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("model.safetensors", bytes(99))
    with pytest.raises(CorruptFile, match=r"zip archive that holds 'model\.safetensors'\. Unpack it"):
        open_file(tmp_path / "x.zip")
    torch.save({768: [{"linear.0.weight": torch.ones(2, 2)}], "step": 3}, tmp_path / "x.pt")
    with pytest.raises(UnknownKind, match=r"x\.pt: This is a hypernetwork"):
        open_file(tmp_path / "x.pt")


def test_long_names_of_tables_are_not_joined_without_end(tmp_path: Path) -> None:
    torch.save({"x" * 2000: dict.fromkeys(range(9), torch.ones(1))}, tmp_path / "x.ckpt")
    with pytest.raises(UnsafeFile, match="a name of more than 1024"):
        open_file(tmp_path / "x.ckpt")
