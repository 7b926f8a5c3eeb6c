"""Regions: how predictions come together, where words hold, and what is refused."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from disegno.cli.request import parse_region
from disegno.core.errors import BadImage, RequestError
from disegno.core.infotext import of_image, values_of
from disegno.core.request import Region, Request, from_json, make_request, to_json
from disegno.diffusion.call import Row, Where
from disegno.diffusion.denoiser import Guidance, denoised_pair, split_rows
from disegno.diffusion.prediction import PREDICTIONS
from disegno.engine.album import Album, needs_sources, with_sources
from disegno.engine.canvas import Canvas
from disegno.engine.masks import Box, box_mask
from disegno.engine.regions import check_regions, places_of
from disegno.engine.units import Scene
from disegno.prompts.files import PromptFiles
from disegno.prompts.reading import Steps, read, write_out

pytestmark = pytest.mark.unit


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# ---- how predictions come together


def test_two_soft_regions_that_overlap_are_the_weighted_mean() -> None:
    """Worked out by hand, cell by cell, in float64: two images, three texts each, one of them in two parts."""
    shares = np.random.default_rng(1).uniform(0, 1, (3, 5, 6))
    shares[1, :, :2] = 0  # a region that ends, and one that is alone somewhere
    shares[0, :, 4:] = shares[1, :, 4:] = 0
    places = [Where(torch.from_numpy(share).float()) for share in shares]
    rows = [Row(image, True, "", 0.0, where=where) for image in (0, 1) for where in places]
    rows += [Row(image, True, "", 0.0, where=places[2], weight=0.5) for image in (0, 1)]
    rows += [Row(image, False, "", 0.0) for image in (0, 1)]
    order = [3, 8, 0, 7, 2, 9, 1, 5, 6, 4]  # rows of several lengths come in any order
    out = _random(10, 4, 5, 6)
    x, sigma = _random(2, 4, 5, 6, seed=2), torch.tensor(1.7)
    epsilon = PREDICTIONS["epsilon"]
    pair = denoised_pair(x, sigma, out[order], [rows[i] for i in order], epsilon, Guidance(4.0))

    told = out.double().numpy()
    for image in (0, 1):
        prompt, first, second, more, negative = (
            told[i] for i in (3 * image, 3 * image + 1, 3 * image + 2, 6 + image, 8 + image)
        )
        composed = negative + (second - negative) + 0.5 * (more - negative)
        mean = (shares[0] * prompt + shares[1] * first + shares[2] * composed) / shares.sum(0)
        guided = negative + 4.0 * (mean - negative)
        assert np.allclose(pair[0][image], x[image].double().numpy() - 1.7 * guided, atol=1e-4)  # float32
        assert np.allclose(pair[1][image], x[image].double().numpy() - 1.7 * negative, atol=1e-4)


def test_a_region_that_is_alone_keeps_its_bits_and_without_a_negative_row_there_is_no_guidance() -> None:
    out, where = _random(2, 4, 8, 8), Where(torch.full((8, 8), 0.3))
    rows = [Row(0, True, "a", 0.0, where=where), Row(0, False, "", 0.0)]
    positive, negative = split_rows(out, rows, 1)
    assert torch.equal(positive, out[:1]) and torch.equal(negative, out[1:])
    both = [replace(rows[0]), Row(0, True, "b", 0.0, where=Where(torch.full((8, 8), 0.9)))]
    made = denoised_pair(torch.zeros(1, 4, 8, 8), torch.tensor(1.0), -out, both, PREDICTIONS["epsilon"], Guidance(7.0))
    assert torch.allclose(made[0], 0.25 * out[:1] + 0.75 * out[1:], atol=1e-5)


def test_the_negative_prompt_is_read_under_each_regions_loras_and_the_picture_that_is_edited_too() -> None:
    left = torch.tensor([1.0, 0.0]).expand(2, 2)
    places = [Where(left), Where(1 - left)]
    rows = [Row(0, True, "", 0.0, where=where, loras=loras) for where, loras in zip(places, ("", "ink"), strict=True)]
    rows += [Row(0, False, "", 0.0, is_shown=shown, loras=loras) for shown in (True, False) for loras in ("", "ink")]
    out = torch.arange(6.0).reshape(6, 1, 1, 1).expand(6, 1, 2, 2)
    positive, negative = split_rows(out, rows, 1)
    assert positive[0, 0, 0].tolist() == [0, 1] and negative[0, 0, 0].tolist() == [2, 3]
    seen = Guidance(1.0, image_cfg=2.0)  # adds the shown negative half less the one that is not: -2 everywhere
    made = denoised_pair(torch.zeros(1, 1, 2, 2), torch.tensor(1.0), -out, rows, PREDICTIONS["epsilon"], seen)
    assert made[0][0, 0, 0].tolist() == [0 + 2 - 4, 1 + 3 - 5]


# ---- where words hold


def test_a_box_covers_pixels_in_part() -> None:
    mask = box_mask((0.125, 0.5, 1.0, 1.0), 4, 2)
    assert mask.tolist() == [[0, 0, 0, 0], [128, 255, 255, 255]]


def _places(regions: tuple[Region, ...], scene: Scene, **fields: float) -> list[np.ndarray]:
    places, _ = places_of(Request(regions=regions, **fields), scene, (scene.height // 8, scene.width // 8))
    return [place.share.numpy() for place in places]


def test_the_prompt_counts_by_its_weight_and_by_what_the_masks_leave(tmp_path: Path) -> None:
    grey = Image.new("L", (16, 16), 51)  # a fifth; fitted to a canvas of another shape
    grey.save(tmp_path / "grey.png")
    scene = Scene(Album(), 64, 32, (64, 32))
    regions = (Region(prompt="a", mask=str(tmp_path / "grey.png"), weight=3.0), Region(prompt="b", x=0.5))
    base, soft, right = _places(regions, scene, base_weight=0.4)
    assert base.shape == soft.shape == (4, 8)
    assert np.allclose(soft, 0.6) and np.allclose(right, [[0] * 4 + [1] * 4] * 4)
    assert np.allclose(base, [[0.4 + 0.8] * 4 + [0.4] * 4] * 4)


def test_a_box_and_a_mask_are_enlarged_and_cut_as_the_picture_is(tmp_path: Path) -> None:
    Image.fromarray(box_mask((0.5, 0.0, 1.0, 1.0), 64, 64)).save(tmp_path / "right.png")
    box, mask = Region(prompt="a", x=0.5), Region(prompt="a", mask=str(tmp_path / "right.png"))
    twice = Scene(Album(), 128, 128, (64, 64))
    exact, enlarged = (_places((region,), twice)[1] for region in (box, mask))
    assert exact.tolist() == [[0.0] * 8 + [1.0] * 8] * 16
    assert np.abs(enlarged - exact).max() < 0.04  # a picture's edge is softened when it is enlarged
    cut = Scene(Album(), 128, 64, (64, 64))  # the middle of what is twice as large: a lower box is cut with it
    assert np.array_equal(_places((Region(prompt="a", y=0.75),), cut)[1], np.zeros((8, 16)))
    picture = np.zeros((64, 64, 3), np.uint8)
    part = Canvas(picture, np.zeros((128, 128, 3), np.uint8), box=Box(64, 0, 128, 64))  # the upper right quarter alone
    scene = Scene(Album(), 64, 64, (64, 64), part)
    assert _places((Region(prompt="a", x=0.75),), scene)[1].tolist() == [[0.0] * 4 + [1.0] * 4] * 8
    outside, doubts = places_of(Request(regions=(Region(prompt="a", y=0.5),)), scene, (8, 8))
    assert not outside[1].holds and "Region 1 lies outside" in doubts[0]


def test_masks_that_fill_the_canvas_leave_nothing_to_a_prompt_of_no_weight(tmp_path: Path) -> None:
    Image.linear_gradient("L").save(tmp_path / "down.png")
    Image.linear_gradient("L").rotate(180).save(tmp_path / "up.png")
    regions = tuple(Region(prompt=name, mask=str(tmp_path / f"{name}.png")) for name in ("down", "up"))
    places, _ = places_of(Request(regions=regions, base_weight=0), Scene(Album(), 128, 128, (128, 128)), (16, 16))
    assert [place.holds for place in places] == [False, True, True]


# ---- words


def test_words_are_written_out_and_read_like_the_prompt(tmp_path: Path) -> None:
    (tmp_path / "wildcards").mkdir()
    (tmp_path / "wildcards" / "animal.txt").write_text("cat\ndog\nfox\nowl\n")
    files = PromptFiles((tmp_path,))
    words = ("a __animal__ # mine", "a [cat:dog:0.5] AND snow:0.3 <lora:ink:0.5>", "late :2")
    written = write_out("a __animal__", "", (), 1, files, words)
    assert written.regions[0].strip() in {"a cat", "a dog", "a fox", "a owl"}
    assert write_out("", "", (), 1, files, written.regions).regions == written.regions
    chosen = {tuple(write_out("__animal__", "", (), seed, files, ("__animal__",)).regions) for seed in range(20)}
    same = [write_out("__animal__", "", (), seed, files, ("__animal__",)) for seed in range(20)]
    assert len(chosen) == 4 and any(each.regions != (each.prompt,) for each in same)
    wording = read(written, Steps(10))
    second = wording.regions[1]
    assert [len(line.spans) for line in second.parts] == [2, 1] and second.parts[1].weight == 0.3
    assert [(use.name, use.strength) for use in second.loras] == [("ink", 0.5)] and not wording.loras
    assert "Region 3's words end in :2" in wording.warnings[0]


def test_too_many_parts_are_an_error() -> None:
    written = write_out("a", "", (), 1, PromptFiles(()), (" AND ".join("a" * 100), " AND ".join("b" * 28)))
    with pytest.raises(RequestError, match="129 parts"):
        read(written, Steps(10))


# ---- what is asked, and what is refused


def test_the_request_keeps_its_regions_and_its_record_their_masks() -> None:
    regions = (Region(prompt="a", x=0.25, w=0.5, weight=2.0), Region(prompt="b", mask="left.png"))
    request = Request(prompt="c", regions=regions, base_weight=0.5)
    assert from_json(to_json(request)) == request
    assert needs_sources(request) and not needs_sources(replace(request, regions=regions[:1]))
    assert (
        with_sources(request, {"left.png": "data:image/png;base64,AA=="}).regions[1].mask
        == "data:image/png;base64,AA=="
    )


def test_an_images_text_says_its_own_words() -> None:
    regions = (Region(prompt="__x__", prompts=("a cat", "a dog"), y=0.5), Region(prompt="b", mask="m.png", weight=2))
    values = values_of(of_image(Request(regions=regions, batch=2), 1), 1, 1, {})
    assert (values["Region 1"], values["Region 2"]) == ("a dog (x=0 y=0.5 weight=1)", "b (mask weight=2)")


@pytest.mark.parametrize(
    ("region", "said"),
    [
        ({"x": 0.6, "w": 0.5}, "x \\+ w is 1.1"),
        ({"y": 1.0}, "less than 1"),
        ({"h": 0}, "greater than 0"),
        ({"x": -0.1}, "greater than or equal to 0"),
        ({"mask": "a.png", "x": 0.5}, "box or a mask"),
        ({"weight": 0}, "greater than 0"),
        ({"prompt": ""}, "at least 1 character"),
        ({"prompts": ["a", "b"]}, "2 regions.0.prompts for a batch of 1"),
        ({"width": 3}, "width"),
    ],
)
def test_a_wrong_region_is_said(region: dict[str, object], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        make_request({"regions": [{"prompt": "a"} | region]})


def test_too_many_regions_are_said() -> None:
    with pytest.raises(RequestError, match=r"regions: .*at most 16"):
        make_request({"regions": [{"prompt": "a"}] * 17})


def test_a_mask_that_is_black_or_none_is_said(tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "black.png")
    check_regions((Region(prompt="a"),), Album())
    with pytest.raises(RequestError, match=r"mask of region 2, .*black\.png, is black everywhere"):
        check_regions((Region(prompt="a"), Region(prompt="b", mask=str(tmp_path / "black.png"))), Album())
    with pytest.raises(BadImage, match=r"none\.png"):
        check_regions((Region(prompt="a", mask="none.png"),), Album())


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("x=0.5,w=0.6", "beyond the canvas"),
        ("left", "left is none of x, y, w, h, mask, weight"),
        ("prompt=b", "prompt is none of"),
        ("w=wide", "w: .*number"),
    ],
)
def test_a_region_that_cannot_be_read_is_said(place: str, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        parse_region("a red car", place)


def test_a_region_of_the_command_line() -> None:
    own = {"prompt": "a, red=car", "prompts": (), "mask": None, "x": 0.0, "y": 0.5, "w": 0.5, "h": None, "weight": 2.0}
    assert parse_region("a, red=car", "x=0,y=0.5,w=0.5,weight=2") == own
    masked: Callable[[str], object] = lambda text: parse_region("a", text)["mask"]  # noqa: E731
    assert masked("mask=a,b.png,weight=2") == "a,b.png"
