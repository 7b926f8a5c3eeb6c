"""Words for parts of the canvas, with the built-in model and with miniatures: where they hold, what they go with."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image, ImageDraw

from disegno import ControlUnit, Region, Request, Result, Settings, Studio, generate
from disegno.backbones import miniature, miniature_sd2, miniature_sd3, miniature_sdxl
from disegno.cli.main import main
from disegno.core.errors import BadImage, RequestError, UnknownName
from disegno.core.guide import Guide
from disegno.core.request import Hires, InitImage, LoraUse, Outpaint, Refiner, Tiles
from disegno.diffusion.call import Call, Row
from disegno.engine.batch import Batch, calls_of, timestep
from disegno.engine.generate import draw
from disegno.engine.record import data_uri, png_bytes, read
from disegno.text.learnt import TextOptions
from disegno.weights.save import save_safetensors
from kit.server import Server

pytestmark = pytest.mark.e2e

CAR = Path(__file__).parents[2] / "src/disegno/data/diorama/examples/car.png"
TO_Q = "down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
HALVES = (Region(prompt="a red car", w=0.5), Region(prompt="a green tree", x=0.5))
DIORAMA = Request(prompt="a street", seed=1, steps=3, sampler="Euler")
MINI = Request(prompt="a street", model="mini", seed=3, steps=3, width=64, height=64, sampler="Euler")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A miniature, a refiner of it, a LoRA of the net and of the text, wildcards, masks."""
    folder = tmp_path_factory.mktemp("models")
    miniature.write_sd1_checkpoint(folder / "mini.safetensors")
    shutil.copy(folder / "mini.safetensors", folder / "other.safetensors")
    for model, in_channels in (("inpainter", 9), ("editor", 8)):
        miniature.write_sd1_checkpoint(folder / f"{model}.safetensors", miniature.Miniature(in_channels=in_channels))
    miniature_sd2.write_checkpoint(folder / "sd2.safetensors")
    miniature_sd3.write_file(folder / "sd3.safetensors")
    miniature_sdxl.write_file(folder / "xl.safetensors")
    miniature_sdxl.write_file(folder / "xl-refiner.safetensors", miniature_sdxl.Sdxl(seed=5, refines=True))
    parts = {
        f"lora_unet_{TO_Q}.lora_down.weight": (4, 32),
        f"lora_unet_{TO_Q}.lora_up.weight": (32, 4),
        "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": (4, 32),
        "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": (64, 4),
    }
    made = torch.Generator().manual_seed(7)
    save_safetensors(folder / "ink.safetensors", {k: torch.randn(v, generator=made) for k, v in parts.items()}, {})
    (folder / "wildcards").mkdir()
    (folder / "wildcards" / "animal.txt").write_text("cat\ndog\nfox\nowl\n", "utf-8")
    Image.linear_gradient("L").resize((128, 128)).save(folder / "down.png")
    Image.linear_gradient("L").rotate(90).resize((128, 128)).save(folder / "right.png")
    mask = Image.new("L", (128, 128))
    ImageDraw.Draw(mask).rectangle([20, 40, 110, 100], fill=255)
    mask.save(folder / "mask.png")
    return folder


@pytest.fixture(scope="module")
def studio(folder: Path) -> Iterator[Studio]:
    dirs = {"model_dirs": (folder,), "prompt_dirs": (folder,), "cache_dir": folder / "cache"}
    yield Studio(Settings(**dirs, dtype="fp32", device="cpu"))


def _draw(request: Request, studio: Studio) -> Result:
    *_, result = generate(request, studio=studio)
    assert isinstance(result, Result)
    return result


def _pixels(result: Result) -> np.ndarray:
    return np.stack([np.asarray(image).astype(int) for image in result.images])


# ---- where words hold


def _over(half: np.ndarray, channel: int) -> np.ndarray:
    """Return by how much a colour lies over the mean of the two others, (b,), of 255."""
    return half[:, channel] - np.delete(half, channel, axis=1).mean(1)


@pytest.mark.parametrize("is_swapped", [False, True])
def test_the_halves_have_the_colours_that_were_asked_for(is_swapped: bool, studio: Studio) -> None:
    """Measured, of three seeds: the car's half is redder by 38 to 57 levels, the tree's greener by 34 to 55."""
    places = ({"x": 0.5}, {"w": 0.5}) if is_swapped else ({"w": 0.5}, {"x": 0.5})
    regions = tuple(
        Region(prompt=text, **place) for text, place in zip(("a red car", "a green tree"), places, strict=True)
    )
    pixels = _pixels(_draw(replace(DIORAMA, steps=12, batch=3, regions=regions), studio))
    car, tree = pixels[:, :, :64].mean((1, 2)), pixels[:, :, 64:].mean((1, 2))
    if is_swapped:
        car, tree = tree, car
    assert (_over(car, 0) > _over(tree, 0) + 20).all() and (_over(tree, 1) > _over(car, 1) + 20).all()


