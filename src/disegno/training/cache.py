"""Pairs as tensors, computed once and kept on disk: latents, condition latents, text states, pixels.

A tensor's name is made of all that decides it, and of nothing else: the pixels on their canvas or the caption, the
weights that encode, their dtype (text: the net's, in which it is kept), and the code of this file and of the fitting.
So a changed picture is encoded anew whatever its time of change says, one picture under many conditions or for another
recipe is encoded once, and nothing that is there is wrong. While the examples are used, neither VAE nor text encoder
needs to be in memory.
"""

import hashlib
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from disegno.backbones._fingerprint import fingerprint
from disegno.backbones.base import Backbone, TextStates
from disegno.core.errors import RequestError, ResourceError
from disegno.diffusion.patches import with_pooled
from disegno.text.learnt import TextOptions
from disegno.training.base import Example, TeachProgress
from disegno.training.data import align as aligning
from disegno.training.data.buckets import make_buckets, nearest_bucket, usual_step
from disegno.training.pairs import Pairs, Picture, Sample
from disegno.training.recipe import Wanted
from disegno.training.store import Store

Size = tuple[int, int]  # width, height

STAGE = "caching"
PATIENCE_SECONDS = 120.0  # how long another process's share is waited for while nothing new comes
_POLL_SECONDS = 0.2
_PROBLEM = "problem"
_OF_CONDITION = ("condition", "condition_latent")


@dataclass(frozen=True)
class Canvases:
    """The sizes that pictures are brought to, (width, height): one, or some of about one area.

    `unmet`: what the sides are no multiples of, where several sizes were asked for and there is one for that reason.
    """

    sizes: tuple[Size, ...]
    unmet: int | None = None

    @classmethod
    def of(cls, backbone: Backbone, width: int | None, height: int | None, buckets: bool) -> "Canvases":
        """Return the canvases of a request: those that `dataset check` and `dataset build` know, if the net has them.

        Raises RequestError where the model cannot draw them.
        """
        size = width or backbone.defaults.width, height or backbone.defaults.height
        step = max(usual_step(*size), _halved_cells(backbone.net) * backbone.downscale)
        odd = any(side % step for side in size)
        sizes = make_buckets(*size, step) if buckets and not odd else (size,)
        for canvas in sizes:
            backbone.check_size(*canvas)
        return cls(sizes, step if buckets and odd else None)

    def of_picture(self, size: Size) -> Size | None:
        """Return the canvas of a picture of this size; None where too much of it would be cut off."""
        return self.sizes[0] if len(self.sizes) == 1 else nearest_bucket(size, self.sizes)


def _halved_cells(net: nn.Module) -> int:
    """Return how many latent cells become one at the net's deepest level, along a side; 1 where it has no levels."""
    config: Mapping[str, Any] = getattr(net, "config", {})
    return 2 ** (len(config.get("block_out_channels", (0,))) - 1)


@dataclass(frozen=True)
class Row:
    """A pair that can be learned from. `tensors`: wanted name -> its key in the store. `shape`: the latent's (h, w)."""

    task: str
    key: str
    shape: tuple[int, int]
    tensors: Mapping[str, str]


@dataclass(frozen=True)
class CachedExamples:
    """Pairs as tensors (`Examples`). `empty`: the empty caption's states, (n d); `dropped`: what could not be used.

    `cut`: the names of pairs whose caption is longer than the text encoder reads: its end is not learned.
    May be sent to other processes; each opens the store for itself.
    """

    store: Store
    rows: tuple[Row, ...]
    empty: Tensor | None
    dropped: tuple[str, ...] = ()
    cut: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def task(self, index: int) -> str:
        return self.rows[index].task

    def shape(self, index: int) -> tuple[int, int]:
        return self.rows[index].shape

    def key(self, index: int) -> str:
        """Return the name of the row's pair in its data set."""
        return self.rows[index].key

    def __getitem__(self, index: int) -> Example:
        """Return the row's tensors. Raises ResourceError where the store has been damaged since it was filled."""
        return {name: _present(self.store, key) for name, key in self.rows[index].tensors.items()}


def _present(store: Store, key: str) -> Tensor:
    tensor = store.tensor(key)
    if tensor is None:
        raise ResourceError(
            f"The cache {store.path} has lost a tensor since the training began. Start it again: what is missing is "
            "made anew, and the training goes on where it was."
        )
    return tensor


