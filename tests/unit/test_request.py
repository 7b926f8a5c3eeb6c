"""Request: the one home of defaults; JSON there and back; errors that say what to do."""

import pytest

from disegno.core.errors import RequestError, UnknownName
from disegno.core.request import (
    ControlUnit,
    Hires,
    InitImage,
    Outpaint,
    Request,
    Tiles,
    from_json,
    make_request,
    to_json,
)

pytestmark = pytest.mark.unit


def test_json_round_trip_keeps_every_field() -> None:
    unit = ControlUnit(name="canny", image="a.png", params={"low": 80, "invert": True}, strength=0.5, mode="prompt")
    request = Request(prompt="a ☃", seed=2**64 - 1, controls=(unit,), cfg=4.5)
    assert from_json(to_json(request)) == request


def test_unknown_and_bad_fields_are_all_named() -> None:
    with pytest.raises(RequestError) as caught:
        make_request({"widht": 3, "steps": 0, "batch": 99})
    for word in ("widht", "steps", "batch"):
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "fields", [{"prompt": "a \udcff car"}, {"negatives": ["\ud800"]}, {"hires": {"model": "\udcff"}}]
)
def test_half_a_character_is_refused(fields: dict[str, object]) -> None:
    """What a command line in another encoding becomes: no file and no JSON can hold it."""
    with pytest.raises(RequestError, match="unicode"):
        make_request(fields)


@pytest.mark.parametrize("name", ["negative_min", "churn_min", "churn_max"])
def test_what_json_cannot_hold_is_refused(name: str) -> None:
    with pytest.raises(RequestError, match=name):
        make_request({name: float("inf")})


@pytest.mark.parametrize("size", [7, 100, 5000])
def test_sizes_are_multiples_of_eight_within_bounds(size: int) -> None:
    with pytest.raises(RequestError, match="width"):
        make_request({"width": size})


def test_a_span_runs_forwards() -> None:
    with pytest.raises(RequestError, match="swap"):
        make_request({"controls": [{"name": "canny", "image": "a.png", "start": 0.6, "end": 0.5}]})


def test_a_request_is_frozen() -> None:
    with pytest.raises(AttributeError):
        Request().prompt = "x"  # pyright: ignore[reportAttributeAccessIssue]


def test_an_unknown_name_offers_the_nearest() -> None:
    error = UnknownName.of("sampler", "Eulr", ["euler", "heun", "lms"])
    assert "'Eulr'" in str(error) and "euler" in str(error) and "lms" not in str(error)


def test_pictures_from_pictures_round_trip() -> None:
    unit = ControlUnit(name="canny", curve="0.2@0.1,0.5@0.3", layers=(1.0, 0.5), region="r.png", passes="first")
    init = InitImage(image="a.png", mask="m.png", denoise=0.5, outpaint=Outpaint(left=64))
    for request in (
        Request(init=init, controls=(unit,), tiles=Tiles(size=256)),
        Request(hires=Hires(width=512, upscaler="Lanczos", prompt="closer"), vae_tile=512),
    ):
        assert from_json(to_json(request)) == request


@pytest.mark.parametrize(
    "fields, what",
    [
        ({"controls": [{"name": "canny"}]}, "no image"),
        ({"init": {"image": "a", "mask": "m"}, "hires": {}}, "hires"),
        ({"init": {"image": "a", "outpaint": {}}}, "at least one side"),
        ({"init": {"image": "a", "denoise": 1.5}}, "init.denoise"),
        ({"tiles": {"overlap": 0.9}}, "tiles.overlap"),
    ],
)
def test_what_cannot_be_together_is_said(fields: dict[str, object], what: str) -> None:
    with pytest.raises(RequestError, match=what):
        make_request(fields)


def test_fields_that_do_not_go_together_are_said_in_one_sentence() -> None:
    with pytest.raises(RequestError) as caught:
        make_request({"init": {"image": "a.png", "mask": "m.png"}, "hires": {}})
    assert str(caught.value) == (
        "The request is not valid. request: a hires pass draws the whole picture: leave it out, or the mask and the"
        " outpainting"
    )
