"""Flat patches of colour that follow the picture's own borders (SLIC superpixels, Achanta et al. 2012)."""

from typing import Annotated

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from disegno.annotators.base import PARAMS, Picture, to_picture

TITLE = "Segments"
SUMMARY = "Flat patches of colour that follow the picture's borders."


@dataclass(frozen=True, kw_only=True, config=PARAMS)
class Params:
    """How the picture is cut up."""

    patches: Annotated[int, Field(ge=2, le=5000)] = 200
    """About how many patches."""
    compactness: Annotated[float, Field(ge=0.1, le=100)] = 10.0
    """High: even, round patches; low: patches that follow the colours."""


def annotate(image: Picture, params: Params) -> Picture:
    """Return every patch in its mean colour, (h w 3)."""
    from skimage.segmentation import slic  # takes a second to import

    num_patches = min(params.patches, image.shape[0] * image.shape[1])
    labels = np.asarray(slic(image, n_segments=num_patches, compactness=params.compactness, start_label=0)).ravel()
    size = np.maximum(np.bincount(labels), 1)
    mean = np.stack([np.bincount(labels, image[:, :, c].ravel()) / size for c in range(3)], axis=1)  # patches 3
    return to_picture(np.rint(mean)[labels].reshape(image.shape))
