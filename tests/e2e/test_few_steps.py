"""Few steps, end to end: a model that brings a LoRA for them draws with it at every door, and its pictures again."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from recipes.diorama.few import levels_of

from disegno import Request, Result, Settings, Studio, generate
from disegno.backbones.miniature import open_miniature
from disegno.cli.main import main
from disegno.core.errors import CorruptFile, RequestError
from disegno.core.request import Hires, InitImage, LoraUse
from disegno.diffusion.schedules import plan_sigmas
from disegno.engine.album import Album
from disegno.engine.concrete import concrete
from disegno.engine.generate import open_job
from disegno.engine.record import png_bytes, read
from disegno.engine.second_pass import open_second
from disegno.engine.wording import uses_of
from disegno.memory import FULL_PRECISION, Memory
from disegno.samplers.catalogue import find_sampler
from disegno.serving import catalogue
from disegno.serving.catalogue import catalogue_of
from disegno.weights import built_in
from disegno.weights.built_in import few_steps_of, shipped_file
from kit.few import FEW, write_few, write_plain

pytestmark = pytest.mark.e2e

ASKED = Request(prompt="a red car on a city street", model="quick", seed=5, few_steps=True)
SPELLED = replace(ASKED, few_steps=False, steps=4, sampler="LCM", schedule="Turbo", cfg=1.0)
FEW_LORA = LoraUse(name="few")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_few(tmp_path_factory.mktemp("models") / "quick")


@pytest.fixture(scope="module")
def studio(folder: Path) -> Studio:
    return Studio(Settings(model_dirs=(folder.parent,), cache_dir=folder.parent.parent / "cache", device="cpu"))


@pytest.fixture(scope="module")
def drawn(studio: Studio) -> Result:
    return _draw(ASKED, studio)


def _draw(request: Request, studio: Studio) -> Result:
    *progress, result = generate(request, studio=studio)
    assert isinstance(result, Result) and progress
    return result


def _pixels(result: Result) -> np.ndarray:
    return np.asarray(result.images[0])


def test_the_levels_are_those_that_the_recipe_teaches(studio: Studio) -> None:
    backbone = studio.backbone("quick")
    few, table = backbone.few_steps, backbone.table
    assert few is not None and (few.name, few.steps, few.cfg) == ("few", 4, 1.0)
    taught = table.sigmas[levels_of(len(table.sigmas))]
    for steps in (1, 2, few.steps):
        *levels, last = plan_sigmas(find_sampler(few.sampler), few.schedule, steps, table).tolist()
        assert len(levels) == steps and last == 0
        assert set(levels) <= set(taught.tolist())
        assert levels[0] == table.sigmas[-1] > 1000  # noise alone: the first of them invents the picture


def test_what_was_used_is_recorded_and_drawn_again(drawn: Result, studio: Studio, tmp_path: Path) -> None:
    assert drawn.request == replace(SPELLED, loras=(FEW_LORA,), width=128, height=128, subseed=drawn.request.subseed,
                                    vae_tile=0)  # fmt: skip
    assert drawn.labels["Lora hashes"].startswith("few: ")
    (file := tmp_path / "drawn.png").write_bytes(png_bytes(drawn, 0))
    with Image.open(file) as picture:
        assert "<lora:few:1>" in str(picture.info["parameters"])
    again = _draw(read(file).replay(), studio)
    assert np.array_equal(_pixels(again), _pixels(drawn))


def test_the_tag_draws_the_same_and_is_not_put_on_twice(drawn: Result, studio: Studio) -> None:
    tagged = f"{ASKED.prompt} <lora:few:1>"
    others = replace(SPELLED, prompt=tagged), replace(ASKED, prompt=tagged), replace(SPELLED, loras=(FEW_LORA,))
    for request in others:
        assert np.array_equal(_pixels(_draw(request, studio)), _pixels(drawn))
    without = _draw(SPELLED, studio)
    assert not np.array_equal(_pixels(without), _pixels(drawn))
    half = replace(ASKED, loras=(LoraUse(name="few", strength=0.5),))
    assert concrete(half, studio.backbone("quick"), Album(studio.limits)).loras == half.loras


def test_what_the_request_says_itself_stays(studio: Studio) -> None:
    asked = replace(ASKED, steps=6, cfg=1.5, sampler="Euler", batch=2)
    said = concrete(asked, studio.backbone("quick"), Album(studio.limits))
    assert (said.steps, said.cfg, said.sampler, said.schedule) == (6, 1.5, "Euler", "Automatic")
    assert said.loras == (FEW_LORA,) and not said.few_steps


def test_a_picture_is_changed_in_few_steps(drawn: Result, studio: Studio, tmp_path: Path) -> None:
    drawn.images[0].save(tmp_path / "photo.png")
    init = InitImage(image=str(tmp_path / "photo.png"), denoise=0.5)
    changed = _draw(replace(ASKED, init=init), studio)
    assert changed.request.steps == 4 and not np.array_equal(_pixels(changed), _pixels(drawn))
    most = concrete(replace(ASKED, init=replace(init, denoise=0.75)), studio.backbone("quick"), Album(studio.limits))
    assert most.init and most.init.exact_steps  # of 4 steps, three quarters begin at noise alone


@pytest.mark.parametrize("spelled", ["path", "QUICK"])
def test_a_hires_pass_of_the_same_model_is_known_by_any_of_its_names(
    spelled: str, folder: Path, studio: Studio
) -> None:
    hires = Hires(scale=1.0, upscaler="Lanczos", denoise=0.5)
    wanted = _draw(replace(ASKED, hires=hires), studio)
    named = replace(hires, model=str(folder) if spelled == "path" else spelled)
    found = _draw(replace(ASKED, hires=named), studio)
    assert np.array_equal(_pixels(found), _pixels(wanted)) and found.request.hires == wanted.request.hires


def test_a_hires_pass_of_another_model_goes_without_the_lora(folder: Path, studio: Studio) -> None:
    plain = write_plain(folder.parent / "plain")
    other = Hires(model=plain.name, scale=1.0, upscaler="Lanczos", denoise=0.5)
    with pytest.raises(RequestError, match=r"hires pass is drawn by plain\. Say its steps and its guidance"):
        concrete(replace(ASKED, hires=other), studio.backbone("quick"), Album(studio.limits))
    told = replace(other, steps=2, cfg=2.0, sampler="DDIM")
    both = _draw(replace(ASKED, hires=told), studio)
    assert both.request.loras == (FEW_LORA,) and both.request.hires and both.request.hires.cfg == 2.0
    assert (both.request.schedule, both.request.hires.schedule) == ("Turbo", "Automatic")
    open_names = concrete(replace(ASKED, hires=replace(told, sampler=None)), studio.backbone("quick"), Album())
    assert open_names.hires and open_names.hires.sampler == studio.backbone("quick").defaults.sampler != "LCM"
    tagged = replace(SPELLED, prompt=f"{ASKED.prompt} <lora:few:1>", hires=replace(told, schedule="Automatic"))
    assert np.array_equal(_pixels(_draw(tagged, studio)), _pixels(both))


def test_a_model_that_brings_none_says_what_to_do() -> None:
    plain = open_miniature(Memory(FULL_PRECISION))
    with pytest.raises(RequestError, match=r"--lora NAME --steps 4 --sampler LCM --cfg 1"):
        concrete(replace(ASKED, model="mini"), plain, Album())


@pytest.mark.parametrize("told", [{"lora": "few.safetensors"}, {**FEW, "steps": "many"}, "few.safetensors"])
def test_a_description_in_part_is_an_error(told: object, tmp_path: Path) -> None:
    with pytest.raises(CorruptFile, match="its few_steps want lora"):
        few_steps_of(tmp_path, {"few_steps": told})
    assert few_steps_of(tmp_path, {"family": "diorama"}) is None


def test_the_command_line_draws_in_few_steps(folder: Path, tmp_path: Path) -> None:
    words = ["generate", ASKED.prompt, "--few", "--model", str(folder), "--json", "-o", str(tmp_path / "few.png")]
    done = CliRunner().invoke(main, [*words, "--seed", "5"])
    assert done.exit_code == 0, done.output
    request = json.loads(done.stdout)["request"]
    assert (request["steps"], request["sampler"], request["loras"][0]["name"]) == (4, "LCM", "few")


def test_it_is_listed_where_it_is_built_in(folder: Path, studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    (listed,) = [card for card in catalogue_of(studio).models if card.name == "quick"]
    assert listed.few_steps is not None and (listed.few_steps.lora, listed.few_steps.steps) == ("few", 4)
    assert listed.defaults is not None and listed.defaults["width"] == 128
    for module in (built_in, catalogue):
        monkeypatch.setattr(module, "built_in_folder", lambda: folder)
    found = catalogue_of(studio)
    assert found.models[0].few_steps == listed.few_steps
    (lora,) = [card for card in found.files if card.kind == "lora"]
    assert (lora.name, lora.family, lora.shipped) == ("few", "diorama", True)
    assert shipped_file("few", "lora") == folder / "few.safetensors" and shipped_file("few", "control") is None
    shown = CliRunner().invoke(main, ["models", "list", "--kind", "lora"])
    assert "few" in shown.output and "shipped" in shown.output


@pytest.mark.parametrize("told", [None, {"width": [1]}, "a"])
def test_a_bad_description_stops_no_list_of_models(told: object, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "model.json").write_text(json.dumps({"family": "diorama", "defaults": told}))
    studio = Studio(Settings(model_dirs=(tmp_path,), cache_dir=tmp_path / "cache"))
    (listed,) = [card for card in catalogue_of(studio).models if card.name == "mine"]
    assert listed.defaults is None


def test_every_image_and_pass_wears_the_lora_once(studio: Studio) -> None:
    backbone, tag = studio.backbone("quick"), " <lora:few:1>"

    def worn(request: Request) -> list[tuple[str, ...]]:
        job = open_job(request, studio, Album())
        second = open_second(job)
        jobs = [job] if second is None else [job, second.job]
        return [tuple(use.name for use in uses_of(each.request, wording, backbone)) for each in jobs
                for wording in each.worded.wordings]  # fmt: skip

    once = ("few",)
    assert worn(replace(ASKED, batch=2, prompts=("a car" + tag, "a dog"))) == [once] * 2
    assert worn(replace(ASKED, prompt="a car" + tag, prompts=("a dog",))) == [once]
    assert worn(replace(ASKED, prompt="a car #" + tag)) == [once]
    for first, hires in (("a car" + tag, "a dog"), ("a car", "a dog" + tag), ("a car" + tag, "a dog" + tag)):
        assert worn(replace(ASKED, prompt=first, hires=Hires(prompt=hires))) == [once] * 2
