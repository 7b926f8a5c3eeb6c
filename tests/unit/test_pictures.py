"""Pictures from outside are read safely, and fitted to a canvas as A1111 fits them."""

import base64
import json
import struct
import zlib
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from disegno.annotators.base import Picture
from disegno.annotators.maps import kind_of
from disegno.core.errors import BadImage
from disegno.core.request import ResizeMode
from disegno.engine.pictures import (
    Limits,
    fit,
    pixel_perfect_resolution,
    read_channels,
    read_picture,
    resize_image,
    to_rgb,
)

pytestmark = pytest.mark.unit

GOLDEN = Path(__file__).parent.parent / "golden"
MODES: dict[str, ResizeMode] = {"Just Resize": "stretch", "Crop and Resize": "crop", "Resize and Fill": "fill"}


def load(name: str) -> list[dict[str, Any]]:
    return json.loads((GOLDEN / "vectors" / f"{name}.json").read_text("utf-8"))["cases"]


def case_id(case: dict[str, Any]) -> str:
    what = case.get("image") or f"{case['image_w']}x{case['image_h']}"
    return f"{what}-{case.get('resize_mode', 'all')}-{case['target_w']}x{case['target_h']}"


def png(text: str) -> Picture:
    return np.array(Image.open(BytesIO(base64.b64decode(text))))


def save(image: Image.Image, path: Path, **options: Any) -> Path:
    image.save(path, **options)
    return path


def uri(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def png_bytes(image: Image.Image) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


GRADIENT = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)


@pytest.mark.parametrize("case", load("controlnet_resize"), ids=case_id)
def test_fits_as_a1111(case: dict[str, Any]) -> None:
    picture, expected = png(case["input_png"]), png(case["expected_png"])
    if "inpaint" not in case["module"]:
        picture = to_rgb(picture)
    fitted = fit(picture, case["target_w"], case["target_h"], MODES[case["resize_mode"]])
    assert fitted.shape == expected.shape and fitted.dtype == np.uint8
    # black-and-white maps and labels: equal; else 2 levels for another OpenCV's interpolation and A1111's floats (RGBA)
    exact = fitted.shape[2] == 3 and kind_of(picture) != "picture"
    assert np.abs(fitted.astype(int) - expected).max() <= (0 if exact else 2)


@pytest.mark.parametrize("case", load("pixel_perfect"), ids=case_id)
def test_pixel_perfect_as_a1111(case: dict[str, Any]) -> None:
    picture = np.zeros((case["image_h"], case["image_w"], 3), np.uint8)
    for name, expected in case["expected"].items():
        assert pixel_perfect_resolution(picture, case["target_w"], case["target_h"], MODES[name]) == expected


@pytest.mark.parametrize("case", load("controlnet_hwc3"))
def test_transparency_is_laid_on_white_as_controlnet_does(case: dict[str, Any]) -> None:
    assert np.array_equal(to_rgb(np.array(case["input"], np.uint8)), np.array(case["expected"]))


def test_sizes_and_channels_as_ctrlora() -> None:
    golden = np.load(GOLDEN / "ctrlora_annotators.npz")
    assert np.array_equal(to_rgb(golden["in.rgba"]), golden["out.HWC3.rgba"])
    assert np.array_equal(to_rgb(golden["in.gray"]), golden["out.HWC3.gray"])
    for resolution in (128, 256):
        resized = resize_image(golden["in.rgb"], resolution).astype(int)
        assert np.abs(resized - golden[f"out.resize_image.{resolution}"]).max() <= 2  # another build's interpolation


@pytest.mark.parametrize("mode", ["stretch", "crop", "fill"])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (200, 3)])
def test_the_smallest_pictures_fit(mode: ResizeMode, size: tuple[int, int]) -> None:
    assert fit(np.full((*size, 3), 90, np.uint8), 64, 48, mode).shape == (48, 64, 3)


def test_a_fit_is_a_new_picture() -> None:
    for mode in MODES.values():
        assert not np.shares_memory(fit(GRADIENT, 7, 5, mode), GRADIENT)
    with pytest.raises(BadImage, match="crop it first"):
        fit(np.zeros((1, 5000, 3), np.uint8), 4096, 4096, "crop")


def test_lines_of_one_pixel_stay_thin_when_enlarged() -> None:
    edges = np.zeros((64, 64, 3), np.uint8)
    edges[20, 5:60] = edges[5:60, 40] = 255
    large = fit(edges, 256, 256)
    assert kind_of(edges) == kind_of(large) == "edges"
    assert np.count_nonzero(large[:, :, 0]) < 1.1 * 4 * np.count_nonzero(edges[:, :, 0])


def test_reads_paths_and_data_uris_alike(tmp_path: Path) -> None:
    path = save(Image.fromarray(GRADIENT), tmp_path / "a.png")
    for source in (
        path,
        str(path),
        uri(path.read_bytes()),
        "data:;base64," + base64.b64encode(path.read_bytes()).decode(),
    ):
        assert np.array_equal(read_picture(source), GRADIENT)


