"""A picture remembers how it was made."""

import base64
import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from corpus import headers
from disegno.cli.request import build_request
from disegno.core.errors import BadImage, UnknownName
from disegno.core.request import ControlUnit, Hires, InitImage, Region, Request
from disegno.core.result import Result
from disegno.engine.pictures import read_picture
from disegno.engine.record import png_bytes, read
from disegno.engine.sheet import result_sheet, sheet

pytestmark = pytest.mark.unit


def _result() -> Result:
    unit = ControlUnit(name="canny", image="somewhere/photo.jpg", annotate="canny", params={"low": 80}, strength=0.7)
    request = Request(prompt="a ☃ in\nsnow", seed=2**63 + 5, batch=2, width=64, height=64, steps=3, controls=(unit,))
    images = (Image.new("RGB", (64, 64), "red"), Image.effect_noise((64, 64), 40).convert("RGB"))
    return Result(
        images=images,
        request=request,
        seeds=(1, 2),
        conditions=(Image.effect_noise((64, 64), 90).convert("RGB"),),
        environment={"dtype": "bf16"},
    )


def test_the_request_comes_back_whole(tmp_path: Path) -> None:
    result, path = _result(), tmp_path / "a.png"
    path.write_bytes(png_bytes(result, 1))
    record = read(path)
    assert record.request == result.request
    assert (record.image, record.environment) == (1, {"dtype": "bf16"})
    assert Image.open(path).tobytes() == result.images[1].tobytes()


def test_a_replay_carries_its_drawings_with_it(tmp_path: Path) -> None:
    result, path = _result(), tmp_path / "a.png"
    path.write_bytes(png_bytes(result, 0))
    unit = read(path).replay().controls[0]
    assert (unit.annotate, unit.strength) == ("none", 0.7)
    assert read_picture(unit.image or "").tobytes() == result.conditions[0].tobytes()


def _worded(prompts: tuple[str, ...], tmp_path: Path, **fields: object) -> Path:
    request = replace(_result().request, controls=(), **fields)
    result = replace(_result(), request=request, conditions=(), prompts=prompts, negatives=("no", "no"))
    (tmp_path / "a.png").write_bytes(png_bytes(result, 1))
    return tmp_path / "a.png"


@pytest.mark.parametrize(
    ("name", "params"), [("reference-only", {"fidelity": 0.2}), ("tile-colorfix", {"variation": 3, "sharpness": 1.0})]
)
def test_a_replay_keeps_what_is_no_annotators_parameter(name: str, params: dict[str, Any], tmp_path: Path) -> None:
    unit = ControlUnit(name=name, image="photo.png", params=params)
    result = replace(_result(), request=replace(_result().request, controls=(unit,)))
    (path := tmp_path / "a.png").write_bytes(png_bytes(result, 0))
    assert read(path).replay().controls[0].params == params


def test_a_model_that_is_elsewhere_now_is_found_by_what_the_pictures_text_calls_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    headers.write_header(tmp_path / "models/a.safetensors", headers.model())
    monkeypatch.setenv("DISEGNO_MODEL_DIRS", str(tmp_path / "models"))
    monkeypatch.setenv("DISEGNO_CACHE_DIR", str(tmp_path / "cache"))
    sha256 = hashlib.sha256((tmp_path / "models/a.safetensors").read_bytes()).hexdigest()

    def again(model: str, **labels: str) -> str:
        request = replace(_result().request, controls=(), model=model)
        (path := tmp_path / "a.png").write_bytes(
            png_bytes(replace(_result(), request=request, conditions=(), labels=labels), 0)
        )
        return build_request(None, path, (), None, {})[0].model

    told = {"Model hash": sha256[:10], "Model": "b"}
    assert again("then/b.safetensors", **told) == str(tmp_path / "models/a.safetensors")
    assert again("A", **told) == "A" and again("diorama", **told) == "diorama"
    assert again("then/b.safetensors") == "then/b.safetensors"  # said where it is opened
    with pytest.raises(UnknownName, match="'0123456789' or 'b', which is not in your model folders"):
        again("then/b.safetensors", **told | {"Model hash": "0123456789"})


