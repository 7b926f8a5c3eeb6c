"""What a client's name for a model or control means: as A1111, and never one of two files by chance."""

import pytest

from disegno.core.errors import RequestError, UnknownName
from disegno.serving.a1111.front import named_controls, named_model
from disegno.serving.a1111.house import Named, find_named
from disegno.serving.words import Catalogue, WeightsCard

pytestmark = pytest.mark.unit


def model(name: str, place: str, digit: str) -> Named:
    file = place.rpartition("/")[2]
    return named_model(WeightsCard(name, "model", "sd1", file=file, place=place, sha256=digit * 64))


MODELS = (
    Named("diorama"),
    model("old/dream.safetensors", "old/dream.safetensors", "a"),
    model("new/dream.safetensors", "new/dream.safetensors", "b"),
    model("photo", "Stable-diffusion/xl/photo.safetensors", "c"),
    model("ink.ckpt", "ink.ckpt", "d"),
    model("ink.safetensors", "ink.safetensors", "e"),
)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("photo", "photo"),
        ("Photo.safetensors", "photo"),
        ("photo.safetensors [cccccccccc]", "photo"),
        ("xl/photo.safetensors [cccccccccc]", "photo"),  # a title of A1111, with the folder
        ("xl\\photo.safetensors [cccccccccc]", "photo"),  # the same on Windows
        ("xl/photo", "photo"),
        ("xl_photo", "photo"),  # its model_name
        ("c" * 10, "photo"),
        ("c" * 64, "photo"),
        ("photo.safetensors [0123456789]", "photo"),  # A1111 parity: other digits do not hinder
        ("old/dream.safetensors [aaaaaaaaaa]", "old/dream.safetensors"),
        ("new/dream", "new/dream.safetensors"),
        ("dream.safetensors [bbbbbbbbbb]", "new/dream.safetensors"),  # the digits decide
        ("dream [aaaaaaaaaa]", "old/dream.safetensors"),
        ("bbbbbbbbbb", "new/dream.safetensors"),
        ("ink.ckpt", "ink.ckpt"),
        ("INK.safetensors", "ink.safetensors"),
    ],
)
def test_a_model_is_found_by_what_a1111_calls_it(given: str, name: str) -> None:
    assert find_named("model", given, MODELS).name == name


@pytest.mark.parametrize("given", ["dream", "dream.safetensors", "ink", "ink [0123456789]"])
def test_a_name_that_two_files_have_is_refused_with_titles_that_tell_them_apart(given: str) -> None:
    with pytest.raises(RequestError, match="There are 2 models named") as refused:
        find_named("model", given, MODELS)
    assert not isinstance(refused.value, UnknownName)
    titles = [entry.title for entry in MODELS if entry.title in str(refused.value)]
    assert len(titles) == 2
    assert [find_named("model", title, MODELS).title for title in titles] == titles


def test_of_copies_any_will_do_and_of_an_unknown_name_near_ones_are_told() -> None:
    copies = (model("a/x.pt", "a/x.pt", "f"), model("b/x.pt", "b/x.pt", "f"))
    assert find_named("model", "x", copies) == copies[0]
    with pytest.raises(UnknownName, match="photo"):
        find_named("model", "wrong/photo.safetensors", MODELS)


CONTROLS = named_controls(
    Catalogue(
        controls=(
            WeightsCard("canny", "control", "diorama", "ctrlora", tag="11111111", shipped=True),
            WeightsCard(
                "canny.pth", "control", "sd1", "controlnet", file="canny.pth", place="canny.pth", tag="22222222"
            ),
            *(
                WeightsCard(place, "control", "sd1", "controlnet", file="depth.pth", place=place, tag=digit * 8)
                for place, digit in (("a/depth.pth", "3"), ("b/depth.pth", "4"))
            ),
            WeightsCard("control_v11p_sd15_lineart", "control", "sd1", "controlnet", tag="55555555"),
        )
    )
)


@pytest.mark.parametrize(
    ("given", "title"),
    [
        ("depth [44444444]", "b/depth.pth [44444444]"),  # as the extension's list had it
        ("a/depth.pth", "a/depth.pth [33333333]"),
        ("canny", "canny [11111111]"),  # with another model the engine takes the file of this name
        ("canny [22222222]", "canny.pth [22222222]"),
        ("lineart", "control_v11p_sd15_lineart [55555555]"),
    ],
)
def test_a_control_is_found_as_in_the_extension(given: str, title: str) -> None:
    assert find_named("control", given, CONTROLS, containing=True).title == title


def test_a_control_of_two_files_is_refused() -> None:
    with pytest.raises(RequestError, match=r"There are 2 controls named 'depth': a/depth.pth \[33333333\], b/depth"):
        find_named("control", "depth", CONTROLS, containing=True)
