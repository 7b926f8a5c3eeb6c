"""A model as it is open, what is made of it, and what stays the same as long as its file does."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from disegno.backbones import BACKBONES
from disegno.backbones.base import Backbone, TakesVae
from disegno.core.errors import RequestError
from disegno.engine.kept import Kept
from disegno.weights.identify import FileCard, require_family
from disegno.weights.index import stamp_of

UNTOLD_FAMILY = "sd1"  # tried for a model of unusual width; its loader says what does not fit
MAX_VARIANTS = 4  # of a model: each has at most a VAE of its own, 0.2 GiB in half precision

Stamp = tuple[Path, tuple[int, int]]  # a path, and what changes when it is replaced


@dataclass
class Opened:
    """A model as its file has it, and what was made of it: with another VAE, with another meaning of its output.

    `stamp`: of its file; the built-in one's is never replaced. `names`: the fingerprints of all that it ever was.
    """

    own: Backbone
    stamp: Stamp | None
    others: Kept[Backbone] = field(default_factory=lambda: Kept[Backbone](MAX_VARIANTS))
    names: set[str] = field(default_factory=set[str])

    def __post_init__(self) -> None:
        self.names.add(self.own.fingerprint)

    def other(self, key: Hashable, make: Callable[[], Backbone]) -> Backbone:
        """Return what is made of the model under `key`, made now if it is not kept."""
        made = self.others.get(key, make)
        self.names.add(made.fingerprint)
        return made

    @property
    def all(self) -> list[Backbone]:
        """Return the model and what of it is kept."""
        return [self.own, *(other for _, other in self.others.items())]


def brings_vae(card: FileCard) -> bool:
    """Return whether a model's file or folder has a VAE in it, as far as its family tells."""
    return _has_vae(card.family or UNTOLD_FAMILY, *stamped(card))


@lru_cache(maxsize=64)
def _has_vae(family: str, path: Path, stamp: tuple[int, int]) -> bool:
    return family not in BACKBONES or getattr(BACKBONES.load(family), "brings_vae", lambda path: True)(path)


def with_vae(backbone: Backbone, card: FileCard) -> Backbone:
    """Return the model with the VAE of this card. Raises RequestError where it takes none, WrongFamily."""
    if not isinstance(backbone, TakesVae):
        raise RequestError(f"{backbone.name} is a model of a kind that takes no other VAE. Leave the VAE out.")
    require_family(card, backbone.family)
    return backbone.with_vae(card.path)


def stamped(card: FileCard) -> Stamp:
    """Return a card's path, and what changes when it is replaced."""
    return card.path, stamp_of(card.path)
