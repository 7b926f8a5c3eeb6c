"""ControlNet-LLLite through the engine, A1111's units and the command line, on a miniature of Stable Diffusion 1."""

import base64
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import Tensor

from disegno import ControlUnit, Request, Settings, Studio
from disegno.backbones import miniature
from disegno.cli.main import main
from disegno.controls._lllite_net import LayerNet
from disegno.core.request import Hires, InitImage, LoraUse, Tiles
from disegno.engine.batch import Batch
from disegno.engine.generate import draw
from disegno.engine.record import data_uri, png_bytes, read
from disegno.engine.sharing import Mode, Sharing
from disegno.serving.a1111.controlnet import translate_unit
from disegno.serving.a1111.house import Named
from disegno.weights.save import save_safetensors
from kit import lllite as kit
from kit.drawing import result_of
from kit.server import start

pytestmark = pytest.mark.e2e

SMALL = Request(prompt="a disc", negative="x", model="mini", seed=1, steps=4, width=64, height=64)
LAYERS = 12  # that a file tells: four in each of three transformers
INKED = (LoraUse(name="ink"),)


@dataclass(frozen=True)
class World:
    """A folder with a miniature, two files of weights and one that adds nothing; and a studio that knows them."""

    folder: Path
    studio: Studio

    def unit(self, name: str = "one", picture: str = "a", **fields: Any) -> ControlUnit:
        return ControlUnit(**{"name": name, "image": str(self.folder / f"{picture}.png"), "annotate": "none", **fields})

    def drawn(self, *units: ControlUnit, **fields: Any) -> np.ndarray:
        result = result_of(replace(SMALL, controls=units, **fields), self.studio)
        assert result.warnings == ()
        return np.stack([np.asarray(image) for image in result.images])


def _write(folder: Path) -> None:
    net = miniature.open_miniature().net
    layers = kit.attended(net, kit.SD1)
    for seed, name in enumerate(("one", "two")):
        kit.write(folder / f"{name}.safetensors", kit.tensors(net, layers, seed))
    still = {name: t * (".up." not in name) for name, t in kit.tensors(net, layers).items()}
    kit.write(folder / "still.safetensors", still, {"disegno.annotator": "canny"})
    place = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"  # a layer that they tell, too
    pair = {f"{place}.lora_down.weight": torch.ones(1, 32), f"{place}.lora_up.weight": torch.ones(32, 1)}
    save_safetensors(folder / "ink.safetensors", pair, {})
    seeded = np.random.default_rng(0)
    for name, size in (("a", (64, 64)), ("b", (64, 64)), ("wide", (72, 96))):
        Image.fromarray(seeded.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / f"{name}.png")
    half = np.zeros((64, 64), np.uint8)
    half[:, :32] = 255
    Image.fromarray(half).save(folder / "half.png")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("lllite")
    miniature.write_sd1_checkpoint(folder / "mini.safetensors")
    _write(folder)
    return World(folder, Studio(Settings(model_dirs=(folder,), cache_dir=folder / "c", dtype="fp32", device="cpu")))


def test_pictures_follow_strength_and_span(world: World) -> None:
    """The farther from the picture without it, the stronger it is and the longer it acts; without either, no bit."""
    plain = world.drawn().astype(float)

    def far(**fields: Any) -> float:
        return float(np.abs(world.drawn(world.unit(**fields)) - plain).mean())

    by_strength = [far(strength=strength) for strength in (0.0, 0.1, 0.5, 1.0)]
    assert by_strength[0] == 0 < by_strength[1] < by_strength[2] < by_strength[3]
    by_end = [far(start=0.0, end=end) for end in (0.0, 0.25, 1.0)]
    assert by_end[0] == 0 < by_end[1] and by_end[2] == by_strength[3]
    early, late = world.drawn(world.unit(end=0.5)), world.drawn(world.unit(start=0.5))
    assert not np.array_equal(early, late)


def test_what_adds_nothing_changes_no_bit(world: World) -> None:
    for fields in ({}, {"batch": 2}, {"loras": INKED}, {"hires": Hires(scale=1.5, denoise=0.5)}):
        assert np.array_equal(world.drawn(world.unit("still"), **fields), world.drawn(**fields))


