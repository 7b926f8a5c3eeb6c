"""Reads the pickles inside torch checkpoints as data. Nothing is imported, looked up or called: a name stays a name.

The instructions are those that `torch.save` writes; any other, or a name outside the tables below, is refused.
The opcodes are documented in Python's own pickletools module.
"""

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from mmap import mmap
from typing import cast

import torch

from disegno.core.errors import CorruptFile, UnsafeFile
from disegno.weights.limits import (
    MAX_DEPTH,
    MAX_DICT_ITEMS,
    MAX_DIM,
    MAX_MEMO,
    MAX_PICKLE_BYTES,
    MAX_PICKLE_OPS,
    MAX_STRING_BYTES,
)
from disegno.weights.pickle_values import Inert, Name, Parameters, Stateful, StorageRef, TensorRef, Unpickled

Call = Callable[[tuple[object, ...]], object]

STORAGES: dict[str, torch.dtype] = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
    "torch.storage.UntypedStorage": torch.uint8,
}
DTYPES = {str(dtype): dtype for dtype in (*STORAGES.values(), torch.float8_e4m3fn, torch.float8_e5m2)}

# Names that real checkpoints mention beside weights: kept as placeholders that hold nothing and can do nothing.
_INERT_PACKAGES = ("pytorch_lightning.", "lightning.", "lightning_fabric.", "omegaconf.", "torchmetrics.")
_INERT = {
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    *(f"builtins.{name}" for name in ("set", "frozenset", "dict", "list", "tuple", "int", "float", "bool", "str")),
    *(f"typing.{name}" for name in ("Any", "Dict", "List", "Tuple", "Union", "Optional")),
    *(f"pathlib.{name}" for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")),
    "_codecs.encode",
    "argparse.Namespace",
    "collections.Counter",
    "numpy.dtype",
    "numpy.ndarray",
    "torch.device",
}


@dataclass(slots=True)
class _Machine:
    """The state of one reading: where it is, the stack, the stacks below the open marks, and the memo."""

    data: bytes | mmap
    pos: int
    end: int
    calls: Mapping[str, Call]
    max_text: int
    stack: list[object] = field(default_factory=list[object])
    below: list[list[object]] = field(default_factory=list[list[object]])
    memo: dict[int, object] = field(default_factory=dict[int, object])
    storages: dict[str, StorageRef] = field(default_factory=dict[str, StorageRef])

    def take(self, count: int) -> bytes:
        """Return the next bytes."""
        if count > self.max_text or self.pos + count > self.end:
            raise CorruptFile("A text or number in it is longer than the file, or than is reasonable. Fetch it again.")
        self.pos += count
        return self.data[self.pos - count : self.pos]

    def number(self, form: str) -> int:
        """Return the next number; `form` as in struct."""
        return int(struct.unpack(form, self.take(struct.calcsize(form)))[0])

    def line(self) -> str:
        """Return the text up to the next newline."""
        end = self.data.find(b"\n", self.pos, min(self.end, self.pos + 300))
        if end < 0:
            raise CorruptFile("A name in it does not end. Fetch it again.")
        text = self.take(end - self.pos).decode("ascii")
        self.pos += 1
        return text

    def to_mark(self) -> list[object]:
        """Return what was pushed since the last mark, and take it off."""
        items, self.stack = self.stack, self.below.pop()
        return items

    def remember(self, index: int) -> None:
        """Keep the top of the stack under a number."""
        if len(self.memo) >= MAX_MEMO:
            raise UnsafeFile("It remembers more values than any file of weights has.")
        self.memo[index] = self.stack[-1]

    def push_name(self, module: object, name: object) -> None:
        """Push a name that a file of weights may mention. Raises UnsafeFile for any other."""
        text = f"{module}.{name}".replace("__builtin__.", "builtins.", 1)
        if text not in _KNOWN and not text.startswith(_INERT_PACKAGES):
            raise UnsafeFile(
                f"It asks for {text[:80]!r}, which no file of weights needs. Nothing was run. "
                "Do not use this file; look for a safetensors version from someone you trust."
            )
        self.stack.append(Name(text))


def read_pickle(
    data: bytes | mmap, pos: int = 0, calls: Mapping[str, Call] | None = None, max_text: int = MAX_STRING_BYTES
) -> Unpickled:
    """Return what the pickle at `pos` says. Raises UnsafeFile or CorruptFile; never runs anything.

    `calls`: what stands for calls of further known names; `max_text`: the longest text or run of bytes, in bytes.
    """
    machine = _Machine(data, pos, min(len(data), pos + MAX_PICKLE_BYTES), {**_CALLS, **(calls or {})}, max_text)
    try:
        for _ in range(MAX_PICKLE_OPS):
            code = data[machine.pos] if machine.pos < machine.end else None
            machine.pos += 1
            if code == _STOP:
                return Unpickled(_result(machine), machine.pos, machine.storages)
            if (op := _OPS.get(code)) is None:
                raise _unknown(code)
            op(machine)
    except (IndexError, KeyError, UnicodeError) as error:
        raise CorruptFile(f"Its table of tensors is damaged ({type(error).__name__}). Fetch it again.") from None
    raise UnsafeFile(f"It has more than {MAX_PICKLE_OPS} pickle instructions.")


def _unknown(code: int | None) -> CorruptFile | UnsafeFile:
    if code is None:
        return CorruptFile("Its table of tensors does not end. Fetch it again.")
    return UnsafeFile(
        f"It holds the pickle instruction {bytes([code])!r}, which torch does not write. Nothing was run."
    )


def _result(machine: _Machine) -> object:
    value = machine.stack.pop()
    if machine.stack or machine.below:
        raise CorruptFile("Its table of tensors ends too early. Fetch it again.")
    return value


def _protocol(m: _Machine) -> None:
    if (version := m.take(1)[0]) not in (2, 3, 4, 5):
        raise CorruptFile(f"It is a pickle of protocol {version}; torch writes 2 to 5.")


def _frame(m: _Machine) -> None:
    m.take(8)  # only a hint for streams: what it frames is read all the same


def _push(value: Callable[[_Machine], object]) -> Callable[[_Machine], None]:
    """Return the instruction that pushes what `value` reads."""
    return lambda m: m.stack.append(value(m))


def _text(form: str, encoding: str) -> Callable[[_Machine], object]:
    return lambda m: m.take(m.number(form)).decode(encoding, "surrogatepass" if encoding == "utf-8" else "strict")


def _tuple_of(count: int) -> Callable[[_Machine], None]:
    def pack(m: _Machine) -> None:
        items = tuple(m.stack[-count:])
        if len(items) != count:
            raise CorruptFile("Its table of tensors is damaged. Fetch it again.")
        m.stack[-count:] = [_shallow(items)]

    return pack


def _mark(m: _Machine) -> None:
    m.below.append(m.stack)
    m.stack = []


def _tuple(m: _Machine) -> None:
    items = m.to_mark()
    m.stack.append(_shallow(tuple(items)))


def _shallow(items: tuple[object, ...]) -> tuple[object, ...]:
    """Return the tuple, which must not hold a tuple that holds a tuple and so on: Python itself may die of those."""
    inner, depth = items, 0
    while inner and isinstance(inner[0], tuple):
        inner, depth = cast(tuple[object, ...], inner[0]), depth + 1
        if depth > MAX_DEPTH:
            raise UnsafeFile(f"It has tuples in each other, more than {MAX_DEPTH} deep.")
    return items


def _set_items(m: _Machine, items: list[object]) -> None:
    """Put keys and values into the dict on the stack; a placeholder swallows them."""
    table = m.stack[-1]
    if isinstance(table, Inert):
        return
    if not isinstance(table, dict) or len(items) % 2:
        raise UnsafeFile(f"It sets items of a {type(table).__name__}, which torch does not write. Nothing was run.")
    table = cast(dict[object, object], table)
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, str | int | float | bytes | Name | Inert | None):
            raise UnsafeFile(f"It has a {type(key).__name__} for a key; a tensor's name was expected.")
        table[key] = value
    if len(table) > MAX_DICT_ITEMS:
        raise UnsafeFile(f"It has a table of more than {MAX_DICT_ITEMS} items; no model has so many.")


