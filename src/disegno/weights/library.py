"""The files of weights of this machine: found in folders, identified by their headers, looked up by name or hash.

Any folder layout will do, since a file's kind is read from its tensors: ours, A1111's (models/Stable-diffusion,
models/ControlNet, models/Lora, embeddings), ComfyUI's (models/checkpoints, models/controlnet, models/loras).
"""

import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from disegno.core.errors import (
    CorruptFile,
    DisegnoError,
    ModelFileError,
    RequestError,
    ResourceError,
    UnknownKind,
    UnknownName,
)
from disegno.core.files import path_of
from disegno.core.settings import Settings
from disegno.weights.card import FileCard
from disegno.weights.folders import is_folder_of_weights
from disegno.weights.identify import identify
from disegno.weights.index import Index, stamp_of
from disegno.weights.save import SUFFIXES as WRITTEN

log = logging.getLogger(__name__)

SUFFIXES = (*WRITTEN, ".gguf")  # by which files are found
# Where a program's own folder is given: its models, not the environment and the pictures beside them.
_PROGRAM_FOLDERS = ("models", "embeddings", "extensions/sd-webui-controlnet/models")
_KOHYA_NAME = "ss_output_name"
_SMALL_BYTES = 64 << 20  # hashed in less than a tenth of a second
_TITLE_HASH = re.compile(r" \[[0-9a-f]{8,64}\]$")  # A1111 parity: "name.safetensors [6ce0161689]"
_HASH = re.compile(r"[0-9a-f]{8,64}")


def first_folder(settings: Settings) -> Path:
    """Return the folder that new files go into: the first model folder, of a program's own folder its `models`.

    Raises RequestError where there is none.
    """
    if not settings.model_dirs:
        raise RequestError("There is no model folder to put it into: name one in DISEGNO_MODEL_DIRS.")
    root = settings.model_dirs[0].expanduser()
    return root / "models" if (root / "models").is_dir() else root


