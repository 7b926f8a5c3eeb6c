"""Stable Diffusion XL through the doors: base and refiner, both passes, pictures changed and filled, sheets, batches of
several sizes, previews; on miniatures.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from disegno import Request, Settings, Studio, generate
from disegno.backbones import miniature, miniature_sdxl
from disegno.backbones.miniature_sdxl import Sdxl
from disegno.cli.main import main
from disegno.core.errors import RequestError
from disegno.core.request import Hires, InitImage, Refiner
from disegno.core.result import Progress
from disegno.engine.batch import Batch
from disegno.engine.generate import draw
from kit.drawing import result_of

pytestmark = pytest.mark.e2e

SMALL = Request(prompt="a cat", negative="x", model="base", seed=3, steps=5, width=64, height=64, sampler="Euler a")
REFINED = replace(SMALL, refiner=Refiner(model="refiner", at=0.8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    miniature_sdxl.write_file(folder / "base.safetensors")
    miniature_sdxl.write_file(folder / "refiner.safetensors", Sdxl(seed=5, refines=True))
    miniature_sdxl.write_file(folder / "inpainter.safetensors", Sdxl(in_channels=9))
    miniature.write_sd1_checkpoint(folder / "one.safetensors")
    Image.effect_noise((64, 64), 90).convert("RGB").save(folder / "photo.png")
    mask = np.zeros((64, 64), np.uint8)
    mask[:, 32:] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    return folder


@pytest.fixture(scope="module")
def studio(folder: Path) -> Iterator[Studio]:
    yield Studio(Settings(model_dirs=(folder,), cache_dir=folder / "cache", dtype="fp32", device="cpu"))


def _pixels(request: Request, studio: Studio) -> np.ndarray:
    return np.stack([np.asarray(image) for image in result_of(request, studio).images])


@pytest.mark.parametrize("sampler", ["Euler a", "DPM++ 2M", "Heun"])
def test_the_refiner_goes_on_as_a_pair_driven_by_hand(sampler: str, studio: Studio) -> None:
    """The reference: one coroutine, whose questions are answered one by one, by the base's net or by the refiner's."""
    request = replace(SMALL, sampler=sampler)
    first, second = (next(draw(replace(request, model=model), studio)) for model in ("base", "refiner"))
    run, batches = first.runs[0], (Batch(first.backbone), Batch(second.backbone))
    levels = first.backbone.table.sigmas
    run.start()
    by, later = list[int](), False
    while run.question is not None:
        nearest = int((levels - run.question.sigma).abs().argmin())
        later = later or (999 - nearest) / 1000 >= 0.8
        run.texts = (second if later else first).runs[0].texts
        batches[later].runs = [run]
        batches[later].step()
        by.append(int(later))
    assert by == sorted(by) and {0, 1} == set(by)
    assert run.latents is not None
    wanted = first.backbone.decode(run.latents)
    picture = np.asarray(result_of(replace(REFINED, sampler=sampler), studio).images[0])
    assert np.abs(picture - (wanted[0] * 255).movedim(0, -1).numpy()).max() <= 1  # rounded to a byte
    assert (picture != _pixels(request, studio)[0]).any()


def test_both_passes_pictures_from_pictures_and_fillings(studio: Studio, folder: Path) -> None:
    photo, mask = str(folder / "photo.png"), str(folder / "mask.png")
    larger = _pixels(replace(REFINED, hires=Hires(scale=1.5, steps=3, denoise=0.7)), studio)
    assert larger.shape == (1, 96, 96, 3)
    changed = _pixels(replace(SMALL, init=InitImage(image=photo, denoise=0.4)), studio)
    refined = _pixels(replace(SMALL, model="refiner", init=InitImage(image=photo, denoise=0.4)), studio)
    assert (changed != refined).any()
    with Image.open(photo) as picture:
        own = np.asarray(picture).astype(int)
    for model in ("base", "inpainter"):
        init = InitImage(image=photo, mask=mask, mask_blur=0, denoise=1.0)
        filled = _pixels(replace(SMALL, model=model, init=init), studio)[0].astype(int)
        assert np.abs(filled - own)[:, :28].mean() < 1 < np.abs(filled - own)[:, 36:].mean()


def test_pictures_of_two_sizes_are_drawn_side_by_side(studio: Studio) -> None:
    """In one batch of the engine, each is told its own size, and is as it is alone."""
    wide = replace(SMALL, width=96, seed=4)
    phases = [next(draw(request, studio)) for request in (SMALL, wide)]
    batch = Batch(phases[0].backbone)
    for phase in phases:
        for run in phase.runs:
            batch.add(run)
    while batch.runs:
        batch.step()
    for phase, request in zip(phases, (SMALL, wide), strict=True):
        alone = next(draw(request, studio))
        single = Batch(alone.backbone)
        for run in alone.runs:
            single.add(run)
        while single.runs:
            single.step()
        assert torch.allclose(phase.latents(), alone.latents(), atol=1e-4)


@pytest.mark.parametrize("model", ["base", "refiner"])
def test_only_a_negative_prompt_that_never_says_anything_is_silent(model: str, studio: Studio) -> None:
    """A1111: force_zero_negative_prompt, of all texts of the negative prompt's schedule."""

    def silent(**fields: str) -> list[list[bool]]:
        (image,) = next(draw(replace(SMALL, model=model, **fields), studio)).runs[0].texts.images
        return [[not states.tokens.any() for states in text.states] for text in (*image.parts, image.negative)]

    assert silent(prompt="", negative="") == [[False], [True]]
    assert silent(prompt="a cat AND ", negative=" # nothing") == [[False], [False], [True]]
    assert silent(prompt="[:a cat:2]", negative="[:x:2]") == [[False, False], [False, False]]


