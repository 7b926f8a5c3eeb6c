"""Pictures from pictures, on miniatures: changed, filled in, grown, drawn in parts, and all of it with controls."""

import base64
import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel
from PIL import Image

from disegno import ControlUnit, Request, Result, Settings, Studio
from disegno.backbones import miniature
from disegno.core.errors import RequestError
from disegno.core.loopback import Loops, next_loop
from disegno.core.request import Hires, InitImage, Outpaint, Tiles
from disegno.core.result import Progress
from disegno.engine.album import Album
from disegno.engine.batch import Batch
from disegno.engine.canvas import size_for
from disegno.engine.concrete import concrete
from disegno.engine.generate import draw, open_job
from disegno.engine.loops import draw_loops
from disegno.engine.record import data_uri, read
from disegno.engine.units import Scene, region_of, shown_to
from disegno.engine.writing import write_picture
from disegno.weights.save import save_safetensors
from kit.drawing import result_of

pytestmark = pytest.mark.e2e

NOT_OURS = ("sample_size", "out_channels", "up_block_types")  # a ControlNet has none of these
WIDTHS = {key: value for key, value in miniature.SD1.unet_config.items() if key not in NOT_OURS}
SMALL = Request(prompt="a cat", model="mini", seed=3, steps=4, width=64, height=64)
LEVELS = 2  # of 255: matrix kernels round by batch shape


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name, channels in (("mini", 4), ("inpainter", 9), ("editor", 8)):
        made = miniature.Miniature(in_channels=channels)
        miniature.write_sd1_checkpoint(folder / f"{name}.safetensors", made)
    net = miniature.draw(ControlNetModel(**WIDTHS), 1)
    save_safetensors(folder / "plain.safetensors", net, {"disegno.mechanism": "controlnet"})
    noise = np.random.default_rng(0).integers(0, 255, (12, 16, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((128, 96)).save(folder / "photo.png")
    Image.fromarray(noise[:8, :8]).resize((64, 64)).save(folder / "square.png")
    mask = np.zeros((64, 64), np.uint8)
    mask[20:44, 24:40] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    large = np.zeros((96, 128), np.uint8)
    large[40:60, 70:100] = 255
    Image.fromarray(large).save(folder / "large_mask.png")
    Image.fromarray(np.tile(np.linspace(0, 255, 64).astype(np.uint8), (64, 1))).save(folder / "ramp.png")
    for name, value in (("white", 255), ("black", 0)):
        Image.new("L", (64, 64), value).save(folder / f"{name}.png")
    return folder


@pytest.fixture(scope="module")
def studio(folder: Path) -> Iterator[Studio]:
    yield Studio(Settings(model_dirs=(folder,), cache_dir=folder / "cache", dtype="fp32", device="cpu"))


def _pixels(result: Result, image: int = 0) -> np.ndarray:
    return np.asarray(result.images[image])


def _from(folder: Path, image: str = "square.png", mask: str | None = None, **fields: object) -> Request:
    given = {"image": str(folder / image), "mask": str(folder / mask) if mask else None}
    return replace(SMALL, init=InitImage(**(given | fields)))


def _unit(folder: Path, **fields: object) -> ControlUnit:
    given: dict[str, object] = {"name": "plain", "image": str(folder / "photo.png"), "annotate": "canny"}
    return ControlUnit(**(given | fields))


def _load(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_the_less_is_drawn_anew_the_more_the_picture_stays(folder: Path, studio: Studio) -> None:
    whole = _pixels(result_of(SMALL, studio)).astype(int)
    drawn = [_pixels(result_of(_from(folder, denoise=d), studio)).astype(int) for d in (0.0, 0.3, 0.6, 1.0)]
    assert np.array_equal(drawn[0], _load(folder / "square.png"))  # nothing is drawn: the very picture
    apart = [np.abs(d - drawn[1]).mean() for d in (drawn[2], drawn[3], whole)]
    assert 0 < apart[0] < apart[1]


@pytest.mark.parametrize("sampler", ["DPM++ 2M SDE", "DDIM", "UniPC", "DPM adaptive", "Heun", "LCM"])
def test_samplers_of_every_kind_change_a_picture(sampler: str, folder: Path, studio: Studio) -> None:
    request = replace(_from(folder, denoise=0.5), sampler=sampler)
    first, second = result_of(request, studio), result_of(replace(request, seed=4), studio)
    assert not np.array_equal(_pixels(first), _pixels(second))


def test_a_loop_changes_what_the_one_before_it_drew(folder: Path, studio: Studio) -> None:
    """As if each were given back by hand, with the next seed; from the second on what is masked begins as it is."""
    request = _from(folder, mask="mask.png", denoise=0.8, fill="noise")
    events = list(draw_loops(request, Loops(2, last=0.4), studio=studio))
    first, second = (event for event in events if isinstance(event, Result))
    assert np.array_equal(_pixels(first), _pixels(result_of(request, studio)))
    assert (first.seeds, second.seeds) == ((3,), (4,))
    assert request.init is not None
    init = replace(request.init, image=data_uri(first.images[0]), denoise=0.4, fill="original")
    assert np.array_equal(_pixels(second), _pixels(result_of(replace(request, seed=4, init=init), studio)))
    assert {event.num_parts for event in events if isinstance(event, Progress)} == {2}
    for wrong in (SMALL, replace(request, batch=2), replace(_from(folder), hires=Hires())):
        with pytest.raises(RequestError, match="one at a time"):
            next(draw_loops(wrong, Loops(2), studio=studio))


def test_every_loop_has_the_size_of_the_first(folder: Path) -> None:
    """A picture's own size is rounded to whole cells; what came of it, looked at anew, could come out smaller."""
    request = replace(_from(folder, "photo.png"), width=None, height=None)
    Image.new("RGB", (558, 630), "grey").save(folder / "tall.png")
    album, init = Album(), InitImage(image=str(folder / "tall.png"))
    first = size_for(init, (None, None), (64, 64), album)
    Image.new("RGB", first, "grey").save(folder / "first.png")
    assert size_for(replace(init, image=str(folder / "first.png")), (None, None), (64, 64), album) != first
    drawn = replace(request, width=first[0], height=first[1])
    again = next_loop(drawn, request, "data:image/png;base64,", 0.5)
    assert (again.width, again.height) == first


def test_without_a_size_the_pictures_shape_is_kept(folder: Path, studio: Studio) -> None:
    request = replace(_from(folder, "photo.png"), width=None, height=None)
    result = result_of(request, studio)
    assert result.images[0].size == (result.request.width, result.request.height) == (128, 96)
    assert result_of(replace(request, width=192), studio).images[0].size == (192, 144)


def test_a_picture_larger_than_the_models_own_is_made_smaller_in_its_shape(folder: Path) -> None:
    init, album = InitImage(image=str(folder / "photo.png")), Album()  # 128 x 96
    assert size_for(init, (None, None), (64, 64), album) == (72, 56)
    assert size_for(init, (None, 192), (64, 64), album) == (256, 192)
    grown = replace(init, outpaint=Outpaint(left=32))
    assert size_for(grown, (None, None), (128, 128), album) == (160, 96)
    assert size_for(grown, (96, None), (128, 128), album) == (96, 48)


def test_more_noise_and_another_colour_change_the_result(folder: Path, studio: Studio) -> None:
    plain = _pixels(result_of(_from(folder), studio))
    for fields in ({"noise": 0.8}, {"extra_noise": 0.2}, {"colour_correction": True}, {"exact_steps": True}):
        assert not np.array_equal(_pixels(result_of(_from(folder, **fields), studio)), plain), fields


@pytest.mark.parametrize("mode", ["stretch", "crop", "fill", "latent"])
def test_pictures_of_another_shape_are_fitted(mode: str, folder: Path, studio: Studio) -> None:
    assert result_of(_from(folder, "photo.png", resize=mode), studio).images[0].size == (64, 64)


def test_what_is_not_masked_stays_bit_for_bit(folder: Path, studio: Studio) -> None:
    original = _load(folder / "square.png")
    seen = []
    for fill in ("original", "fill", "noise", "nothing"):
        found = _pixels(result_of(_from(folder, mask="mask.png", fill=fill, mask_blur=1), studio))
        assert np.array_equal(found[:16], original[:16]) and np.array_equal(found[:, :20], original[:, :20])
        assert not np.array_equal(found[24:40, 28:36], original[24:40, 28:36])
        seen.append(found.tobytes())
    assert len(set(seen)) == 4
    inverted = _pixels(result_of(_from(folder, mask="mask.png", invert=True, mask_blur=0), studio))
    assert np.array_equal(inverted[20:44, 24:40], original[20:44, 24:40])


@pytest.mark.parametrize("mode", ["binary", "soft", "differential"])
def test_grey_masks_draw_and_hold(mode: str, folder: Path, studio: Studio) -> None:
    found = _pixels(result_of(_from(folder, mask="ramp.png", mask_mode=mode, mask_blur=0, denoise=1.0), studio)).astype(
        int
    )
    apart = np.abs(found - _load(folder / "square.png")).mean(axis=(0, 2))
    assert apart[0] == 0 and apart[48:].mean() > apart[:16].mean()


def test_the_masked_part_alone_is_put_back_into_the_whole_picture(folder: Path, studio: Studio) -> None:
    request = _from(folder, "photo.png", "large_mask.png", only_masked=True, padding=4, mask_blur=1)
    found, original = _pixels(result_of(request, studio)), _load(folder / "photo.png")
    assert found.shape == original.shape
    assert np.array_equal(found[:36], original[:36]) and np.array_equal(found[:, :66], original[:, :66])
    assert not np.array_equal(found[44:56, 74:96], original[44:56, 74:96])


def test_a_picture_grows_around_itself(folder: Path, studio: Studio) -> None:
    grown = _from(folder, outpaint=Outpaint(left=32, bottom=16), mask_blur=1, denoise=1.0)
    found = _pixels(result_of(replace(grown, width=96, height=80), studio))
    original = _load(folder / "square.png")
    assert found.shape == (80, 96, 3)
    assert np.array_equal(found[:58, 38:], original[:58, 6:])  # but for the seam
    assert result_of(replace(grown, width=None, height=None), studio).images[0].size == (96, 80)


def test_a_mask_that_masks_nothing_is_said(folder: Path, studio: Studio) -> None:
    with pytest.raises(RequestError, match="black everywhere"):
        result_of(_from(folder, mask="black.png"), studio)
    with pytest.raises(RequestError, match="no room"):
        result_of(_from(folder, outpaint=Outpaint(left=64)), studio)


def test_what_decides_nothing_is_said(folder: Path, studio: Studio) -> None:
    plain = result_of(_from(folder), studio)
    said = result_of(replace(_from(folder, fill="noise", mask_blur=9), image_cfg=3.0, seed_width=128), studio)
    assert np.array_equal(_pixels(plain), _pixels(said)) and not plain.warnings
    assert said.warnings == (
        "There is no mask, of which fill, mask_blur is said: it was passed over.",
        "image_cfg was passed over: it is for models that edit by instruction.",
        "The noise was drawn as for the picture itself: seed_width and seed_height go together.",
    )


def test_a_negative_prompt_that_decides_nothing_is_said(studio: Studio) -> None:
    alone = replace(SMALL, steps=1, cfg=1.0, negative="blur")
    assert result_of(alone, studio).warnings == (
        "The negative prompt was passed over: at a guidance of 1 (cfg) nothing is kept away from.",
    )
    others: tuple[dict[str, object], ...] = (
        {"negative": " "},
        {"prompt": "a cat AND a dog"},
        {"prompt": "a cat :0.5"},
        {"sampler": "DDIM CFG++"},
        {"hires": Hires(scale=1.0, cfg=4.0)},
    )
    for heard in others:
        said = result_of(replace(alone, **heard), studio).warnings
        assert not any("negative" in warning for warning in said), heard


def test_an_inpainting_model_sees_the_picture_around_the_hole(folder: Path, studio: Studio) -> None:
    request = replace(_from(folder, mask="mask.png", denoise=1.0, fill="nothing"), model="inpainter")
    found = _pixels(result_of(request, studio))
    assert np.array_equal(found[:8], _load(folder / "square.png")[:8])
    other = replace(request, init=replace(request.init, image=str(folder / "photo.png")))
    assert not np.array_equal(_pixels(result_of(other, studio))[28:36, 28:36], found[28:36, 28:36])
    weighed = result_of(replace(request, init=replace(request.init, mask_weight=0.5)), studio)
    assert not np.array_equal(_pixels(weighed), found)
    assert weighed.labels["Conditional mask weight"] == "0.5"
    assert result_of(replace(SMALL, model="inpainter"), studio).images  # without a picture: all of it is the hole

    def holes(mode: str) -> set[float]:
        init = replace(request.init, mask=str(folder / "ramp.png"), mask_mode=mode)
        (run,) = next(draw(replace(request, init=init), studio)).runs
        return set() if run.extra is None else set(run.extra[0, 0].flatten().tolist())

    assert holes("binary") == holes("differential") == {0.0, 1.0} and len(holes("soft")) > 2


def test_an_editing_model_weighs_the_picture(folder: Path, studio: Studio) -> None:
    request = replace(_from(folder, denoise=1.0), model="editor")
    drawn = [_pixels(result_of(replace(request, image_cfg=w, cfg=c), studio)) for w, c in ((1, 1), (1.5, 1), (1.5, 4))]
    assert len({d.tobytes() for d in drawn}) == 3
    paused = result_of(replace(request, steps=1, image_cfg=2.0, cfg_start=1.0), studio)
    assert paused.labels["Image CFG scale"] == "2.0" and paused.warnings[0].startswith("cfg_start and negative_min")
    with pytest.raises(RequestError, match="edits a picture"):
        result_of(replace(SMALL, model="editor"), studio)


def test_controls_act_on_changed_pictures_and_may_look_at_them(folder: Path, studio: Studio) -> None:
    request = _from(folder, mask="mask.png")
    plain = _pixels(result_of(request, studio))
    own = result_of(replace(request, controls=(_unit(folder, image=None),)), studio)
    other = result_of(replace(request, controls=(_unit(folder),)), studio)
    assert len({plain.tobytes(), _pixels(own).tobytes(), _pixels(other).tobytes()}) == 3
    direct = replace(request, controls=(_unit(folder, image=str(folder / "square.png")),))
    assert np.array_equal(_pixels(result_of(direct, studio)), _pixels(own))
    inpainter = replace(request, model="inpainter", controls=(_unit(folder),))
    assert result_of(inpainter, studio).images  # a control of 4 channels serves a model of 9


def test_a_base_that_a_control_does_not_stand_on_is_said(folder: Path, studio: Studio) -> None:
    result = result_of(replace(SMALL, controls=(_unit(folder, base="any"),)), studio)
    assert any("base does nothing" in warning for warning in result.warnings)


def test_a_control_is_cut_as_the_masked_part_is(folder: Path, studio: Studio) -> None:
    request = _from(folder, "photo.png", "large_mask.png", only_masked=True, padding=4)
    whole = _unit(folder, annotate="none", crop=False)
    shown = [
        np.asarray(result_of(replace(request, controls=(unit,)), studio).conditions[0]).astype(int)
        for unit in (_unit(folder, annotate="none"), _unit(folder, annotate="none", image=None), whole)
    ]
    assert np.abs(shown[0] - shown[1]).mean() < 6  # the same part, enlarged by two resampling filters
    assert np.abs(shown[0] - shown[2]).mean() > 20


def test_a_control_that_inpaints_is_shown_the_hole(folder: Path, studio: Studio) -> None:
    request = _from(folder, mask="mask.png")
    units = (
        _unit(folder, image=None, annotate="inpaint"),
        _unit(folder, image=None, annotate="none"),
        _unit(folder, image=None, annotate=None, mask=str(folder / "mask.png")),
    )
    drawn = [_pixels(result_of(replace(request, controls=(unit,)), studio)).tobytes() for unit in units]
    assert drawn[0] != drawn[1]
    with pytest.raises(RequestError, match="there is no mask"):
        result_of(replace(SMALL, controls=(_unit(folder, annotate="inpaint"),)), studio)
    with pytest.raises(RequestError, match="region"):
        result_of(replace(SMALL, controls=(_unit(folder, mask=str(folder / "mask.png")),)), studio)


def test_a_region_of_white_is_everywhere_and_of_black_is_nowhere(folder: Path, studio: Studio) -> None:
    everywhere = _pixels(result_of(replace(SMALL, controls=(_unit(folder),)), studio))
    found = [
        _pixels(result_of(replace(SMALL, controls=(_unit(folder, region=str(folder / f"{name}.png")),)), studio))
        for name in ("white", "black", "ramp")
    ]
    assert np.array_equal(found[0], everywhere)
    assert np.array_equal(found[1], _pixels(result_of(SMALL, studio)))
    assert not np.array_equal(found[2], everywhere) and not np.array_equal(found[2], found[1])


def test_parts_of_a_canvas(folder: Path, studio: Studio) -> None:
    controls = (_unit(folder, region=str(folder / "ramp.png")),)
    request = replace(SMALL, width=96, height=64, controls=controls, tiles=Tiles(size=64))
    drawn = result_of(request, studio)
    assert drawn.images[0].size == (96, 64) and drawn.conditions[0].size == (96, 64)
    assert not np.array_equal(_pixels(drawn), _pixels(result_of(replace(request, tiles=None), studio)))
    small = replace(SMALL, controls=controls)
    assert np.array_equal(_pixels(result_of(replace(small, tiles=Tiles()), studio)), _pixels(result_of(small, studio)))


def test_the_vae_in_parts(folder: Path, studio: Studio) -> None:
    request = replace(SMALL, width=256, height=128, steps=1)
    whole, parts = (_pixels(result_of(replace(request, vae_tile=t), studio)).astype(int) for t in (0, 128))
    assert not np.array_equal(whole, parts) and np.abs(whole - parts).mean() < 12  # norms see a part only


def test_a_large_picture_that_is_stretched_in_the_latent_space_is_encoded_in_parts(
    folder: Path, studio: Studio
) -> None:
    """It is encoded at its own size: a photo of 24 million pixels at once would take more memory than there is."""
    Image.new("RGB", (1200, 1000), "grey").save(folder / "large.png")
    album, backbone = Album(), studio.backbone("mini")

    def tile(request: Request) -> int | None:
        return concrete(request, backbone, album).vae_tile

    large = _from(folder, "large.png", resize="latent")
    assert (tile(large), tile(_from(folder, "large.png")), tile(replace(large, vae_tile=0))) == (512, 0, 0)


def test_different_kinds_in_one_batch_are_what_they_are_alone(folder: Path, studio: Studio) -> None:
    requests = [
        replace(SMALL, controls=(_unit(folder, region=str(folder / "ramp.png"), curve="1@0,0.3@1"),)),
        replace(_from(folder, mask="mask.png", exact_steps=True), seed=8, sampler="DDIM"),
        replace(SMALL, width=96, tiles=Tiles(size=64), seed=9, controls=(_unit(folder),)),
    ]
    drawings = [draw(request, studio) for request in requests]
    phases = [next(drawing) for drawing in drawings]
    batch = Batch(phases[0].backbone)
    for phase in phases:
        for run in phase.runs:
            batch.add(run)
    while batch.runs:
        batch.step()
    for drawing, request in zip(drawings, requests, strict=True):
        with pytest.raises(StopIteration) as end:
            next(drawing)
        together, alone = _pixels(end.value.value).astype(int), _pixels(result_of(request, studio)).astype(int)
        assert np.abs(together - alone).max() <= LEVELS


def test_a_changed_picture_is_made_again_without_the_files(folder: Path, studio: Studio, tmp_path: Path) -> None:
    for name in ("square", "mask", "photo", "ramp"):
        Image.open(folder / f"{name}.png").save(tmp_path / f"{name}.png")
    control = _unit(tmp_path, region=str(tmp_path / "ramp.png"))
    request = replace(_from(tmp_path, mask="mask.png"), controls=(control,))
    result = result_of(request, studio)
    write_picture(tmp_path / "out.png", result, 0)
    for name in ("square", "mask", "photo", "ramp"):
        (tmp_path / f"{name}.png").unlink()
    again = result_of(read(tmp_path / "out.png").replay(), studio)
    assert np.array_equal(_pixels(again), _pixels(result))


def test_weights_stay_as_they_were(folder: Path, studio: Studio) -> None:
    net = studio.backbone("mini").net
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    result_of(replace(_from(folder, mask="mask.png"), controls=(_unit(folder),)), studio)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_a_picture_of_which_nothing_is_drawn_anew_stays_whatever_the_steps(folder: Path, studio: Studio) -> None:
    kept = result_of(_from(folder, denoise=0.0, exact_steps=True), studio)
    assert np.array_equal(_pixels(kept), _load(folder / "square.png"))


@pytest.mark.parametrize("upscaler", ["Latent", "Lanczos"])
def test_colours_are_corrected_whatever_enlarges(folder: Path, studio: Studio, upscaler: str) -> None:
    hires = Hires(scale=1.5, denoise=0.0, upscaler=upscaler)
    plain, corrected = (
        _pixels(result_of(replace(_from(folder, denoise=0.9, colour_correction=on), hires=hires), studio))
        for on in (False, True)
    )
    wanted = _load(folder / "square.png").mean((0, 1))
    assert np.abs(corrected.mean((0, 1)) - wanted).max() < np.abs(plain.mean((0, 1)) - wanted).max()
    assert not np.array_equal(plain, corrected)


@pytest.mark.parametrize("resize", ["crop", "stretch"])
def test_a_drawing_of_the_changed_picture_is_made_before_it_is_fitted(
    resize: str, folder: Path, studio: Studio
) -> None:
    request = replace(_from(folder, "photo.png", resize=resize), width=64, height=64)
    job = open_job(request, studio, Album())
    scene = Scene(job.album, 64, 64, (64, 64), job.canvas)
    own, given = (shown_to(_unit(folder, image=i), scene, None) for i in (None, str(folder / "photo.png")))
    assert np.array_equal(own.picture, given.picture) == (resize == "crop")  # the unit's own way of fitting is crop
    stretched = _unit(folder, resize=resize)
    assert np.array_equal(own.picture, shown_to(stretched, scene, None).picture)


def test_a_units_masks_are_cut_as_the_masked_part_is(folder: Path, studio: Studio) -> None:
    photo, mask = str(folder / "photo.png"), str(folder / "large_mask.png")
    request = _from(folder, "photo.png", "large_mask.png", only_masked=True, padding=16)
    holes = [_unit(folder, image=image, mask=mask, annotate="inpaint") for image in (None, photo)]
    regions = [_unit(folder, region=mask, crop=crop) for crop in (True, False)]
    job = open_job(replace(request, controls=(*holes, *regions)), studio, Album())
    assert job.request.width and job.request.height and job.canvas is not None and job.canvas.mask is not None
    size = job.request.width, job.request.height
    scene = Scene(job.album, *size, size, job.canvas)
    drawn = job.canvas.mask > 127
    for unit in holes:
        shown = shown_to(unit, scene, None)
        assert shown.mask is not None and np.mean((shown.mask > 127) != drawn) < 0.06
    cut, whole = (region_of(unit, scene) for unit in regions)
    assert cut is not None and whole is not None
    assert np.mean((cut[0, 0].numpy() > 0.5) != drawn) < 0.06 < np.mean((whole[0, 0].numpy() > 0.5) != drawn)


def test_a_hole_that_is_a_pictures_transparency_is_in_the_record(folder: Path, studio: Studio, tmp_path: Path) -> None:
    pixels = np.dstack([_load(folder / "square.png"), np.full((64, 64), 255, np.uint8)])
    pixels[16:48, 16:48, 3] = 0
    Image.fromarray(pixels).save(tmp_path / "hole.png")
    units = tuple(
        _unit(folder, image=source, annotate="inpaint") for source in (str(tmp_path / "hole.png"), _uri(tmp_path))
    )
    for unit in units:
        made = result_of(replace(SMALL, controls=(unit,), steps=1), studio)
        write_picture(tmp_path / "made.png", made, 0)
        again = read(tmp_path / "made.png").replay()
        assert again.controls[0].annotate == "inpaint"
        with_hole = _load_uri(again.controls[0].image)
        assert np.array_equal(with_hole, pixels)


def _uri(folder: Path) -> str:
    return "data:image/png;base64," + base64.b64encode((folder / "hole.png").read_bytes()).decode()


def _load_uri(uri: str | None) -> np.ndarray:
    assert uri is not None
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))
