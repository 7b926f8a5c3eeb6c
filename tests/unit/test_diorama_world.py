"""The composed world: deterministic, and its captions, maps and boxes agree with what is painted."""

import re
import zipfile
from pathlib import Path

import numpy as np
import pytest

from kit.world import blob, blobs

from recipes.diorama.compose import write_pairs  # isort: skip
from recipes.diorama.world.captions import is_true
from recipes.diorama.world.layout import draw_layout, drawn_height
from recipes.diorama.world.maps import BASE_CONDITIONS, MAPS, NEW_CONDITIONS, class_colours
from recipes.diorama.world.pack import SOURCES, check_licences, open_pack
from recipes.diorama.world.places import DRAWERS, LIGHT, paint
from recipes.diorama.world.render import Scene, compose, render
from recipes.diorama.world.sprites import look_of, name_of, premultiplied, recoloured, swatch
from recipes.diorama.world.vocabulary import CLASSES, COLOURS, LIGHTS, SETTINGS, SUPPORTS, in_pools, nouns, nouns_at
from recipes.diorama.world.words import NUMBERS, can_be_counted, indefinite, plural

pytestmark = pytest.mark.unit
SIZE = 128


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [compose(blobs(), seed=7, index=k, size=SIZE) for k in range(160)]


def test_the_same_seed_gives_the_same_scene(scenes: list[Scene]) -> None:
    again = compose(blobs(), seed=7, index=3, size=SIZE)
    assert again.caption == scenes[3].caption and again.facts == scenes[3].facts
    assert np.array_equal(again.image, scenes[3].image)
    for name, draw in MAPS.items():
        assert np.array_equal(draw(again, blobs()), draw(scenes[3], blobs())), name
    assert len({scene.caption for scene in scenes}) > 0.95 * len(scenes)


def test_there_are_nouns_and_places_enough_and_all_can_be_drawn() -> None:
    assert len(nouns()) >= 500 and len({noun.code for noun in nouns()}) == len(nouns())
    assert len({noun.name for noun in nouns()}) == len(nouns())
    assert len(SETTINGS) >= 10 and set(SETTINGS) == set(DRAWERS)
    assert {noun.kind for noun in nouns()} <= set(CLASSES)
    for place, setting in SETTINGS.items():
        assert len(nouns_at(place)) >= 12, place
        assert all(in_pools((pool,)) for pool in (*setting.pools, *setting.above, *setting.afloat)), place


def test_faces_and_signs_stand_on_plain_ground_only(scenes: list[Scene]) -> None:
    for place in SETTINGS.keys() - {"studio"}:
        assert not [noun.name for noun in nouns_at(place) if noun.kind in ("face", "sign")], place
    assert {s.layout.place for s in scenes for i in s.layout.items if i.noun.kind in ("face", "sign")} <= {"studio"}


def test_the_caption_names_all_that_is_there_and_nothing_else(scenes: list[Scene]) -> None:
    for scene in scenes:
        named = sorted(number for mention in scene.facts.mentions for number in mention.items)
        assert named == list(range(len(scene.layout.items)))
        for mention in scene.facts.mentions:
            (noun,) = {scene.layout.items[k].noun for k in mention.items}
            words = [name for own in noun.names for name in (own, plural(own))]
            assert any(word in scene.caption for word in words), scene.caption
            assert mention.colour is None or mention.colour in scene.caption


def test_counts_are_what_the_caption_says(scenes: list[Scene]) -> None:
    counted = [(s, m) for s in scenes for m in s.facts.mentions if len(m.items) > 1]
    assert len(counted) > 8
    for scene, mention in counted:
        assert NUMBERS[len(mention.items)] in scene.caption
        seen = [(scene.instances == k + 1).sum() for k in mention.items]
        assert min(seen) > 0.4 * max(seen), (scene.caption, seen)


