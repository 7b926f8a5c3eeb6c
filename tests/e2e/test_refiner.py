"""A refiner: another model goes on with the sampler's questions from a share of the way on; on miniatures."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers import ControlNetModel
from PIL import Image

from disegno import ControlUnit, Request, Result, Settings, Studio, generate
from disegno.backbones import miniature, miniature_sd3
from disegno.core.errors import DisegnoError, RequestError, UnknownName
from disegno.core.infotext import read_infotext
from disegno.core.request import Hires, InitImage, LoraUse, Refiner
from disegno.core.result import Progress
from disegno.engine.batch import Batch
from disegno.engine.embedded import parameters_of
from disegno.engine.generate import draw
from disegno.engine.record import read
from disegno.engine.writing import write_picture
from disegno.samplers.catalogue import all_samplers
from disegno.weights.save import save_safetensors
from kit.drawing import result_of

pytestmark = pytest.mark.e2e

NOT_OURS = ("sample_size", "out_channels", "up_block_types")  # a ControlNet has none of these
WIDTHS = {key: value for key, value in miniature.SD1.unet_config.items() if key not in NOT_OURS}
SMALL = Request(prompt="a cat", negative="x", model="mini", seed=3, steps=5, width=64, height=64, sampler="Euler a")
OTHER = Refiner(model="other", at=0.6, share="steps")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    miniature.write_sd1_checkpoint(folder / "mini.safetensors")
    miniature.write_sd1_checkpoint(folder / "other.safetensors", miniature.Miniature(seed=5))
    miniature.write_sd1_checkpoint(folder / "inpainter.safetensors", miniature.Miniature(in_channels=9))
    miniature.write_sd1_checkpoint(folder / "editor.safetensors", miniature.Miniature(in_channels=8))
    miniature_sd3.write_file(folder / "three.safetensors")
    net = miniature.draw(ControlNetModel(**WIDTHS), 1)
    save_safetensors(folder / "plain.safetensors", net, {"disegno.mechanism": "controlnet"})
    Image.effect_noise((64, 64), 90).convert("RGB").save(folder / "photo.png")
    Image.fromarray(np.tile(np.linspace(0, 255, 64).astype(np.uint8), (64, 1))).save(folder / "ramp.png")
    return folder


@pytest.fixture(scope="module")
def studio(folder: Path) -> Iterator[Studio]:
    yield Studio(Settings(model_dirs=(folder,), cache_dir=folder / "cache", dtype="fp32", device="cpu"))


def _pixels(request: Request, studio: Studio) -> np.ndarray:
    return np.stack([np.asarray(image) for image in result_of(request, studio).images])


def _with(**fields: Any) -> Request:
    return replace(SMALL, refiner=replace(OTHER, **fields))


def test_it_draws_all_or_nothing_at_the_ends(studio: Studio) -> None:
    alone, other = _pixels(SMALL, studio), _pixels(replace(SMALL, model="other"), studio)
    for share in ("noise", "steps"):
        assert (_pixels(_with(at=0.0, share=share), studio) == other).all()
        assert (_pixels(_with(at=1.0, share=share), studio) == alone).all()
        assert (_pixels(_with(model="mini", share=share), studio) == alone).all()  # it is the model itself
    half = _pixels(_with(), studio)
    assert not (half == other).all() and not (half == alone).all()


@pytest.mark.parametrize("sampler", ["Euler a", "Heun", "DPM++ 2M SDE", "UniPC", "DPM adaptive"])
def test_the_sampler_goes_on_with_the_other_models_answers(sampler: str, studio: Studio) -> None:
    """The reference: one coroutine, whose questions are answered one by one, by hand, by this model or by that."""
    request = replace(SMALL, sampler=sampler, refiner=None)
    first, second = (next(draw(replace(request, model=model), studio)) for model in ("mini", "other"))
    run, batches = first.runs[0], (Batch(first.backbone), Batch(second.backbone))
    run.start()
    later = False
    while run.question is not None:
        later = later or run.progress >= OTHER.at
        run.texts = (second if later else first).runs[0].texts
        batches[later].runs = [run]
        batches[later].step()
    wanted = run.latents
    drawing = draw(replace(request, refiner=OTHER), studio)
    phases = list[Any]()
    with pytest.raises(StopIteration):
        while True:
            phases.append(next(drawing))
            batch = Batch(phases[-1].backbone)
            for each in phases[-1].runs:
                batch.add(each)
            while batch.runs:
                batch.step()
    assert wanted is not None and [phase.backbone.name for phase in phases] == ["mini.safetensors", "other.safetensors"]
    assert (phases[-1].latents() == wanted).all()


def test_progress_goes_on(studio: Studio) -> None:
    events = [event for event in generate(_with(), studio=studio) if isinstance(event, Progress)]
    told = [(event.stage, event.step, event.num_steps, event.part, event.num_parts) for event in events[1:]]
    assert told == [
        *(("drawing", n, 3, 0, 2) for n in range(4)),
        *(("refining", n, 2, 1, 2) for n in range(3)),
    ]


def test_it_takes_over_by_noise_as_in_a1111(studio: Studio) -> None:
    # 5 even timesteps, the last but one 249.75, nearest 250: (999 - 250) / 1000 is done
    stages = [
        event.stage for event in generate(_with(share="noise", at=0.749), studio=studio) if isinstance(event, Progress)
    ]
    assert stages.count("refining") == 3  # the steps from 249 and 0, and that it begins
    later = [
        event.stage for event in generate(_with(share="noise", at=0.7491), studio=studio) if isinstance(event, Progress)
    ]
    assert later.count("refining") == 2


def test_it_takes_over_in_the_passes_that_it_is_for(studio: Studio) -> None:
    request = replace(SMALL, hires=Hires(scale=1.5, steps=4, denoise=0.9))
    pictures = list[np.ndarray]()
    for passes, wanted in (("both", [1, 3]), ("first", [1]), ("hires", [2])):
        events = list(generate(replace(request, refiner=replace(OTHER, passes=passes)), studio=studio))
        stages = [event.stage for event in events if isinstance(event, Progress)]
        order = [stage for n, stage in enumerate(stages) if n and stage != stages[n - 1]]
        assert [n for n, stage in enumerate(order) if stage == "refining"] == wanted, order
        parts = [event.part for event in events if isinstance(event, Progress)]
        assert parts == sorted(parts) and isinstance(events[-1], Result)
        pictures.append(np.asarray(events[-1].images[0]))
    assert len({picture.tobytes() for picture in pictures}) == 3


def test_batches_controls_and_changed_pictures_go_over(studio: Studio, folder: Path) -> None:
    photo, ramp = str(folder / "photo.png"), str(folder / "ramp.png")
    unit = ControlUnit(name="plain", image=photo, annotate="none", start=0.5)  # acts on the refiner alone
    base = replace(_with(), batch=2)
    steered = replace(base, controls=(unit,))
    assert (_pixels(steered, studio) != _pixels(base, studio)).any()
    alone = replace(steered, batch=1, seed=4)
    both, one = _pixels(steered, studio), _pixels(alone, studio)
    assert np.abs(both[1].astype(int) - one[0]).max() <= 1
    masked = replace(_with(), init=InitImage(image=photo, mask=ramp, denoise=0.9))
    for model in ("other", "inpainter"):
        changed = _pixels(replace(masked, refiner=replace(OTHER, model=model)), studio)
        assert (changed != _pixels(replace(masked, refiner=None), studio)).any()


def test_the_picture_says_it_and_is_made_again(studio: Studio, tmp_path: Path) -> None:
    result = result_of(_with(share="noise"), studio)
    write_picture(tmp_path / "a.png", result, 0)
    again = result_of(read(tmp_path / "a.png").replay(), studio)
    assert again.images[0].tobytes() == result.images[0].tobytes()
    said = read_infotext(parameters_of(result, 0))
    assert str(said["Refiner"]).startswith("other [") and said["Refiner switch at"] == "0.6"
    assert "Refiner switch by sampling steps" not in parameters_of(result, 0)


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"refiner": Refiner(model="three")}, RequestError, "other latents"),
        ({"refiner": Refiner(model="editor")}, RequestError, "edits a picture by instruction"),
        ({"refiner": Refiner(model="nobody")}, UnknownName, "nobody"),
        ({"refiner": Refiner(model="plain")}, UnknownName, "file of the kind 'control'"),
        ({"refiner": OTHER, "model": "diorama", "few_steps": True}, RequestError, "Leave out few_steps or refiner"),
        ({"refiner": OTHER, "loras": (LoraUse(name="plain"),)}, DisegnoError, "plain"),
    ],
)
def test_what_does_not_go_together_is_said_first(
    fields: dict[str, Any], error: type[Exception], words: str, studio: Studio
) -> None:
    with pytest.raises(error, match=words):
        next(draw(replace(SMALL, **fields), studio))


def test_every_sampler_hands_over(studio: Studio) -> None:
    for spec in all_samplers():
        if "epsilon" in spec.predictions and not spec.adaptive:
            assert _pixels(replace(_with(), sampler=spec.name, steps=2), studio).std() > 0, spec.name
