"""Controls of Stable Diffusion XL through the engine, A1111's units and the command line, on a miniature."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from diffusers import ControlNetModel, ControlNetUnionModel, T2IAdapter
from PIL import Image
from torch import Tensor

from disegno import ControlUnit, Request, Result, Settings, Studio, generate
from disegno.backbones import miniature, miniature_sdxl, sdxl
from disegno.cli.main import main
from disegno.controls._xs_new import new_xs
from disegno.core.errors import RequestError, WrongFamily
from disegno.core.request import Hires, LoraUse, Refiner
from disegno.engine.batch import Batch
from disegno.engine.generate import Phase, draw
from disegno.engine.sharing import Sharing
from disegno.memory import FULL_PRECISION, Memory
from disegno.serving.a1111.controlnet import translate_unit
from disegno.serving.a1111.house import Named
from disegno.training.miniature import Discs
from disegno.weights.keys import ldm
from disegno.weights.save import save_safetensors
from disegno.weights.xs_files import originals_of
from kit import control_lora
from kit import lllite as lllite_kit

pytestmark = pytest.mark.e2e

MADE = miniature_sdxl.Sdxl(unet=miniature_sdxl.THREE_LEVELS)
NAMES = ("edges", "small", "lora", "union", "t2i", "xs", "lllite", "reference-adain-attn")
INK = 2.0  # the strength of the LoRA
LAYERS = {"edges": 10, "small": 10, "lora": 10, "union": 10, "t2i": 4, "xs": 10, "lllite": 5}


@dataclass(frozen=True)
class World:
    """A folder with a miniature and a control of each kind, and a studio that knows them."""

    folder: Path
    studio: Studio

    def unit(self, name: str, picture: str = "a", **fields: Any) -> ControlUnit:
        task = {"task": "canny"} if name == "union" else {}
        image = str(self.folder / f"{picture}.png")
        return ControlUnit(**{"name": name, "image": image, "annotate": "none", **task, **fields})

    def request(self, *units: ControlUnit, **fields: Any) -> Request:
        told = {"prompt": "a disc", "model": "mini", "seed": 1, "steps": 2, "width": 64, "height": 64}
        return Request(**{**told, **fields}, controls=units)

    def drawn(self, *units: ControlUnit, **fields: Any) -> np.ndarray:
        result = list(generate(self.request(*units, **fields), studio=self.studio))[-1]
        assert isinstance(result, Result)
        return np.stack([np.asarray(image) for image in result.images])


def _config(**unlike: Any) -> dict[str, Any]:
    left_out = ("sample_size", "out_channels", "up_block_types")
    return {name: value for name, value in MADE.unet_config.items() if name not in left_out} | unlike


def _controlnet(**unlike: Any) -> dict[str, Tensor]:
    return miniature.draw(ControlNetModel(**_config(**unlike)), 5)


def _write(folder: Path) -> None:
    edges, small = _controlnet(), _controlnet(down_block_types=("DownBlock2D",) * 3, mid_block_type="UNetMidBlock2D")
    names = ldm.unet_originals(edges)
    save_safetensors(folder / "edges.safetensors", {names[name]: tensor for name, tensor in edges.items()}, {})
    save_safetensors(folder / "small.safetensors", small, {})
    union = ControlNetUnionModel(**_config(num_trans_channel=32, num_proj_channel=32, num_control_type=8))
    save_safetensors(folder / "union.safetensors", miniature.draw(union, 6), {})
    adapter = T2IAdapter(3, [32, 64, 128, 128], 2, 16, "full_adapter_xl")
    save_safetensors(folder / "t2i.safetensors", miniature.draw(adapter, 11), {})
    net = sdxl.open(folder / "mini.safetensors", Memory(FULL_PRECISION)).net
    own = new_xs(net, (8, 16, 32), torch.Generator().manual_seed(9)).state_dict()
    told = {"disegno.family": "sdxl"}
    save_safetensors(folder / "xs.safetensors", originals_of({name: t + 0.01 for name, t in own.items()}), told)
    layers = lllite_kit.attended(net, lllite_kit.SDXL)
    lllite_kit.write(folder / "lllite.safetensors", lllite_kit.tensors(net, layers, 12))
    generator = torch.Generator().manual_seed(3)
    module = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
    shapes = {"lora_down.weight": (4, 96), "lora_up.weight": (64, 4)}
    lora = {f"{module}.{part}": torch.randn(shape, generator=generator) for part, shape in shapes.items()}
    save_safetensors(folder / "ink.safetensors", lora | {f"{module}.alpha": torch.tensor(4.0)}, {})
    made, key = control_lora.make(net, 7), "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    style = INK * lora[f"{module}.lora_up.weight"] @ lora[f"{module}.lora_down.weight"]
    save_safetensors(folder / "lora.safetensors", made.file, {})
    save_safetensors(folder / "whole.safetensors", made.full, {})
    save_safetensors(folder / "inked.safetensors", {**made.full, key: made.full[key] + style}, {})


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("sdxl")
    miniature_sdxl.write_file(folder / "mini.safetensors", MADE)
    miniature_sdxl.write_file(folder / "refiner.safetensors", miniature_sdxl.Sdxl(refines=True))
    miniature.write_sd1_checkpoint(folder / "sd1.safetensors")
    for name, index in (("a", 0), ("b", 1)):
        Image.fromarray(Discs(2).read(index).condition).save(folder / f"{name}.png")
    Image.fromarray(np.repeat(np.array([[0, 255]], np.uint8), 64, 0).repeat(32, 1)).save(folder / "right.png")
    _write(folder)
    return World(folder, Studio(Settings(model_dirs=(folder,), cache_dir=folder / "c", dtype="fp32", device="cpu")))


@pytest.mark.parametrize("name", NAMES)
def test_every_control_obeys_strength_span_passes_and_windows(name: str, world: World) -> None:
    plain, drawn = world.drawn(), world.drawn(world.unit(name))
    assert not np.array_equal(drawn, plain) and np.array_equal(world.drawn(world.unit(name)), drawn)
    assert np.array_equal(world.drawn(world.unit(name, strength=0.0)), plain)
    assert not np.array_equal(world.drawn(world.unit(name, end=0.5)), drawn)
    hires = {"hires": {"scale": 1.5, "denoise": 0.8}}
    assert not np.array_equal(world.drawn(world.unit(name, passes="hires"), **hires), world.drawn(**hires))
    tiled = {"width": 96, "height": 72, "tiles": {"size": 64}}  # 72: no whole squares of 16 pixels
    assert not np.array_equal(world.drawn(world.unit(name), **tiled), world.drawn(**tiled))


@pytest.mark.parametrize("name", LAYERS)
def test_modes_layers_and_regions(name: str, world: World) -> None:
    num, full = LAYERS[name], world.drawn(world.unit(name))
    modes = [world.drawn(world.unit(name, mode=mode)) for mode in ("balanced", "prompt", "control")]
    assert len({mode.tobytes() for mode in modes}) == 3
    assert np.array_equal(world.drawn(world.unit(name, layers=(1.0,) * num)), full)
    assert not np.array_equal(world.drawn(world.unit(name, layers=(1.0, *(0.0,) * (num - 1)))), full)
    with pytest.raises(RequestError, match=f"13 layer weights, but adds (to )?{num} "):
        world.drawn(world.unit(name, layers=(1.0,) * 13))
    region = world.drawn(world.unit(name, region=str(world.folder / "right.png")))
    assert not np.array_equal(region, full) and not np.array_equal(region, world.drawn())


def test_several_at_once_and_beside_a_lora(world: World) -> None:
    units = [world.unit(name) for name in NAMES]
    both, ink = world.drawn(*units), {"loras": (LoraUse(name="ink", strength=INK),)}
    alone = [world.drawn(unit) for unit in units]
    assert all(not np.array_equal(one, both) for one in alone)
    inked = world.drawn(units[0], **ink)
    assert not np.array_equal(inked, alone[0]) and not np.array_equal(inked, world.drawn(**ink))
    assert np.array_equal(world.drawn(units[0]), alone[0])  # the LoRA is taken off


def test_a_control_lora_draws_what_its_whole_controlnet_does(world: World) -> None:
    """To a level of 255: sums in another order. A LoRA on the model is on its control, too, as in A1111 and ComfyUI."""
    ink = {"loras": (LoraUse(name="ink", strength=INK),)}
    lora, whole = (world.drawn(world.unit(name)) for name in ("lora", "whole"))
    assert _apart(lora, whole) <= 1 < _apart(lora, world.drawn())
    inked, both, control = (world.drawn(world.unit(name), **ink) for name in ("lora", "inked", "whole"))
    assert _apart(inked, both) <= 1 < _apart(inked, control)
    assert np.array_equal(world.drawn(world.unit("lora")), lora)  # the LoRA is taken off
    shutil.copy(world.folder / "mini.safetensors", world.folder / "twin.safetensors")  # a net of its own, alike
    assert np.array_equal(world.drawn(world.unit("lora"), **ink, model="twin"), inked)


def _apart(a: np.ndarray, b: np.ndarray) -> int:
    """Return how many levels two pictures differ by at most."""
    return int(np.abs(a.astype(int) - b.astype(int)).max())


def test_pictures_join_a_batch_at_any_step_and_keep_their_latents(world: World) -> None:
    """Other controls, none, other texts and another step of the way: float32's rounding apart, each as alone."""
    units = (
        (world.unit("edges"),),
        (world.unit("t2i", "b"), world.unit("small")),
        (world.unit("xs"),),
        (world.unit("union"), world.unit("lora")),
        (world.unit("lllite", "b"), world.unit("t2i")),
        (world.unit("lllite", strength=0.4, end=0.5),),
        (),
    )

    def phase(seed: int, controls: tuple[ControlUnit, ...]) -> Phase:
        return next(draw(world.request(*controls, seed=seed, steps=3, prompt=f"{seed} discs"), world.studio))

    def drawn(phases: list[Phase]) -> list[Tensor]:
        batch = Batch(phases[0].backbone, sharing=Sharing("always"))
        for i, one in enumerate(phases):
            for run in one.runs:
                run.owner = str(i)
                batch.add(run)
            batch.step()
        while batch.runs:
            batch.step()
        return [one.latents() for one in phases]

    together = drawn([phase(seed, controls) for seed, controls in enumerate(units)])
    for seed, controls in enumerate(units):
        torch.testing.assert_close(together[seed], drawn([phase(seed, controls)])[0], atol=2e-3, rtol=1e-3)