def test_a_replay_has_the_words_that_were_filled_in(tmp_path: Path) -> None:
    path = _worded(("a cat, noir", "a dog, noir"), tmp_path, prompt="a __animal__", styles=("Noir",))
    again = read(path).replay()
    assert (again.prompts, again.negatives, again.styles) == (("a cat, noir", "a dog, noir"), ("no", "no"), ())
    assert read(path).request.prompt == "a __animal__"


def test_a_replay_of_plain_words_is_the_request(tmp_path: Path) -> None:
    path = _worded(("a cat", "a cat"), tmp_path, prompt="a cat", negative="no")
    assert read(path).replay() == read(path).request


def test_other_words_on_the_command_line_take_the_place_of_those_filled_in(tmp_path: Path) -> None:
    path = _worded(("a cat, noir", "a dog, noir"), tmp_path, prompt="a __animal__", styles=("Noir",))
    same, only = build_request(None, path, (), None, {})
    assert (same.prompts, same.batch, only) == (("a cat, noir", "a dog, noir"), 2, 1)
    other, _ = build_request("an owl", path, (), None, {})
    assert (other.prompt, other.prompts, other.styles) == ("an owl", (), ("Noir",))
    three, _ = build_request(None, path, (), None, {"batch": 3, "loras": ("ink:0.5",)})
    assert (three.prompt, three.prompts, three.loras[0].text_strength) == ("a __animal__", (), 0.5)


@pytest.mark.parametrize("width, was, said", [(512, 0, None), (2048, 512, None), (512, 256, 256), (2048, 0, 0)])
def test_the_vaes_parts_follow_another_size_where_nobody_said_them(
    width: int, was: int, said: int | None, tmp_path: Path
) -> None:
    path = _worded(("a", "a"), tmp_path, width=width, height=width, vae_tile=was)
    request, _ = build_request(None, path, (), "1024x1536", {})
    assert request.vae_tile == said


def test_one_of_a_batch_is_changed_by_itself(tmp_path: Path) -> None:
    """Its own seeds and words: not those of the first, and without the time that the others take."""
    path = _worded(("a cat, noir", "a dog, noir"), tmp_path, prompt="a __animal__", styles=("Noir",), seed=4, subseed=7)
    more, only = build_request(None, path, (), None, {"steps": 9})
    assert (more.prompts, more.steps, more.batch, more.seed, more.subseed) == (("a dog, noir",), 9, 1, 5, 8)
    assert only == 0 and build_request(None, path, (), None, {"seed": 9})[0].seed == 9
    assert build_request(None, path, (), None, {}, alone=True)[0] == replace(more, steps=3)
    both = build_request(None, path, (), None, {"batch": 2, "seed": 9})[0]
    assert (both.batch, both.seed) == (2, 9)
    varied = _worded(
        ("a cat", "a cat"), tmp_path, prompt="a cat", negative="no", seed=4, subseed=7, subseed_strength=0.5
    )
    one = build_request(None, varied, (), None, {"steps": 9})[0]
    assert (one.seed, one.subseed, one.prompts) == (4, 8, ())


def test_a_second_pass_follows_the_first_where_nobody_said_otherwise(tmp_path: Path) -> None:
    own = {"steps": 5, "cfg": 7.0, "sampler": "Euler", "schedule": "automatic"}
    path = _worded(("a", "a"), tmp_path, **own, hires=Hires(steps=5, cfg=3.0, sampler="Euler", schedule="automatic"))
    request, _ = build_request(None, path, (), None, {"steps": 9, "sampler": "DDIM"})
    assert request.hires == Hires(cfg=3.0)
    path = _worded(("a", "a"), tmp_path, **own, hires=Hires(steps=9, cfg=7.0, sampler="Euler", schedule="karras"))
    request, _ = build_request(None, path, (), None, {})
    assert request.hires == Hires(steps=9, sampler="Euler", schedule="karras")
    other = Hires(steps=5, cfg=7.0, sampler="Euler", schedule="automatic", model="another")
    assert build_request(None, _worded(("a", "a"), tmp_path, **own, hires=other), (), None, {})[0].hires == other