def test_its_uses_are_other_pictures(world: World) -> None:
    half = str(world.folder / "half.png")
    uses: list[dict[str, Any]] = [
        *({}, {"mode": "control"}, {"mode": "prompt"}, {"curve": "1@0,0@1"}, {"region": half}),
        *({"layers": (1.0, 0.0, 0.0)}, {"picture": "b"}, {"name": "two"}),
    ]
    pictures = [world.drawn(), *(world.drawn(world.unit(**use)) for use in uses)]
    assert len({picture.tobytes() for picture in pictures}) == len(pictures)
    assert np.array_equal(world.drawn(world.unit(layers=(1.0, 1.0, 1.0))), pictures[1])


ASKED: dict[str, dict[str, Any]] = {
    "several": {"batch": 2},
    "no guidance": {"cfg": 1.0, "negative": ""},
    "a second pass": {"hires": Hires(scale=1.5, denoise=0.5)},
    "parts of an odd canvas": {"width": 96, "height": 72, "tiles": Tiles(size=64)},
    "an odd canvas": {"width": 88, "height": 72},
    "no seam": {"seamless": True},
    "a LoRA of the same layer": {"loras": INKED},
}


@pytest.mark.parametrize("name", ASKED)
def test_it_goes_together_with(name: str, world: World) -> None:
    """It acts; later, where it is not asked for, it does not."""
    before, drawn = world.drawn(**ASKED[name]), world.drawn(world.unit(picture="wide"), **ASKED[name])
    assert not np.array_equal(drawn, before)
    assert np.array_equal(world.drawn(**ASKED[name]), before)


def test_beside_a_lora_both_act(world: World) -> None:
    pictures = [world.drawn(*units, loras=loras) for units in ((), (world.unit(),)) for loras in ((), INKED)]
    assert len({picture.tobytes() for picture in pictures}) == 4


def test_beside_a_reference_and_in_a_changed_picture(world: World) -> None:
    reference = world.unit("reference-only", "b")
    alone, both = world.drawn(reference), world.drawn(reference, world.unit())
    assert not np.array_equal(both, alone) and not np.array_equal(both, world.drawn(world.unit()))
    assert np.array_equal(world.drawn(reference, world.unit("still")), alone)
    init = InitImage(image=str(world.folder / "b.png"), mask=str(world.folder / "half.png"), only_masked=True)
    assert not np.array_equal(world.drawn(world.unit(), init=init), world.drawn(init=init))


@pytest.mark.parametrize("mode", ["exact", "auto"])
def test_requests_drawn_together_are_what_they_are_alone(mode: Mode, world: World) -> None:
    """Other files, pictures, strengths, steps and spans, and none at all, in one batch: the same bits."""
    units = [
        (world.unit(),),
        (world.unit("two", "b", strength=0.3, end=0.5),),
        (),
        (world.unit("two"), world.unit("one", "b")),
    ]
    requests = [replace(SMALL, controls=some, seed=i, steps=2 + i % 2) for i, some in enumerate(units)]
    drawings = [draw(request, world.studio) for request in requests]
    phases = [next(drawing) for drawing in drawings]
    batch = Batch(phases[0].backbone, sharing=Sharing(mode))
    for i, phase in enumerate(phases):
        for run in phase.runs:
            run.owner = str(i)
            batch.add(run)
        batch.step()  # the next one joins a step later
    while batch.runs:
        batch.step()
    for drawing, request in zip(drawings, requests, strict=True):
        with pytest.raises(StopIteration) as end:
            next(drawing)
        alone = result_of(request, world.studio)
        assert end.value.value.images[0].tobytes() == alone.images[0].tobytes()


