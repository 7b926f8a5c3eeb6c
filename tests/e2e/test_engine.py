"""The engine, end to end on miniatures: controls draw, the cache changes nothing but the time, mistakes are said."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from disegno import ControlUnit, Request, Result, Settings, Studio, generate
from disegno.annotators import ANNOTATORS
from disegno.annotators.base import annotate_at, make_params
from disegno.annotators.maps import resize_short_side
from disegno.backbones import miniature
from disegno.core.errors import ModelFileError, RequestError, UnknownName, WrongFamily
from disegno.core.request import Hires, InitImage
from disegno.core.result import Progress
from disegno.engine.batch import Batch
from disegno.engine.generate import draw
from disegno.weights.save import save_safetensors

pytestmark = pytest.mark.e2e

RANK = 4
NOT_OURS = ("sample_size", "out_channels", "up_block_types")  # a ControlNet has none of these
WIDTHS = {key: value for key, value in miniature.SD1.unet_config.items() if key not in NOT_OURS}
SMALL = Request(prompt="a cat", model="mini", seed=3, steps=3, width=64, height=64)


def _net(seed: int) -> dict[str, torch.Tensor]:
    return miniature.draw(ControlNetModel(**WIDTHS), seed)


def _write_controlnet(folder: Path) -> None:
    save_safetensors(folder / "plain.safetensors", _net(1), {"disegno.mechanism": "controlnet"})


def _write_ctrlora(folder: Path) -> None:
    base = {name: tensor for name, tensor in _net(2).items() if not name.startswith("controlnet_cond_embedding")}
    save_safetensors(folder / "base.safetensors", base, {"disegno.mechanism": "ctrlora-base", "disegno.family": "sd1"})
    for seed, name in ((3, "first"), (4, "second")):
        generator = torch.Generator().manual_seed(seed)
        condition = {}
        for key, tensor in base.items():
            module, _, kind = key.rpartition(".")
            if tensor.ndim == 2 and kind == "weight":
                down, up = (RANK, tensor.shape[1]), (tensor.shape[0], RANK)
                condition[f"{module}.lora_layer.down.weight"] = torch.randn(down, generator=generator) / 8
                condition[f"{module}.lora_layer.up.weight"] = torch.randn(up, generator=generator) / 8
            elif key.startswith("controlnet_") or (".attentions." in key and "norm" in key):
                condition[key] = tensor + 0.1 * torch.randn(tensor.shape, generator=generator)
        header = {"disegno.mechanism": "ctrlora", "disegno.family": "sd1", "disegno.name": name}
        save_safetensors(folder / f"{name}.safetensors", condition, header | {"disegno.rank": str(RANK)})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    miniature.write_sd1_checkpoint(folder / "mini.safetensors")
    _write_controlnet(folder)
    _write_ctrlora(folder)
    noise = np.random.default_rng(0).integers(0, 255, (80, 120, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((240, 160)).save(folder / "photo.png")
    return folder


def _settings(folder: Path) -> Settings:
    return Settings(model_dirs=(folder,), cache_dir=folder / "cache", dtype="fp32", device="cpu")


@pytest.fixture(scope="module")
def studio(folder: Path) -> Iterator[Studio]:
    yield Studio(_settings(folder))


def _unit(folder: Path, name: str, **fields: object) -> ControlUnit:
    return ControlUnit(**({"name": name, "image": str(folder / "photo.png"), "annotate": "canny"} | fields))


def _draw(request: Request, studio: Studio) -> Result:
    events = list(generate(request, studio=studio))
    assert isinstance(events[-1], Result)
    steps = [event.step for event in events if isinstance(event, Progress) and event.step]
    assert steps == list(range(1, events[-1].request.steps + 1))
    return events[-1]


def _pixels(result: Result) -> list[bytes]:
    return [image.tobytes() for image in result.images]


@pytest.mark.parametrize("name", ["plain", "first"])
def test_a_control_changes_the_picture_and_strength_nought_does_not(name: str, folder: Path, studio: Studio) -> None:
    plain = _pixels(_draw(SMALL, studio))
    controlled = _draw(replace(SMALL, controls=(_unit(folder, name),)), studio)
    assert _pixels(controlled) != plain
    assert controlled.conditions[0].size == (64, 64)
    off = _draw(replace(SMALL, controls=(_unit(folder, name, strength=0.0),)), studio)
    assert _pixels(off) == plain


def test_the_cache_changes_no_bit(folder: Path, studio: Studio) -> None:
    request = replace(SMALL, batch=2, controls=(_unit(folder, "first"), _unit(folder, "second", strength=0.5, end=0.7)))
    studio.residuals.clear()
    cold, misses = _pixels(_draw(request, studio)), studio.residuals.misses
    warm, hits = _pixels(_draw(request, studio)), studio.residuals.hits
    off = _pixels(_draw(request, Studio(replace(_settings(folder), residual_cache_mib=0))))
    assert cold == warm == off
    assert studio.residuals.misses == misses and hits > 0


def test_another_seed_finds_the_residuals_of_the_first(folder: Path, studio: Studio) -> None:
    request = replace(SMALL, controls=(_unit(folder, "first"),))
    first, misses = _pixels(_draw(request, studio)), studio.residuals.misses
    second = _pixels(_draw(replace(request, seed=99), studio))
    assert second != first and studio.residuals.misses == misses


def test_one_base_serves_both_conditions_and_they_add_up(folder: Path, studio: Studio) -> None:
    both = replace(SMALL, controls=(_unit(folder, "first"), _unit(folder, "second")))
    backbone = studio.backbone("mini")
    controllers = [studio.controller(unit, backbone) for unit in both.controls]
    assert controllers[0].base is controllers[1].base
    swapped = replace(both, controls=both.controls[::-1])
    a, b = (np.asarray(_draw(request, studio).images[0]).astype(int) for request in (both, swapped))
    assert np.abs(a - b).max() <= 1  # a sum in another order, rounded to 8 bits


def test_a_control_leaves_every_weight_as_it_was(folder: Path, studio: Studio) -> None:
    backbone = studio.backbone("mini")
    before = {name: tensor.clone() for name, tensor in backbone.net.state_dict().items()}
    _draw(replace(SMALL, controls=(_unit(folder, "plain"), _unit(folder, "second"))), studio)
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.net.state_dict().items())


def test_a_batch_is_its_images_alone(studio: Studio) -> None:
    together = _draw(replace(SMALL, batch=2), studio)
    alone = _draw(replace(SMALL, seed=4), studio)
    a, b = np.asarray(together.images[1]).astype(int), np.asarray(alone.images[0]).astype(int)
    assert np.abs(a - b).max() <= 2  # matrix kernels round by batch shape; the noise is equal bit for bit


def test_two_generations_are_stepped_in_one_batch(studio: Studio) -> None:
    """What a server does: it drives two coroutines, the second one joins while the first is on its way."""
    requests = [replace(SMALL, steps=4), replace(SMALL, seed=9, prompt="a dog")]
    drawings = [draw(request, studio) for request in requests]
    phases = [next(drawing) for drawing in drawings]
    batch, results = Batch(phases[0].backbone), {}
    for run in phases[0].runs:
        batch.add(run)
    batch.step()
    assert [phase.step() for phase in phases] == [1, 0]
    for run in phases[1].runs:
        batch.add(run)
    while batch.runs:
        batch.step()
        for i, phase in enumerate(phases):
            if i not in results and all(run.latents is not None for run in phase.runs):
                with pytest.raises(StopIteration) as end:
                    next(drawings[i])
                results[i] = end.value.value
    for i, request in enumerate(requests):
        a, b = (np.asarray(r.images[0]).astype(int) for r in (results[i], _draw(request, studio)))
        assert np.abs(a - b).max() <= 2  # matrix kernels round by batch shape


def test_an_interrupted_generation_leaves_the_studio_usable(studio: Studio) -> None:
    events = generate(SMALL, studio=studio)
    for event in events:
        if isinstance(event, Progress) and event.step == 1:
            break
    events.close()
    assert _pixels(_draw(SMALL, studio))


def test_the_result_holds_a_concrete_request(studio: Studio) -> None:
    request = _draw(replace(SMALL, seed=-1, sampler=None, cfg=None), studio).request
    assert request.seed >= 0 and request.sampler and request.schedule and request.cfg


def test_the_settings_threads_are_torchs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    for threads in (0, 3):
        Studio(Settings(model_dirs=(tmp_path,), cache_dir=tmp_path, threads=threads))
    assert asked == [3]


def test_a_condition_without_its_base_says_what_to_do(folder: Path, tmp_path: Path) -> None:
    for name in ("mini", "first"):
        (tmp_path / f"{name}.safetensors").symlink_to(folder / f"{name}.safetensors")
    alone = Studio(_settings(tmp_path))
    with pytest.raises(RequestError, match=r"Base ControlNet.*base="):
        _draw(replace(SMALL, controls=(_unit(folder, "first"),)), alone)


def test_a_base_that_was_replaced_is_opened_anew(folder: Path, tmp_path: Path, studio: Studio) -> None:
    """However it is found: by its path, or as the library's only one."""
    library = tmp_path / "library"
    library.mkdir()
    for name in ("mini", "first", "base"):
        shutil.copy(folder / f"{name}.safetensors", library)
    own = Studio(_settings(library))
    for unit in (_unit(folder, "first", base=str(library / "base.safetensors")), _unit(folder, "first")):
        request = replace(SMALL, steps=1, controls=(unit,))
        before = _pixels(_draw(request, own))
        base = {name: tensor + 0.05 for name, tensor in load_file(library / "base.safetensors").items()}
        told = {"disegno.mechanism": "ctrlora-base", "disegno.family": "sd1"}
        save_safetensors(library / "base.safetensors", base, told)
        after = _pixels(_draw(request, own))
        assert after != before and after == _pixels(_draw(request, Studio(_settings(library))))


