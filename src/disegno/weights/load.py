"""Opens files of weights. The first bytes decide the format, never the name; nothing in a file is ever executed."""

import mmap
import os
import re
import stat
import sys
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from disegno.core.errors import CorruptFile, ModelFileError, ResourceError
from disegno.weights import gguf_file, safetensors_file, torch_legacy, torch_zip
from disegno.weights.tensor_file import Contents, TensorFile

_READERS: tuple[tuple[Callable[[bytes], bool], Callable[[mmap.mmap], Contents]], ...] = (
    (gguf_file.looks_like, gguf_file.read),  # before safetensors, whose mark is one byte
    (safetensors_file.looks_like, safetensors_file.read),
    (torch_zip.looks_like, torch_zip.read),
    (torch_legacy.looks_like, torch_legacy.read),
)
# Without it Linux maps no file larger than the memory. From mman.h: MAP_NORESERVE, which Python has no name for.
_NO_RESERVE = 0x4000
_NO_RESERVE_MACHINES = ("x86_64", "aarch64")
_AGAIN = "A file of weights was expected: fetch it again, signed in where its source wants it"
_UNPACK = "Unpack it, and give the file in it"
_OTHER = "This program reads safetensors, torch checkpoints and GGUF: fetch it as one of these"
_NOT_WEIGHTS = {
    b"<": ("a web page", _AGAIN),
    b"version https://git-lfs": ("a git-lfs pointer, not the file itself", "Fetch it with git lfs pull"),
    b"{": ("JSON text", _AGAIN),
    b"\x1f\x8b": ("compressed with gzip", _UNPACK),
    b"7z\xbc\xaf": ("a 7-zip archive", _UNPACK),
    b"Rar!": ("a RAR archive", _UNPACK),
    b"\x89PNG": ("a PNG image", _AGAIN),
    b"\xff\xd8\xff": ("a JPEG image", _AGAIN),
    b"\x80": ("a bare Python pickle; nothing in it was run", _OTHER),
    b"FUGG": ("a GGUF file of a big-endian machine", "Convert it to safetensors there"),
    b"\x89HDF": ("an HDF5 file", _OTHER),
}
_ONNX = re.compile(rb"\x08[\x01-\x20](?:\x12.|:|\x42)", re.DOTALL)  # its protobuf: the version, then who made it


def open_file(path: Path) -> TensorFile:
    """Return the file, opened: its header is read, its tensors are not.

    Raises UnsafeFile (asks to run code or for unreasonable resources), CorruptFile (damaged, cut short, no weights),
    ResourceError (cannot be mapped), ModelFileError (cannot be opened).
    """
    data = _map(path)
    try:
        contents = _reader(data[:64])(data)
        contents.check()
    except ModelFileError as error:
        raise type(error)(f"{path.name}: {error}") from None
    return TensorFile(path, contents, data)


def load_file(path: Path) -> dict[str, Tensor]:
    """Return every tensor of the file by name. Raises as `open_file`."""
    return open_file(path).tensors()


def _map(path: Path) -> mmap.mmap:
    """Return the whole file, mapped privately. A folder, a pipe or a device is refused."""
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except OSError as error:
        raise ModelFileError(
            f"{path} cannot be opened ({error.strerror}). Check the path and its permissions."
        ) from error
    try:
        info = os.fstat(handle)
        if not stat.S_ISREG(info.st_mode):
            raise ModelFileError(f"{path} is not a file. Give the file itself.")
        if info.st_size < 16:
            raise CorruptFile(f"{path.name} has only {info.st_size} bytes: the download failed. Fetch it again.")
        return _private(handle)
    except OSError as error:
        raise ResourceError(
            f"{path} cannot be mapped into memory ({error.strerror}). Free memory and try again."
        ) from error
    finally:
        os.close(handle)


def _private(handle: int) -> mmap.mmap:
    """Return the file mapped so that writing to the memory changes no file, and no memory is set aside for it."""
    if sys.platform == "linux" and os.uname().machine in _NO_RESERVE_MACHINES:
        return mmap.mmap(handle, 0, mmap.MAP_PRIVATE | _NO_RESERVE, mmap.PROT_READ | mmap.PROT_WRITE)
    return mmap.mmap(handle, 0, access=mmap.ACCESS_COPY)


def _reader(head: bytes) -> Callable[[mmap.mmap], Contents]:
    for looks_like, read in _READERS:
        if looks_like(head):
            return read
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    for signature, (what, advice) in _NOT_WEIGHTS.items():
        if start.startswith(signature):
            raise CorruptFile(f"This is {what}. {advice}.")
    if _ONNX.match(head):
        raise CorruptFile(f"This is an ONNX file. {_OTHER}.")
    if head.isascii() and head.decode("ascii").replace("\n", " ").isprintable():
        raise CorruptFile(f"This is text: {head.decode('ascii')[:60]!r}. {_AGAIN}.")
    raise CorruptFile("This is neither safetensors, a torch checkpoint nor GGUF. Fetch it again, or convert it first.")
