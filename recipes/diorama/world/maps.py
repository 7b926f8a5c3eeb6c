"""Maps: the pictures a control can be given, drawn from a scene."""

from __future__ import annotations

import colorsys

import cv2
import numpy as np
from numpy.typing import NDArray

from .composer import Scene
from .vocabulary import CLASSES

Map = NDArray[np.uint8]  # (h w 3)


def class_colours() -> Map:
    """Return one fixed colour per class, (classes 3): hues by the golden ratio, three tiers of lightness."""
    rows = []
    for k in range(len(CLASSES)):
        value, saturation = ((0.95, 0.75), (0.65, 0.85), (0.9, 0.4))[k % 3]
        rows.append([round(255 * v) for v in colorsys.hsv_to_rgb(k * 0.618034 % 1, saturation, value)])
    return np.array(rows, np.uint8)


def segmentation(classes: NDArray[np.uint8]) -> Map:
    """Return the class map (h w) in the fixed colours."""
    return class_colours()[classes]


def canny(image: Map) -> NDArray[np.uint8]:
    """Return the edges (h w), 0 or 255, at the thresholds 100 and 200."""
    return cv2.Canny(np.ascontiguousarray(image), 100, 200)


def outline(instances: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the borders between things (h w), 0 or 255."""
    grown = cv2.dilate(instances, np.ones((3, 3), np.uint8))
    return np.where(grown != instances, 255, 0).astype(np.uint8)


def depth_order(instances: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return nearness (h w): a ramp on the background, one flat step per thing above it."""
    size = instances.shape[0]
    ramp = np.broadcast_to(np.linspace(0, 110, size, dtype=np.float32)[:, None], instances.shape)
    nearest = max(int(instances.max()), 1)
    return np.where(instances > 0, 160 + 95 * instances.astype(np.float32) / nearest, ramp).astype(np.uint8)


def palette(image: Map, cells: int = 8) -> Map:
    """Return the picture as cells x cells flat patches."""
    small = cv2.resize(image, (cells, cells), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, image.shape[1::-1], interpolation=cv2.INTER_NEAREST)


def three_channels(grey: NDArray[np.uint8]) -> Map:
    """Return a grey map as RGB."""
    return np.repeat(grey[..., None], 3, axis=2)


def all_maps(scene: Scene) -> dict[str, Map]:
    """Return every map of a scene as RGB, by name."""
    return {
        "canny": three_channels(canny(scene.image)),
        "segmentation": segmentation(scene.classes),
        "outline": three_channels(outline(scene.instances)),
        "depth_order": three_channels(depth_order(scene.instances)),
        "palette": palette(scene.image),
    }
