"""`open_pairs`: what a folder, a file or a pattern is, and its pairs."""

from collections.abc import Mapping
from pathlib import Path

from disegno.core.errors import BadData
from disegno.core.request import Scalar
from disegno.training.data.dataset import Dataset
from disegno.training.data.formats import controlnet
from disegno.training.data.formats.listing import Options
from disegno.training.data.root import Root

_FORMS = (controlnet,)


def open_pairs(
    spec: str,
    *,
    annotator: str | None = None,
    params: Mapping[str, Scalar] | None = None,
    caption: str | None = None,
) -> Dataset:
    """Return the pairs of a folder. Raises BadData where it is none of the known forms, or none can be used.

    `annotator`, `params`: make the conditions of pictures that have none. `caption`: for pictures that have none.
    Rows that cannot be pairs are left out and stand in `.problems`.
    """
    root = Root.of(Path(spec))
    options = Options(annotator, params or {}, caption)
    for form in _FORMS:
        if form.recognises(root):
            return form.open_folder(root, options)
    raise BadData(f"{spec} is no data set that is known here.")
