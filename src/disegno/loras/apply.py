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
from disegno.loras.dialects import Part, Place, places_in
from disegno.loras.files import LoraFile
from disegno.loras.matrices import difference
from disegno.packing import LAYERS, with_weight

log = logging.getLogger(__name__)

Address = tuple[Part, str]  # a part of the model, and a module's name without dots


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

    @contextmanager
    def on(self, part: Part) -> Generator[None]:
        """Let the copies stand in for a part's layers. One thread at a time."""
        seats = self.seats.get(part, ())
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
    """Return these LoRAs on a model's nets ("unet", "te"), merged in float32 and kept in the layers' own dtype.

    Raises KeyMismatch where one has nothing for this model, or something of another shape.
    """
    places = places_in(nets, LAYERS)
    found = [_placed(each, places) for each in worn]
    warnings = tuple(warning for each, some in zip(worn, found, strict=True) for warning in _doubts(each, some))
    wanted: dict[Place, list[tuple[Worn, str]]] = {}
    for each, some in zip(worn, found, strict=True):
        for (part, module), place in some.items():
            if each.strength(part):
                wanted.setdefault(place, []).append((each, module))
    seats: dict[Part, list[Seat]] = {}
    for place, changes in wanted.items():
        seats.setdefault(place.part, []).append(_seat(nets[place.part], place, changes))
    key = sha256("\n".join(each.key for each in worn).encode()).hexdigest() if worn else ""
    copies = [seat.other for some in seats.values() for seat in some]
    num_bytes = sum(_num_bytes(copy) for copy in copies)
    log.info("%d LoRAs: %d layers, %.0f MiB of copies", len(worn), len(copies), num_bytes / 2**20)
    hashes = {each.file.name: each.file.hash for each in worn}
    return Loras(key, {part: tuple(some) for part, some in seats.items()}, warnings, num_bytes, hashes)


def _placed(worn: Worn, places: Mapping[Address, Place]) -> dict[Address, Place]:
    """Return the model's place of each of a LoRA's modules. Raises KeyMismatch where it has none at all."""
    found = {address: places[address] for address in worn.file.modules if address in places}
    if not found:
        some = ", ".join(f"{part} {module}" for part, module in list(worn.file.modules)[:2])
        raise KeyMismatch(
            f"The LoRA {worn.file.name!r} applies to none of this model's layers: its {len(worn.file.modules)} modules"
            f" are {some}, ... It was made for another kind of model: choose another one."
        )
    return found


def _doubts(worn: Worn, found: Mapping[Address, Place]) -> Iterable[str]:
    num, total = len(found), len(worn.file.modules)
    if num < total:
        yield f"The LoRA {worn.file.name!r}: {num} of {total} modules applied; this model has no place for the others."


@torch.no_grad()
def _seat(net: nn.Module, place: Place, changes: Sequence[tuple[Worn, str]]) -> Seat:
    """Return the layer's copy with all of these LoRAs in it, each made from the layer as it is."""
    parent_name, _, name = place.name.rpartition(".")
    parent, own = net.get_submodule(parent_name), net.get_submodule(place.name)
    weight, bias = _own(own)
    changed, shifted = weight.float(), bias
    for worn, module in changes:
        matrices, strength = worn.file.modules[place.part, module], worn.strength(place.part)
        try:
            scale = worn.file.scale_of(place.part, module)
            changed = changed + strength * difference(weight, matrices, scale, worn.use.rank)
            shifted = _shifted(shifted, matrices, strength)
        except KeyMismatch as error:
            raise KeyMismatch(
                f"The LoRA {worn.file.name!r} does not fit {place.part} {place.name}: {error}."
                " Choose one that was made for this model."
            ) from error
    return Seat(parent, name, own, with_weight(own, changed, shifted))


def _own(layer: nn.Module) -> tuple[Tensor, Tensor | None]:
    own: dict[str, object] = {"weight": layer.weight, "bias": layer.bias}
    weight, bias = own["weight"], own["bias"]
    assert isinstance(weight, Tensor) and isinstance(bias, Tensor | None)
    return weight.detach(), None if bias is None else bias.detach()


def _shifted(bias: Tensor | None, matrices: Mapping[str, Tensor], strength: float) -> Tensor | None:
    """Return the bias with a full difference's own, where it has one."""
    if "diff_b" not in matrices:
        return bias
    added = matrices["diff_b"]
    if bias is None or bias.shape != added.shape:
        raise KeyMismatch(f"diff_b {tuple(added.shape)} has no bias of its shape")
    return bias.float() + strength * added.to(bias.device, torch.float32)


def _num_bytes(layer: nn.Module) -> int:
    weight, _ = _own(layer)
    return weight.numel() * weight.element_size()