def _set_item(m: _Machine) -> None:
    value, key = m.stack.pop(), m.stack.pop()
    _set_items(m, [key, value])


def _append(m: _Machine, items: list[object]) -> None:
    target = m.stack[-1]
    if isinstance(target, Inert):
        return
    if not isinstance(target, list):
        raise UnsafeFile(f"It appends to a {type(target).__name__}, which torch does not write. Nothing was run.")
    cast(list[object], target).extend(items)


def _global(m: _Machine) -> None:
    module = m.line()
    m.push_name(module, m.line())


def _stack_global(m: _Machine) -> None:
    name, module = m.stack.pop(), m.stack.pop()
    if not isinstance(name, str) or not isinstance(module, str):
        raise UnsafeFile("It builds a name out of something that is not text. Nothing was run.")
    m.push_name(module, name)


def _persistent(m: _Machine) -> None:
    """Push the storage that torch's tuple ("storage", type, key, device, number of elements[, view]) stands for."""
    match m.stack.pop():
        case ("storage", Name(text), str(key), str(), int(count), *view) if text in STORAGES and view in ([], [None]):
            ref = StorageRef(STORAGES[text], key, count)
            if not 0 <= count < MAX_DIM:
                raise CorruptFile(f"Its storage {key[:40]!r} has an impossible length.")
            if m.storages.setdefault(key, ref) != ref:
                raise CorruptFile(f"It describes its storage {key[:40]!r} in two ways.")
            m.stack.append(ref)
        case _:
            raise CorruptFile("It points to something else than a run of numbers (or is older than torch 0.4).")


