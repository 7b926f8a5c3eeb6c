"""OpenPose's keypoints as the picture that a pose control sees: bodies, hands, faces, and animals.

Keypoints come as OpenPose's JSON has them: x, y, confidence, ... for each point, in pixels, or as parts of the canvas
where none is larger than 1. A body is drawn in the colours that pose controls were trained with.
"""

import colorsys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from disegno.serving.a1111.coerce import Json, coerced
from disegno.serving.a1111.errors import Fault, Path, WireError

Canvas = NDArray[np.uint8]
Point = tuple[float, float]
Colour = tuple[int, int, int]

MAX_SIDE_PX = 4096
MAX_FIGURES = 100
MAX_POSES = 64

_LIMBS = (
    *((1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13)),
    *((1, 0), (0, 14), (14, 16), (0, 15), (15, 17)),
)
_BODY_POINTS = 18
_FINGERS = tuple((0 if i % 4 == 0 else i, i + 1) for i in range(20))  # each finger begins at the wrist
_HAND_POINTS, _FACE_POINTS, _ANIMAL_POINTS = 21, 70, 17
_ANIMAL_LIMBS: tuple[tuple[int, int], ...] = (
    *((0, 1), (0, 2), (1, 2), (2, 3), (3, 4), (3, 5), (5, 6), (6, 7), (3, 8), (8, 9), (9, 10)),
    *((4, 11), (11, 12), (12, 13), (4, 14), (14, 15), (15, 16)),
)
_STICK_PX = 4  # at a side of 512


def _rainbow(num: int) -> tuple[Colour, ...]:
    """Return `num` full colours around the wheel."""
    hues = (colorsys.hsv_to_rgb(i / num, 1.0, 1.0) for i in range(num))
    return tuple((round(r * 255), round(g * 255), round(b * 255)) for r, g, b in hues)


# OpenPose's own eighteen: around the wheel from red, a sixth in four steps
_BODY_COLOURS: tuple[Colour, ...] = (
    *((255, 0, 0), (255, 85, 0), (255, 170, 0), (255, 255, 0), (170, 255, 0), (85, 255, 0), (0, 255, 0)),
    *((0, 255, 85), (0, 255, 170), (0, 255, 255), (0, 170, 255), (0, 85, 255), (0, 0, 255), (85, 0, 255)),
    *((170, 0, 255), (255, 0, 255), (255, 0, 170), (255, 0, 85)),
)


@dataclass(frozen=True)
class Figure:
    """One person or animal; a point that was not seen is None."""

    body: tuple[Point | None, ...] = ()
    hands: tuple[tuple[Point | None, ...], ...] = ()
    face: tuple[Point | None, ...] = ()
    animal: tuple[Point | None, ...] = ()


@dataclass(frozen=True)
class Pose:
    """The figures of one picture."""

    width: int
    height: int
    figures: tuple[Figure, ...]


def read_pose(given: Json, at: Path) -> Pose:
    """Return the pose that OpenPose's JSON describes. Raises WireError."""
    if not isinstance(given, dict):
        raise WireError.of_fields(Fault(at, "a pose is an object", "type_error.dict"))
    width, height = (
        coerced(given.get(name), "int", (*at, name), 1, MAX_SIDE_PX) for name in ("canvas_width", "canvas_height")
    )
    if not isinstance(width, int) or not isinstance(height, int):
        raise WireError.of_fields(Fault((*at, "canvas_width"), "canvas_width and canvas_height are needed"))
    people, animals = given.get("people") or [], given.get("animals") or []
    if not isinstance(people, list) or not isinstance(animals, list):
        raise WireError.of_fields(Fault((*at, "people"), "people and animals are lists", "type_error.list"))
    if len(people) + len(animals) > MAX_FIGURES:
        raise WireError.of_fields(Fault((*at, "people"), f"at most {MAX_FIGURES} figures"))
    figures = [_person(person, (*at, "people", i), width, height) for i, person in enumerate(people)]
    figures += [Figure(animal=_flat(a, (*at, "animals", i), _ANIMAL_POINTS)) for i, a in enumerate(animals)]
    return Pose(width, height, tuple(figures))


def _person(given: Json, at: Path, width: int, height: int) -> Figure:
    if not isinstance(given, dict):
        raise WireError.of_fields(Fault(at, "a person is an object", "type_error.dict"))
    hands = [_points(given, f"hand_{side}_keypoints_2d", at, _HAND_POINTS, width, height) for side in ("left", "right")]
    return Figure(
        _points(given, "pose_keypoints_2d", at, _BODY_POINTS, width, height),
        tuple(hand for hand in hands if hand),
        _points(given, "face_keypoints_2d", at, _FACE_POINTS, width, height),
    )


