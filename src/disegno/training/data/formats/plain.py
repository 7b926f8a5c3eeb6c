"""A folder of pictures, captions beside them as NAME.txt: no conditions yet, so an annotator makes them."""

from disegno.core.each import PICTURE_SUFFIXES
from disegno.training.data.dataset import Dataset
from disegno.training.data.formats.folders import add_pairs
from disegno.training.data.formats.listing import Listing, Options
from disegno.training.data.root import Root


def recognises(root: Root) -> bool:
    """Return whether there is a picture in the folder, however deep."""
    return any(found.name.lower().endswith(tuple(PICTURE_SUFFIXES)) for found in root.files())


def open_folder(root: Root, options: Options) -> Dataset:
    """Return the pictures. Raises BadData."""
    listing = Listing(root)
    add_pairs(listing, "", None)
    return listing.dataset("pictures", options)