class Library:
    """The files in `settings.model_dirs`. Every listing looks at the folders; only new and changed files are opened."""

    def __init__(self, settings: Settings) -> None:
        self._roots = settings.model_dirs
        self._tails = _tails(self._roots)
        self._index = Index(settings.cache_dir / "library.json")

    def cards(self, kind: str | None = None) -> list[FileCard]:
        """Return the cards of one kind or all, by name. Damaged files are "broken", foreign ones "unknown"."""
        found = {path: self._card(path) for root in self._roots for path in _files(root)}
        self._index.save()
        cards = [card for card in found.values() if kind in (None, card.kind)]
        return sorted(cards, key=lambda card: (card.path.name.lower(), str(card.path)))

    def find(self, name: str, kind: str) -> FileCard:
        """Return the card that a name means: a path, file name or stem in any case, or 8 or more digits of a sha256.

        Raises UnknownName with near names, RequestError where several files have the name that are no copies of each
        other, or CorruptFile where a broken file has it.
        """
        return self.find_all([name], kind)[name]

    def find_all(self, names: Iterable[str], kind: str) -> dict[str, FileCard]:
        """Return the card that each name means, from one look at the folders. Raises as `find`."""
        cards, by_name = self.cards(), dict[str, list[FileCard]]()
        for card in cards:
            for word in self._names(card):
                by_name.setdefault(word, []).append(card)
        found = {name: self._found(name, kind, cards, by_name) for name in names}
        self._index.save()
        return found

    def _found(self, name: str, kind: str, cards: list[FileCard], by_name: Mapping[str, list[FileCard]]) -> FileCard:
        given = _TITLE_HASH.sub("", name)
        if (path := path_of(given)) is not None and path.is_absolute():
            return _of_kind(identify(path), name, kind)
        named = by_name.get(given.lower(), [])
        if of_kind := [card for card in named if card.kind == kind]:
            return self._meant(name, of_kind)
        if named:
            return _of_kind(named[0], name, kind)
        if _HASH.fullmatch(given.lower()):
            hashed = (card for card in cards if card.kind == kind and self.sha256(card).startswith(given.lower()))
            if (card := next(hashed, None)) is not None:
                return card
        raise UnknownName.of(kind, name, self.called([card for card in cards if card.kind == kind]))

    def pick(self, name: str, cards: Iterable[FileCard]) -> FileCard | None:
        """Return the one of these cards that a name means; None: it means none. Raises RequestError as `find`."""
        named = [card for card in cards if name.lower() in self._names(card)]
        return self._meant(name, named) if named else None

    def _meant(self, name: str, cards: Sequence[FileCard]) -> FileCard:
        """Return the card that a name, which all of these have, means: by its path before its stem before its title."""
        given = _TITLE_HASH.sub("", name).lower()
        ranks = [next(n for n, names in enumerate(self._ranked(card)) if given in names) for card in cards]
        best = [card for card, rank in zip(cards, ranks, strict=True) if rank == min(ranks)]
        if len({card.path.resolve() for card in best}) == 1:
            return best[0]
        told = name.lower()[len(given) + 2 : -1]  # the title's digits
        if told and (hashed := [card for card in best if self.sha256(card).startswith(told)]):
            return hashed[0]
        if len({card.num_bytes for card in best}) == 1 and len({self.sha256(card) for card in best}) == 1:
            return best[0]  # copies
        shown = self.shown_names(best)
        if len(set(shown)) < len(shown):
            shown = [str(card.path) for card in best]
        raise RequestError(
            f"There are {len(best)} files named {name!r}: {', '.join(shown)}. Say which, by one of these names or by"
            " the first 8 digits of its sha256."
        )

    def called(self, cards: Sequence[FileCard]) -> list[str]:
        """Return what a request may call each card: as a person does, and where two are called alike, as `shown_names`.

        Embeddings keep their names, by which prompts call them.
        """
        names = [card.called for card in cards]
        num = Counter((card.kind, name.lower()) for card, name in zip(cards, names, strict=True))
        return [
            shown if num[card.kind, name.lower()] > 1 and card.kind != "embedding" else name
            for card, name, shown in zip(cards, names, self.shown_names(cards), strict=True)
        ]

    def shown_names(self, cards: Sequence[FileCard]) -> list[str]:
        """Return what each card is called in a list: by its file, and where two are called alike, by its path below.

        Before it stands what tells the folders apart, where two lie alike in theirs.
        """
        shown = [card.file_name for card in cards]
        for longer in (self.place, lambda card: next(self._from_tails(card), None)):
            num = Counter(name.lower() for name in shown)
            shown = [
                (longer(card) or name) if num[name.lower()] > 1 else name
                for card, name in zip(cards, shown, strict=True)
            ]
        return shown

    def place(self, card: FileCard) -> str | None:
        """Return a card's path below the first of the folders that it lies in; None: it lies in none of them."""
        return next((path.as_posix() for _, path in self._places(card)), None)

    def _places(self, card: FileCard) -> Iterator[tuple[Path, Path]]:
        """Yield the folders that a card lies in, each with its path below it."""
        return ((root, card.path.relative_to(root)) for root in self._roots if card.path.is_relative_to(root))

    def _from_tails(self, card: FileCard) -> Iterator[str]:
        """Yield a card's paths below its folders, each from what tells that folder from the others."""
        return (f"{self._tails[root]}/{path.as_posix()}" for root, path in self._places(card) if self._tails[root])

    def sha256(self, card: FileCard) -> str:
        """Return a card's hash, kept on disk until the file changes: files of gigabytes take seconds."""
        return self._index.sha256(card, stamp_of(card.path))

    def known_sha256(self, card: FileCard) -> str | None:
        """Return a card's hash if that costs nothing: it is known already, or the file is small."""
        try:
            if card.num_bytes <= _SMALL_BYTES:
                return self.sha256(card)
            return self._index.known_sha256(card, stamp_of(card.path))
        except OSError:  # taken away meanwhile
            return None

    def _card(self, path: Path) -> FileCard:
        try:
            stamp = stamp_of(path)
        except OSError as error:  # taken away while the folders were looked at
            return FileCard(path, "broken", name=path.stem, problem=f"{path} cannot be read ({error.strerror}).")
        known = self._index.card(path, stamp)
        if known is None:
            known, lasts = _looked_at(path)
            if lasts:
                self._index.keep(known, stamp)
        return known

    def _names(self, card: FileCard) -> set[str]:
        """Return what a card may be called, in lower case."""
        return set[str]().union(*self._ranked(card))

    def _ranked(self, card: FileCard) -> tuple[set[str], ...]:
        """Return what a card may be called, in lower case, the surest first.

        Its path, below each folder or whole; its file's name; the same without the ending; what its header says; its
        path from what tells its folder from the others.
        """
        below = {path for _, path in self._places(card)}
        told = card.metadata.get(_KOHYA_NAME) or card.name  # A1111 parity: a LoRA's alias
        ranked = (
            (str(card.path), *(path.as_posix() for path in below)),
            (card.file_name, card.path.name),
            (card.path.stem, *(path.with_suffix("").as_posix() for path in below)),
            (card.name, told),
            tuple(self._from_tails(card)),
        )
        return tuple({text.lower() for text in texts} for texts in ranked)


