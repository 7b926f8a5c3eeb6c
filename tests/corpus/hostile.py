"""Checkpoints that try to do something while they are read, and containers that readers disagree about.

Every payload does one harmless thing: it makes an empty folder or file at the path it is given. That is how a test sees
whether it ran.
"""

import atexit
import cProfile
import functools
import imaplib
import importlib
import io
import logging
import operator
import os
import pathlib
import pickle
import pkgutil
import pydoc
import runpy
import shutil
import struct
import subprocess
import time
import timeit
import uuid
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.utils import collect_env


class Call:
    """Pickles as a call of `function` with `args`."""

    def __init__(self, function: Callable[..., object], *args: object) -> None:
        self.function, self.args = function, args

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.function, self.args


def _code(mark: str) -> str:
    return f"open({mark!r}, 'w').close()"


# Each proven to run under an unrestricted torch.load by the positive control of the contract test.
GADGETS: dict[str, Callable[[str], object]] = {
    "os.system": lambda m: Call(os.system, f"touch {m}"),
    "os.mkdir": lambda m: Call(os.mkdir, m),
    "os.popen": lambda m: Call(operator.methodcaller("read"), Call(os.popen, f"touch {m}")),
    "os.spawnlp": lambda m: Call(os.spawnlp, 0, "touch", "touch", m),
    "subprocess.run": lambda m: Call(subprocess.run, ["touch", m]),
    "subprocess.getoutput": lambda m: Call(subprocess.getoutput, f"touch {m}"),
    "builtins.exec": lambda m: Call(exec, _code(m)),
    "builtins.eval": lambda m: Call(eval, _code(m)),
    "builtins.open": lambda m: Call(open, m, "w"),
    "builtins.getattr": lambda m: Call(
        operator.methodcaller("__call__", m), Call(getattr, Call(__import__, "os"), "mkdir")
    ),
    "operator.attrgetter": lambda m: Call(operator.methodcaller("mkdir", m), Call(importlib.import_module, "os")),
    "pkgutil.resolve_name": lambda m: Call(
        operator.methodcaller("__call__", m), Call(pkgutil.resolve_name, "os:mkdir")
    ),
    "functools.partial": lambda m: Call(operator.methodcaller("__call__"), functools.partial(os.mkdir, m)),
    "runpy": lambda m: Call(runpy._run_code, Call(compile, _code(m), "x", "exec"), {}),
    "timeit": lambda m: Call(timeit.repeat, _code(m), "pass", time.time, 1, 1),
    "cProfile.run": lambda m: Call(cProfile.run, _code(m)),
    "imaplib": lambda m: Call(imaplib.IMAP4_stream, f"touch {m}"),
    "uuid": lambda m: Call(uuid._get_command_stdout, "touch", m),
    "pydoc.pipepager": lambda m: Call(pydoc.pipepager, "", f"touch {m}"),
    "pathlib.touch": lambda m: Call(pathlib.Path.touch, Call(pathlib.PosixPath, m)),
    "shutil.copyfile": lambda m: Call(shutil.copyfile, "/dev/null", m),
    "logging.FileHandler": lambda m: Call(logging.FileHandler, m),
    "zipfile": lambda m: Call(zipfile.ZipFile.close, Call(zipfile.ZipFile, m, "w")),
    "numpy.memmap": lambda m: Call(np.memmap, m, "u1", "w+", 0, (1,)),
    "torch.save": lambda m: Call(torch.save, {}, m),
    "torch.from_file": lambda m: Call(torch.from_file, m, True, 8),
    "collect_env.run": lambda m: Call(collect_env.run, f"touch {m}"),
    "pickle.loads": lambda m: Call(pickle.loads, pickle.dumps(Call(os.mkdir, m))),
    "atexit": lambda m: Call(atexit.register, os.mkdir, m),
    "map": lambda m: Call(next, Call(map, os.mkdir, [m])),
}