def test_relations_hold_in_the_instance_map(scenes: list[Scene]) -> None:
    def middle(scene: Scene, number: int) -> tuple[float, float]:
        ys, xs = np.nonzero(scene.instances == number + 1)
        return float(xs.mean()), float(ys.max())

    seen: set[str] = set()
    for scene in scenes:
        for relation in scene.facts.relations:
            seen.add(relation.kind)
            assert is_true(scene.facts, scene.layout.items, relation), scene.caption
            subjects, objects = (scene.facts.mentions[k].items for k in (relation.subject, relation.object))
            for a in (middle(scene, k) for k in subjects):
                for b in (middle(scene, k) for k in objects):
                    if relation.kind in ("left", "right"):
                        assert (a[0] < b[0]) == (relation.kind == "left"), scene.caption
                    if relation.kind == "front":
                        assert a[1] > b[1] - 1, scene.caption
    assert {"left", "right", "beside"} <= seen and seen & {"behind", "front"}


@pytest.mark.parametrize("colour", [c for c in COLOURS if c not in ("brown",)])
def test_a_thing_has_the_colour_that_the_caption_names(colour: str) -> None:
    rgba = blob((220, 40, 36), 200, 120)
    look = look_of(rgba)
    painted = recoloured(premultiplied(rgba).astype(np.float32) / 255, look, colour)
    median = np.median(painted[painted[..., 3] > 0.9][:, :3], axis=0)
    assert np.abs(median * 255 - swatch(colour)).max() < 40, (median * 255, swatch(colour))


def test_colours_in_scenes_are_those_of_the_instance_map(scenes: list[Scene]) -> None:
    checked = 0
    for scene in scenes:
        for mention in scene.facts.mentions:
            if mention.colour is None or scene.layout.light != "day" or scene.layout.style != "3d":
                continue
            pixels = scene.image[np.isin(scene.instances, [k + 1 for k in mention.items])]
            near = min(COLOURS, key=lambda c: float(np.abs(np.median(pixels, axis=0) - swatch(c)).sum()))
            checked += 1
            assert near == mention.colour, (scene.caption, np.median(pixels, axis=0))
    assert checked > 10


def test_maps_lie_on_the_picture(scenes: list[Scene]) -> None:
    for scene in scenes[:40]:
        things = scene.instances > 0
        kinds = np.isin(scene.classes, [CLASSES.index(item.noun.kind) for item in scene.layout.items])
        assert np.array_equal(kinds, things)
        segments = MAPS["segmentation"](scene, blobs())
        assert np.array_equal(segments[things], class_colours()[scene.classes[things]])
        outline = MAPS["outline"](scene, blobs())[..., 0] > 0
        assert not outline.any() or things.any()
        for number, box in zip(sorted(set(scene.instances.ravel()) - {0}), scene.boxes, strict=True):
            inside = scene.instances[box.top : box.bottom, box.left : box.right] == number
            assert inside.sum() == (scene.instances == number).sum()
    assert len(np.unique(class_colours(), axis=0)) == len(CLASSES)


def test_what_is_in_front_is_nearer_in_the_depth(scenes: list[Scene]) -> None:
    compared = 0
    for scene in scenes:
        near = MAPS["depth"](scene, blobs())[..., 0].astype(float)
        for relation in scene.facts.relations:
            if relation.kind == "front":
                a, b = (scene.facts.mentions[k].items[0] + 1 for k in (relation.subject, relation.object))
                assert near[scene.instances == a].mean() > near[scene.instances == b].mean()
                compared += 1
    assert compared


def test_normals_are_unit_vectors_that_face_the_viewer(scenes: list[Scene]) -> None:
    for scene in scenes[:10]:
        normal = MAPS["normal"](scene, blobs()).astype(float) / 127.5 - 1
        assert np.abs(np.linalg.norm(normal, axis=2) - 1).max() < 0.02
        assert (normal[..., 2] > 0).all()
        if scene.is_ground.any():
            assert (normal[scene.is_ground][:, 1] > 0.9).all()