def _tails(roots: Iterable[Path]) -> dict[Path, str]:
    """Return of each folder the shortest end of its path that no other one has; "" of one that is alone."""
    parts = {root: root.absolute().parts[1:] for root in roots}

    def tail(root: Path, num: int) -> str:
        return "/".join(parts[root][-num:])

    def told(root: Path) -> str:
        others, most = parts.keys() - {root}, max(map(len, parts.values()))
        ends = (num for num in range(1, most + 1) if all(tail(other, num) != tail(root, num) for other in others))
        return tail(root, next(ends, most)) if others else ""

    return {root: told(root) for root in parts}


def _of_kind(card: FileCard, name: str, kind: str) -> FileCard:
    if card.kind == "broken":
        raise CorruptFile(card.problem)
    if card.kind == "unknown" != kind:
        raise UnknownName(f"{name} is no {kind}. {card.problem}")
    if card.kind != kind:
        raise UnknownName(f"{name} is a file of the kind {card.kind!r}, not {kind!r}. Choose a file of that kind.")
    return card


def _identified(path: Path) -> FileCard:
    """Return a file's card, whatever is wrong with it."""
    return _looked_at(path)[0]


def _looked_at(path: Path) -> tuple[FileCard, bool]:
    """Return a file's card, whatever is wrong with it, and whether that is so as long as the file stays as it is.

    What may not be opened now, or finds no memory, may be another time.
    """
    try:
        return identify(path), True
    except UnknownKind as error:
        return FileCard(path, "unknown", name=path.stem, problem=str(error)), True
    except DisegnoError as error:
        lasts = type(error) is not ModelFileError and not isinstance(error, ResourceError)
        return FileCard(path, "broken", name=path.stem, problem=str(error)), lasts
    except Exception as error:  # the border of a file: whatever it trips over, the others are listed
        log.exception("%s is passed over", path)
        told = (
            f"{path.name} cannot be read ({type(error).__name__}): it is damaged, or this is a fault of this program."
        )
        return FileCard(path, "broken", name=path.stem, problem=told), True


def _files(root: Path) -> Iterator[Path]:
    """Yield the files and diffusers folders below a folder. Hidden ones and unfinished downloads are passed over."""
    inner = [root / name for name in _PROGRAM_FOLDERS if (root / name).is_dir()]
    seen: set[str] = set()
    for start in inner if (root / "models").is_dir() else [root]:
        for folder, folders, files in os.walk(start, followlinks=True):
            here = Path(folder)
            real = str(here.resolve())
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            if is_folder_of_weights(here) and _identified(here).kind not in ("unknown", "broken"):
                folders.clear()
                yield here
                continue
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            yield from (here / name for name in sorted(files) if _is_weights(name, here))


def _is_weights(name: str, folder: Path) -> bool:
    return Path(name).suffix.lower() in SUFFIXES and not name.startswith(".") and (folder / name).is_file()
