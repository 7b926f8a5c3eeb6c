"""UniControl, Uni-ControlNet, ControlNet-XS and T2I-Adapter through the engine and the command line, on a miniature."""

from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from diffusers import ControlNetModel, T2IAdapter
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from disegno import ControlUnit, Request, Result, Settings, Studio, generate
from disegno.backbones import miniature
from disegno.cli.main import main
from disegno.cli.request import parse_control
from disegno.controls import uni_controlnet
from disegno.controls._uni_nets import FeatureExtractor, GlobalAdapter, Modulation
from disegno.controls._xs_new import new_xs
from disegno.core.errors import RequestError, UnknownName
from disegno.core.request import REFERENCES, Hires
from disegno.engine.batch import Batch
from disegno.engine.generate import Phase, draw
from disegno.engine.record import png_bytes, read
from disegno.engine.sharing import Sharing
from disegno.memory import build_empty
from disegno.serving.catalogue import catalogue_of
from disegno.text.clip_vision import open_clip_vision
from disegno.training.miniature import Discs
from disegno.weights.uni_controlnet_files import GLOBAL_PREFIX, Local, originals_of
from disegno.weights.unicontrol_files import originals_of as unicontrol_originals
from disegno.weights.unicontrol_files import own_shapes
from disegno.weights.xs_files import originals_of as xs_originals
from kit.clip import SEEN, write_clip

pytestmark = pytest.mark.e2e


@dataclass(frozen=True)
class World:
    """A folder with a miniature and a file of each system, and a studio that knows them."""

    folder: Path
    studio: Studio

    def unit(self, name: str, **fields: Any) -> ControlUnit:
        picture = str(self.folder / f"{fields.pop('picture', 'a')}.png")
        return ControlUnit(**{"name": name, "image": picture, "annotate": "none", **fields})

    def drawn(self, *units: ControlUnit, **fields: Any) -> np.ndarray:
        request = Request(
            **{"prompt": "a disc", "model": "mini", "seed": 1, "steps": 2, "width": 64, "height": 64, **fields},
            controls=units,
        )
        result = list(generate(request, studio=self.studio))[-1]
        assert isinstance(result, Result)
        return np.stack([np.asarray(image) for image in result.images])


def _encoder(net: nn.Module, seed: int) -> dict[str, Tensor]:
    config = {k: v for k, v in miniature.SD1.unet_config.items() if k not in ("sample_size", "out_channels")}
    config.pop("up_block_types")
    drawn = miniature.draw(build_empty(lambda: ControlNetModel(**config)), seed)
    return {
        name: tensor * (0.1 if name.startswith("controlnet_") else 1)
        for name, tensor in drawn.items()
        if "cond_embedding" not in name
    }


