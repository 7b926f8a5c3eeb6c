"""A request for each picture of a folder: a folder may stand where a request names a picture. No torch.

Several folders go by their pictures' names, whatever the ending: photos/car.jpg goes with drawings/car.png.
"""

import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from disegno.core.errors import RequestError
from disegno.core.files import path_of
from disegno.core.request import Request

PICTURE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"})
_NUM_NAMED = 3  # of the pictures that a message names


@dataclass(frozen=True)
class Turn:
    """One picture's request. `name`: the picture's, without its ending."""

    name: str
    request: Request


def spelt(name: str) -> str:
    """Return what a name spells: letters composed (NFC), upper and lower case alike."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def pictures_in(folder: Path) -> dict[str, Path]:
    """Return the pictures of a folder by what their names spell, in the names' order. Raises RequestError.

    Letters are composed, and upper and lower case alike. Other files, hidden ones and folders inside are passed over.
    """
    try:
        there = sorted(file for file in folder.iterdir() if file.suffix.lower() in PICTURE_SUFFIXES and file.is_file())
    except OSError as error:
        raise RequestError(f"{folder} cannot be read ({error.strerror}). Choose another folder.") from error
    found: dict[str, Path] = {}
    for file in (file for file in there if not file.name.startswith(".")):
        key = spelt(file.stem)
        if key in found:
            raise RequestError(f"{found[key]} and {file.name} have one name. Call one of them otherwise.")
        found[key] = file
    if not found:
        raise RequestError(f"There is no picture in {folder}. Known endings: {', '.join(sorted(PICTURE_SUFFIXES))}.")
    return found


def turns_of(request: Request) -> tuple[Turn, ...] | None:
    """Return a request for each picture, where the request names folders; None where it names none.

    Raises RequestError where a folder is empty, or lacks a picture that the first one has.
    """
    folders = {place: folder for place, source in _sources(request).items() if (folder := _folder(source)) is not None}
    if not folders:
        return None
    found = {place: pictures_in(folder) for place, folder in folders.items()}
    first = next(iter(found.values()))
    for place, pictures in found.items():
        if missing := [file.stem for key, file in first.items() if key not in pictures]:
            named = ", ".join(missing[:_NUM_NAMED]) + (", ..." if len(missing) > _NUM_NAMED else "")
            raise RequestError(
                f"{folders[place]} has no picture for {len(missing)} of {len(first)}: {named}. Several folders go by"
                " their pictures' names."
            )
    return tuple(
        Turn(file.stem, _with(request, {place: str(pictures[key]) for place, pictures in found.items()}))
        for key, file in first.items()
    )


Place = tuple[str, int, str]  # a part of the request, which of several, its field


def _sources(request: Request) -> Mapping[Place, str | None]:
    """Return what a request names as pictures, by place."""
    init, places = request.init, dict[Place, str | None]()
    if init is not None:
        places |= {("init", 0, name): getattr(init, name) for name in ("image", "mask")}
    for i, unit in enumerate(request.controls):
        places |= {("controls", i, name): getattr(unit, name) for name in ("image", "mask", "region")}
    places |= {("regions", i, "mask"): region.mask for i, region in enumerate(request.regions)}
    return places | {("", 0, "depth"): request.depth}


def _folder(source: str | None) -> Path | None:
    path = None if not source or source.startswith("data:") else path_of(source)
    return path if path is not None and path.is_dir() else None


def _with(request: Request, given: Mapping[Place, str]) -> Request:
    """Return the request with these pictures in their places."""
    of: Callable[[str, int], dict[str, str]] = lambda part, i: {  # noqa: E731
        name: source for (where, n, name), source in given.items() if (where, n) == (part, i)
    }
    init = request.init and replace(request.init, **of("init", 0))
    controls = tuple(replace(unit, **of("controls", i)) for i, unit in enumerate(request.controls))
    regions = tuple(replace(region, **of("regions", i)) for i, region in enumerate(request.regions))
    return replace(request, init=init, controls=controls, regions=regions, **of("", 0))
