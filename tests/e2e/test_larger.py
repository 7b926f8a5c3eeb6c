"""Drawn larger: the second pass in every way, with controls, and a picture that is only enlarged; on miniatures."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from diffusers import ControlNetModel
from PIL import Image

from disegno import ControlUnit, Request, Result, Settings, Studio, generate
from disegno.backbones import miniature
from disegno.core.errors import RequestError, UnknownName
from disegno.core.request import Hires, InitImage, Tiles, make_request
from disegno.core.result import Progress
from disegno.engine.album import Album
from disegno.engine.batch import Batch
from disegno.engine.concrete import concrete
from disegno.engine.generate import draw, open_job
from disegno.engine.record import read
from disegno.engine.second_pass import open_second
from disegno.engine.sheet import result_sheet
from disegno.engine.writing import write_picture
from disegno.weights.save import save_safetensors
from kit.drawing import result_of

pytestmark = pytest.mark.e2e

NOT_OURS = ("sample_size", "out_channels", "up_block_types")  # a ControlNet has none of these
WIDTHS = {key: value for key, value in miniature.SD1.unet_config.items() if key not in NOT_OURS}
SMALL = Request(prompt="a cat", model="mini", seed=3, steps=3, width=64, height=64, hires=Hires(scale=1.5, steps=2))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    miniature.write_sd1_checkpoint(folder / "mini.safetensors")
    miniature.write_sd1_checkpoint(folder / "other.safetensors", miniature.Miniature(seed=5))
    miniature.write_sd1_checkpoint(folder / "inpainter.safetensors", miniature.Miniature(in_channels=9))
    net = miniature.draw(ControlNetModel(**WIDTHS), 1)
    save_safetensors(folder / "plain.safetensors", net, {"disegno.mechanism": "controlnet"})
    noise = np.random.default_rng(0).integers(0, 255, (12, 16, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((128, 96)).save(folder / "photo.png")
    Image.fromarray(np.tile(np.linspace(0, 255, 64).astype(np.uint8), (64, 1))).save(folder / "ramp.png")
    return folder


@pytest.fixture(scope="module")
def studio(folder: Path) -> Iterator[Studio]:
    yield Studio(Settings(model_dirs=(folder,), cache_dir=folder / "cache", dtype="fp32", device="cpu"))


def _with(**fields: object) -> Request:
    return replace(SMALL, hires=replace(SMALL.hires, **fields))


def _pixels(result: Result) -> np.ndarray:
    return np.asarray(result.images[0])


@pytest.mark.parametrize("upscaler", ["Latent", "Latent (bicubic antialiased)", "Latent (nearest-exact)", "Lanczos"])
def test_a_second_pass_draws_larger(upscaler: str, studio: Studio) -> None:
    events = list(generate(_with(upscaler=upscaler), studio=studio))
    stages = [(event.stage, event.step, event.num_steps) for event in events if isinstance(event, Progress)]
    assert stages[-5:] == [
        ("drawing", 2, 3),
        ("drawing", 3, 3),
        ("enlarging", 0, 2),
        ("enlarging", 1, 2),
        ("enlarging", 2, 2),
    ]
    assert isinstance(events[-1], Result) and events[-1].images[0].size == (96, 96)


def test_sizes_of_the_second_pass(studio: Studio) -> None:
    assert result_of(_with(width=96, height=128), studio).images[0].size == (96, 128)
    assert result_of(_with(width=100), studio).images[0].size == (96, 96)  # whole latent cells
    with pytest.raises(RequestError, match="height"):
        make_request({"hires": {"width": 4096, "height": 8}})


def test_every_field_of_the_second_pass_counts(studio: Studio) -> None:
    changes = (
        {}, {"denoise": 0.4}, {"denoise": 0.0}, {"steps": 4}, {"sampler": "Euler"}, {"schedule": "exponential"},
        {"cfg": 1.0}, {"prompt": "a dog"}, {"negative": "blur"}, {"model": "other"}, {"upscaler": "Nearest"},
    )  # fmt: skip
    drawn = [_pixels(result_of(_with(**({"steps": 3} | change)), studio)).tobytes() for change in changes]
    assert len(set(drawn)) == len(changes)
    for bad in ({"upscaler": "Lanzcos"}, {"sampler": "Eulr"}, {"model": "nobody"}):
        with pytest.raises(UnknownName):
            next(draw(_with(**bad), studio))  # before anything is drawn


@pytest.mark.parametrize(
    ("first", "hires", "wanted"),
    [
        (("Euler", "Karras"), Hires(), ("Euler", "Karras")),
        (("Euler", "Karras"), Hires(sampler="Heun"), ("Heun", "Karras")),
        (("Euler", "Karras"), Hires(sampler="Heun Exponential"), ("Heun", "Exponential")),
        (("Euler", "Karras"), Hires(schedule="Simple"), ("Euler", "Simple")),
        (("DPM++ 2M", "Karras"), Hires(sampler="Heun"), ("Heun", "Automatic")),  # Karras is DPM++ 2M's own
    ],
)
def test_the_second_pass_is_sampled_as_the_first_but_for_what_it_says(
    first: tuple[str, str], hires: Hires, wanted: tuple[str, str], studio: Studio
) -> None:
    """A1111: a schedule that is not given is the first pass's, whatever the sampler."""
    request = replace(SMALL, sampler=first[0], schedule=first[1], hires=hires)
    found = concrete(request, studio.backbone("mini"), Album()).hires
    assert found and (found.sampler, found.schedule) == wanted