def test_a_unions_units_are_told_apart_by_their_task(world: World) -> None:
    seen = [world.drawn(world.unit("union", task=task)) for task in ("canny", "depth", "tile")]
    assert len({picture.tobytes() for picture in seen}) == 3
    unit: dict[str, Any] = {"module": "none", "model": "union", "union_control_type": "Tile"}
    found = translate_unit(unit, (), [Named("union")], has_init=True)
    assert found is not None
    assert np.array_equal(world.drawn(world.unit("union", task=found.fields["task"])), seen[2])
    assert np.array_equal(world.drawn(world.unit("union", task="straight-lines")), seen[0])  # of canny's kind
    both = world.drawn(world.unit("union", task="canny"), world.unit("union", "b", task="depth"))
    assert all(not np.array_equal(both, one) for one in seen)
    with pytest.raises(RequestError, match="say which one the picture is"):
        world.drawn(world.unit("union", task=None))


def test_controls_act_until_the_refiner_takes_over(world: World) -> None:
    """Its net has other sizes, which no control fits; a reference has none."""
    refined = {"refiner": Refiner(model="refiner", at=0.5), "steps": 4}
    units = world.unit("reference-only"), world.unit("edges")
    results = [
        list(generate(world.request(*some, **refined), studio=world.studio))[-1]
        for some in (units, units[:1], (units[0], world.unit("edges", end=0.5)))
    ]
    both, alone, ended = (result for result in results if isinstance(result, Result))
    said = "The control edges acts until refiner.safetensors takes over, whose net has other sizes"
    assert [any(said in text for text in one.warnings) for one in (both, alone, ended)] == [True, False, False]
    assert both.images[0].tobytes() == ended.images[0].tobytes() != alone.images[0].tobytes()
    assert [unit.name for unit in both.request.controls] == ["reference-only", "edges"]
    assert len(both.conditions) == 2