def test_a_drawing_meets_the_canvas_in_one_step(folder: Path, studio: Studio) -> None:
    """However large its picture is: edges of one pixel, drawn for the canvas, are not enlarged and made small again."""
    photo = Image.open(folder / "photo.png")
    photo.resize((1440, 960)).save(folder / "large.png")
    unit = _unit(folder, "plain", image=str(folder / "large.png"))
    shown = np.asarray(_draw(replace(SMALL, steps=1, controls=(unit,)), studio).conditions[0])
    small = resize_short_side(np.asarray(Image.open(folder / "large.png")), 64)
    canny = ANNOTATORS.load("canny")
    drawn = annotate_at(canny, small, make_params(canny, {}), 64)
    assert np.array_equal(shown, drawn[:, (drawn.shape[1] - 64) // 2 :][:, :64])


def test_a_base_without_a_condition_says_what_to_do(folder: Path, studio: Studio) -> None:
    with pytest.raises(ModelFileError, match=r"controls nothing alone\. Name a CtrLoRA condition"):
        studio.controller(_unit(folder, "base"), studio.backbone(SMALL.model))


@pytest.mark.parametrize(
    "wrong",
    [
        {"sampler": "Eulr"}, {"schedule": "Karas"}, {"hires": Hires(sampler="Eulr")},
        {"init": InitImage(image="no.png")},
        {"controls": (ControlUnit(name="plain", image="no.png"),)},
    ],
)  # fmt: skip
def test_what_needs_no_model_to_be_known_is_said_before_one_is_opened(
    wrong: dict[str, object], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Studio, "open_model", lambda *_: pytest.fail("a model was opened"))
    with pytest.raises(RequestError):
        _draw(replace(SMALL, **wrong), Studio(_settings(folder)))


def test_a_control_of_another_family_is_refused_at_once(folder: Path, studio: Studio) -> None:
    from time import perf_counter

    net: nn.Module = ControlNetModel(**{**WIDTHS, "cross_attention_dim": 1024})
    save_safetensors(folder / "two.safetensors", miniature.draw(net, 1), {"disegno.family": "sd2"})
    studio.backbone("mini")
    began = perf_counter()
    with pytest.raises(WrongFamily, match=r"two\.safetensors is for sd2, the open model is sd1"):
        studio.controller(_unit(folder, str(folder / "two.safetensors")), studio.backbone("mini"))
    assert perf_counter() - began < 0.5  # measured: a few milliseconds; the bound allows for a busy machine
    (folder / "two.safetensors").unlink()


def test_names_that_do_not_exist_are_said(folder: Path, studio: Studio) -> None:
    for request in (
        replace(SMALL, model="nobody"),
        replace(SMALL, sampler="Eulr"),
        replace(SMALL, controls=(_unit(folder, "plian"),)),
        replace(SMALL, controls=(_unit(folder, "plain", annotate="cany"),)),
    ):
        with pytest.raises(UnknownName):
            _draw(request, studio)
