"""The data pack: the drawings of every noun in three styles, and whose they are, as one file.

PACK.zip:  manifest.json (sources with licences, what is known of each drawing), STYLE/CODE.webp, LICENSES.txt
"""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .sprites import Look, Pixels, look_of, premultiplied
from .vocabulary import Noun, nouns

SIDE = 256
FREE = ("MIT", "Apache-2.0")
_MIT = "MIT. Copyright (c) Microsoft Corporation; packaged by {}."


@dataclass(frozen=True)
class Source:
    """Where a style's drawings come from."""

    package: str
    archive: str
    licence: str
    whose: str


SOURCES: dict[str, Source] = {
    "3d": Source(
        "@lobehub/fluent-emoji-3d@1.1.0", "lobehub-fluent-emoji-3d-1.1.0.tgz", "MIT", _MIT.format("LobeHub")
    ),
    "glossy": Source(
        "@iconify-json/fluent-emoji@1.2.7", "iconify-json-fluent-emoji-1.2.7.tgz", "MIT", _MIT.format("Iconify")
    ),
    "flat": Source(
        "@iconify-json/fluent-emoji-flat@1.2.6", "iconify-json-fluent-emoji-flat-1.2.6.tgz", "MIT",
        _MIT.format("Iconify"),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Wardrobe:
    """Every drawing, open. `pixels`: style -> code -> premultiplied, cropped to what is seen in the 3D style."""

    looks: Mapping[str, Look]
    pixels: Mapping[str, Mapping[str, Pixels]]

    def of(self, style: str, noun: Noun) -> Pixels:
        """Return a noun's drawing; where a style lacks it, the 3D one."""
        return self.pixels[style].get(noun.code, self.pixels["3d"][noun.code])

    def has(self, noun: Noun) -> bool:
        return noun.code in self.looks

    def only(self, names: Collection[str]) -> Wardrobe:
        """Return a wardrobe of the nouns that have one of these names: a smaller world."""
        codes = {noun.code for noun in nouns() if set(noun.names) & set(names)}
        return Wardrobe({code: look for code, look in self.looks.items() if code in codes}, self.pixels)


def known_to(model: Path, wardrobe: Wardrobe) -> Wardrobe:
    """Return the part of a wardrobe whose nouns a model's description (model.json) names."""
    return wardrobe.only(json.loads(model.read_text("utf-8"))["vocabulary"]["nouns"])


def open_pack(path: Path) -> Wardrobe:
    """Return the drawings of a pack. Raises FileNotFoundError; ValueError where a source is not free."""
    with zipfile.ZipFile(path) as archive:
        manifest = json.loads(archive.read("manifest.json"))
        check_licences(manifest)
        looks = {
            code: Look(**{**e, "box": tuple(e["box"]), "foot": tuple(e["foot"])})
            for code, e in manifest["looks"].items()
        }
        names = [name for name in archive.namelist() if name.endswith(".webp")]
        data = {name: archive.read(name) for name in names}
    with ThreadPoolExecutor() as pool:
        opened = dict(zip(names, pool.map(lambda name: _open(data[name], looks[Path(name).stem]), names), strict=True))
    styles: dict[str, dict[str, Pixels]] = {style: {} for style in SOURCES}
    for name, pixels in opened.items():
        style, _, file = name.partition("/")
        styles[style][Path(file).stem] = pixels
    return Wardrobe(looks, styles)


def check_licences(manifest: Mapping[str, Mapping[str, Mapping[str, str]]]) -> None:
    """Raise ValueError where a source's licence is neither MIT nor Apache-2.0."""
    for style, source in manifest["sources"].items():
        if source["licence"] not in FREE:
            raise ValueError(
                f"{style}: {source['package']} is under {source['licence']}; only {', '.join(FREE)} may be used."
            )


def _open(data: bytes, look: Look) -> Pixels:
    left, top, right, bottom = look.box
    rgba = np.asarray(Image.open(io.BytesIO(data)).convert("RGBA"))
    return np.ascontiguousarray(premultiplied(rgba)[top:bottom, left:right])


# ---- making it


def build(packages: Path, out: Path) -> Path:
    """Return `out`, now the pack, from the packages' archives in a folder."""
    slugs = _json_in(packages / SOURCES["flat"].archive, "chars.json")  # the glossy set has no such table of its own
    readers = {"3d": _read_webps(packages / SOURCES["3d"].archive)}
    for style in ("glossy", "flat"):
        readers[style] = _read_svgs(packages / SOURCES[style].archive, slugs)
    looks: dict[str, Look] = {}
    out.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for noun in nouns():
            drawing = readers["3d"](noun.code)
            assert drawing is not None, f"{noun.code} ({noun.name}) is not in {SOURCES['3d'].package}"
            looks[noun.code] = look_of(drawing)
            for style, read in readers.items():
                rgba = read(noun.code)
                if rgba is not None:
                    _write(archive, f"{style}/{noun.code}.webp", _webp(rgba))
        manifest = {
            "sources": {style: asdict(source) for style, source in SOURCES.items()},
            "looks": {code: asdict(look) for code, look in looks.items()},
        }
        _write(archive, "manifest.json", json.dumps(manifest, indent=0).encode())
    return out


def _write(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    archive.writestr(zipfile.ZipInfo(name), data)  # without the time of day: the same drawings give the same file


def _webp(rgba: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(rgba).save(file, "WEBP", quality=84, alpha_quality=100, method=4)
    return file.getvalue()


_XML = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
Reader = Callable[[str], NDArray[np.uint8] | None]


def _read_webps(path: Path) -> Reader:
    with tarfile.open(path) as tar:
        members = {Path(m.name).stem: m for m in tar.getmembers() if m.name.endswith(".webp")}
        wanted = {noun.code for noun in nouns()} & members.keys()
        data = {code: _bytes(tar, members[code]) for code in wanted}

    def read(code: str) -> NDArray[np.uint8] | None:
        return np.asarray(Image.open(io.BytesIO(data[code])).convert("RGBA")) if code in data else None

    return read


def _bytes(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None, f"{member.name} is no file"
    return file.read()


def _json_in(path: Path, name: str) -> Mapping[str, Any]:
    with tarfile.open(path) as tar:
        return json.loads(_bytes(tar, tar.getmember(f"package/{name}")))


def _read_svgs(path: Path, slugs: Mapping[str, str]) -> Reader:
    import resvg_py

    icons = _json_in(path, "icons.json")

    def read(code: str) -> NDArray[np.uint8] | None:
        spellings = code, code.replace("-fe0f", ""), f"{code}-fe0f"
        slug = next((slugs[spelling] for spelling in spellings if spelling in slugs), None)
        if slug is None or slug not in icons["icons"]:
            return None
        side = icons.get("height", 32)
        body = icons["icons"][slug]["body"]
        svg = f'<svg {_XML} viewBox="0 0 {side} {side}">{body}</svg>'
        png = resvg_py.svg_to_bytes(svg_string=svg, width=SIDE, height=SIDE)
        return np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGBA"))

    return read