def test_a_hires_pass_by_the_refiner_goes_without_them(world: World) -> None:
    twice = {"hires": Hires(scale=1.0, denoise=0.5, upscaler="Lanczos", model="refiner", steps=2), "steps": 2}
    units = world.unit("reference-only", passes="hires"), world.unit("edges")
    results = [
        list(generate(world.request(*some, **twice), studio=world.studio))[-1]
        for some in (units, (units[0], world.unit("edges", passes="first")), units[1:])
    ]
    both, first, alone = (result for result in results if isinstance(result, Result))
    said = "The control edges does nothing on the refiner refiner.safetensors, whose net has other sizes."
    assert [said in one.warnings for one in (both, first, alone)] == [True, False, True]
    assert both.images[0].tobytes() == first.images[0].tobytes() != alone.images[0].tobytes()


@pytest.mark.parametrize("name", ["edges", "lora"])
def test_a1111s_units_steer_it(name: str, world: World) -> None:
    unit: dict[str, Any] = {"module": "none", "model": name, "advanced_weighting": [0.5] * 10}
    found = translate_unit(unit, (), [Named(name)], has_init=True)
    assert found is not None
    layers: Any = found.fields["layers"]
    ours = world.unit(name, layers=tuple(layers))
    assert np.array_equal(world.drawn(ours), world.drawn(world.unit(name, strength=0.5)))


def test_a_control_of_another_family_is_refused_by_name(world: World) -> None:
    with pytest.raises(WrongFamily, match=r"edges.* is for sdxl, the open model is sd1"):
        world.drawn(world.unit("edges"), model="sd1")


def test_the_command_line_lists_and_draws(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISEGNO_MODEL_DIRS", str(world.folder))
    monkeypatch.setenv("DISEGNO_CACHE_DIR", str(tmp_path))
    for name in LAYERS:
        shown = CliRunner().invoke(main, ["models", "show", name])
        assert shown.exit_code == 0 and "sdxl" in shown.output, shown.output
    assert "control-lora" in CliRunner().invoke(main, ["models", "list"]).output
    for name in ("t2i", "lora"):
        control = f"{name}={world.folder / 'a.png'},annotate=none"
        words = ["generate", "a disc", "--model", "mini", "--steps", "1", "--size", "64x64", "--control", control]
        drawn = CliRunner().invoke(main, [*words, "-o", str(tmp_path / "out.png")])
        assert drawn.exit_code == 0, drawn.output