def test_a_drawing_is_embedded_once_for_its_size(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    embedded: list[tuple[int, ...]] = []
    own = LayerNet.embed

    def counted(net: LayerNet, image: Tensor) -> Tensor:
        embedded.append(tuple(image.shape))
        return own(net, image)

    monkeypatch.setattr(LayerNet, "embed", counted)
    world.studio.close_controls()
    for seed in (1, 2):
        world.drawn(world.unit(), seed=seed, batch=2)
    assert embedded == [(1, 3, 64, 64)] * LAYERS
    world.drawn(world.unit(), width=72)
    assert embedded[LAYERS:] == [(1, 3, 64, 72)] * LAYERS


def test_its_picture_is_remembered(world: World, tmp_path: Path) -> None:
    result = result_of(replace(SMALL, controls=(world.unit(strength=0.6, end=0.5),)), world.studio)
    (tmp_path / "made.png").write_bytes(png_bytes(result, 0))
    again = result_of(read(tmp_path / "made.png").replay(), world.studio)
    assert again.images[0].tobytes() == result.images[0].tobytes()


def test_a1111s_units_steer_it(world: World) -> None:
    unit: dict[str, Any] = {"module": "none", "model": "one [0123abcd]", "weight": 0.6, "guidance_end": 0.5}
    found = translate_unit(unit, (), [Named("one")], has_init=True)
    assert found is not None and found.fields["name"] == "one"
    told = {name: found.fields[name] for name in ("strength", "start", "end", "mode") if name in found.fields}
    assert np.array_equal(world.drawn(world.unit(**told)), world.drawn(world.unit(strength=0.6, end=0.5)))


def test_its_annotator_is_its_headers(world: World) -> None:
    """What it was taught with draws the condition, unless a unit says otherwise."""
    request = replace(SMALL, controls=(replace(world.unit("still"), annotate=None),))
    shown = result_of(request, world.studio).conditions[0]
    assert set(np.unique(np.asarray(shown))) <= {0, 255}  # edges


def test_the_command_line_draws_with_it_and_shows_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISEGNO_MODEL_DIRS", str(world.folder))
    monkeypatch.setenv("DISEGNO_CACHE_DIR", str(world.folder / "c"))
    out, run = world.folder / "drawn.png", CliRunner().invoke
    size = ["--model", "mini", "--size", "64x64", "--steps", "2", "--seed", "1", "-o", str(out)]
    control = f"one={world.folder / 'a.png'},strength=0.6,annotate=none"
    done = run(main, ["generate", "a disc", *size, "--control", control])
    assert done.exit_code == 0 and out.is_file(), done.output
    shown = run(main, ["models", "show", "one", "--json"])
    assert '"controlnet-lllite"' in shown.output and '"sd1"' in shown.output, shown.output
    assert "controlnet-lllite" in run(main, ["models", "list", "--kind", "control"]).output


def test_a_server_draws_with_it_at_both_doors(world: World, tmp_path: Path) -> None:
    """The page's door, which names it with its kind, and A1111's ControlNet units: the same picture."""
    places = {"DISEGNO_MODEL_DIRS": str(world.folder), "DISEGNO_CACHE_DIR": str(tmp_path / "c")}
    log = tmp_path / "log"
    server = start(tmp_path / "server", "--device", "cpu", log=log, DISEGNO_DTYPE="fp32", **places).wait_ready()
    try:
        picture = data_uri(Image.open(world.folder / "a.png"))
        unit = {"name": "one", "image": picture, "annotate": "none", "strength": 0.6, "end": 0.5}
        told = {"model": "mini", "controls": [unit], "prompt": "a disc", "seed": 1, "steps": 4}
        size = {"width": 64, "height": 64}
        job = server.wait(
            server.submit("generate", told | size | {"sampler": "Euler", "cfg": 7.0, "noise_source": "nv"})["id"]
        )
        assert job["state"] == "done", job
        ours = server.ask("GET", job["result"]["files"][0]["url"]).content
        kinds = {card["name"]: card["mechanism"] for card in server.get("/v1/controls")}
        assert kinds["one"] == kinds["two"] == "controlnet-lllite"
        listed = server.get("/controlnet/model_list")["model_list"]
        model = next(name for name in listed if name.startswith("one ["))
        unit = {"module": "none", "model": model, "image": picture, "weight": 0.6, "guidance_end": 0.5}
        body = {"prompt": "a disc", "seed": 1, "steps": 4, "sampler_name": "Euler", "cfg_scale": 7.0} | size
        body["override_settings"] = {"sd_model_checkpoint": "mini"}
        answer = server.ask("POST", "/sdapi/v1/txt2img", body | {"alwayson_scripts": {"controlnet": {"args": [unit]}}})
        assert answer.ok, answer.text
        theirs = base64.b64decode(answer.json()["images"][0])
        pictures = [np.asarray(Image.open(BytesIO(content)).convert("RGB")).astype(int) for content in (ours, theirs)]
        assert np.abs(pictures[0] - pictures[1]).max() <= 1
        bare = server.ask("POST", "/sdapi/v1/txt2img", body).json()["images"][0]
        assert np.abs(np.asarray(Image.open(BytesIO(base64.b64decode(bare)))) - pictures[1]).max() > 10
    finally:
        assert server.stop() == 0