def test_the_first_answer_is_the_mean_of_the_texts_answers(studio: Studio, folder: Path) -> None:
    """Worked out apart: each text is put to the net alone, and averaged by the masks' own pixels, in float64."""
    soft = (
        Region(prompt="a red car", mask=str(folder / "right.png"), weight=1.5),
        Region(prompt="a green tree", mask=str(folder / "down.png")),
    )
    request = replace(DIORAMA, regions=soft, negative="snow", cfg=4.0, base_weight=0.3)
    phase = next(draw(request, studio))
    backbone, batch = phase.backbone, Batch(phase.backbone)
    batch.add(phase.runs[0])
    question = phase.runs[0].question
    assert question is not None
    x, sigma = question.x, question.sigma
    scaled, t = backbone.prediction.scale(x, sigma), timestep(backbone, sigma)

    def said(text: str) -> np.ndarray:
        states = studio.prompt_states(backbone, text, TextOptions())
        with torch.inference_mode():
            return (
                backbone.evaluate(
                    Call(scaled, t, states.tokens, (Row(0, True, text, 0.0),), backbone.evaluate, states.pooled)
                )
                .double()
                .numpy()
            )

    right, down = (
        np.asarray(Image.open(folder / f"{name}.png"), float).reshape(16, 8, 16, 8).mean((1, 3)) / 255
        for name in ("right", "down")
    )
    shares = 0.3 + np.clip(1 - right - down, 0, 1), 1.5 * right, down
    texts = [said(text) for text in ("a street", "a red car", "a green tree")]
    mean = sum(share * text for share, text in zip(shares, texts, strict=True)) / sum(shares)
    guided = said("snow") + 4.0 * (mean - said("snow"))
    expected = backbone.prediction.denoise(x.double(), sigma.double(), torch.from_numpy(guided))
    batch.step()
    estimate = phase.runs[0].estimate
    assert estimate is not None
    off = (estimate - expected).abs().max() / expected.abs().max()
    assert float(off) < 0.004  # 1/255: masks are of 8 bits; 0.0016 was measured
    assert np.abs(texts[1] - texts[2]).max() > 0.1


