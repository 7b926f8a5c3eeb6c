"""`open_pairs`: what a folder, a file or a pattern is, and its pairs."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from disegno.core.errors import BadData
from disegno.core.request import Scalar
from disegno.training.data.card import read_card
from disegno.training.data.dataset import Dataset
from disegno.training.data.formats import controlnet, folders, imagefolder, plain
from disegno.training.data.formats.kohya import open_toml
from disegno.training.data.formats.listing import Options
from disegno.training.data.root import Root, shown
from disegno.training.data.shards import Share, Told, is_pattern, is_url, open_shards, shard_names


@dataclass(frozen=True)
class Form:
    """A form that a folder can have."""

    recognises: Callable[[Root], bool]
    open_folder: Callable[[Root, Options], Dataset]


FORMS = tuple(Form(form.recognises, form.open_folder) for form in (controlnet, imagefolder, folders))
"""Folders that say themselves what they are, the surest first."""

SPLITS = ("validation", "valid", "val", "test", "eval")
"""What a data set's folders beside train/ are called, where it has some."""

_KNOWN = (
    "prompt.json lines with source, target and prompt; metadata.jsonl or .csv with file_name and conditioning_image; "
    "two folders of one name a pair, such as image/ and condition/; webdataset tars; kohya's .toml; or pictures with "
    "NAME.txt captions and an annotator"
)


def open_pairs(
    spec: str,
    *,
    annotator: str | None = None,
    params: Mapping[str, Scalar] | None = None,
    caption: str | None = None,
    share: Share | None = None,
    told: Told | None = None,
    cache_dir: Path | None = None,
    urls: bool = True,
) -> Dataset:
    """Return the pairs of a folder, a tar, a pattern of tars, or kohya's file. Raises BadData.

    `annotator`, `params`: make the conditions of pictures that have none. `caption`: for pictures that have none.
    `share`: which of a pattern's tars are this process's; all rows of other forms are everybody's. `told`: hears how
    far fetching and indexing are. `urls`: whether tars may be fetched; a server says no. Rows that cannot be pairs are
    left out and stand in `.problems`.
    """
    options = Options(annotator, params or {}, caption)
    pairs = open_rows(spec, options, share, told, cache_dir, urls)
    if pairs.make is None and pairs.rows.condition(0) is None:
        raise BadData(
            f"{shown(spec)} has pictures, but no conditions. Name an annotator that makes them, or make them once with "
            f"`disegno dataset build`.{_links_in(spec)}"
        )
    return pairs


def open_rows(
    spec: str,
    options: Options,
    share: Share | None = None,
    told: Told | None = None,
    cache_dir: Path | None = None,
    urls: bool = True,
) -> Dataset:
    """Return what `open_pairs` does, also where there are only pictures. Raises BadData."""
    share, told = share or Share(), told or _untold
    path = Path(spec).expanduser()
    if is_url(spec) or (is_pattern(spec) and not path.is_dir()):
        return open_shards(shard_names(spec, urls), spec, options, share, told, cache_dir, None)
    if path.suffix.lower() == ".toml":
        return open_toml(path, options)
    root = Root.of(path)
    train = root.folders().get("train")
    for place in (root, root.within(train)) if train else (root,):
        for form in FORMS:
            if form.recognises(place):
                return form.open_folder(place, options)
    tars = [str(root.locate(found.name)) for found in root.files(deep=False) if found.name.endswith(".tar")]
    if tars:
        return open_shards(tars, root.path.name, options, share, told, cache_dir, read_card(root))
    if plain.recognises(root):
        return plain.open_folder(root, options)
    raise BadData(f"{shown(spec)} is no data set that is known here. What is known: {_KNOWN}.{_links_in(spec)}")


def _links_in(spec: str) -> str:
    """Return what is said of links to folders in a data set's folder, of which nothing is seen; "" without any."""
    path = Path(spec).expanduser()
    links = ", ".join(map(shown, Root.of(path).linked_folders())) if path.is_dir() else ""
    return f" Links to folders are not followed ({links[:200]}): put the folders themselves there." if links else ""


def open_siblings(spec: str) -> list[Dataset]:
    """Return the held-out parts that lie beside a data set's train folder; none where there are none."""
    path = Path(spec).expanduser()
    if not path.is_dir():
        return []
    root = Root.of(path)
    if root.path.name == "train":
        root = Root(root.path.parent)
    elif "train" not in root.folders():
        return []
    there = root.folders()
    siblings: list[Dataset] = []
    for name in (there[name] for name in SPLITS if name in there):
        with suppress(BadData):  # a folder of that name need not be a part of the data set
            siblings.append(open_rows(str(root.path / name), Options()))
    return siblings


def _untold(stage: str, done: int, of: int) -> None:
    """Hear nothing."""
