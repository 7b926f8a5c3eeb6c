"""IP-Adapter through the engine and the command line, on a miniature: with all that a request may ask for."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from diffusers import ControlNetModel
from PIL import Image

from corpus import headers
from disegno import ControlUnit, Request, Settings, Studio
from disegno.backbones import miniature
from disegno.cli.main import main
from disegno.controls._xs_new import new_xs
from disegno.core.errors import ModelFileError, RequestError, WrongFamily
from disegno.core.request import Hires, InitImage, Refiner, Tiles
from disegno.engine.batch import Batch
from disegno.engine.generate import draw
from disegno.engine.record import png_bytes, read
from disegno.engine.sharing import Mode, Sharing
from disegno.weights.save import save_safetensors
from disegno.weights.xs_files import originals_of as xs_originals
from kit import ip_adapter as kit
from kit.clip import write_clip
from kit.drawing import result_of

pytestmark = pytest.mark.e2e

SMALL = Request(prompt="a disc", negative="x", model="mini", seed=1, steps=2, width=64, height=64)
NOT_OURS = ("sample_size", "out_channels", "up_block_types")  # a ControlNet has none of these


@dataclass(frozen=True)
class World:
    """A folder with miniatures, adapters of two forms and other controls; and a studio that knows them."""

    folder: Path
    studio: Studio

    def unit(self, name: str = "plus", picture: str = "a", **fields: Any) -> ControlUnit:
        return ControlUnit(name=name, image=str(self.folder / f"{picture}.png"), annotate="none", **fields)

    def drawn(self, *units: ControlUnit, **fields: Any) -> np.ndarray:
        result = result_of(replace(SMALL, controls=units, **fields), self.studio)
        return np.stack([np.asarray(image) for image in result.images])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("looking")
    miniature.write_sd1_checkpoint(folder / "mini.safetensors")
    miniature.write_sd1_checkpoint(folder / "other.safetensors", miniature.Miniature(seed=5))
    host = miniature.open_miniature()
    kit.write(folder / "plain.bin", kit.tensors("plain", host, 1))
    kit.write(folder / "plus.safetensors", kit.tensors("plus", host, 2))
    write_clip(folder / "image_encoder", layers=2)
    config = {key: value for key, value in miniature.SD1.unet_config.items() if key not in NOT_OURS}
    save_safetensors(folder / "cn.safetensors", miniature.draw(ControlNetModel(**config), 3), {})
    xs = new_xs(host.net, (8, 16), None).state_dict()
    save_safetensors(folder / "xs.safetensors", xs_originals({n: t + 0.003 for n, t in xs.items()}), {})
    seeded = np.random.default_rng(0)
    for name, size in (("a", (40, 60)), ("b", (64, 64)), ("wide", (32, 96))):
        Image.fromarray(seeded.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / f"{name}.png")
    half = np.zeros((64, 64), np.uint8)
    half[:, :32] = 255
    Image.fromarray(half).save(folder / "half.png")
    yield World(folder, Studio(Settings(model_dirs=(folder,), cache_dir=folder / "c", dtype="fp32", device="cpu")))


ASKED: dict[str, dict[str, Any]] = {
    "several": {"batch": 2},
    "no guidance": {"cfg": 1.0},
    "a second pass": {"hires": Hires(scale=1.5, denoise=0.5)},
    "parts of a canvas": {"width": 96, "tiles": Tiles(size=64)},
    "a refiner": {"steps": 3, "refiner": Refiner(model="other", at=0.4, share="steps")},
    "no seam": {"seamless": True},
}


@pytest.mark.parametrize("name", ASKED)
def test_it_goes_together_with(name: str, world: World) -> None:
    """It acts; at strength 0 it changes no bit; nor does it later, where it is not asked for."""
    before = world.drawn(**ASKED[name])
    drawn = world.drawn(world.unit(), **ASKED[name])
    assert not np.array_equal(drawn, before)
    assert np.array_equal(world.drawn(world.unit(), **ASKED[name]), drawn)
    assert np.array_equal(world.drawn(world.unit(strength=0.0), **ASKED[name]), before)
    assert np.array_equal(world.drawn(**ASKED[name]), before)


def test_span_mode_curve_layers_and_region_reach_it(world: World) -> None:
    half = str(world.folder / "half.png")
    uses: list[dict[str, Any]] = [
        *({}, {"end": 0.5}, {"mode": "control"}, {"mode": "prompt"}, {"curve": "1@0,0@1"}, {"region": half}),
        *({"layers": (1.0, *[0.0] * 6)}, {"strength": 0.5}, {"picture": "b"}, {"name": "plain"}),
    ]
    pictures = [world.drawn(), *(world.drawn(world.unit(**use)) for use in uses)]
    for i, one in enumerate(pictures):
        assert not any(np.array_equal(one, other) for other in pictures[:i]), i
    with pytest.raises(RequestError, match="13 layer weights, but 7 cross-attentions"):
        world.drawn(world.unit(layers=(1.0,) * 13))


def test_with_other_controls_and_a_changed_picture(world: World) -> None:
    for name in ("cn", "xs", "plain"):
        alone, other = world.drawn(world.unit(name, strength=0.5)), world.unit(name, strength=0.5)
        both = world.drawn(other, world.unit(picture="b"))
        assert not np.array_equal(both, alone) and not np.array_equal(both, world.drawn(world.unit(picture="b")))
    down = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_q.lora_"
    pair = {f"{down}down.weight": torch.ones(1, 32), f"{down}up.weight": torch.ones(32, 1)}
    save_safetensors(world.folder / "lora.safetensors", pair, {})
    worn = world.drawn(world.unit(), prompt="a disc <lora:lora:1>")
    assert all(
        not np.array_equal(worn, other)
        for other in (world.drawn(world.unit()), world.drawn(prompt="a disc <lora:lora:1>"))
    )
    init = InitImage(image=str(world.folder / "b.png"), mask=str(world.folder / "half.png"), only_masked=True)
    changed = world.drawn(world.unit(), init=init)
    assert not np.array_equal(changed, world.drawn(init=init))
    own = replace(world.unit(), image=None)  # unset: the picture that is changed
    assert not np.array_equal(world.drawn(own, init=init), changed)


def test_it_is_shown_the_picture_whole(world: World) -> None:
    """Whatever the canvas's shape: how a picture would be fitted to it changes nothing."""
    a, b = (world.drawn(world.unit(picture="wide", resize=resize)) for resize in ("crop", "stretch"))
    assert np.array_equal(a, b)
    result = result_of(replace(SMALL, controls=(world.unit(picture="wide"),)), world.studio)
    assert result.conditions[0].size == (96, 32)