def test_controls_act_in_the_passes_that_they_are_for(folder: Path, studio: Studio) -> None:
    unit = ControlUnit(name="plain", image=str(folder / "photo.png"), annotate="canny")
    plain = result_of(SMALL, studio)
    drawn = {
        which: result_of(replace(SMALL, controls=(replace(unit, passes=which),)), studio)
        for which in ("both", "first", "hires")
    }
    assert len({_pixels(result).tobytes() for result in (plain, *drawn.values())}) == 4
    for wrong in ({"name": "nobody"}, {"annotate": "nothing"}, {"params": {"lo": 1}}, {"mask": unit.image},
                  {"annotate": "Inpaint"}, {"mix": True}):  # fmt: skip
        with pytest.raises(RequestError):
            next(draw(replace(SMALL, controls=(replace(unit, passes="hires", **wrong),)), studio))
    two = replace(SMALL, batch=2, controls=(replace(unit, passes="hires"), replace(unit, annotate="invert")))
    result = result_of(two, studio)
    assert [condition.size for condition in result.conditions] == [(96, 96), (64, 64)]  # in the request's order
    assert [result.labels[f"ControlNet {i}"].split(",")[0] for i in (0, 1)] == ["Module: canny", "Module: invert"]
    assert result_sheet(result).width > 4 * 256
    alone = [replace(SMALL, hires=None, controls=(replace(unit, passes=which),)) for which in ("both", "hires")]
    assert np.array_equal(*(_pixels(result_of(request, studio)) for request in alone))  # of a single pass
    region = replace(unit, region=str(folder / "ramp.png"), curve="1@0,0.5@1")
    assert result_of(replace(SMALL, controls=(region,)), studio).images[0].size == (96, 96)


def test_an_inpainting_model_and_parts_in_the_second_pass(folder: Path, studio: Studio) -> None:
    assert result_of(replace(SMALL, model="inpainter"), studio).images[0].size == (96, 96)
    unit = ControlUnit(name="plain", image=str(folder / "photo.png"), annotate="canny")
    tiled = replace(SMALL, controls=(unit,), tiles=Tiles(size=64), vae_tile=64)
    assert not np.array_equal(_pixels(result_of(tiled, studio)), _pixels(result_of(replace(tiled, tiles=None), studio)))


@pytest.mark.parametrize(
    "model, tiles, size",
    [("mini", Tiles(), 512), ("mini", Tiles(size=64), 64), (None, Tiles(), 128)],
    ids=["the other's own", "as said", "one model"],
)
def test_parts_have_the_size_of_the_model_that_draws_them(
    model: str | None, tiles: Tiles, size: int, studio: Studio
) -> None:
    hires = Hires(model=model, scale=2, steps=1, upscaler="Lanczos")
    request = Request(model="diorama", width=128, height=128, tiles=tiles, hires=hires)
    second = open_second(open_job(request, studio, Album()))
    assert second is not None and second.job.request.tiles is not None
    assert second.job.request.tiles.size == size


