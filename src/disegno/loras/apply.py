"""LoRAs on a model: merged into copies of the layers that they change, which stand in for them while they are on.

The model's layers are only read, and are the same objects before and after: taking LoRAs off is exact.
"""

import logging
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from threading import RLock

import torch
from torch import Tensor, nn

from disegno.core.errors import KeyMismatch
from disegno.core.request import LoraUse
from disegno.loras.dialects import Part, Place, Places, places_in
from disegno.loras.files import LoraFile
from disegno.loras.matrices import difference
from disegno.packing import LAYERS, NORMS, with_weight

log = logging.getLogger(__name__)

Address = tuple[Part, str]  # a part of the model, and a module's name without dots

_FIRST: tuple[Part, str] = ("unet", "conv_in")
_LATENT_CHANNELS = 4


@dataclass(frozen=True)
class Worn:
    """One LoRA as it is used: its file, and how strong."""

    file: LoraFile
    use: LoraUse

    def strength(self, part: Part) -> float:
        """Return what the differences of a part are multiplied by."""
        return self.use.strength if part == "unet" or self.use.text_strength is None else self.use.text_strength

    @property
    def key(self) -> str:
        """Name the LoRA by content, with its strengths."""
        use = self.use
        return f"{self.file.sha256} {self.strength('unet')} {self.strength('te')} {use.rank}"


@dataclass(frozen=True)
class Seat:
    """Where a layer sits: its parent, and its name there; the layer, and what stands in for it."""

    parent: nn.Module
    name: str
    own: nn.Module
    other: nn.Module


@dataclass(frozen=True)
class Loras:
    """LoRAs on a model, by part of it. `key` names them by content, "" for none; `num_bytes`: of the copies.

    `hashes`: A1111's, by the files' names.
    """

    key: str = ""
    seats: Mapping[Part, tuple[Seat, ...]] = field(default_factory=dict[Part, tuple[Seat, ...]])
    warnings: tuple[str, ...] = ()
    num_bytes: int = 0
    hashes: Mapping[str, str] = field(default_factory=dict[str, str])
    _lock: RLock = field(default_factory=RLock, repr=False, compare=False)

    def change(self, *parts: Part) -> bool:
        """Return whether a layer of these parts is another one while they are on."""
        return any(self.seats.get(part) for part in parts)

    @contextmanager
    def on(self, *parts: Part) -> Generator[None]:
        """Let the copies stand in for the layers of some parts. One thread at a time."""
        seats = [seat for part in parts for seat in self.seats.get(part, ())]
        if not seats:
            yield
            return
        with self._lock:
            try:
                for seat in seats:
                    seat.parent.add_module(seat.name, seat.other)
                yield
            finally:
                for seat in seats:
                    seat.parent.add_module(seat.name, seat.own)


NO_LORAS = Loras()


def put_on(nets: Mapping[str, nn.Module], worn: Sequence[Worn]) -> Loras:
    """Return these LoRAs on a model's nets ("unet", "te", ...), merged in float32 and kept in the layers' own dtype.

    Raises KeyMismatch where one has nothing for this model, or something of another shape.
    """
    places = places_in(nets, (*LAYERS, *NORMS))
    found = [_placed(each, places) for each in worn]
    warnings = tuple(warning for each, some in zip(worn, found, strict=True) for warning in _doubts(each, some))
    wanted: dict[Address, list[Change]] = {}
    for each, some in zip(worn, found, strict=True):
        for (part, module), here in some.items():
            for place in here if each.strength(part) else ():
                wanted.setdefault((part, place.name), []).append(Change(each, module, place))
    seats: dict[Part, list[Seat]] = {}
    for (part, name), changes in wanted.items():
        seats.setdefault(part, []).append(_seat(nets[part], name, changes))
    key = sha256("\n".join(each.key for each in worn).encode()).hexdigest() if worn else ""
    copies = [seat.other for some in seats.values() for seat in some]
    num_bytes = sum(_num_bytes(copy) for copy in copies)
    log.info("%d LoRAs: %d layers, %.0f MiB of copies", len(worn), len(copies), num_bytes / 2**20)
    hashes = {each.file.name: each.file.hash for each in worn}
    return Loras(key, {part: tuple(some) for part, some in seats.items()}, warnings, num_bytes, hashes)


@dataclass(frozen=True)
class Change:
    """What a LoRA changes: its module, and where that is in the model."""

    worn: Worn
    module: str
    place: Place


