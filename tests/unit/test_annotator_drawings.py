"""What each annotator of our own sees in a small scene whose lines, shapes and colours are known."""

import cv2
import numpy as np
import pytest

from disegno.annotators import ANNOTATORS
from disegno.annotators.base import Picture, make_params, read
from disegno.annotators.boxes import COLOURS, colour_of
from disegno.annotators.pixelate import find_colours
from disegno.core.errors import BadImage, RequestError
from disegno.core.request import Scalar

pytestmark = pytest.mark.unit

SKY, SUN, ROOF = (120, 170, 230), (250, 210, 60), (150, 40, 40)


@pytest.fixture
def scene() -> Picture:
    """A sun and a house, (256 256 3); the house's outline is straight."""
    picture = np.full((256, 256, 3), SKY, np.uint8)
    cv2.circle(picture, (60, 60), 30, SUN, -1)
    cv2.rectangle(picture, (120, 120), (220, 230), ROOF, -1)
    return picture


def draw(name: str, picture: Picture, **params: Scalar) -> Picture:
    module = ANNOTATORS.load(name)
    return read(module).run(picture, make_params(module, params))


def outline(distance: int) -> tuple[Picture, Picture]:
    """Return where the scene's outlines are, within `distance` pixels, and where nothing is within three times that."""
    line = np.zeros((256, 256), np.uint8)
    cv2.circle(line, (60, 60), 30, 255, 1)
    cv2.rectangle(line, (120, 120), (220, 230), 255, 1)
    near, far = (cv2.dilate(line, np.ones((2 * d + 1, 2 * d + 1), np.uint8)) for d in (distance, 3 * distance))
    return np.asarray(near > 0), np.asarray(far == 0)


def test_soft_edges_are_on_the_outlines_and_nowhere_else(scene: Picture) -> None:
    edges = draw("soft-edge", scene)[:, :, 0]
    near, far = outline(3)
    assert edges[near].mean() > 120 and edges[far].max() < 10


def test_soft_edges_see_colours_of_equal_lightness() -> None:
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[:, :32], picture[:, 32:] = (203, 85, 85), (0, 145, 72)  # both about L = 52
    assert draw("soft-edge", picture)[32, 31:33].max() > 200
    assert draw("canny", cv2.cvtColor(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)).max() == 0


def test_soft_edges_in_few_levels(scene: Picture) -> None:
    assert len(np.unique(draw("soft-edge", scene, levels=2))) == 3


def test_scribbles_follow_the_outlines_with_a_thick_pen(scene: Picture) -> None:
    strokes = draw("scribble", scene)[:, :, 0]
    _, far = outline(4)
    assert set(np.unique(strokes)) == {0, 255} and not strokes[far].any()
    assert strokes.astype(bool)[outline(1)[0]].mean() > 0.8
    assert draw("scribble", scene, thickness=20).mean() > 2 * strokes.mean()


def test_short_strokes_are_left_out(scene: Picture) -> None:
    cv2.circle(scene, (240, 20), 2, (0, 0, 0), -1)
    assert not draw("scribble", scene)[:40, 220:].any()
    assert draw("scribble", scene, shortest=0)[:40, 220:].any()


def test_line_art_by_dog_draws_outlines(scene: Picture) -> None:
    lines = draw("line-art", scene, method="dog")[:, :, 0]
    near, far = outline(3)
    assert lines[near].max() > 200 and lines[far].max() == 0
    assert draw("line-art", scene, method="dog", gain=0.1).max() < lines.max()


def test_straight_lines_are_the_house_and_not_the_sun(scene: Picture) -> None:
    lines = draw("straight-lines", scene, shortest=40)[:, :, 0]
    sides = [lines[118:122, 125:215], lines[228:232, 125:215], lines[125:225, 118:122].T, lines[125:225, 218:222].T]
    assert all((side.max(axis=0) == 255).mean() > 0.9 for side in sides)
    assert not lines[:100, :100].any()
    assert draw("straight-lines", scene, shortest=1000).max() == 0


def test_segments_keep_the_colours_and_the_borders(scene: Picture) -> None:
    patches = draw("segments", scene, patches=50)
    assert np.abs(patches.astype(int) - scene).mean() < 6
    assert len(np.unique(patches.reshape(-1, 3), axis=0)) <= 60