def write_gadgets(folder: Path, marks: Path) -> dict[str, Path]:
    """Return name -> checkpoint with that payload in front of a good tensor: zip and older format in turn."""
    written: dict[str, Path] = {}
    for index, (name, gadget) in enumerate(GADGETS.items()):
        written[name] = folder / f"{name}.ckpt"
        content = {"payload": gadget(str(marks / name)), "w": torch.ones(4)}
        torch.save(content, written[name], _use_new_zipfile_serialization=index % 2 == 0)
    return written


# ---- pickles written by hand

FOUR = struct.pack("<4f", 1, 2, 3, 4)


def text(value: str) -> bytes:
    """Return the instruction that pushes a text."""
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value: int) -> bytes:
    """Return the instruction that pushes a number."""
    raw = value.to_bytes(16, "little", signed=True)
    return b"\x8a\x10" + raw


def numbers(values: tuple[int, ...]) -> bytes:
    """Return the instructions that push a tuple of numbers."""
    return b"(" + b"".join(number(value) for value in values) + b"t"


def tensor(
    key: str = "0",
    storage: str = "FloatStorage",
    count: int = 4,
    offset: int = 0,
    size: tuple[int, ...] = (4,),
    stride: tuple[int, ...] = (1,),
    device: str = "cpu",
) -> bytes:
    """Return the instructions that push a tensor."""
    place = b"(" + text("storage") + f"ctorch\n{storage}\n".encode() + text(key) + text(device) + number(count) + b"tQ"
    tail = b"\x89ccollections\nOrderedDict\n)RtR"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + place + number(offset) + numbers(size) + numbers(stride) + tail


def table(*items: bytes) -> bytes:
    """Return the pickle of a dict with these keys and values in turn."""
    return b"\x80\x02}(" + b"".join(items) + b"u."


def archive(pkl: bytes, records: dict[str, bytes] | None = None, compression: int = zipfile.ZIP_STORED) -> bytes:
    """Return torch's zip around a pickle."""
    names = {"a/data.pkl": pkl, "a/byteorder": b"little", "a/version": b"3\n"}
    return zipped(list((names | {f"a/data/{k}": v for k, v in (records or {"0": FOUR}).items()}).items()), compression)


