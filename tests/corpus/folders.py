"""Data sets for tests: pictures, folders of pairs, and the ways in which they break."""

import io
import json
import struct
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Content = bytes | str | Callable[[Path], object]


def picture(seed: int, width: int = 128, height: int = 128) -> NDArray[np.uint8]:
    """Return smooth noise, (h w 3): of many colours, and unlike that of any other seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (max(2, height // 16), max(2, width // 16), 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def png(image: NDArray[np.uint8] | Image.Image, form: str = "PNG", **options: object) -> bytes:
    """Return the picture as a file's bytes."""
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, form, **options)
    return buffer.getvalue()


def write(folder: Path, files: Mapping[str, Content]) -> Path:
    """Write the files; a function makes its own, at the path that it is given."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if callable(content):
            content(path)
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def triples(num: int, **size: int) -> dict[str, Content]:
    """Return `num` pairs in two folders, with captions."""
    files: dict[str, Content] = {}
    for i in range(num):
        files[f"image/{i}.png"], files[f"condition/{i}.png"] = png(picture(i, **size)), png(picture(i + 500, **size))
        files[f"image/{i}.txt"] = f"caption {i}"
    return files


def controlnet(num: int, same: int = 0, **size: int) -> dict[str, Content]:
    """Return `num` pairs in ControlNet's form; the last `same` + 1 of them have one target."""
    lines = [{"source": f"source/{i}.png", "target": f"target/{i}.png", "prompt": f"picture {i}"} for i in range(num)]
    files: dict[str, Content] = {"prompt.json": "\n".join(map(json.dumps, lines))}
    for i in range(num):
        files[f"source/{i}.png"] = png(picture(i + 500, **size))
        files[f"target/{i}.png"] = png(picture(min(i, num - 1 - same), **size))
    return files


def bomb(side: int = 60_000) -> bytes:
    """Return a PNG of 4 kB whose header asks for side x side pixels."""
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(4096))), (b"IEND", b""))
    chunks = [struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