def _points(
    given: Mapping[str, Json], name: str, at: Path, num: int, width: int, height: int
) -> tuple[Point | None, ...]:
    """Return the points under a name in pixels; none where there are none."""
    found = _flat(given.get(name), (*at, name), num)
    seen = [point for point in found if point is not None]
    if seen and max(max(point) for point in seen) <= 1:  # parts of the canvas
        return tuple(None if point is None else (point[0] * width, point[1] * height) for point in found)
    return found


def _flat(given: Json, at: Path, num: int) -> tuple[Point | None, ...]:
    """Return the points of a flat list of x, y, confidence, or of a list of such triples."""
    if given is None:
        return ()
    if not isinstance(given, list):
        raise WireError.of_fields(Fault(at, "keypoints are a list of x, y, confidence", "type_error.list"))
    flat: list[Json] = [value for item in given for value in (item if isinstance(item, list) else [item])]
    numbers = [coerced(value, "float", at, -1e6, 1e6) for value in flat[: num * 3]]
    triples = [numbers[i : i + 3] for i in range(0, len(numbers) - 2, 3)]
    return tuple(_seen(triple) for triple in triples)


def _seen(triple: Sequence[Json]) -> Point | None:
    x, y, confidence = (value if isinstance(value, int | float) else 0.0 for value in triple)
    return (float(x), float(y)) if confidence > 0 else None


def draw_pose(pose: Pose) -> Canvas:
    """Return the picture of a pose on black, (h w 3), RGB."""
    canvas = np.zeros((pose.height, pose.width, 3), np.uint8)
    for figure in pose.figures:
        canvas = _draw_body(canvas, figure.body)
        for hand in figure.hands:
            _draw_hand(canvas, hand)
        for point in figure.face:
            if point is not None:
                cv2.circle(canvas, _pixel(point), 3, (255, 255, 255), -1)
        _draw_animal(canvas, figure.animal)
    return canvas


def _pixel(point: Point) -> tuple[int, int]:
    return round(point[0]), round(point[1])


def _pairs(points: Sequence[Point | None], limbs: Sequence[tuple[int, int]]) -> Iterator[tuple[int, Point, Point]]:
    """Yield the limbs whose two ends were seen, with their numbers."""
    for i, (start, end) in enumerate(limbs):
        if max(start, end) < len(points):
            a, b = points[start], points[end]
            if a is not None and b is not None:
                yield i, a, b


def _stick(canvas: Canvas) -> int:
    return max(1, round(_STICK_PX * max(canvas.shape[:2]) / 512))


def _draw_body(canvas: Canvas, points: Sequence[Point | None]) -> Canvas:
    """Return the canvas with a body: limbs as dimmed ellipses, joints as dots of the full colour."""
    thick = _stick(canvas)
    for i, a, b in _pairs(points, _LIMBS):
        length = float(np.hypot(a[0] - b[0], a[1] - b[1]))
        angle = float(np.degrees(np.arctan2(b[1] - a[1], b[0] - a[0])))
        middle = _pixel(((a[0] + b[0]) / 2, (a[1] + b[1]) / 2))
        outline = np.asarray(cv2.ellipse2Poly(middle, (int(length / 2), thick), int(angle), 0, 360, 1), np.int32)
        dimmed = tuple(int(value * 0.6) for value in _BODY_COLOURS[i])
        cv2.fillConvexPoly(canvas, outline, dimmed)
    for i, point in enumerate(points):
        if point is not None:
            cv2.circle(canvas, _pixel(point), thick, _BODY_COLOURS[i], -1)
    return canvas


def _draw_hand(canvas: Canvas, points: Sequence[Point | None]) -> None:
    colours = _rainbow(len(_FINGERS))
    for i, a, b in _pairs(points, _FINGERS):
        cv2.line(canvas, _pixel(a), _pixel(b), colours[i], 2)
    for point in points:
        if point is not None:
            cv2.circle(canvas, _pixel(point), 4, (0, 0, 255), -1)


def _draw_animal(canvas: Canvas, points: Sequence[Point | None]) -> None:
    colours = _rainbow(_ANIMAL_POINTS)
    for i, a, b in _pairs(points, _ANIMAL_LIMBS):
        cv2.line(canvas, _pixel(a), _pixel(b), colours[i], 5)
    for i, point in enumerate(points):
        if point is not None:
            cv2.circle(canvas, _pixel(point), 4, colours[i], -1)
