"""What a request may cost and name, decided before anything is opened."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from disegno.core.errors import BadImage, ModelFileError, RequestError, ResourceError, UnknownName
from disegno.core.request import make_request
from disegno.engine.record import data_uri
from disegno.serving import data_sets
from disegno.serving.faults import Refused, refusal_of, without_paths
from disegno.serving.kinds import kind_of
from disegno.serving.openai import GenerationBody, generation_of, init_of
from disegno.serving.settings import Limits

pytestmark = pytest.mark.unit

LIMITS = Limits(picture_pixels=10_000, picture_bytes=20_000, prompt_chars=100, text_chars=200, pictures=3)
SMALL = data_uri(Image.new("RGB", (8, 8)))
LARGE = data_uri(Image.new("RGB", (200, 200)))
HEAVY = data_uri(Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 90, 3), np.uint8)))
TRAVERSALS = ("/etc/passwd", "../x", "a/../../x", "~/x", "C:\\x", "..\\x", "x\0y", "/", "..", "models/../../x")


def _unit(**fields: Any) -> dict[str, Any]:
    return {"controls": [{"name": "canny", "image": SMALL} | fields]}


def _code(fields: dict[str, Any]) -> str | None:
    kind = kind_of("generate")
    try:
        kind.require_allowed(kind.read(fields), LIMITS)
    except Refused as refused:
        assert refused.status == 422 and len(refused.message) < 1100
        return refused.code
    return None


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"width": 2048, "height": 2048, "batch": 4, "steps": 100},
        {"prompt": "x" * 100},
        _unit(),
        {"model": "sub/folder/model.safetensors"},
        {"init": {"image": SMALL, "mask": SMALL}},
        {"regions": [{"prompt": "x" * 100, "mask": SMALL}, {"prompt": "y", "x": 0.5}]},
        {"hires": {"scale": 2.0}, "width": 1024, "height": 1024},
    ],
)
def test_what_may_be_asked(fields: dict[str, Any]) -> None:
    assert _code(fields) is None


@pytest.mark.parametrize(
    "fields, code",
    [
        ({"width": 4096}, "over_limit"),
        ({"steps": 151}, "over_limit"),
        ({"width": 2048, "height": 2048, "batch": 5}, "over_limit"),
        ({"width": 2048, "height": 2048, "batch": 4, "steps": 150}, "over_limit"),
        ({"width": 2048, "height": 1024, "hires": {"scale": 2.0}}, "over_limit"),
        ({"width": 1024, "height": 1024, "steps": 1, "batch": 5, "hires": {"scale": 2.0}}, "over_limit"),
        ({"width": 512, "height": 512, "hires": {"width": 4096}}, "over_limit"),
        ({"width": 64, "height": 2048, "hires": {"width": 2048, "height": 64}}, "over_limit"),
        ({"hires": {"steps": 500}}, "over_limit"),
        ({"prompt": "x" * 101}, "over_limit"),
        ({"prompt": "<lora:x:1>" * 11, "batch": 1}, "over_limit"),
        ({"negative": "x" * 101}, "over_limit"),
        ({"hires": {"prompt": "x" * 101}}, "over_limit"),
        ({"sampler": "x" * 201}, "over_limit"),
        ({"controls": _unit()["controls"] * 11}, "over_limit"),
        ({"controls": _unit(mask=SMALL)["controls"] * 2}, "over_limit"),
        ({"regions": [{"prompt": "x"}] * 9}, "over_limit"),
        ({"regions": [{"prompt": "x" * 101}]}, "over_limit"),
        ({"regions": [{"prompt": "x", "mask": "/etc/passwd"}]}, "bad_image"),
        (_unit(image=LARGE), "bad_image"),
        (_unit(image=HEAVY), "bad_image"),
        (_unit(image="data:image/png;base64,"), "bad_image"),
        (_unit(image="data:image/png"), "bad_image"),
        (_unit(image="data:text/html;base64,PHNjcmlwdD4="), "bad_image"),
        (_unit(image="data:image/svg+xml;base64,PHN2Zy8+"), "bad_image"),
        (_unit(image="photo.jpg"), "bad_image"),
        (_unit(image="file:///etc/passwd"), "bad_image"),
        (_unit(region="/etc/passwd"), "bad_image"),
        (_unit(image="http://example.org/x.png"), "url_refused"),
        ({"init": {"image": "HTTPS://example.org/x.png"}}, "url_refused"),
        ({"cfg": float("nan")}, "invalid_request"),
        ({"nothing": 1}, "invalid_request"),
    ],
)
def test_what_may_not_be_asked(fields: dict[str, Any], code: str) -> None:
    assert _code(fields) == code


@pytest.mark.parametrize("path", TRAVERSALS)
def test_names_are_no_paths(path: str) -> None:
    for fields in (
        {"model": path},
        _unit(name=path),
        _unit(base=path),
        {"loras": [{"name": path}]},
        {"hires": {"model": path}},
        {"hires": {"upscaler": path}},
    ):
        assert _code(fields) == "unknown_name", fields


def test_a_sheet_has_only_so_many_pixels() -> None:
    kind, large = kind_of("sheet"), {"width": 2048, "height": 2048, "batch": 4, "steps": 1}
    kind.require_allowed(kind.read({"request": large, "x": "seed=1-4"}), Limits())
    with pytest.raises(Refused, match="pixels on the sheet"):
        kind.require_allowed(kind.read({"request": large, "x": "seed=1-5"}), Limits())


def test_an_annotation_is_bounded_too() -> None:
    kind = kind_of("annotate")
    for fields in ({"name": "canny", "image": LARGE}, {"name": "canny", "image": SMALL, "resolution": 4096}):
        with pytest.raises(Refused):
            kind.require_allowed(kind.read(fields), LIMITS)
    with pytest.raises(UnknownName):
        kind_of("nothing")


@pytest.mark.parametrize(
    "kind, fields",
    [
        ("annotate", {"name": "canny", "width": 64}),
        ("annotate", {"name": "canny", "height": 64}),
        ("upscale", {"width": 64, "height": 64, "cut_width": 32}),
        ("upscale", {"width": 64, "height": 64, "cut_width": 32, "cut_height": 65}),
    ],
)
def test_half_a_size_and_a_cut_of_more_than_there_is_are_refused(kind: str, fields: dict[str, Any]) -> None:
    row = kind_of(kind)
    with pytest.raises(Refused):
        row.require_allowed(row.read(fields | {"image": SMALL}), LIMITS)


def test_every_data_set_that_is_listed_can_be_named(tmp_path: Path) -> None:
    for name in ("pairs", "ends.", "x" * 201, ".hidden", "of two words"):
        (tmp_path / name).mkdir()
    assert data_sets.names([tmp_path]) == ["of two words", "pairs"]
    for name in data_sets.names([tmp_path]):
        assert data_sets.find_data_set([tmp_path], name) == tmp_path / name


@pytest.mark.parametrize(
    "text, told",
    [
        ("/home/anna/models/x.safetensors is for sd1", "x.safetensors is for sd1"),
        ("none in the model folders (/root/a/models, ~/b).", "none in the model folders (models, b)."),
        ("C:\\Users\\anna\\x.ckpt is broken", "x.ckpt is broken"),
        ("and/or, 1/2, text/plain, http://x.example/y", "and/or, 1/2, text/plain, http://x.example/y"),
        ("a\x1b[31m\r\nred", "a?[31m?\nred"),
        ("x" * 5000, "x" * 1000 + "..."),
    ],
)
def test_messages_tell_no_paths(text: str, told: str) -> None:
    assert without_paths(text) == told


def test_every_error_of_the_house_has_a_status() -> None:
    errors = {UnknownName: 422, BadImage: 422, RequestError: 422, ModelFileError: 422, ResourceError: 507}
    for error, status in errors.items():
        told = refusal_of(error("/root/secret/x.png cannot be read"))
        assert told.status == status and "/root" not in told.message


def test_a_wrong_field_is_named_and_what_was_given_is_not_repeated() -> None:
    with pytest.raises(Refused) as found:
        kind_of("generate").read({"width": "y" * 10_000, "controls": [{"name": 5}]})
    assert found.value.at == "width" and "yyy" not in found.value.message
    assert "controls.0.name" in found.value.message
    make_request({"width": 64})


def test_openais_form_keeps_what_stands_beside_it() -> None:
    body: dict[str, Any] = {"prompt": "a cat", "batch": 3}
    assert [generation_of(GenerationBody(**body, n=n))[0].batch for n in (None, 2)] == [3, 2]
    own: Any = {"resize": "fill", "denoise": 0.4, "mask_blur": 8}
    assert init_of("uri", None, None, own) == {"mask": None, "fill": None, "image": "uri", **own}
    assert init_of("uri", "hole", 0.9, {"denoise": 0.4}) == {
        "denoise": 0.9, "mask": "hole", "fill": "fill", "image": "uri"}  # fmt: skip
    with pytest.raises(Refused, match="init must be"):
        init_of("uri", None, None, 5)
