"""From what a torch checkpoint holds to a flat table of tensors: wrappers opened, everything else listed and left."""

from collections.abc import Callable, Iterator
from typing import cast

from disegno.core.errors import CorruptFile, UnknownKind, UnsafeFile
from disegno.weights.limits import MAX_DEPTH, MAX_DICT_ITEMS, MAX_NAME_BYTES
from disegno.weights.pickle_values import Inert, Name, StorageRef, TensorRef
from disegno.weights.tensor_file import Contents, Entry


def unwrap(format: str, root: object, start_of: Callable[[StorageRef], int], file_bytes: int) -> Contents:
    """Return the tensors of a checkpoint: of its `state_dict` where it has one (Lightning), else of every dict in it.

    Names of nested dicts are joined by dots. `start_of`: a storage's first byte in the file. Raises CorruptFile where
    there is no table of tensors, UnknownKind for a hypernetwork's, UnsafeFile where it has no end.
    """
    if not isinstance(root, dict):
        raise CorruptFile(f"It holds a {type(root).__name__}, not a table of tensors by name.")
    table = cast(dict[object, object], root)
    inner = table.get("state_dict")
    if not isinstance(inner, dict):
        return _flatten(format, table, start_of, file_bytes, ())
    state = cast(dict[object, object], inner)
    if isinstance(state.get("state_dict"), dict):
        raise CorruptFile("It holds a state_dict inside a state_dict: a broken merge. Fetch the original file.")
    beside = tuple(f"{_word(key)}: beside the state_dict" for key in table if key != "state_dict")
    return _flatten(format, state, start_of, file_bytes, beside)


def _flatten(
    format: str,
    table: dict[object, object],
    start_of: Callable[[StorageRef], int],
    file_bytes: int,
    ignored: tuple[str, ...],
) -> Contents:
    entries: dict[str, Entry] = {}
    others = list(ignored)
    for count, (key, value) in enumerate(_walk("", table, 0)):
        if count > MAX_DICT_ITEMS:
            raise UnsafeFile(f"It names more than {MAX_DICT_ITEMS} things; no model has so many.")
        if isinstance(value, TensorRef):
            if key in entries:
                raise CorruptFile(f"It names the tensor {key[:80]!r} twice.")
            entries[key] = _entry(value, start_of)
            entries[key].check(key, file_bytes)
        elif not isinstance(value, dict):
            others.append(f"{key}: {value.text[:80] if isinstance(value, Inert | Name) else type(value).__name__}")
    if not entries and any(isinstance(key, int) and isinstance(value, list) for key, value in table.items()):
        raise UnknownKind("This is a hypernetwork, which this program does not use. Look for a LoRA in its place.")
    return Contents(format, entries, {}, tuple(others))


def _walk(prefix: str, table: dict[object, object], depth: int) -> Iterator[tuple[str, object]]:
    """Yield everything in a table and in the tables in it, under its full name."""
    if depth > MAX_DEPTH:
        raise UnsafeFile("Its tables hold each other without end.")
    for key, value in table.items():
        if isinstance(value, TensorRef) and not isinstance(key, str):
            raise CorruptFile(f"It has a tensor whose name is a {type(key).__name__}, not text.")
        name = prefix + _word(key)
        if len(name) > MAX_NAME_BYTES:  # a few long names, joined, are more than there is memory
            raise UnsafeFile(f"It has a name of more than {MAX_NAME_BYTES} characters: {name[:80]!r}...")
        yield name, value
        if isinstance(value, dict):
            yield from _walk(f"{name}.", cast(dict[object, object], value), depth + 1)


def _word(key: object) -> str:
    return key if isinstance(key, str) else key.text if isinstance(key, Inert | Name) else str(key)


def _entry(ref: TensorRef, start_of: Callable[[StorageRef], int]) -> Entry:
    return Entry(ref.dtype, ref.shape, start_of(ref.storage), ref.storage.num_bytes, ref.offset, ref.strides)