def _reduce(m: _Machine) -> None:
    """Push what the call would have given, for the few that make tensors and containers; else a placeholder."""
    arguments, name = m.stack.pop(), m.stack.pop()
    if not isinstance(name, Name) or not isinstance(arguments, tuple):
        raise UnsafeFile("It calls something that has no name. Nothing was run.")
    build = m.calls.get(name.text)
    if build is None and (name.text in STORAGES or name.text in DTYPES):
        raise UnsafeFile(f"It calls {name.text}, which torch does not write. Nothing was run.")
    m.stack.append(build(cast(tuple[object, ...], arguments)) if build else Inert(name.text))


def _build(m: _Machine) -> None:
    """Apply a state: of a ParameterDict only; any other (a module's version table) is dropped."""
    state, target = m.stack.pop(), m.stack[-1]
    if isinstance(target, Parameters) and isinstance(state, dict):
        inner = cast(dict[str, object], state).get("_parameters")
        target.update(cast(dict[str, object], inner) if isinstance(inner, dict) else {})
    elif isinstance(target, Stateful):
        target.set_state(state)
    elif not isinstance(target, dict | Inert):
        raise UnsafeFile(
            f"It sets attributes of a {type(target).__name__}, which torch does not write. Nothing was run."
        )


def _tensor(arguments: tuple[object, ...]) -> object:
    """Return the tensor of torch._utils._rebuild_tensor, _v2 and _v3 (whose seventh argument is the dtype)."""
    match arguments:
        case (StorageRef() as storage, int(offset), tuple(shape), tuple(strides), *rest):
            dtype = DTYPES.get(rest[2].text) if len(rest) > 2 and isinstance(rest[2], Name) else storage.dtype
            if dtype is None:
                raise CorruptFile("It has a tensor of a type that is not a number.")
            return TensorRef(storage, dtype, offset, cast(tuple[int, ...], shape), cast(tuple[int, ...], strides))
        case _:
            raise CorruptFile("It has a tensor without storage, place or shape.")


def _first(arguments: tuple[object, ...]) -> object:
    if not arguments:
        raise CorruptFile("It makes a parameter or a size out of nothing.")
    return arguments[0]


def _ordered_dict(arguments: tuple[object, ...]) -> object:
    if arguments and arguments != ([],):
        raise CorruptFile("It makes a dict from a list of pairs, which torch does not write.")
    return {}


_CALLS: dict[str, Call] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor,
    "torch._utils._rebuild_parameter": _first,
    "torch.Size": _first,
    "collections.OrderedDict": _ordered_dict,
    "collections.defaultdict": lambda _: {},
    "torch.nn.modules.container.ParameterDict": lambda _: Parameters(),
}
_KNOWN = _INERT | _CALLS.keys() | STORAGES.keys() | DTYPES.keys()

_INSTRUCTIONS: dict[bytes, Callable[[_Machine], None]] = {
    b"\x80": _protocol,
    b"\x95": _frame,
    b"}": _push(lambda _: {}),
    b"]": _push(lambda _: []),
    b")": _push(lambda _: ()),
    b"N": _push(lambda _: None),
    b"\x88": _push(lambda _: True),
    b"\x89": _push(lambda _: False),
    b"K": _push(lambda m: m.number("<B")),
    b"M": _push(lambda m: m.number("<H")),
    b"J": _push(lambda m: m.number("<i")),
    b"\x8a": _push(lambda m: int.from_bytes(m.take(m.number("<B")), "little", signed=True)),
    b"G": _push(lambda m: struct.unpack(">d", m.take(8))[0]),
    b"X": _push(_text("<I", "utf-8")),
    b"\x8c": _push(_text("<B", "utf-8")),
    b"U": _push(_text("<B", "latin-1")),
    b"T": _push(_text("<I", "latin-1")),
    b"C": _push(lambda m: m.take(m.number("<B"))),
    b"B": _push(lambda m: m.take(m.number("<I"))),
    b"(": _mark,
    b"t": _tuple,
    b"\x85": _tuple_of(1),
    b"\x86": _tuple_of(2),
    b"\x87": _tuple_of(3),
    b"q": lambda m: m.remember(m.number("<B")),
    b"r": lambda m: m.remember(m.number("<I")),
    b"\x94": lambda m: m.remember(len(m.memo)),
    b"h": _push(lambda m: m.memo[m.number("<B")]),
    b"j": _push(lambda m: m.memo[m.number("<I")]),
    b"c": _global,
    b"\x93": _stack_global,
    b"Q": _persistent,
    b"R": _reduce,
    b"\x81": _reduce,  # NEWOBJ: a class called with a tuple, as REDUCE
    b"b": _build,
    b"s": _set_item,
    b"u": lambda m: _set_items(m, m.to_mark()),
    b"a": lambda m: _append(m, [m.stack.pop()]),
    b"e": lambda m: _append(m, m.to_mark()),
}
_OPS: dict[int | None, Callable[[_Machine], None]] = {code[0]: op for code, op in _INSTRUCTIONS.items()}
_STOP = ord(".")
