"""Text encoders that lie beside a model's file, where other programs have them too; which is which, by their names."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from torch import Tensor

from disegno.weights.keys import ldm
from disegno.weights.load import open_file
from disegno.weights.scaled import unscaled

_STEMS = {
    "clip_l": ("clip_l", "clip-l"),
    "clip_g": ("clip_g", "clip-g"),
    "t5": ("t5xxl", "t5-v1_1-xxl"),
}  # how their own files' names begin
ENCODERS = tuple(_STEMS)
_NEIGHBOURS = ("text_encoders", "text_encoder", "clip", "CLIP")  # ComfyUI's, Forge's, A1111's folders
_PACKED = ".gguf"  # the last to be taken: other files of the same encoder lose nothing
_SUFFIXES = (".safetensors", ".bin", ".pth", _PACKED)
_PROJECTION = "text_projection.weight"


def places(path: Path) -> Iterator[Path]:
    """Yield the folders where a file's text encoders may lie: its own, those in it and beside it."""
    for folder in (path.parent, path.parent.parent):
        yield folder
        yield from (folder / name for name in _NEIGHBOURS if (folder / name).is_dir())


def encoders_beside(path: Path, names: Iterable[str]) -> dict[str, dict[str, Tensor]]:
    """Return the tensors of those of the named encoders (`ENCODERS`) that lie beside a model's file, as they are."""
    found = {name: file for name in names if (file := find_encoder(path, name)) is not None}
    return {name: unscaled(open_file(file).lazily().tensors()) for name, file in found.items()}


def find_encoder(path: Path, name: str) -> Path | None:
    """Return the file of an encoder (of `ENCODERS`) that lies beside a model's file; None."""
    stems = _STEMS[name]
    for folder in places(path):
        files = (file for file in folder.iterdir() if file.suffix.lower() in _SUFFIXES and file != path)
        named = (file for file in files if file.stem.lower().startswith(stems))
        if first := min(named, key=lambda file: (file.suffix.lower() == _PACKED, file), default=None):
            return first
    return None


def clip_of(tensors: Mapping[str, Tensor], projects: bool) -> dict[str, Tensor]:
    """Return a CLIP's tensors by CLIPTextModel's names, and its projection where it is used."""
    found = {new: tensors[name] for name, new in ldm.text_names(tensors).items()}
    return found | ({_PROJECTION: tensors[_PROJECTION]} if projects and found and _PROJECTION in tensors else {})


def clips_beside(path: Path, names: Iterable[str]) -> dict[str, dict[str, Tensor]]:
    """Return the CLIPs (clip_l, clip_g) that lie beside a model's file, by CLIPTextModel's names; OpenCLIP-G's with
    its projection.
    """
    found = encoders_beside(path, names)
    return {name: clip_of(tensors, projects=name == "clip_g") for name, tensors in found.items()}
