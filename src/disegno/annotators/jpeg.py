"""JPEG's damage: the condition for restoring compressed pictures."""

from typing import Annotated

import cv2
import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from disegno.annotators.base import PARAMS, Picture, to_picture

TITLE = "JPEG"
SUMMARY = "The picture after strong JPEG compression."
SIZING = "own"


@dataclass(frozen=True, kw_only=True, config=PARAMS)
class Params:
    """How strong. CtrLoRA's published condition was trained at about 20."""

    quality: Annotated[int, Field(ge=1, le=100)] = 20
    """JPEG quality."""


def annotate(image: Picture, params: Params) -> Picture:
    """Return what JPEG leaves of the picture, (h w 3)."""
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    encoded, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, params.quality])
    assert encoded, f"OpenCV could not encode {image.shape}"
    return to_picture(np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR_BGR))[:, :, ::-1])