def test_a_picture_is_only_enlarged(folder: Path, studio: Studio) -> None:
    init = InitImage(image=str(folder / "photo.png"), denoise=0.0)
    enlarge = Hires(scale=2, denoise=0.0, upscaler="Lanczos")
    found = result_of(Request(model="mini", init=init, hires=enlarge), studio)
    expected = Image.open(folder / "photo.png").resize((256, 192), Image.Resampling.LANCZOS)
    assert np.array_equal(_pixels(found), np.asarray(expected))
    drawn = result_of(Request(model="mini", steps=2, init=init, hires=replace(enlarge, denoise=0.3)), studio)
    assert drawn.images[0].size == (256, 192) and not np.array_equal(_pixels(drawn), _pixels(found))


def test_a_picture_that_is_only_enlarged_is_so_from_its_own_size_on(folder: Path, studio: Studio) -> None:
    """Not from the model's: a photo would come out smaller than it was."""
    Image.new("RGB", (1000, 800), "grey").save(folder / "photo-large.png")
    Image.new("L", (6000, 30), "grey").resize((6000, 100)).save(folder / "long.png")
    hires, album = Hires(scale=2, denoise=0, upscaler="Lanczos"), Album()

    def size(name: str, denoise: float = 0.0, **fields: object) -> tuple[int | None, int | None]:
        init = InitImage(image=str(folder / name), denoise=denoise)
        asked = replace(SMALL, width=None, height=None, init=init, hires=replace(hires, **fields))
        whole = concrete(asked, studio.backbone("mini"), album)
        return whole.width, whole.height

    assert size("photo-large.png") == (1000, 800)
    width, height = size("long.png")  # no canvas is longer than 4096
    assert width and height == 72 and 4000 < width <= 4096
    assert size("photo-large.png", denoise=0.5) == size("photo-large.png", denoise=0.4) != (1000, 800)
    asked = replace(SMALL, width=None, height=None, init=InitImage(image=str(folder / "photo-large.png"), denoise=0))
    assert result_of(replace(asked, hires=hires), studio).images[0].size == (2000, 1600)


def test_a_hires_pass_has_its_controls_where_the_first_one_draws_nothing(folder: Path, studio: Studio) -> None:
    init = InitImage(image=str(folder / "photo.png"), denoise=0.0)
    unit = ControlUnit(name="plain", image=str(folder / "photo.png"), annotate="canny", passes="hires")
    request = Request(model="mini", seed=3, init=init, hires=Hires(scale=1.0, steps=2, upscaler="Lanczos"))
    plain = _pixels(result_of(request, studio))
    assert not np.array_equal(_pixels(result_of(replace(request, controls=(unit,)), studio)), plain)
    first = replace(unit, passes="first")
    assert np.array_equal(_pixels(result_of(replace(request, controls=(first,)), studio)), plain)


def test_what_is_stopped_in_the_first_pass_is_not_enlarged(studio: Studio) -> None:
    """A1111's interrupt: the picture as it stands, and not a first guess of a larger one."""
    drawing = draw(replace(SMALL, batch=2), studio)
    phase = next(drawing)
    batch = Batch(phase.backbone)
    for run in phase.runs:
        batch.add(run)
    batch.step()
    for run in phase.runs:
        run.finish()
    with pytest.raises(StopIteration) as end:
        next(drawing)
    result: Result = end.value.value
    assert [image.size for image in result.images] == [(64, 64)] * 2
    assert "the hires pass was left out" in " ".join(result.warnings)


def test_a_batch_is_enlarged_image_by_image(studio: Studio) -> None:
    together = result_of(replace(_with(upscaler="Lanczos"), batch=2), studio)
    alone = result_of(replace(_with(upscaler="Lanczos"), seed=4), studio)
    apart = np.abs(np.asarray(together.images[1]).astype(int) - _pixels(alone))
    assert apart.max() <= 2  # matrix kernels round by batch shape


def test_an_enlarged_picture_is_made_again_without_the_files(folder: Path, studio: Studio, tmp_path: Path) -> None:
    Image.open(folder / "photo.png").save(tmp_path / "photo.png")
    unit = ControlUnit(name="plain", image=str(tmp_path / "photo.png"), annotate="canny")
    result = result_of(replace(SMALL, controls=(unit,), hires=Hires(scale=1.5, denoise=0.5)), studio)
    write_picture(tmp_path / "out.png", result, 0)
    (tmp_path / "photo.png").unlink()
    assert np.array_equal(_pixels(result_of(read(tmp_path / "out.png").replay(), studio)), _pixels(result))
