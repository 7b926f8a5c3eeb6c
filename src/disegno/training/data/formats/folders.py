"""Two folders of one name a pair, as kohya's scripts and many data sets have it; captions as NAME.txt.

    image/0.png  condition/0.png  image/0.txt           or target/ and source/, images/ and masks/ ...

Names pair by what they spell: letters composed (NFC), upper and lower case alike, whatever the suffix; so a data set is
the same on every system. Never by their order.
"""

from collections.abc import Iterator
from pathlib import PurePosixPath

from disegno.core.each import PICTURE_SUFFIXES, spelt
from disegno.training.data.captions import MAX_CAPTION_BYTES, decode_caption
from disegno.training.data.dataset import Dataset, FolderRow
from disegno.training.data.formats.listing import Listing, Options
from disegno.training.data.problems import Fault, Problem
from disegno.training.data.root import Root

TARGETS = ("target", "targets", "image", "images", "img", "imgs")
CONDITIONS = (
    "source",
    *(f"{word}{end}" for word in ("condition", "conditioning", "control", "cond", "hint") for end in ("", "s")),
    *(f"{word}_image{end}" for word in ("condition", "conditioning", "control") for end in ("", "s")),
    "conditioning_data",
)
SHOWN = (
    *(f"{word}{end}" for word in ("mask", "label", "layout", "segmentation", "edge") for end in ("", "s")),
    "depth",
)
"""What a folder of conditions may be called, too, where it holds pictures: labels may be texts of another use."""
CAPTIONS = ("caption", "captions", "prompt", "prompts", "text", "texts")
_CAPTION_SUFFIXES = (".txt", ".caption")


def recognises(root: Root) -> bool:
    """Return whether the folder has a folder of targets and one of conditions."""
    return _role(root, TARGETS) is not None and _drawings(root) is not None


def open_folder(root: Root, options: Options) -> Dataset:
    """Return the pairs of the two folders. Raises BadData."""
    listing = Listing(root)
    targets, conditions = _role(root, TARGETS) or "", _drawings(root) or ""
    add_pairs(listing, targets, conditions, _role(root, CAPTIONS))
    return listing.dataset("folders", options)


def _role(root: Root, names: tuple[str, ...]) -> str | None:
    """Return the first of the folders that is there, as it is written."""
    there = root.folders()
    return next((there[name] for name in names if name in there), None)


def _drawings(root: Root) -> str | None:
    """Return the folder of conditions, as it is written."""
    there = root.folders()
    named = (there[name] for name in SHOWN if name in there)
    return _role(root, CONDITIONS) or next((name for name in named if _has_picture(root, name)), None)


def _has_picture(root: Root, folder: str) -> bool:
    return any(PurePosixPath(found.name).suffix.lower() in PICTURE_SUFFIXES for found in root.files(folder))


def add_pairs(listing: Listing, targets: str, conditions: str | None, captions: str | None = None) -> None:
    """Add the pairs of two folders, or the pictures of one, and what is wrong with them, sorted by the targets' names.

    Captions lie beside the targets, or in a folder of their own.
    """
    pictures, texts = _by_stem(listing, targets)
    texts |= _by_stem(listing, captions)[1] if captions is not None else {}
    drawings = _by_stem(listing, conditions)[0] if conditions is not None else {}
    rows: list[FolderRow] = []
    for stem, names in pictures.items():
        found = drawings.pop(stem, [])
        chosen = names if conditions is None else [_choose(listing, names, targets, found, conditions)]
        if conditions is not None and not found:
            listing.problems += [Problem("missing_condition", name) for name in chosen]
            continue
        drawing = _choose(listing, found, conditions or "", chosen, targets) if found else None
        try:
            caption = _caption(listing.root, texts.get(stem, []))
        except Fault as error:
            listing.problems += [Problem(error.kind, name, str(error)) for name in chosen]
            continue
        rows += [FolderRow(name, name, drawing, caption) for name in chosen]
    listing.rows += sorted(rows, key=lambda row: row.target)
    listing.problems += [Problem("orphan", name) for names in drawings.values() for name in names]


def _caption(root: Root, names: list[str]) -> str | None:
    """Return the text of the first of these files, None where there is none. Raises Fault."""
    return decode_caption(root.read(names[0], MAX_CAPTION_BYTES)) if names else None


def _by_stem(listing: Listing, folder: str) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Return the folder's pictures and its texts: what their names spell -> the names, sorted."""
    pictures: dict[str, list[str]] = {}
    texts: dict[str, list[str]] = {}
    for name in _files(listing, folder):
        path = PurePosixPath(_within(name, folder))
        kind = pictures if path.suffix.lower() in PICTURE_SUFFIXES else texts
        if kind is pictures or path.suffix.lower() in _CAPTION_SUFFIXES:
            kind.setdefault(spelt(str(path.with_suffix(""))), []).append(name)
    return pictures, texts


def _files(listing: Listing, folder: str) -> Iterator[str]:
    for found in listing.root.files(folder):
        if found.fault:
            listing.problems.append(Problem("unsafe", found.name, found.fault))
        else:
            yield found.name


def _choose(listing: Listing, names: list[str], folder: str, others: list[str], other_folder: str) -> str:
    """Return the one of several files of one name that is called most nearly as `others`; the rest are problems."""
    partners = [_within(other, other_folder) for other in others]
    stems = [PurePosixPath(partner).with_suffix("") for partner in partners]

    def distance(name: str) -> tuple[bool, bool]:
        own = _within(name, folder)
        return own not in partners, PurePosixPath(own).with_suffix("") not in stems

    chosen = min(names, key=distance)
    listing.problems += [Problem("duplicate_stem", name, f"{chosen} was taken") for name in names if name != chosen]
    return chosen


def _within(name: str, folder: str) -> str:
    return name.removeprefix(f"{folder}/") if folder else name
