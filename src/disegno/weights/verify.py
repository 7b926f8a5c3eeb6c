"""Reads all of a file or folder of weights, as whoever opens it would: every number, and the hash of every file."""

from collections.abc import Iterator
from pathlib import Path

from disegno.core.errors import CorruptFile
from disegno.weights.built_in import conditions_of
from disegno.weights.card import FileCard
from disegno.weights.finite import not_finite, refuse_not_finite, require_finite
from disegno.weights.layouts import CLIP, MODELS, parts_of
from disegno.weights.load import open_file
from disegno.weights.parts import has_weights, part_tensors

_OWN_PARTS = ("unet", "vae", "text")  # of a folder of diorama's kind


def verified(card: FileCard) -> Iterator[tuple[Path, str]]:
    """Yield each file that is read when this is opened, and its sha256, once all in it was found sound.

    Of a folder every part is read that a model of its family cannot be without, and what else of it is there. Raises
    CorruptFile where numbers are not finite, or a part has no weights; KeyMismatch where a file of several lacks a
    tensor; and as `open_file` where one is missing.
    """
    path = card.path
    if not path.is_dir():
        yield from _files([path])
    elif (path / "model.json").is_file():
        own = [path / f"{name}.safetensors" for name in _OWN_PARTS]
        yield from _files(dict.fromkeys([*own, *conditions_of(path).values(), *sorted(path.rglob("*.safetensors"))]))
    else:
        for part in _parts(card):
            tensors, files = part_tensors(path, part)
            require_finite(f"{path.name}/{part}".rstrip("/"), tensors)
            yield from ((file.path, file.sha256()) for file in files)


def require_parts(card: FileCard) -> None:
    """Raise CorruptFile or KeyMismatch where a diffusers folder lacks what is needed to open it."""
    if card.path.is_dir() and not (card.path / "model.json").is_file():
        for part in _parts(card):
            part_tensors(card.path, part)


def _files(paths: "list[Path] | dict[Path, None]") -> Iterator[tuple[Path, str]]:
    for path in paths:
        with open_file(path) as file:
            names = file.keys()
            bad = [name for name in names if not_finite({name: file.tensor(name)})]  # one packed tensor at a time
            refuse_not_finite(path.name, bad, len(names))
            yield path, file.sha256()


def _parts(card: FileCard) -> list[str]:
    """Return the folders within a diffusers folder that hold networks; "" is a network's own folder."""
    if card.kind != "model":
        return [""]
    if card.family in MODELS:
        known = parts_of(card.family, has_weights(card.path, CLIP.folder))
        return [part.folder for part in known if not part.optional or has_weights(card.path, part.folder)]
    found = [folder.name for folder in sorted(card.path.iterdir()) if has_weights(card.path, folder.name)]
    if not {"unet", "transformer"} & set(found):
        raise CorruptFile(f"{card.path} has neither a unet's nor a transformer's weights. Fetch the folder again.")
    return found
