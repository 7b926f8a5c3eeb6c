"""kohya's data set file, a .toml whose subsets name a folder of pictures and one of conditions.

    [[datasets]]
    [[datasets.subsets]]
    image_dir = "photos"
    conditioning_data_dir = "edges"

The folders lie in the .toml's own folder. `num_repeats` and what else it says about training is left aside.
"""

import tomllib
from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from disegno.core.errors import BadData
from disegno.core.request import describe
from disegno.training.data.dataset import Dataset
from disegno.training.data.formats.folders import add_pairs
from disegno.training.data.formats.listing import Listing, Options
from disegno.training.data.root import Root, shown

_MAX_BYTES = 1 << 20
_CONFIG = ConfigDict(extra="ignore")


@dataclass(frozen=True, config=_CONFIG)
class Subset:
    """Two folders."""

    image_dir: str
    conditioning_data_dir: str | None = None


@dataclass(frozen=True, config=_CONFIG)
class Group:
    """What kohya calls a data set: subsets at one resolution."""

    subsets: Annotated[list[Subset], Field(min_length=1, max_length=1000)]


@dataclass(frozen=True, config=_CONFIG)
class Config:
    """The file."""

    datasets: Annotated[list[Group], Field(min_length=1, max_length=1000)]


def open_toml(path: Path, options: Options) -> Dataset:
    """Return the pairs of all subsets. Raises BadData."""
    root = Root.of(path.parent)
    try:
        config = TypeAdapter(Config).validate_python(tomllib.loads(root.read(path.name, _MAX_BYTES).decode()))
    except ValidationError as error:
        raise BadData(f"{shown(path.name)} is no data set file of kohya's: {describe(error)[:500]}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadData(f"{shown(path.name)} is not TOML ({str(error)[:200]}).") from error
    listing = Listing(root)
    for subset in (subset for group in config.datasets for subset in group.subsets):
        conditions = subset.conditioning_data_dir
        add_pairs(listing, root.folder(subset.image_dir), None if conditions is None else root.folder(conditions))
    return listing.dataset("kohya", options)