def test_turns_as_exif_says(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned a quarter to the right
    path = save(Image.fromarray(GRADIENT), tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_picture(path), np.rot90(GRADIENT, -1))


def test_reads_every_kind_of_pixel(tmp_path: Path) -> None:
    grey = np.array([[0, 128, 255]], np.uint8)
    three = np.repeat(grey[:, :, None], 3, axis=2)
    modes = {"L": grey, "LA": np.stack([grey, np.full_like(grey, 255)], 2), "RGB": three}
    for mode, array in modes.items():
        assert np.array_equal(read_picture(save(Image.fromarray(array), tmp_path / f"{mode}.png")), three)
    assert read_picture(save(Image.fromarray(grey).convert("1"), tmp_path / "1.png"))[0, 2].tolist() == [255, 255, 255]
    cmyk = read_picture(save(Image.fromarray(three).convert("CMYK"), tmp_path / "c.tiff"))
    assert np.abs(cmyk.astype(int) - three).max() <= 2  # Pillow's conversion and back
    assert np.array_equal(read_picture(save(Image.fromarray(grey), tmp_path / "p.gif")), three)


def test_sixteen_bits_become_eight_by_rounding(tmp_path: Path) -> None:
    deep = np.array([[0, 128, 129, 257 * 77, 65535]], np.uint16)
    assert read_picture(save(Image.fromarray(deep), tmp_path / "a.png"))[0, :, 0].tolist() == [0, 0, 1, 77, 255]


def test_transparent_pictures(tmp_path: Path) -> None:
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[0] = (10, 20, 30, 255)
    path = save(Image.fromarray(rgba), tmp_path / "a.png")
    assert read_picture(path)[:, 0].tolist() == [[10, 20, 30], [255, 255, 255]]
    assert np.array_equal(read_channels(path), rgba)
    palette = Image.fromarray(np.array([[0, 1]], np.uint8))
    palette.putpalette([9, 9, 9, 200, 0, 0])
    assert read_picture(save(palette, tmp_path / "p.png", transparency=0)).tolist() == [[[255] * 3, [200, 0, 0]]]


def test_an_animation_is_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    path = save(frames[0], tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert read_picture(path)[0, 0].tolist() == [255, 0, 0]


def bomb(width: int, height: int) -> bytes:
    """A PNG that says it is enormous."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IEND" + struct.pack(">I", zlib.crc32(b"IEND"))


@pytest.mark.parametrize("size", [(9000, 9000), (12_000, 9000), (100_000, 100_000)])
def test_enormous_pictures_are_refused_before_they_are_unpacked(size: tuple[int, int]) -> None:
    with pytest.raises(BadImage, match="pixels"):
        read_picture(uri(bomb(*size)))


def test_damaged_files_are_refused() -> None:
    whole = png_bytes(Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)))
    random = np.random.default_rng(1)
    for data in (whole[: len(whole) // 2], whole[:40], whole[:8], b"", b"hello", b"GIF89a", bytes(random.bytes(500))):
        with pytest.raises(BadImage, match="cannot be read as a picture"):
            read_picture(uri(data))


@pytest.mark.parametrize("seed", range(40))
def test_a_file_with_wrong_bytes_is_read_or_refused(seed: int) -> None:
    random = np.random.default_rng(seed)
    buffer = BytesIO()
    Image.fromarray(GRADIENT.repeat(4, axis=0)).save(
        buffer, format=("PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "PPM")[seed % 7]
    )
    data = bytearray(buffer.getvalue())
    for _ in range(4):
        data[random.integers(len(data))] = random.integers(256)
    with suppress(BadImage):
        assert read_picture(uri(bytes(data)), Limits(max_pixels=10**6)).dtype == np.uint8


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("data:image/png,abc", "must begin with data:image"),
        ("data:image/png;base64,%%%%", "not base64"),
        ("data:image/png;base64," + "A" * 10_000, "which is the most"),
        ("data:image/svg+xml;base64," + base64.b64encode(b"<svg/>").decode(), "cannot be read as a picture"),
        ("nothing/here.png", "No such file"),
        ("http://example.com/a.png", "cannot be opened"),
        ("a\0b", "cannot be opened"),
        (".", "Is a directory"),
    ],
)
def test_sources_that_are_none_are_explained(source: str, says: str) -> None:
    with pytest.raises(BadImage, match=says):
        read_picture(source, Limits(max_bytes=1000))


def test_files_that_are_too_long_are_not_read(tmp_path: Path) -> None:
    path = save(Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)), tmp_path / "a.png")
    with pytest.raises(BadImage, match="at most 1000 are read"):
        read_picture(path, Limits(max_bytes=1000))


def test_a_server_reads_no_files(tmp_path: Path) -> None:
    path = save(Image.fromarray(GRADIENT), tmp_path / "a.png")
    with pytest.raises(BadImage, match="files are not read here"):
        read_picture(path, Limits(paths=False))
    assert read_picture(uri(path.read_bytes()), Limits(paths=False)).shape == (5, 7, 3)


def test_numbers_without_a_known_white_are_refused(tmp_path: Path) -> None:
    path = save(Image.fromarray(np.zeros((2, 2), np.float32)), tmp_path / "a.tiff")
    with pytest.raises(BadImage, match="floating-point"):
        read_picture(path)
    with pytest.raises(BadImage, match="1, 3 or 4 channels"):
        to_rgb(np.zeros((2, 2, 2), np.uint8))


def test_wrong_bytes_in_exif_are_read_past_or_refused() -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "hi"
    buffer = BytesIO()
    Image.fromarray(GRADIENT).save(buffer, format="JPEG", exif=exif)
    for place in range(20, 90):
        for value in (63, 84):  # byte 41 so makes Pillow 13 raise TypeError and struct.error
            data = bytearray(buffer.getvalue())
            data[place] = value
            with suppress(BadImage):
                read_picture(uri(bytes(data)), Limits(max_pixels=10**6))
