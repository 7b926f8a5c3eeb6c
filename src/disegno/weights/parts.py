"""One network of a diffusers folder: its configuration, and its tensors, in one file or in several. What one file says
of its configuration, in its header.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from disegno.core.errors import CorruptFile, KeyMismatch
from disegno.weights.json_table import json_table, read_json
from disegno.weights.load import open_file
from disegno.weights.scaled import unscaled
from disegno.weights.tensor_file import TensorFile

CONFIG_KEY = "disegno.config"  # in a header: what a file's names and shapes do not tell
_NAMES = (
    *("diffusion_pytorch_model.safetensors", "model.safetensors"),
    *("diffusion_pytorch_model.fp16.safetensors", "model.fp16.safetensors"),
    *("diffusion_pytorch_model.bin", "pytorch_model.bin"),
    *("diffusion_pytorch_model.fp16.bin", "pytorch_model.fp16.bin"),
    *("diffusion_pytorch_model.non_ema.safetensors", "model.non_ema.safetensors"),
)


def told_of(file: TensorFile) -> dict[str, Any]:
    """Return what the file's header says of its configuration. Raises CorruptFile."""
    return json_table(file.metadata.get(CONFIG_KEY, "{}"), f"{file.path.name}: its {CONFIG_KEY}")


def part_of(
    file: TensorFile,
    prefix: str,
    names_of: Callable[[Iterable[str]], Mapping[str, str]],
    ignored: tuple[str, ...] = (),
) -> dict[str, Tensor]:
    """Return the tensors under a prefix, by their new names. Raises KeyMismatch with the names that have none."""
    names = [key.removeprefix(prefix) for key in file.contents.entries if key.startswith(prefix)]
    given = unscaled({name: file.tensor(prefix + name) for name in names if not name.startswith(ignored)})
    table = names_of(given)
    if not table:
        raise KeyMismatch(f"{file.path.name} has no tensors under {prefix}... Use a complete checkpoint.")
    if unknown := [name for name in given if name not in table]:
        raise KeyMismatch(
            f"{file.path.name} has {len(unknown)} tensors that Stable Diffusion has not: "
            f"{', '.join(prefix + name for name in unknown[:8])}. It may be of another family."
        )
    return {new: given[name] for name, new in table.items()}


def has_weights(path: Path, part: str) -> bool:
    """Return whether a folder has the weights of this part."""
    return any(file.is_file() for file in (*_files(path / part), *_indices(path / part)))


def folder_tensors(path: Path, part: str) -> dict[str, Tensor]:
    """Return the tensors of a part of a folder, by the names that they have there. Raises CorruptFile, KeyMismatch."""
    return part_tensors(path, part)[0]


def part_tensors(path: Path, part: str) -> tuple[dict[str, Tensor], tuple[TensorFile, ...]]:
    """Return what `folder_tensors` does, and the files that it reads, opened. Raises CorruptFile, KeyMismatch."""
    for file in _files(path / part):
        if file.is_file():
            opened = open_file(file)
            return opened.tensors(), (opened,)
    for index in _indices(path / part):
        if index.is_file():
            return _sharded(index)
    raise CorruptFile(f"{path / part} has no weights. A diffusers model folder has one of: {', '.join(_NAMES)}.")


def weights_of(path: Path) -> tuple[dict[str, Tensor], tuple[TensorFile, ...], str]:
    """Return a network's tensors, of a file or of its own folder; the files, opened; and its name by content.

    Raises as `part_tensors`.
    """
    if path.is_dir():
        tensors, files = part_tensors(path, "")
    else:
        opened = open_file(path)
        tensors, files = opened.tensors(), (opened,)
    digests = [file.sha256() for file in files]
    return tensors, files, digests[0] if len(digests) == 1 else sha256("\n".join(digests).encode()).hexdigest()


def _files(folder: Path) -> Iterator[Path]:
    return (folder / name for name in _NAMES)


def _indices(folder: Path) -> Iterator[Path]:
    """Yield where the table of several files may lie: `.fp16` stands in two places, by who wrote it."""
    for name in _NAMES:
        yield folder / f"{name}.index.json"
        if ".fp16" in name:
            yield folder / f"{name.replace('.fp16', '')}.index.fp16.json"


def _sharded(index: Path) -> tuple[dict[str, Tensor], tuple[TensorFile, ...]]:
    """Return the tensors of several files, by the table that says which is where, and the files.

    Raises CorruptFile, KeyMismatch.
    """
    table = read_json(index).get("weight_map")
    places = cast(Mapping[str, object], table) if isinstance(table, dict) else {"": None}
    if not all(isinstance(place, str) for place in places.values()):
        raise CorruptFile(f"{index} has no weight_map, a table of file names. Fetch the folder again.")
    where = {name: Path(str(place)).name for name, place in places.items()}
    files = {name: open_file(index.parent / name) for name in dict.fromkeys(where.values())}
    return {name: files[place].tensor(name) for name, place in where.items()}, tuple(files.values())