def _placed(worn: Worn, places: Places) -> dict[Address, tuple[Place, ...]]:
    """Return the model's places of each of a LoRA's modules. Raises KeyMismatch where it has none at all."""
    found = {address: places[address] for address in worn.file.modules if address in places}
    if not found:
        some = ", ".join(f"{part} {module}" for part, module in list(worn.file.modules)[:2])
        raise KeyMismatch(
            f"The LoRA {worn.file.name!r} applies to none of this model's layers: its {len(worn.file.modules)} modules"
            f" are {some}, ... It was made for another kind of model: choose another one."
        )
    return found


def _doubts(worn: Worn, found: Mapping[Address, object]) -> Iterable[str]:
    num, total = len(found), len(worn.file.modules)
    if num < total:
        yield f"The LoRA {worn.file.name!r}: {num} of {total} modules applied; this model has no place for the others."
    if others := worn.file.passed_over:
        shown = ", ".join(others[:2]) + (", ..." if len(others) > 2 else "")
        yield f"The LoRA {worn.file.name!r}: {len(others)} of its tensors are of no known kind and do nothing: {shown}."


@torch.no_grad()
def _seat(net: nn.Module, where: str, changes: Sequence[Change]) -> Seat:
    """Return the layer's copy with all of these LoRAs in it, each made from the layer as it is."""
    parent_name, _, name = where.rpartition(".")
    parent, own = net.get_submodule(parent_name), net.get_submodule(where)
    weight, bias = _own(own)
    changed, shifted = weight.float(), bias
    for change in changes:
        worn, part, strength = change.worn, change.place.part, change.worn.strength(change.place.part)
        matrices = worn.file.modules[part, change.module]
        try:
            made = _made(_as_original(net, change.place, weight), change)
            changed = changed + strength * _of_place(made, change.place)
            shifted = _shifted(shifted, matrices, change.place, strength)
        except KeyMismatch as error:
            raise KeyMismatch(
                f"The LoRA {worn.file.name!r} does not fit {part} {where}: {error}."
                " Choose one that was made for this model."
            ) from error
    return Seat(parent, name, own, with_weight(own, changed, shifted))


def _made(weight: Tensor, change: Change) -> Tensor:
    """Return dW; zero where a model that inpaints or edits sees more channels than a LoRA for latents. A1111 parity."""
    worn, part = change.worn, change.place.part
    matrices, scale = worn.file.modules[part, change.module], worn.file.scale_of(part, change.module)
    try:
        return difference(weight, matrices, scale, worn.use.rank)
    except KeyMismatch:
        if (part, change.place.name) != _FIRST or weight.shape[1] <= _LATENT_CHANNELS:
            raise
        made = difference(weight[:, :_LATENT_CHANNELS], matrices, scale, worn.use.rank)
        return torch.cat([made, torch.zeros_like(weight[:, _LATENT_CHANNELS:], dtype=made.dtype)], dim=1)


def _as_original(net: nn.Module, place: Place, weight: Tensor) -> Tensor:
    """Return the weight as the original has it: with those beside it in one, its halves where they stand there."""
    if place.beside:
        weight = torch.cat([_own(net.get_submodule(name))[0] for name in place.beside])
    return _exchanged(weight) if place.swaps else weight


def _of_place(made: Tensor, place: Place) -> Tensor:
    """Return a place's rows of what was made for the original's."""
    made = _exchanged(made) if place.swaps else made
    return made.chunk(len(place.beside))[place.beside.index(place.name)] if place.beside else made


def _exchanged(rows: Tensor) -> Tensor:
    return torch.cat(list(reversed(rows.chunk(2))))


def _own(layer: nn.Module) -> tuple[Tensor, Tensor | None]:
    own: dict[str, object] = {"weight": layer.weight, "bias": layer.bias}
    weight, bias = own["weight"], own["bias"]
    assert isinstance(weight, Tensor) and isinstance(bias, Tensor | None)
    return weight.detach(), None if bias is None else bias.detach()


def _shifted(bias: Tensor | None, matrices: Mapping[str, Tensor], place: Place, strength: float) -> Tensor | None:
    """Return the bias with a full difference's own, where it has one."""
    if "diff_b" not in matrices:
        return bias
    added = _of_place(matrices["diff_b"], place)
    if bias is None or bias.shape != added.shape:
        raise KeyMismatch(f"diff_b {tuple(added.shape)} has no bias of its shape")
    return bias.float() + strength * added.to(bias.device, torch.float32)


def _num_bytes(layer: nn.Module) -> int:
    weight, _ = _own(layer)
    return weight.numel() * weight.element_size()
