"""The composed world: deterministic, and its captions, maps and boxes agree."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))  # the recipes are not installed

from recipes.diorama.world.assets import crop_to_alpha, dominant_hue, recolour, wardrobe
from recipes.diorama.world.composer import Item, Looks, Scene, compose, render
from recipes.diorama.world.maps import all_maps, class_colours, outline
from recipes.diorama.world.places import DRAWERS
from recipes.diorama.world.vocabulary import CLASSES, COLOURS, NOUNS, PLACES

pytestmark = pytest.mark.unit
CAR, DOG, BALLOON = (next(noun for noun in NOUNS if noun.names[0] == name) for name in ("car", "dog", "balloon"))


def blob(colour: tuple[int, int, int], width: int, height: int) -> np.ndarray:
    """Return an ellipse of one colour on a transparent ground."""
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    sprite = np.zeros((height, width, 4), np.uint8)
    sprite[..., :3] = colour
    sprite[..., 3] = np.where(x**2 + y**2 <= 1, 255, 0)
    return sprite


@pytest.fixture(scope="module")
def looks() -> Looks:
    sprites = {
        CAR.code: blob((220, 30, 40), 200, 120),
        DOG.code: blob((230, 160, 90), 120, 150),
        BALLOON.code: blob((220, 20, 60), 90, 150),
    }
    return wardrobe(sprites)


@pytest.fixture(scope="module")
def scenes(looks: Looks) -> list[Scene]:
    return [compose(looks, seed=7, index=k, size=64) for k in range(60)]


def test_same_seed_same_scene(looks: Looks, scenes: list[Scene]) -> None:
    again = compose(looks, seed=7, index=3, size=64)
    assert again.caption == scenes[3].caption
    assert np.array_equal(again.image, scenes[3].image)
    assert not np.array_equal(scenes[3].image, scenes[4].image)


def test_captions_name_what_is_there(scenes: list[Scene]) -> None:
    for scene in scenes:
        for item in scene.items:
            assert any(name in scene.caption for name in item.noun.names)
            if item.look is not None:
                assert item.look in scene.caption


def test_left_and_right_are_true(scenes: list[Scene]) -> None:
    sided = [scene for scene in scenes if "to the left of" in scene.caption]
    assert sided
    for scene in sided:
        first, second = scene.caption.split(" to the left of ")
        by_name = {name: item.x for item in scene.items for name in item.noun.names}
        xs = [next(x for name, x in by_name.items() if name in part) for part in (first, second)]
        if scene.items[0].noun != scene.items[1].noun:
            assert xs[0] < xs[1]


def test_boxes_bound_the_instances(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert scene.image.shape == (64, 64, 3)
        for number, box in enumerate(scene.boxes, start=1):
            inside = scene.instances[box.top : box.bottom, box.left : box.right] == number
            assert inside.sum() == (scene.instances == number).sum() > 0


def test_classes_agree_with_instances(scenes: list[Scene]) -> None:
    for scene in scenes:
        for number, item in enumerate(scene.items, start=1):
            assert set(scene.classes[scene.instances == number].tolist()) <= {CLASSES.index(item.noun.group)}


def test_maps_are_pictures_of_the_scene(scenes: list[Scene]) -> None:
    maps = all_maps(scenes[0])
    assert all(picture.shape == (64, 64, 3) and picture.dtype == np.uint8 for picture in maps.values())
    assert len(np.unique(class_colours(), axis=0)) == len(CLASSES)
    assert not outline(np.zeros((8, 8), np.uint8)).any()


@pytest.mark.parametrize("place", sorted(DRAWERS))
@pytest.mark.parametrize("size", [32, 128])
def test_every_place_is_drawn(place: str, size: int) -> None:
    drawn = DRAWERS[place](size, np.random.default_rng(0))
    assert drawn.image.shape == (size, size, 3)
    assert drawn.image.min() >= 0 and drawn.image.max() <= 1
    assert drawn.classes.max() < len(CLASSES)


def test_render_places_an_item_where_it_is_told(looks: Looks) -> None:
    scene = render(looks, "studio", (Item(CAR, "blue", 0.5, 0.8, 0.4),), "a blue car", np.random.default_rng(0), 100)
    (box,) = scene.boxes
    assert (box.bottom, round((box.left + box.right) / 2)) == pytest.approx((80, 50), abs=1)
    r, g, b = scene.image[60, 50].tolist()
    assert b > r and b > g


def test_recolouring_moves_only_the_dominant_hue() -> None:
    sprite = blob((220, 30, 40), 60, 60)
    sprite[:20, :, :3] = (90, 200, 90)
    green = recolour(sprite, "blue")
    assert np.array_equal(green[10, 30], sprite[10, 30])
    assert abs(dominant_hue(green) - COLOURS["blue"][0]) < 15
    assert np.array_equal(green[..., 3], sprite[..., 3])


def test_crop_keeps_what_is_seen() -> None:
    sprite = np.pad(np.full((10, 20, 4), 255, np.uint8), ((5, 7), (3, 4), (0, 0)))
    assert crop_to_alpha(sprite).shape == (10, 20, 4)


def test_the_tables_agree() -> None:
    assert set(PLACES) == set(DRAWERS)
    assert {place for noun in NOUNS for place in noun.places} <= set(PLACES)
    assert {noun.colour for noun in NOUNS} - {None} <= set(COLOURS)
    assert len({noun.code for noun in NOUNS}) == len(NOUNS)