@pytest.mark.parametrize("mode", ["exact", "auto"])
def test_requests_drawn_together_are_what_they_are_alone(mode: Mode, world: World) -> None:
    """Other pictures, adapters, strengths, steps, and none at all, in one batch: the same bits."""
    units = [(world.unit(),), (world.unit("plain", "b", strength=0.3),), (), (world.unit(), world.unit("plain"))]
    requests = [replace(SMALL, controls=some, seed=i, steps=2 + i % 2) for i, some in enumerate(units)]
    drawings = [draw(request, world.studio) for request in requests]
    phases = [next(drawing) for drawing in drawings]
    batch = Batch(phases[0].backbone, sharing=Sharing(mode))
    for i, phase in enumerate(phases):
        for run in phase.runs:
            run.owner = str(i)
            batch.add(run)
    while batch.runs:
        batch.step()
    for drawing, request in zip(drawings, requests, strict=True):
        with pytest.raises(StopIteration) as end:
            next(drawing)
        alone = result_of(request, world.studio)
        assert end.value.value.images[0].tobytes() == alone.images[0].tobytes()


def test_pictures_are_mixed_and_remembered(world: World, tmp_path: Path) -> None:
    units = world.unit(mix=True), world.unit(picture="b", mix=True)
    both, summed = world.drawn(*units), world.drawn(*(replace(unit, mix=False) for unit in units))
    assert not np.array_equal(both, summed)
    assert np.array_equal(world.drawn(world.unit(mix=True), world.unit(mix=True)), world.drawn(world.unit()))
    result = result_of(replace(SMALL, controls=units), world.studio)
    (tmp_path / "made.png").write_bytes(png_bytes(result, 0))
    again = result_of(read(tmp_path / "made.png").replay(), world.studio)
    assert again.images[0].tobytes() == result.images[0].tobytes()


def test_what_cannot_be_is_said(world: World, tmp_path: Path) -> None:
    pair = {"image_proj.proj.weight": (4, 4), "ip_adapter.1.to_k_ip.weight": (4, 2048)}
    headers.write_header(tmp_path / "xl.safetensors", pair)
    kit.write(tmp_path / "lone" / "plain.safetensors", kit.tensors("plain", miniature.open_miniature()))
    studio = Studio(replace(world.studio.settings, model_dirs=(tmp_path,)))

    def draws(name: str) -> Any:
        unit = replace(world.unit(), name=str(tmp_path / name))
        return result_of(replace(SMALL, model=str(world.folder / "mini.safetensors"), controls=(unit,)), studio)

    with pytest.raises(WrongFamily, match="is for sdxl"):
        draws("xl.safetensors")
    with pytest.raises(ModelFileError, match=r"12 numbers\), which was not found"):
        draws("lone/plain.safetensors")
    write_clip(tmp_path / "clip_vision" / "vit-h")  # found as soon as it is there
    assert draws("lone/plain.safetensors").images


def test_the_command_line_draws_with_it_and_shows_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISEGNO_MODEL_DIRS", str(world.folder))
    monkeypatch.setenv("DISEGNO_CACHE_DIR", str(world.folder / "c"))
    out, run = world.folder / "drawn.png", CliRunner().invoke
    size = ["--model", "mini", "--size", "64x64", "--steps", "2", "--seed", "1", "-o", str(out)]
    done = run(main, ["generate", "a disc", *size, "--control", f"plus={world.folder / 'a.png'},strength=0.6"])
    assert done.exit_code == 0 and out.is_file(), done.output
    shown = run(main, ["models", "show", str(world.folder / "plain.bin"), "--json"])
    assert '"ip-adapter"' in shown.output
    assert "ip-adapter" in run(main, ["models", "list", "--kind", "control"]).output