def test_a_flat_twin_has_the_same_layout(scenes: list[Scene]) -> None:
    for scene in scenes[:12]:
        twin = render(blobs(), scene.layout, scene.caption, scene.facts, scene.seed, SIZE, "flat")
        assert np.array_equal(twin.instances, scene.instances)
        assert np.array_equal(MAPS["flat"](scene, blobs()), twin.image) == (scene.layout.style != "flat")


def test_sizes_are_sensible() -> None:
    by_name = {noun.name: drawn_height(noun) for noun in nouns()}
    order = ["ant", "strawberry", "crab", "cat", "car", "walking person", "elephant", "castle"]
    assert sorted(order, key=by_name.__getitem__) == order


@pytest.mark.parametrize("place", sorted(DRAWERS))
@pytest.mark.parametrize("light", sorted(LIGHT))
def test_every_place_is_drawn(place: str, light: str) -> None:
    low, _ = SETTINGS[place].horizon
    canvas = paint(place, 64, np.random.default_rng(0), low, light)
    assert canvas.image.shape == (64, 64, 3) and canvas.classes.max() < len(CLASSES)
    assert canvas.image.min() > -0.01 and canvas.image.max() < 1.1
    assert 0 <= canvas.nearness.min() <= canvas.nearness.max() <= 1


def test_every_layout_fits_the_picture() -> None:
    for index in range(200):
        layout = draw_layout(np.random.default_rng([3, index]), blobs())
        assert 1 <= len(layout.items) <= 6 and layout.light in LIGHTS
        for item in layout.items:
            assert item.base <= 1.0 and item.base - item.height >= -0.01 and 0 < item.x < 1


def test_words_are_english() -> None:
    assert [plural(n) for n in ("mouse", "slice of pizza", "box", "baby", "cup of coffee", "person walking")][:5] == [
        "mice", "slices of pizza", "boxes", "babies", "cups of coffee",
    ]  # fmt: skip
    assert indefinite("apple", "apple") == "an apple" and indefinite("ufo", "ufo") == "a ufo"
    assert indefinite("sun", "sun") == "the sun" and indefinite("blue jeans", "jeans") == "some blue jeans"
    names = {noun.name: noun for noun in nouns()}
    assert not can_be_counted(names["sun"]) and not can_be_counted(names["salt"]) and can_be_counted(names["car"])
    assert all(name in names for name in SUPPORTS)


def test_what_is_shipped_is_free() -> None:
    free = {style: {"package": s.package, "licence": s.licence} for style, s in SOURCES.items()}
    check_licences({"sources": free})
    with pytest.raises(ValueError, match="CC-BY-SA"):
        check_licences({"sources": {**free, "other": {"package": "x", "licence": "CC-BY-SA-4.0"}}})


def test_a_pack_that_is_not_free_is_not_opened(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "pack.zip", "w") as archive:
        archive.writestr("manifest.json", '{"sources": {"3d": {"package": "x", "licence": "GPL-3.0"}}, "looks": {}}')
    with pytest.raises(ValueError, match="GPL"):
        open_pack(tmp_path / "pack.zip")


def test_pairs_can_be_taught_from(tmp_path: Path) -> None:
    from disegno.training.data.opening import open_pairs

    write_pairs(blobs(), tmp_path, "palette", 3, 64)
    pairs = open_pairs(str(tmp_path))
    assert len(pairs) == 3
    assert re.match(r"[a-z0-9 ]+", pairs.caption(0)) and pairs.read(0).condition.shape == (64, 64, 3)


def test_the_conditions_are_the_issues() -> None:
    assert set(BASE_CONDITIONS) == {
        "canny", "soft-edge", "scribble", "segmentation", "depth", "normal", "boxes", "outpainting", "grayscale",
    }  # fmt: skip
    assert set(NEW_CONDITIONS) == {"palette", "line-art", "inpainting-brush", "flat", "pixelate"}
    assert name_of(0, 0.9, 0.9) == "red" and name_of(212, 0.8, 0.9) == "blue"
