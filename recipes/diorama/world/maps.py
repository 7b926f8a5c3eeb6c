"""Maps: the pictures that a control can be given, drawn from a scene.

What the scene knows is exact; what a person would draw from a picture comes from the program's own annotators, so that
what was learned is what will be shown.
"""

from __future__ import annotations

import colorsys
import json
from collections.abc import Callable
from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray

from disegno.annotators import ANNOTATORS
from disegno.annotators.base import make_params, read

from .pack import Wardrobe
from .render import Scene, render
from .vocabulary import CLASSES

Map = NDArray[np.uint8]  # (h w 3)
_ROUNDNESS = 0.07  # how much nearer the middle of a thing is than its rim


@cache
def class_colours() -> Map:
    """Return one fixed colour per class, (classes 3): hues by the golden ratio, three tiers of lightness."""
    rows = []
    for k in range(len(CLASSES)):
        value, saturation = ((0.95, 0.75), (0.65, 0.85), (0.9, 0.4))[k % 3]
        rows.append([round(255 * v) for v in colorsys.hsv_to_rgb(k * 0.618034 % 1, saturation, value)])
    return np.array(rows, np.uint8)


def segmentation(scene: Scene, _: Wardrobe) -> Map:
    """Return the class of every pixel, in the fixed colours."""
    return class_colours()[scene.classes]


def instances(scene: Scene, _: Wardrobe) -> Map:
    """Return whose every pixel is: black for the background, a colour for each thing."""
    palette = np.vstack([np.zeros((1, 3), np.uint8), class_colours()[::-1][:20]])
    return palette[scene.instances]


def outline(scene: Scene, _: Wardrobe) -> Map:
    """Return the borders of things, white on black."""
    grown = cv2.dilate(scene.instances, np.ones((3, 3), np.uint8))
    return grey(np.where(grown != scene.instances, 255, 0).astype(np.uint8))


def bulge(scene: Scene) -> NDArray[np.float32]:
    """Return how far every pixel of a thing stands out before its rim, in [0, 1], (h w); 0 on the background."""
    height = np.zeros(scene.instances.shape, np.float32)
    for number in range(1, int(scene.instances.max()) + 1):
        seen = scene.instances == number
        if not seen.any():
            continue
        ys, xs = np.nonzero(seen)
        window = (slice(max(ys.min() - 1, 0), ys.max() + 2), slice(max(xs.min() - 1, 0), xs.max() + 2))
        distance = cv2.distanceTransform(seen[window].astype(np.uint8), cv2.DIST_L2, 3)
        share = np.clip(distance / max(float(distance.max()), 1.0), 0, 1)
        height[window] = np.maximum(height[window], np.sqrt(share * (2 - share)))  # a quarter of a circle
    return cv2.GaussianBlur(height, (0, 0), max(0.6, scene.instances.shape[0] / 160)) * (scene.instances > 0)


def depth(scene: Scene, _: Wardrobe) -> Map:
    """Return how near every pixel is: exact between things and on the ground, rounded within a thing; near is white."""
    near = scene.nearness + _ROUNDNESS * bulge(scene)
    return grey(np.rint(np.clip(near, 0, 1) * 255).astype(np.uint8))


def normals(scene: Scene, _: Wardrobe) -> Map:
    """Return which way every pixel faces: x in red, y (up) in green, z (to the viewer) in blue, each from -1 to 1."""
    height = bulge(scene) * scene.instances.shape[0] * 0.12
    dx, dy = (cv2.Sobel(height, cv2.CV_32F, *order, ksize=3, scale=1 / 8) for order in ((1, 0), (0, 1)))
    normal = np.dstack([-dx, dy, np.ones_like(dx)])
    normal[scene.is_ground] = (0.0, 0.96, 0.28)
    normal /= np.linalg.norm(normal, axis=2, keepdims=True)
    return np.rint((normal + 1) * 127.5).astype(np.uint8)


def boxes(scene: Scene, _: Wardrobe) -> Map:
    """Return filled boxes, as the annotator of that name draws them."""
    return annotated("boxes", scene.image, boxes=boxes_json(scene))


def boxes_json(scene: Scene) -> str:
    """Return the boxes of a scene in the annotator's words."""
    size = scene.image.shape[0]
    listed = [
        {"label": box.label, "box": [edge / size for edge in (box.left, box.top, box.right, box.bottom)]}
        for box in scene.boxes
    ]
    return json.dumps(listed)


def flat(scene: Scene, wardrobe: Wardrobe) -> Map:
    """Return the same scene as a flat drawing; the twin of a flat one is the 3D one."""
    style = "3d" if scene.layout.style == "flat" else "flat"
    size = scene.image.shape[0]
    return render(wardrobe, scene.layout, scene.caption, scene.facts, scene.seed, size, style).image


def annotated(name: str, image: Map, **params: str | float) -> Map:
    """Return what one of the program's annotators makes of a picture."""
    module = ANNOTATORS.load(name)
    return read(module).run(image, make_params(module, params))


def grey(values: NDArray[np.uint8]) -> Map:
    """Return a grey map as RGB."""
    return np.repeat(values[..., None], 3, axis=2)


def _from_picture(name: str, **params: str | float) -> Callable[[Scene, Wardrobe], Map]:
    def draw(scene: Scene, _: Wardrobe) -> Map:
        return annotated(name, scene.image, **params)

    return draw


def _seeded(name: str) -> Callable[[Scene, Wardrobe], Map]:
    """Return an annotator that draws at random, here from the scene's own seed."""

    def draw(scene: Scene, _: Wardrobe) -> Map:
        return annotated(name, scene.image, seed=int(np.random.default_rng([*scene.seed, 2]).integers(2**31)))

    return draw


def palette(scene: Scene, _: Wardrobe) -> Map:
    """Return the scene's colours, 8 by 8, whatever its size."""
    return annotated("palette", scene.image, cell=scene.image.shape[0] // 8)


def outpainting(scene: Scene, _: Wardrobe) -> Map:
    """Return the picture's inner part on black; which part, its seed says."""
    rng = np.random.default_rng([*scene.seed, 3])
    size = scene.image.shape[0]
    keep = np.zeros((size, size, 1), np.uint8)
    left, top = (int(rng.uniform(0.05, 0.4) * size) for _ in range(2))
    right, bottom = (int(rng.uniform(0.6, 0.95) * size) for _ in range(2))
    keep[top:bottom, left:right] = 1
    return scene.image * keep


MAPS: dict[str, Callable[[Scene, Wardrobe], Map]] = {
    "canny": _from_picture("canny"),
    "soft-edge": _from_picture("soft-edge"),
    "scribble": _from_picture("scribble"),
    "segmentation": segmentation,
    "depth": depth,
    "normal": normals,
    "boxes": boxes,
    "outpainting": outpainting,
    "grayscale": _from_picture("grayscale"),
    "palette": palette,
    "line-art": _from_picture("line-art"),
    "inpainting-brush": _seeded("inpainting-brush"),
    "flat": flat,
    "pixelate": _from_picture("pixelate"),
    "outline": outline,
    "instances": instances,
}
BASE_CONDITIONS = tuple(MAPS)[:9]
NEW_CONDITIONS = tuple(MAPS)[9:14]