def zipped(entries: list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> bytes:
    """Return a zip of these records; a name may come twice."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as file:
        for name, content in entries:
            file.writestr(name, content)
    return out.getvalue()


def patched(content: bytes, old: bytes, new: bytes, start: bytes = b"") -> bytes:
    """Return the content with the first `old` behind `start` replaced."""
    at = content.index(old, content.index(start) if start else 0)
    return content[:at] + new + content[at + len(old) :]


GOOD = table(text("w"), tensor())
_SYSTEM = b"cos\nsystem\n" + text("true") + b"\x85R"
_HEX = b"c_codecs\nencode\n(" * 34 + text("A" * 64) + text("latin1") + b"tR" + (text("hex_codec") + b"tR") * 33
_LAUGHS = (
    b"]("
    + text("x" * 8)
    + b"eq\x00"
    + b"".join(b"](" + (b"h" + bytes([k])) * 8 + b"eq" + bytes([k + 1]) for k in range(40))
)


def bad_checkpoints() -> dict[str, bytes]:
    """Return name -> a checkpoint that must be refused."""
    evil = table(text("w"), tensor(), text("x"), _SYSTEM)
    return {
        "two archives in one": zipped([("a/data.pkl", GOOD), ("a/data/0", FOUR), ("b/data.pkl", evil)]),
        "archive in archive": archive(archive(GOOD)),
        "picture in front": b"\x89PNG\r\n\x1a\n" + archive(GOOD),
        "two ends": archive(GOOD) + archive(evil),
        "compressed": archive(GOOD, compression=zipfile.ZIP_DEFLATED),
        "encrypted flag": patched(archive(GOOD), b"PK\x03\x04\x14\x00\x00", b"PK\x03\x04\x14\x00\x01"),
        "another name in the index": patched(archive(GOOD), b"a/data.pkl", b"a/data_pkl", b"PK\x01\x02"),
        "another name in front": patched(archive(GOOD), b"a/data.pkl", b"a/data_pkl"),
        "TorchScript": zipped([("a/data.pkl", GOOD), ("a/data/0", FOUR), ("a/code/__torch__.py", b"x")]),
        "checksum of the table": patched(archive(GOOD), text("w"), text("v")),
        "record missing": archive(table(text("w"), tensor(key="7"))),
        "record outside": archive(table(text("w"), tensor(key="../../etc/passwd"))),
        "more than the record": archive(table(text("w"), tensor(count=1 << 20, size=(1 << 20,)))),
        "negative offset": archive(table(text("w"), tensor(offset=-4))),
        "offset behind the end": archive(table(text("w"), tensor(offset=1 << 40))),
        "negative stride": archive(table(text("w"), tensor(stride=(-1,)))),
        "negative count": archive(table(text("w"), tensor(count=-1))),
        "size overflow": archive(table(text("w"), tensor(size=(1 << 33, 1 << 33), stride=(1, 1)))),
        "4 TiB by stride 0": archive(table(text("w"), tensor(size=(1 << 20, 1 << 20), stride=(0, 0)))),
        "complex numbers": archive(table(text("w"), tensor(storage="ComplexFloatStorage"))),
        "item of a tensor": archive(b"\x80\x02" + tensor() + number(0) + number(1) + b"s."),
        "bytearray of 100 GiB": archive(b"\x80\x02cbuiltins\nbytearray\n" + number(100 << 30) + b"\x85R."),
        "storage of 100 GiB": archive(b"\x80\x02ctorch\nFloatStorage\n" + number(25 << 30) + b"\x85R."),
        "doubling text": archive(b"\x80\x02" + _HEX + b"."),
        "billion laughs": archive(b"\x80\x02" + _LAUGHS + b"."),
        "deep tuple": archive(b"\x80\x02)" + b"\x85" * 200_000 + b"."),
        "holds itself": archive(b"\x80\x02}q\x00(" + text("state_dict") + b"h\x00u."),
        "text longer than the file": archive(b"\x80\x04\x8e" + struct.pack("<Q", 1 << 60) + b"."),
        "wrapped three times": archive(table((text("state_dict") + b"}(") * 3, text("w"), tensor(), b"uuu")),
        "no tensors": archive(b"\x80\x02}."),
        "a list": archive(b"\x80\x02](" + tensor() + b"e."),
        "numbers for names": archive(table(number(1), tensor())),
        "INST": archive(b"\x80\x02(" + text("true") + b"ios\nsystem\n."),
        "OBJ": archive(b"\x80\x02(cos\nsystem\n" + text("true") + b"o."),
        "EXT": archive(b"\x80\x02\x82\x01."),
        "PERSID": archive(b"Pos.system\n."),
        "POP": archive(b"\x80\x02}" + _SYSTEM + b"0."),
        "dotted name": archive(b"\x80\x04" + text("torch") + text("os.system") + b"\x93" + text("true") + b"\x85R."),
        "attributes of a name": archive(b"\x80\x02ccollections\nOrderedDict\n}b."),
        "a call of a result": archive(b"\x80\x02cnumpy\ndtype\n)R)R."),
        "bare pickle": b"\x80\x02" + _SYSTEM + b"." + b" " * 16,
        "second pickle": archive(GOOD + b"\x80\x02" + _SYSTEM + b"."),
        "web page": b"<!DOCTYPE html><html>404</html>",
        "git-lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        "JSON": b'{"error": "Access to model is restricted"}',
        "7-zip": b"7z\xbc\xaf\x27\x1c" + bytes(32),
        "empty": b"",
        "cut at half": archive(GOOD)[: len(archive(GOOD)) // 2],
        "zeros at the end": archive(GOOD)[:-60] + bytes(60),
        "something behind": archive(GOOD) + b"PK",
    }


# ---- safetensors


def safetensors(header: bytes, body: bytes = b"", length: int | None = None) -> bytes:
    """Return a safetensors file with this header as it stands."""
    return struct.pack("<Q", len(header) if length is None else length) + header + body


def entry(begin: int = 0, end: int = 4, shape: str = "[1]", dtype: str = "F32", name: str = "w") -> str:
    """Return one tensor of a header."""
    return f'"{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{begin},{end}]}}'


def _file(*entries: str, size: int = 4) -> bytes:
    return safetensors(b"{" + ",".join(entries).encode() + b"}", bytes(size))


def bad_safetensors() -> dict[str, bytes]:
    """Return name -> a safetensors file that must be refused."""
    good = _file(entry())
    return {
        "length past the end": safetensors(b'{"w":{}}', length=4096),
        "length of 2^63": safetensors(b'{"w":{}}', length=1 << 63),
        "length of 100 MB": safetensors(b'{"w":{}}', length=100_000_001),
        "a list": safetensors(b"[1,2]   "),
        "comma at the end": safetensors(b"{" + entry().encode() + b",}", bytes(4)),
        "not UTF-8": safetensors(b'{"\xff\xfe":1}', bytes(4)),
        "named twice": _file(entry(0, 4), entry(4, 8), size=8),
        "metadata twice": _file('"__metadata__":{"a":"1"}', '"__metadata__":{"a":"2"}', entry()),
        "nested 100,000 deep": safetensors(b'{"w":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
        "shape of floats": _file(entry(shape="[1.0]")),
        "shape of text": _file(entry(shape='"1"')),
        "negative shape": _file(entry(shape="[-1]")),
        "NaN shape": _file(entry(shape="[NaN]")),
        "true shape": _file(entry(shape="[true]")),
        "dimension of 5,000 digits": _file(entry(shape="[1" + "0" * 5000 + "]")),
        "10,000 dimensions": _file(entry(shape="[" + ",".join(["1"] * 10_000) + "]")),
        "overflowing shape": _file(entry(shape="[4611686018427387904,4]")),
        "unknown dtype": _file(entry(dtype="F128")),
        "dtype of a list": safetensors(b'{"w":{"dtype":["F32"],"shape":[1],"data_offsets":[0,4]}}', bytes(4)),
        "no dtype": safetensors(b'{"w":{"shape":[1],"data_offsets":[0,4]}}', bytes(4)),
        "one field more": safetensors(b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1}}', bytes(4)),
        "metadata of numbers": _file('"__metadata__":{"a":1}', entry()),
        "space in front": safetensors(b"  {" + entry().encode() + b"}", bytes(4)),
        "byte order mark": safetensors(b"\xef\xbb\xbf{" + entry().encode() + b"}", bytes(4)),
        "overlapping": _file(entry(0, 4), entry(2, 6, name="v"), size=6),
        "sixty on one place": _file(*(entry(0, 4, name=f"w{k}") for k in range(60))),
        "a hole": _file(entry(0, 4), entry(64, 68, name="v"), size=68),
        "does not begin at 0": _file(entry(8, 12), size=12),
        "backwards": _file(entry(4, 0)),
        "past the end": _file(entry(0, 4096, shape="[1024]"), size=64),
        "shape and range differ": _file(entry(0, 16, shape="[3]"), size=16),
        "something behind": good + b"PK\x03\x04",
        "cut short": good[:-1],
        "a name of 100,000 letters": _file(entry(name="a" * 100_000)),
        "no tensor": safetensors(b"{}      "),
        "zip in front": b"PK\x03\x04" + good,
        "gzip": b"\x1f\x8b" + good,
    }