def _write(folder: Path, net: nn.Module) -> None:
    encoder = _encoder(net, 3)
    places = [f"down_blocks.{i}.resnets.0" for i in range(2)]
    replaced = {f"{place}.{norm}": (i, norm) for i, place in enumerate(places) for norm in ("norm1", "norm2")}
    widths = {(0, "norm1"): 32, (0, "norm2"): 32, (1, "norm1"): 32, (1, "norm2"): 64}
    norms = {name: miniature.draw(Modulation(16, widths[place]), 5) for name, place in replaced.items()}
    kept = {name: tensor for name, tensor in encoder.items() if name.rpartition(".")[0] not in replaced}
    uni = originals_of(Local(kept, miniature.draw(FeatureExtractor(21, (16, 16)), 6), norms))
    uni |= {GLOBAL_PREFIX + n: t for n, t in miniature.draw(GlobalAdapter(SEEN, 24, 128), 7).items()}
    told = {"disegno.family": "sd1"}
    save_file(uni, folder / "uni.safetensors", told)
    generator = torch.Generator().manual_seed(9)
    shapes = own_shapes((32, 32, 32, 64), 32, feature=32, hidden=16)
    own = {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    save_file(unicontrol_originals(encoder, own), folder / "unicontrol.safetensors", told)
    small = new_xs(net, (8, 16), generator).state_dict()  # pyright: ignore
    save_file(xs_originals({n: t + 0.003 for n, t in small.items()}), folder / "xs.safetensors", told)
    save_file(miniature.draw(T2IAdapter(3, [32, 64], 2), 11), folder / "t2i.safetensors")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Generator[World]:
    folder = tmp_path_factory.mktemp("systems")
    miniature.write_sd1_checkpoint(folder / "mini.safetensors")
    for name, index in (("a", 0), ("b", 1)):
        Image.fromarray(Discs(2).read(index).condition).save(folder / f"{name}.png")
    _write(folder, miniature.open_miniature().net)
    clip = write_clip(folder / "clip")
    settings = Settings(model_dirs=(folder,), cache_dir=folder / "c", dtype="fp32", device="cpu", clip=clip)
    yield World(folder, Studio(settings))


UNITS = {"uni": {"task": "canny"}, "unicontrol": {"task": "seg"}, "xs": {}, "t2i": {}, "reference-adain-attn": {}}


@pytest.mark.parametrize("name", UNITS)
def test_every_system_acts_as_the_others_do(name: str, world: World) -> None:
    """Strength, span and region reach it; in a batch, and with windows; the same request gives the same bits."""
    plain, drawn = world.drawn(batch=2), world.drawn(world.unit(name, **UNITS[name]), batch=2)
    assert not np.array_equal(drawn, plain)
    assert np.array_equal(world.drawn(world.unit(name, **UNITS[name]), batch=2), drawn)
    assert np.array_equal(world.drawn(world.unit(name, strength=0.0, **UNITS[name]), batch=2), plain)
    assert not np.array_equal(world.drawn(world.unit(name, end=0.5, **UNITS[name]), batch=2), drawn)
    tiled = {"width": 96, "height": 64, "tiles": {"size": 64}}
    assert not np.array_equal(world.drawn(world.unit(name, **UNITS[name]), **tiled), world.drawn(**tiled))


def test_several_systems_at_once(world: World) -> None:
    units = [world.unit(name, **UNITS[name]) for name in UNITS]
    both = world.drawn(*units)
    assert all(not np.array_equal(world.drawn(unit), both) for unit in units)


def test_a_reference_in_a_hires_pass_has_no_fidelity_of_its_own(world: World) -> None:
    def drawn(**unit: Any) -> np.ndarray:
        hires = {"scale": 1.5, "denoise": 0.8}
        return world.drawn(world.unit("reference-only", picture="b", passes="hires", **unit), hires=hires)

    own = drawn(mode="prompt")
    assert np.array_equal(drawn(params={"fidelity": 0.9}), own) and not np.array_equal(drawn(mode="control"), own)


def test_pictures_with_references_are_drawn_beside_others_as_alone(world: World) -> None:
    """Other references, none, and another step of the way, in one batch of the engine: each its own bits."""
    units = (world.unit("reference-only"),), (world.unit("reference-adain", picture="b"),), ()

    def phase(seed: int, controls: tuple[ControlUnit, ...]) -> Phase:
        fields = {"prompt": "a disc", "model": "mini", "steps": 3, "width": 64, "height": 64}
        return next(draw(Request(**fields, seed=seed, controls=controls), world.studio))

    def drawn(phases: list[Phase]) -> list[Tensor]:
        batch = Batch(phases[0].backbone, sharing=Sharing("auto"))
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
        assert torch.equal(together[seed], drawn([phase(seed, controls)])[0])


def test_references_are_listed_and_come_before_a_file_of_their_name(world: World) -> None:
    cards = [card for card in catalogue_of(world.studio).controls if card.mechanism == "reference"]
    assert [(card.name, card.family, card.file) for card in cards] == [(name, None, None) for name in REFERENCES]
    (world.folder / "reference-only.safetensors").write_bytes((world.folder / "xs.safetensors").read_bytes())
    xs = world.drawn(world.unit("xs"))
    assert np.array_equal(world.drawn(world.unit("reference-only.safetensors")), xs)
    assert not np.array_equal(world.drawn(world.unit("reference-only")), xs)
    (world.folder / "reference-only.safetensors").unlink()


def test_units_of_one_file_are_one_evaluation(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = list[int]()
    run = uni_controlnet.run

    def counted(*given: Any) -> Any:
        calls.append(1)
        return run(*given)

    monkeypatch.setattr(uni_controlnet, "run", counted)
    canny, seg = world.unit("uni", task="canny"), world.unit("uni", task="seg", picture="b")
    together = world.drawn(canny, seg)
    num_together = len(calls)
    apart = world.drawn(canny, world.unit("uni", task="seg", picture="b", strength=0.9))
    assert (num_together, len(calls)) == (2, 2 + 4)  # a step each; the prompts are of one length
    assert not np.array_equal(together, apart)
    assert np.array_equal(world.drawn(seg, canny), together)


def test_unicontrols_conditions_are_mixed_when_units_say_so(world: World) -> None:
    """One control of the mean of what they show: not the sum, in any order, and more of one by its strength."""
    canny, seg = (
        {"name": "unicontrol", "task": task, "picture": p, "mix": True} for task, p in (("canny", "a"), ("seg", "b"))
    )
    both = world.drawn(world.unit(**canny), world.unit(**seg))
    summed = world.drawn(*(world.unit(**{**fields, "mix": False}) for fields in (canny, seg)))
    alone = world.drawn(world.unit(**canny))
    assert all(not np.array_equal(both, other) for other in (summed, alone))
    assert np.array_equal(world.drawn(world.unit(**seg), world.unit(**canny)), both)
    mostly = world.drawn(world.unit(**canny), world.unit(**seg, strength=0.01))
    assert np.abs(mostly.astype(int) - alone).mean() < np.abs(both.astype(int) - alone).mean()
    assert np.array_equal(world.drawn(world.unit(**canny), world.unit(**seg, strength=0.0)), alone)


def test_what_cannot_be_mixed_is_said(world: World) -> None:
    with pytest.raises(RequestError, match="'xs' cannot be mixed with others"):
        world.drawn(world.unit("xs", mix=True))
    lone = world.unit("unicontrol", task="canny", mix=True)
    request = Request(prompt="a", model="mini", steps=1, width=64, height=64, controls=(lone,))
    result = list(generate(request, studio=world.studio))[-1]
    assert isinstance(result, Result) and any("Unit 1: mix does nothing" in said for said in result.warnings)
    assert parse_control("uni.ckpt=a.png,task=canny,mix=true")["mix"] is True


def test_content_is_seen_by_clip(world: World) -> None:
    content = world.unit("uni", task="content")
    one, other = world.drawn(content), world.drawn(world.unit("uni", task="content", picture="b"))
    assert not np.array_equal(one, other) and not np.array_equal(one, world.drawn())
    assert not np.array_equal(world.drawn(content, world.unit("uni", task="canny")), one)
    with pytest.raises(RequestError, match="acts on the whole picture"):
        world.drawn(world.unit("uni", task="content", region=str(world.folder / "a.png")))


def test_clip_is_shown_the_middle_in_its_own_normalisation(world: World) -> None:
    vision = open_clip_vision(world.folder / "clip", world.studio.memory)
    shown = vision.shown(torch.ones(1, 3, 40, 60))
    assert shown.shape == (1, 3, 32, 32)
    assert shown[0, :, 0, 0].tolist() == pytest.approx([1.9303, 2.0749, 2.1459], abs=1e-3)
    torch.testing.assert_close(vision.seen(torch.ones(1, 3, 40, 60)), vision.net(pixel_values=shown).image_embeds)


def test_the_task_is_the_annotators_unless_it_is_said(world: World) -> None:
    said = world.drawn(world.unit("unicontrol", task="canny", annotate="canny"))
    assert np.array_equal(world.drawn(world.unit("unicontrol", annotate="canny")), said)
    assert np.array_equal(world.drawn(world.unit("unicontrol", task="control_canny", annotate="canny")), said)
    with pytest.raises(RequestError, match=r"knows several conditions.*hed \| canny"):
        world.drawn(world.unit("unicontrol"))
    with pytest.raises(UnknownName, match=r"no task of unicontrol named .cany.\. Choose one of: canny"):
        world.drawn(world.unit("unicontrol", task="cany"))


@pytest.mark.parametrize("name", ["uni", "unicontrol"])
def test_a_task_that_the_annotator_said_is_in_the_picture(name: str, world: World, tmp_path: Path) -> None:
    request = Request(
        prompt="a disc",
        model="mini",
        seed=1,
        steps=1,
        width=64,
        height=64,
        controls=(world.unit(name, annotate="canny"),),
    )
    *_, result = generate(request, studio=world.studio)
    assert isinstance(result, Result) and result.request.controls[0].task == "canny"
    (tmp_path / "made.png").write_bytes(png_bytes(result, 0))
    *_, again = generate(read(tmp_path / "made.png").replay(), studio=world.studio)
    assert isinstance(again, Result) and again.images[0].tobytes() == result.images[0].tobytes()


def test_the_command_line_reads_a_task_and_shows_them(world: World) -> None:
    unit = parse_control("uni.safetensors=a.png,task=seg,strength=0.5")
    assert (unit["task"], unit["strength"]) == ("seg", 0.5)
    shown = CliRunner().invoke(main, ["models", "show", str(world.folder / "unicontrol.safetensors"), "--json"])
    assert shown.exit_code == 0 and '"unicontrol"' in shown.output and '"inpainting"' in shown.output


@pytest.mark.parametrize(("name", "num"), [("uni", 5), ("unicontrol", 5), ("xs", 5), ("t2i", 2)])
@pytest.mark.parametrize("which", ["both", "hires"])
def test_too_many_layer_weights_are_said_before_anything_is_drawn(
    name: str, num: int, which: str, world: World
) -> None:
    unit = world.unit(name, layers=(0.5,) * 13, passes=which, **UNITS[name])
    hires = Hires(scale=1.5, upscaler="Lanczos")
    drawing = draw(
        Request(prompt="a disc", model="mini", width=64, height=64, controls=(unit,), hires=hires), world.studio
    )
    with pytest.raises(RequestError, match=f"{name}.* given 13 layer weights, but .*{num}.*Give {num}, shallow"):
        next(drawing)
