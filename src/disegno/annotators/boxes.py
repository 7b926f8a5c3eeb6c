"""Filled boxes, one colour a class: what is where. CtrLoRA's bounding-box condition, without its detector."""

import json
from hashlib import sha256
from itertools import chain, islice
from typing import Annotated, cast

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from disegno.annotators.base import PARAMS, Picture
from disegno.core.errors import RequestError
from disegno.core.request import describe as describe_errors

TITLE = "Boxes"
SUMMARY = "Filled boxes on black, one colour a class, drawn from a list; of the picture only the size counts."
SIZING = "own"

Colour = tuple[int, int, int]
Share = Annotated[float, Field(ge=0, le=1)]

# COCO's 80 classes, in its order
_CLASSES = (
    "person",
    "bicycle",
    "car",
    "motorcycle",
    "airplane",
    "bus",
    "train",
    "truck",
    "boat",
    "traffic light",
    "fire hydrant",
    "stop sign",
    "parking meter",
    "bench",
    "bird",
    "cat",
    "dog",
    "horse",
    "sheep",
    "cow",
    "elephant",
    "bear",
    "zebra",
    "giraffe",
    "backpack",
    "umbrella",
    "handbag",
    "tie",
    "suitcase",
    "frisbee",
    "skis",
    "snowboard",
    "sports ball",
    "kite",
    "baseball bat",
    "baseball glove",
    "skateboard",
    "surfboard",
    "tennis racket",
    "bottle",
    "wine glass",
    "cup",
    "fork",
    "knife",
    "spoon",
    "bowl",
    "banana",
    "apple",
    "sandwich",
    "orange",
    "broccoli",
    "carrot",
    "hot dog",
    "pizza",
    "donut",
    "cake",
    "chair",
    "couch",
    "potted plant",
    "bed",
    "dining table",
    "toilet",
    "tv",
    "laptop",
    "mouse",
    "remote",
    "keyboard",
    "cell phone",
    "microwave",
    "oven",
    "toaster",
    "sink",
    "refrigerator",
    "book",
    "clock",
    "vase",
    "scissors",
    "teddy bear",
    "hair drier",
    "toothbrush",
)


@dataclass(frozen=True, kw_only=True, config=PARAMS)
class Params:
    """The boxes."""

    boxes: Annotated[str, Field(max_length=200_000)] = "[]"
    """JSON: [{"label": "cat", "box": [left, top, right, bottom]}, ...]; each number from 0 to 1."""


@dataclass(frozen=True, config=PARAMS)
class Box:
    """A class, and where it is: left, top, right, bottom, as shares of the picture."""

    label: str
    box: tuple[Share, Share, Share, Share]

    @property
    def area(self) -> float:
        left, top, right, bottom = self.box
        return max(0.0, right - left) * max(0.0, bottom - top)


def _triads(high: int, low: int) -> list[Colour]:
    """Return the six colours of two levels: one channel high, then two."""
    one = [(high, low, low), (low, high, low), (low, low, high)]
    return [*one, (high, high, low), (high, low, high), (low, high, high)]


def _greys(*levels: int) -> list[Colour]:
    return [(level, level, level) for level in levels]


# UniControl's colours, which its own and CtrLoRA's published weights were trained on, follow this rule.
_COLOURS = chain(
    *(_triads(255, 0), _triads(128, 0)[3:], _greys(128), _triads(64, 0), _greys(192, 32, 96, 160, 224)),
    *(_triads(level, 0) for level in (32, 96, 160, 224)),
    _greys(64),
    *(_triads(level, 64) for level in (128, 192)),
    *(_triads(level, 32) for level in (96, 160, 224)),
    _triads(64, 96)[:3],
    _triads(160, 96),
)
COLOURS: dict[str, Colour] = dict(zip(_CLASSES, islice(_COLOURS, len(_CLASSES)), strict=True))


def colour_of(label: str) -> Colour:
    """Return the colour of a class: COCO's have UniControl's, any other name has one of its own, always the same."""
    name = label.strip().lower()
    digest = sha256(name.encode()).digest()
    return COLOURS.get(name) or cast("Colour", tuple(32 + byte % 224 for byte in digest[:3]))


def parse_boxes(text: str) -> list[Box]:
    """Return the boxes that the JSON text lists. Raises RequestError."""
    try:
        return TypeAdapter(list[Box]).validate_python(json.loads(text))
    except ValidationError as error:
        problem = describe_errors(error)
    except (ValueError, RecursionError) as error:
        problem = str(error)
    raise RequestError(
        f"The boxes cannot be read: {problem}. They are a JSON list such as "
        '[{"label": "cat", "box": [0.1, 0.2, 0.5, 0.9]}]: left, top, right, bottom, each from 0 to 1.'
    )


def annotate(image: Picture, params: Params) -> Picture:
    """Return the boxes on black, (h w 3), the largest first, so that small ones lie on top. Raises RequestError."""
    canvas = np.zeros_like(image)
    height, width = image.shape[:2]
    for box in sorted(parse_boxes(params.boxes), key=lambda box: -box.area):
        left, top, right, bottom = box.box
        canvas[round(top * height) : round(bottom * height), round(left * width) : round(right * width)] = colour_of(
            box.label
        )
    return canvas