def test_regions_keep_their_masks_and_the_words_that_were_filled_in_until_there_are_others(tmp_path: Path) -> None:
    mask = "data:image/png;base64,AAAA"
    regions = (Region(prompt="a __animal__", prompts=("a cat", "a dog"), mask="here.png"), Region(prompt="b", w=0.5))
    request = replace(_result().request, controls=(), regions=regions)
    result = replace(_result(), request=request, conditions=(), sources={"here.png": mask})
    path = tmp_path / "a.png"
    path.write_bytes(png_bytes(result, 1))
    again = read(path).replay().regions
    assert again == (replace(regions[0], mask=mask), regions[1])
    assert build_request(None, path, (), None, {})[0].regions == again
    assert build_request(None, path, (), None, {"seed": 9})[0].regions == (
        replace(again[0], prompts=("a dog",)),
        again[1],
    )
    assert build_request("an owl", path, (), None, {})[0].regions == (replace(again[0], prompts=()), again[1])
    other, _ = build_request(None, path, (), None, {"regions": (("c", "x=0.5"),)})
    assert other.regions == (Region(prompt="c", x=0.5),)


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_picture_is_said(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(BadImage, match=r"a\.png"):
        read(path)


def test_a_picture_without_a_request_is_said(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (8, 8)).save(path)
    with pytest.raises(BadImage, match="does not say how it was made"):
        read(path)


def test_a_damaged_request_is_said(tmp_path: Path) -> None:
    from PIL import PngImagePlugin

    path, info = tmp_path / "a.png", PngImagePlugin.PngInfo()
    info.add_itxt("disegno", '{"request": {"steps": -3}, "image": 0, "conditions": [], "environment": {}}')
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    with pytest.raises(Exception, match="steps"):
        read(path)
    info = PngImagePlugin.PngInfo()
    info.add_itxt("disegno", '{"request": {}, "image": 1, "conditions": [], "environment": {}}')
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    with pytest.raises(BadImage, match="image 1 of 1"):
        read(path)


def test_a_sheet_shows_everything() -> None:
    page = result_sheet(_result())
    assert page.width > 3 * 256 and page.height > 256
    assert len(page.getcolors(1 << 20) or []) > 100


def test_a_sheet_of_many_is_about_square() -> None:
    page = sheet([Image.new("RGB", (32, 32))] * 9, ["x"] * 9, cell_px=64)
    assert 0.6 < page.width / page.height < 1.6


def test_a_large_photograph_in_the_request_leaves_a_file_that_anybody_can_open(tmp_path: Path) -> None:
    """Pillow opens no PNG with more than 1 MiB of text; webuiapi's clients read their answers with Pillow."""
    noise = np.random.default_rng(0).integers(0, 255, (900, 900, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "photo.png")
    uri = "data:image/png;base64," + base64.b64encode((tmp_path / "photo.png").read_bytes()).decode()
    init = InitImage(image=str(tmp_path / "photo.png"), mask=uri)
    result = Result(
        images=(Image.new("RGB", (64, 64)),), request=Request(prompt="a", init=init, seed=1), seeds=(1,),
        sources={str(tmp_path / "photo.png"): uri},
    )  # fmt: skip
    written = png_bytes(result, 0)
    assert len(written) < 1.1 * (tmp_path / "photo.png").stat().st_size  # twice the same picture is kept once
    (tmp_path / "out.png").write_bytes(written)
    with Image.open(tmp_path / "out.png") as picture:
        picture.load()
    record = read(tmp_path / "out.png")
    assert record.request == result.request and record.sources == result.sources
    assert read_picture(str(tmp_path / "out.png")).shape == (64, 64, 3)  # and it may be changed again


@pytest.mark.parametrize(
    "said",
    [
        '{"request": {"init": {"image": "picture:3"}}}',
        "[" * 99999,
        '{"request": {"controls": [{"name": "a", "image": "b"}]}, "image": 0, "conditions": [], "environment": {}}',
    ],
    ids=["gone", "deep", "too few"],
)
def test_a_record_whose_picture_is_gone_is_damaged(said: str, tmp_path: Path) -> None:
    info = PngInfo()
    info.add_itxt("disegno", said, zip=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "torn.png", pnginfo=info)
    with pytest.raises(BadImage, match="damaged"):
        read(tmp_path / "torn.png").replay()