def test_a_batch_is_as_its_pictures_alone(studio: Studio) -> None:
    both = _pixels(replace(REFINED, batch=2), studio)
    one = _pixels(replace(REFINED, seed=4), studio)
    assert np.abs(both[1].astype(int) - one[0]).max() <= 1


def test_latents_are_not_enlarged_into_those_of_another_family(studio: Studio) -> None:
    """Both have four channels; what they stand for is not the same."""
    for model, other in (("base", "one"), ("one", "base")):
        hires = Hires(scale=1.5, steps=2, model=other)
        with pytest.raises(RequestError, match=r"other latents.*Lanczos"):
            next(draw(replace(SMALL, model=model, hires=hires), studio))
        by_pixels = replace(SMALL, model=model, hires=replace(hires, upscaler="Lanczos"))
        assert result_of(by_pixels, studio).images[0].size == (96, 96)


def test_previews_are_of_its_own_latents(studio: Studio) -> None:
    """Of the base's and of the refiner's: by a map that is fitted to their VAE."""
    asked = generate(REFINED, studio=studio, preview_every=1)
    shown = [event for event in asked if isinstance(event, Progress) and event.previews]
    assert {event.stage for event in shown} == {"drawing", "refining"}
    assert all(event.previews[0].size == (64, 64) for event in shown)


def test_a_refiner_of_another_family_is_refused(studio: Studio) -> None:
    with pytest.raises(RequestError, match="refiner"):
        next(draw(replace(SMALL, refiner=Refiner(model="one")), studio))


# ---- the command line


@pytest.fixture
def shell(folder: Path, monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    monkeypatch.setenv("DISEGNO_MODEL_DIRS", str(folder))
    monkeypatch.setenv("DISEGNO_CACHE_DIR", str(folder / "cache"))
    monkeypatch.setenv("DISEGNO_DTYPE", "fp32")
    return CliRunner()


def _words(*more: str) -> list[str]:
    given = ("a cat", "--negative", "x", "--model", "base", "--seed", "3", "--steps", "5", "--size", "64x64")
    return ["generate", *given, "--sampler", "Euler a", *more]


def test_the_command_line_draws_with_the_refiner(shell: CliRunner, studio: Studio, tmp_path: Path) -> None:
    out = tmp_path / "a.png"
    done = shell.invoke(main, _words("--refiner", "refiner", "-o", str(out)))
    assert done.exit_code == 0, done.output
    with Image.open(out) as picture:
        drawn = np.asarray(picture).astype(int)
    assert np.abs(drawn - _pixels(REFINED, studio)[0]).max() <= 1
    again = shell.invoke(main, ["generate", "--again", str(out), "-o", str(tmp_path / "b.png")])
    assert again.exit_code == 0, again.output
    assert (tmp_path / "b.png").is_file()


def test_a_sheet_compares_models_of_two_families(shell: CliRunner, tmp_path: Path) -> None:
    out = tmp_path / "sheet.png"
    done = shell.invoke(main, _words("--x", "model=base,one", "-o", str(out), "--json"))
    assert done.exit_code == 0, done.output
    with Image.open(out) as sheet:
        assert sheet.width > 2 * 64


def test_models_are_listed_shown_verified_and_converted(shell: CliRunner, folder: Path, tmp_path: Path) -> None:
    shown = json.loads(shell.invoke(main, ["models", "show", "refiner", "--json"]).output)
    assert (shown["kind"], shown["family"], shown["prediction"]) == ("model", "sdxl", "epsilon")
    assert "sound" in shell.invoke(main, ["models", "verify", "base"]).output
    done = shell.invoke(main, ["models", "convert", "refiner", str(tmp_path / "folder"), "--to", "diffusers"])
    assert done.exit_code == 0 and "model" in done.output
    assert "sound" in shell.invoke(main, ["models", "verify", str(tmp_path / "folder")]).output