def test_palettes_have_a_cell_for_every_64_pixels(scene: Picture) -> None:
    grid = draw("palette", scene)
    assert all((grid[y : y + 64, x : x + 64] == grid[y, x]).all() for y in range(0, 256, 64) for x in range(0, 256, 64))


def test_pixel_art_has_few_colours_and_large_pixels(scene: Picture) -> None:
    art = draw("pixelate", scene, colors=3, size=8)
    assert (art[::8].repeat(8, axis=0) == art).all()
    colours = np.unique(art.reshape(-1, 3), axis=0)
    assert len(colours) == 3
    for colour in (SKY, SUN, ROOF):
        assert np.abs(colours.astype(int) - colour).max(axis=1).min() <= 8


def test_k_means_finds_clusters_that_are_there() -> None:
    truth = np.array([[0, 0, 0], [200, 10, 10], [10, 10, 200], [250, 250, 250]], np.float32)
    pixels = (truth[:, None] + np.random.default_rng(0).normal(0, 3, (4, 500, 3))).reshape(-1, 3).astype(np.float32)
    found = find_colours(pixels, 4, seed=0)
    assert np.abs(found[:, None] - truth[None]).max(axis=2).min(axis=0).max() < 1
    assert len(find_colours(np.zeros((9, 3), np.float32), 4, seed=0)) == 1


def test_tile_removes_detail_and_keeps_the_size(scene: Picture) -> None:
    noisy = np.clip(scene + np.random.default_rng(0).normal(0, 30, scene.shape), 0, 255).astype(np.uint8)
    assert np.array_equal(draw("tile", noisy), noisy)
    smooth = draw("tile", noisy, rate=8)
    assert np.abs(smooth.astype(int) - scene).mean() < np.abs(noisy.astype(int) - scene).mean() / 2


def test_boxes_lie_on_each_other_by_size() -> None:
    boxes = '[{"label": "cat", "box": [0.4, 0.4, 0.6, 0.6]}, {"label": "Bed", "box": [0, 0.25, 1, 1]}]'
    drawing = draw("boxes", np.zeros((100, 200, 3), np.uint8), boxes=boxes)
    assert tuple(drawing[50, 100]) == COLOURS["cat"] and tuple(drawing[90, 5]) == COLOURS["bed"]
    assert not drawing[:25].any() and (drawing[25:, :10] == COLOURS["bed"]).all()


def test_a_class_beyond_coco_has_its_own_colour_for_ever() -> None:
    assert colour_of("dragon") == colour_of(" Dragon ") != colour_of("unicorn")
    assert min(colour_of("dragon")) >= 32


@pytest.mark.parametrize(
    "boxes",
    ["{", "[1]", '[{"label": "cat"}]', '[{"label": "cat", "box": [0, 0, 2, 1]}]', '{"cat": 1}', "[" * 100_000, "[NaN]"],
)
def test_boxes_that_cannot_be_read_are_an_error(boxes: str) -> None:
    with pytest.raises(RequestError, match="JSON list such as"):
        draw("boxes", np.zeros((8, 8, 3), np.uint8), boxes=boxes)


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("illusion", {"dark": 200, "light": 100}),
        ("blur", {"kernel": 4}),
        ("inpainting-brush", {"fewest": 9, "most": 2}),
    ],
)
def test_parameters_that_contradict_each_other_are_an_error(name: str, params: dict[str, Scalar]) -> None:
    with pytest.raises(RequestError, match=r"swap them|must be odd"):
        make_params(ANNOTATORS.load(name), params)


def test_brush_strokes_can_be_counted(scene: Picture) -> None:
    assert np.array_equal(draw("inpainting-brush", scene, fewest=0, most=0), scene)
    few, many = (float((draw("inpainting-brush", scene, fewest=n, most=n) == 0).mean()) for n in (1, 30))
    assert 0 < few < many


def test_shuffle_says_what_is_too_long() -> None:
    with pytest.raises(BadImage, match="32766"):
        draw("shuffle", np.zeros((1, 40_000, 3), np.uint8))


def test_shuffle_keeps_the_colours_and_moves_the_forms(scene: Picture) -> None:
    swirled = draw("shuffle", scene, seed=5, grain=64)
    assert np.abs(swirled.astype(int) - scene).mean() > 5
    assert set(map(tuple, np.unique(scene.reshape(-1, 3), axis=0))) <= set(map(tuple, swirled.reshape(-1, 3)))