WHOLE: dict[str, dict[str, object]] = {
    "as it is": {},
    "a batch": {"batch": 2},
    "parts and weights": {"prompt": "a red car AND snow :0.5"},
    "words that change": {"prompt": "a [red:blue:0.5] car, (big:1.3)"},
    "another length than the prompt's": {"prompt": "a red car BREAK on a street, " + "a small house, " * 30},
    "filled up": {"prompt": "a small house, " * 30, "negative": "b", "pad_texts": True},
    "no guidance": {"cfg": 1.0},
    "steps without guidance": {"negative_min": 3.0, "negative_min_all": True, "cfg_start": 0.1},
    "away from a weakened net": {"guide": Guide(pag=3.0)},
    "away from it, in parts": {"guide": Guide(pag=3.0), "prompt": "a red car AND snow :0.5", "cfg": 1.0},
    "projected guidance": {"guide": Guide(apg=True), "cfg": 9.0},
    "two calls a step": {"sampler": "Heun"},
    "a split question": {"sampler": "DPM++ 2M SDE"},
    "few steps": {"few_steps": True, "steps": None, "sampler": None},
    "a control": {"controls": (ControlUnit(name="canny", image=str(CAR)),)},
    "a reference": {"controls": (ControlUnit(name="reference-only", image=str(CAR)),)},
    "colours": {"controls": (ControlUnit(name="tile-colorfix", image=str(CAR), params={"sharpness": 1}),)},
    "a changed picture": {"init": InitImage(image=str(CAR), denoise=0.8)},
    "a masked one": {"init": InitImage(image=str(CAR), denoise=0.8, mask="MASK")},
    "the masked part alone": {"init": InitImage(image=str(CAR), denoise=0.8, mask="MASK", only_masked=True)},
    "what lies around": {"init": InitImage(image=str(CAR), denoise=0.8, outpaint=Outpaint(left=32)), "width": 160},
    "a second pass": {"hires": Hires(scale=1.5, denoise=0.5), "controls": (ControlUnit(name="canny", image=str(CAR)),)},
    "a second pass that is cut": {"hires": Hires(width=192, height=160, denoise=0.5)},
    "parts of a canvas": {"width": 192, "tiles": Tiles(size=128)},
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_region_of_the_whole_canvas_is_that_prompts_picture_bit_for_bit(
    name: str, studio: Studio, folder: Path
) -> None:
    asked = replace(DIORAMA, **({"prompt": "a red car"} | WHOLE[name]))
    if asked.init is not None and asked.init.mask:
        asked = replace(asked, init=replace(asked.init, mask=str(folder / "mask.png")))
    held = replace(asked, prompt="something else, longer", regions=(Region(prompt=asked.prompt),), base_weight=0.0)
    assert np.array_equal(_pixels(_draw(held, studio)), _pixels(_draw(asked, studio)))
    halves = _draw(replace(asked, regions=(*HALVES, Region(prompt="snow [rain:2]", h=0.5, weight=0.5))), studio)
    assert np.abs(_pixels(halves) - _pixels(_draw(asked, studio))).max() > 8


FAMILIES: dict[str, dict[str, object]] = {
    "sd2": {},
    "sd3": {},
    "xl": {"negative": "dull"},
    "xl that is refined": {"model": "xl", "refiner": Refiner(model="xl-refiner", at=0.5)},
    "inpainter": {"init": InitImage(image=str(CAR), denoise=0.8, mask="MASK")},
    "editor": {"init": InitImage(image=str(CAR), denoise=0.8), "negative": "dull"},
}


@pytest.mark.parametrize("name", FAMILIES)
def test_in_every_family_words_hold_where_they_should(name: str, studio: Studio, folder: Path) -> None:
    """All of the canvas to the bit; of halves, after one step, each its own prompt's: nothing has spread."""
    asked = replace(MINI, **({"model": name, "prompt": "a cat"} | FAMILIES[name]))
    if asked.init is not None and asked.init.mask:
        asked = replace(asked, init=replace(asked.init, mask=str(folder / "mask.png")))
    whole = replace(asked, prompt="x", regions=(Region(prompt="a cat"),), base_weight=0.0)
    assert np.array_equal(_pixels(_draw(whole, studio)), _pixels(_draw(asked, studio)))
    once = replace(asked, steps=1, refiner=None)
    halves = replace(once, regions=(Region(prompt="a dog", x=0.5),), base_weight=0.0)
    cat, dog, both = (_latents(one, studio) for one in (once, replace(once, prompt="a dog"), halves))
    middle, limit = both.shape[-1] // 2, 1e-4 * float(cat.abs().max())  # kernels round by the shape of the batch
    assert (both - cat)[..., :middle].abs().max() < limit and (both - dog)[..., middle:].abs().max() < limit
    assert (cat - dog)[..., :middle].abs().max() > limit < (cat - dog)[..., middle:].abs().max()


def test_on_a_canvas_in_parts_each_half_has_its_words(studio: Studio) -> None:
    wide = replace(DIORAMA, width=192, steps=8, tiles=Tiles(size=128), regions=HALVES)
    pixels = _pixels(_draw(wide, studio))[0]
    left, right = pixels[:, :96].mean((0, 1)), pixels[:, 96:].mean((0, 1))
    assert left[0] - left[1] > 10 + right[0] - right[1]


def test_a_part_of_a_canvas_is_asked_only_of_the_texts_that_hold_in_it(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    regions = (*HALVES, Region(prompt="snow", mask=None, x=0.9, weight=2.0))
    wide = replace(DIORAMA, width=320, tiles=Tiles(size=128), regions=regions, base_weight=0.0)
    run = next(draw(wide, studio)).runs[0]
    run.start()
    backbone = studio.backbone("diorama")
    texts = [sum(row.positive for one in calls_of(run, backbone, view) for row in one.call.rows) for view in run.views]
    assert texts == [1, 2, 2]  # of three: the car, car and tree, tree and snow
    few = _pixels(_draw(wide, studio))
    monkeypatch.setattr("disegno.engine.batch._reaching", lambda rows, window: rows)
    assert np.abs(few - _pixels(_draw(wide, studio))).max() <= 2  # kernels round by the shape of the batch


# ---- LoRAs


def test_a_lora_in_a_regions_words_acts_as_in_a_prompt_where_it_holds(studio: Studio) -> None:
    words = "a cat <lora:ink:0.8>"
    plain = _draw(replace(MINI, prompt=words), studio)
    whole = _draw(replace(MINI, regions=(Region(prompt=words),), base_weight=0.0), studio)
    assert np.array_equal(_pixels(whole), _pixels(plain))
    assert not np.array_equal(_pixels(plain), _pixels(_draw(replace(MINI, prompt="a cat"), studio)))
    # what the request wears is worn in regions too, and a region may say it otherwise
    worn = replace(MINI, loras=(LoraUse(name="ink", strength=0.3),))
    whole = _draw(replace(worn, regions=(Region(prompt="a cat"),), base_weight=0.0), studio)
    assert np.array_equal(_pixels(whole), _pixels(_draw(replace(worn, prompt="a cat"), studio)))
    whole = _draw(replace(worn, regions=(Region(prompt=words),), base_weight=0.0), studio)
    assert np.array_equal(_pixels(whole), _pixels(plain))


def _latents(request: Request, studio: Studio) -> torch.Tensor:
    phase = next(draw(request, studio))
    batch = Batch(phase.backbone)
    for run in phase.runs:
        batch.add(run)
    while batch.runs:
        batch.step()
    return phase.latents()


def test_a_lora_in_a_regions_words_changes_nothing_elsewhere_and_the_negative_half_there(studio: Studio) -> None:
    """After a single step nothing has spread yet: what the net is told decides each cell by itself."""
    once = replace(MINI, steps=1, negative="dull")
    plain = _latents(replace(once, regions=(Region(prompt="a cat", x=0.5),), base_weight=0.0), studio)
    inked = _latents(replace(once, regions=(Region(prompt="a cat <lora:ink:0.8>", x=0.5),), base_weight=0.0), studio)
    whole = _latents(replace(once, prompt="a cat <lora:ink:0.8>"), studio)
    limit = 1e-4 * float(whole.abs().max())  # kernels round by the shape of the batch
    assert (inked - plain)[..., :4].abs().max() < limit < (inked - plain)[..., 4:].abs().max()
    assert (inked - whole)[..., 4:].abs().max() < limit


def test_a_lora_that_is_not_there_is_said_before_anything_is_drawn(studio: Studio) -> None:
    for second in (None, Hires(scale=1.5, denoise=0.5)):
        with pytest.raises(UnknownName, match="nowhere"):
            next(draw(replace(MINI, regions=(Region(prompt="a <lora:nowhere:1>"),), hires=second), studio))


# ---- beside others, in batches, again


def test_requests_with_regions_are_what_they_are_alone_in_one_batch(studio: Studio) -> None:
    requests = [
        replace(MINI, regions=(Region(prompt="a cat <lora:ink:0.5>", w=0.5), Region(prompt="rain AND snow", x=0.5))),
        replace(MINI, prompt="a dog", seed=5, steps=5),
        replace(MINI, prompt="a fox", seed=6, batch=2, cfg=1.0, regions=(Region(prompt="very long " * 60, h=0.5),)),
    ]
    alone = [_draw(request, studio) for request in requests]
    drawings = [draw(request, studio) for request in requests]
    phases = [next(drawing) for drawing in drawings]
    batch = Batch(phases[0].backbone)
    for phase in phases:  # each joins a step later
        for run in phase.runs:
            batch.add(run)
        batch.step()
    while batch.runs:
        batch.step()
    for drawing, expected in zip(drawings, alone, strict=True):
        with pytest.raises(StopIteration) as ended:
            next(drawing)
        assert np.abs(_pixels(ended.value.value) - _pixels(expected)).max() <= 2  # as of prompts: rounding, then 8 bits


def test_without_guidance_no_negative_half_is_asked(studio: Studio) -> None:
    phase = next(draw(replace(MINI, cfg=1.0, regions=HALVES), studio))
    (run,) = phase.runs
    run.start()
    assert [row.row.positive for row in run.texts.rows(0, 0.0, run.texts.composes())] == [True] * 3


def test_a_refiner_goes_on_with_the_regions(studio: Studio) -> None:
    asked = replace(MINI, regions=HALVES)
    relayed = replace(asked, refiner=Refiner(model="other", at=0.5, share="steps"))  # the same weights, another file
    assert np.array_equal(_pixels(_draw(relayed, studio)), _pixels(_draw(asked, studio)))


def test_again_is_the_same_picture_wherever_masks_and_wildcards_are_now(
    studio: Studio, folder: Path, tmp_path: Path
) -> None:
    shutil.copy(folder / "down.png", tmp_path / "here.png")
    regions = (Region(prompt="a __animal__", mask=str(tmp_path / "here.png")), Region(prompt="a tree", w=0.5))
    made = _draw(replace(MINI, regions=regions, batch=3), studio)
    first = made.request.regions[0]
    assert len(first.prompts) == 3 and len(set(first.prompts)) > 1 and made.request.regions[1].prompts == ()
    (tmp_path / "picture.png").write_bytes(png_bytes(made, 1))
    (tmp_path / "here.png").unlink()
    assert "Region 1: " in Image.open(tmp_path / "picture.png").text["parameters"]
    again = read(tmp_path / "picture.png").replay()
    assert (again.regions[0].mask or "").startswith("data:")
    bare = Studio(Settings(model_dirs=(folder,), cache_dir=folder / "cache", dtype="fp32", device="cpu"))
    assert np.array_equal(_pixels(_draw(again, bare)), _pixels(made))


def test_the_command_line_draws_regions_and_again_with_others(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    base = ["generate", "a street", "--steps", "2", "--seed", "1", "-q"]
    words = ["--region", "a red car", "w=0.5,weight=1.5", "--region", "a tree", f"mask={folder / 'right.png'}"]
    for name, more in (("a", words), ("b", [*words, "--base-weight", "0"])):
        done = CliRunner().invoke(main, [*base, *more, "-o", f"{name}.png"])
        assert done.exit_code == 0, done.output
    done = CliRunner().invoke(main, ["generate", "--again", "b.png", "--base-weight", "0.2", "-q", "-o", "c.png"])
    assert done.exit_code == 0, done.output
    done = CliRunner().invoke(main, ["generate", *base[2:], "--region", "a red car", "w=0.5", "-o", "d.png"])
    assert done.exit_code == 0 and Path("d.png").is_file(), done.output  # without a prompt
    a, b, c = (Image.open(f"{name}.png").tobytes() for name in "abc")
    assert a == c != b


# ---- what is refused


def test_what_cannot_hold_is_said_before_the_model_opens(studio: Studio, tmp_path: Path) -> None:
    Image.new("L", (64, 64)).save(tmp_path / "black.png")
    for mask, error, said in (
        ("black.png", RequestError, "black everywhere"),
        ("none.png", BadImage, "cannot be opened"),
    ):
        with pytest.raises(error, match=said):
            next(draw(replace(MINI, model="nowhere", regions=(Region(prompt="a", mask=str(tmp_path / mask)),)), studio))


def test_a_region_that_is_too_small_is_said(studio: Studio) -> None:
    drawn = _draw(replace(MINI, regions=(Region(prompt="a cat", w=0.0001, h=0.0001),)), studio)
    assert "Region 1 lies outside" in drawn.warnings[0]
    assert np.array_equal(_pixels(drawn), _pixels(_draw(MINI, studio)))


# ---- over HTTP


def test_a_server_draws_regions_side_by_side_and_says_what_is_wrong(
    page_server: Server, studio: Studio, folder: Path, tmp_path: Path
) -> None:
    mask, black = data_uri(Image.open(folder / "right.png")), data_uri(Image.new("L", (64, 64)))
    fields = {"prompt": "a street", "steps": 3, "sampler": "Euler"}
    regions = [{"prompt": "a red car", "mask": mask}, {"prompt": "snow", "w": 0.5, "weight": 2}]
    bodies = [fields | {"seed": seed, "regions": regions, "base_weight": 0.1} for seed in (1, 2)]
    bodies += [fields | {"seed": 3}, fields | {"regions": [{"prompt": "a", "mask": black}]}]
    *jobs, plain, failed = [page_server.submit("generate", body)["id"] for body in bodies]
    for seed, job in enumerate(jobs, 1):
        done = page_server.wait(job)
        assert done["state"] == "done", done
        path = tmp_path / f"{seed}.png"
        path.write_bytes(page_server.ask("GET", done["result"]["files"][0]["url"]).content)
        asked = read(path).replay()
        assert asked.regions[0].mask == mask and asked.regions[1] == Region(prompt="snow", w=0.5, weight=2)
    assert page_server.wait(plain)["state"] == "done"
    failure = page_server.wait(failed)["failure"]
    assert "mask of region 1 is black everywhere" in failure["message"]
    many = page_server.ask("POST", "/v1/jobs", {"kind": "generate", "request": {"regions": [{"prompt": "a"}] * 9}})
    assert many.status_code == 422 and "at most 8 regions" in many.text