@dataclass(frozen=True)
class Share:
    """Which rows this process fills, of `world` processes that fill one store together."""

    rank: int = 0
    world: int = 1


ALONE = Share()


Place = tuple[str, Pairs, int]  # a pair: of which task and data set, and its index


@dataclass(frozen=True)
class Cache:
    """What fills a store: the model's encoders, and where pictures go. `wants`: the tensors of a row."""

    store: Store
    backbone: Backbone
    wants: Sequence[Wanted]
    canvases: Canvases
    share: Share = ALONE

    def fill(self, pairs: Mapping[str, Pairs]) -> Generator[TeachProgress, None, CachedExamples]:
        """Yield progress, and return the examples of these pairs, task by task; pairs that cannot be used are dropped.

        What another process's share lacks is waited for; when nothing comes any more, it is made here.
        """
        places = [(task, own, index) for task, own in pairs.items() for index in range(len(own))]
        found: dict[int, Row | str] = {}
        clock = _Clock(len(places))
        for number in range(self.share.rank, len(places), self.share.world):
            found[number] = self._row(places[number])
            yield clock.done(len(found))
        yield from self._others(places, found, clock)
        rows = [found[number] for number in range(len(places))]
        usable = tuple(row for row in rows if isinstance(row, Row))
        dropped = tuple(row for row in rows if isinstance(row, str))
        return CachedExamples(self.store, usable, self._empty(), dropped, tuple(self._cut(usable)))

    def _others(self, places: Sequence[Place], found: dict[int, Row | str], clock: "_Clock") -> Iterator[TeachProgress]:
        """Take over the rows that other processes make, as they come; make them here when none has come for long."""
        since = time.monotonic()
        while missing := [number for number in range(len(places)) if number not in found]:
            came = {number: row for number in missing if (row := self._known(places[number])) is not None}
            if not came and time.monotonic() - since > PATIENCE_SECONDS:
                found[missing[0]] = self._row(places[missing[0]])
                yield clock.done(len(found))
                continue
            found |= came
            since = time.monotonic() if came else since
            yield clock.done(len(found))
            if len(found) < len(places):
                time.sleep(_POLL_SECONDS)

    def _row(self, place: Place) -> "Row | str":
        """Return a pair as a row, or in plain words why it cannot be one; what is missing is made now."""
        known = self._known(place)
        if known is not None:
            return known
        task, pairs, index = place
        canvas = self._canvas(pairs, index)
        assert canvas is not None, "a pair without a canvas is known not to be usable"
        row_key = self._key(pairs, index, canvas)
        try:
            sample = aligning.align(pairs.read(index), canvas)
        except RequestError as error:
            return self._refused(place, row_key, str(error))
        if self._key(pairs, index, canvas) != row_key:
            return _dropped(place, "it was changed while it was read. Start again when the data is at rest.")
        tensors: dict[str, Tensor] = {}
        keys: dict[str, str] = {}
        for name in self.wants:
            key, make = self._wanted(name, sample)
            keys[name] = key
            if not self.store.is_sound(key):
                tensors |= make()
        if any(tensor.is_floating_point() and not tensor.isfinite().all() for tensor in tensors.values()):
            return self._refused(place, row_key, "the model's encoders made NaN or infinite numbers of it.")
        self.store.put(row_key, keys, tensors)
        return self._row_of(task, pairs.key(index), canvas, keys)

    def _known(self, place: Place) -> "Row | str | None":
        """Return what the store, or a first look at the pair, says about it; None where it is still to be made."""
        task, pairs, index = place
        try:
            canvas = self._canvas(pairs, index)
            if canvas is None:
                width, height = pairs.size(index)
                return _dropped(place, f"it is {width} x {height}: over a third would be cut off on any canvas.")
            row = self.store.row(self._key(pairs, index, canvas))
        except RequestError as error:
            return _dropped(place, str(error))
        if row is None:
            return None
        if _PROBLEM in row:
            return _dropped(place, row[_PROBLEM])
        if not all(self.store.is_sound(key) for key in row.values()):
            return None
        return self._row_of(task, pairs.key(index), canvas, row)

    def _refused(self, place: Place, row_key: str, why: str) -> str:
        self.store.put(row_key, {_PROBLEM: why}, {})
        return _dropped(place, why)

    def _row_of(self, task: str, key: str, canvas: Size, keys: Mapping[str, str]) -> Row:
        width, height = (side // self.backbone.downscale for side in canvas)
        return Row(task, key, (height, width), keys)

    def _canvas(self, pairs: Pairs, index: int) -> Size | None:
        return self.canvases.of_picture(pairs.size(index))

    def _key(self, pairs: Pairs, index: int, canvas: Size) -> str:
        names = " ".join(sorted(self.wants))
        return _name("row", pairs.digest(index), f"{canvas}", names, self._vae, *self._text)

    def _wanted(self, name: Wanted, sample: Sample) -> tuple[str, Callable[[], dict[str, Tensor]]]:
        """Return the key of one of a row's tensors, and what makes it, by its key."""
        if name == "tokens":
            return self._text_key(sample.caption), lambda: self._states(sample.caption)
        picture = sample.condition if name in _OF_CONDITION else sample.target
        pixels = torch.from_numpy(picture).permute(2, 0, 1)  # 3 h w
        if name in ("target", "condition"):
            key = _name("pixels", _digest(picture))
            return key, lambda: {key: pixels.contiguous()}
        low = 0.0 if name in _OF_CONDITION else -1.0  # CtrLoRA's VAE is shown conditions in [0, 1]
        key = _name("latent", f"{low}", _digest(picture), self._vae)
        return key, lambda: {key: self.backbone.encode_image((pixels.float() / 255 * (1 - low) + low)[None])[0].cpu()}

    def _states(self, caption: str) -> dict[str, Tensor]:
        """Return a caption's text states, (n d), by their key, and a mark where the encoder did not read all of it."""
        states, key = self.backbone.encode_text([caption]), self._text_key(caption)
        mark = {_mark_of(key): torch.zeros(1, dtype=torch.uint8)} if states.warnings else {}
        return {key: self._kept(states)} | mark

    def _cut(self, rows: Sequence[Row]) -> Iterator[str]:
        """Yield the names of the rows whose caption was cut off."""
        for row in rows:
            if "tokens" in row.tensors and self.store.is_sound(_mark_of(row.tensors["tokens"])):
                yield row.key

    def _kept(self, states: TextStates) -> Tensor:
        """Return states in the dtype in which the net is shown them, a pooled one last."""
        return with_pooled(states.tokens, states.pooled)[0].to("cpu", self._net_dtype)

    def _text_key(self, caption: str) -> str:
        return _name("text", caption, *self._text)

    def _empty(self) -> Tensor | None:
        """Return a dropped caption's states, (n d), where text is wanted: an empty negative prompt's when drawing."""
        return self._kept(self.backbone.read_prompt("", TextOptions(silent=True))) if "tokens" in self.wants else None

    @cached_property
    def _vae(self) -> str:
        """Return the name by content of what makes latents, its dtype included."""
        return fingerprint(self.backbone.vae.state_dict())

    @property
    def _text(self) -> tuple[str, str]:
        """Return what decides text states beside the caption."""
        return self.backbone.fingerprint, str(self._net_dtype)

    @property
    def _net_dtype(self) -> torch.dtype:
        return next(self.backbone.net.parameters()).dtype


def _mark_of(key: str) -> str:
    """Return the key of what lies beside a caption's states where its end was cut off."""
    return f"{key} cut"


def _dropped(place: Place, why: str) -> str:
    task, pairs, index = place
    return f"{task + ': ' if task else ''}{pairs.key(index)}: {why}"


def _digest(picture: Picture) -> str:
    return hashlib.sha256(repr(picture.shape).encode() + picture.tobytes()).hexdigest()


def _name(*parts: str) -> str:
    """Return one name for all of these contents under this code, 128 bits in hex."""
    return hashlib.sha256("\0".join((_code(), *parts)).encode()).hexdigest()[:32]


@cache
def _code() -> str:
    """Return the name by content of the code that decides a tensor: after a change of it nothing old is taken."""
    sources = (Path(file).read_bytes() for file in (__file__, aligning.__file__))
    return hashlib.sha256(b"".join(sources)).hexdigest()


class _Clock:
    """How far a filling is, and how long it will still take."""

    def __init__(self, total: int) -> None:
        self.total, self.began = total, time.monotonic()

    def done(self, number: int) -> TeachProgress:
        """Return the word that so many rows are done."""
        left = (time.monotonic() - self.began) / max(number, 1) * (self.total - number)
        return TeachProgress(number, self.total, STAGE, seconds_left=left)
