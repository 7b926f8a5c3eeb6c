"""A picture remembers how it was made."""

from pathlib import Path

import pytest
from PIL import Image

from disegno.core.errors import BadImage
from disegno.core.request import ControlUnit, Request
from disegno.core.result import Result
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
    from disegno.engine.pictures import read_picture

    result, path = _result(), tmp_path / "a.png"
    path.write_bytes(png_bytes(result, 0))
    unit = read(path).replay().controls[0]
    assert (unit.annotate, unit.strength) == ("none", 0.7)
    assert read_picture(unit.image).tobytes() == result.conditions[0].tobytes()


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_picture_is_said(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(BadImage, match=r"a\.png"):
        read(path)


def test_a_picture_without_a_request_is_said(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (8, 8)).save(path)
    with pytest.raises(BadImage, match="carries no request"):
        read(path)


def test_a_damaged_request_is_said(tmp_path: Path) -> None:
    from PIL import PngImagePlugin

    path, info = tmp_path / "a.png", PngImagePlugin.PngInfo()
    info.add_itxt("disegno", '{"request": {"steps": -3}, "image": 0, "conditions": [], "environment": {}}')
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    with pytest.raises(Exception, match="steps"):
        read(path)


def test_a_sheet_shows_everything() -> None:
    page = result_sheet(_result())
    assert page.width > 3 * 256 and page.height > 256
    assert len(page.getcolors(1 << 20) or []) > 100


def test_a_sheet_of_many_is_about_square() -> None:
    page = sheet([Image.new("RGB", (32, 32))] * 9, ["x"] * 9, cell_px=64)
    assert 0.6 < page.width / page.height < 1.6
