"""Every recipe, end to end on miniatures: it learns something that is there, and what it saves draws in the engine."""

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from disegno import ControlUnit, Request, Result, Settings, Studio, generate
from disegno.backbones import miniature
from disegno.controls import ctrlora
from disegno.core.errors import CorruptFile, RequestError
from disegno.core.teach import make_teach_request
from disegno.training.base import Batch, Examples, Facts, Learner, Turn, row_seed
from disegno.training.denoising import placed, residuals
from disegno.training.miniature import Discs, write_base
from disegno.training.opening import Opened, open_training
from disegno.training.pairs import Pairs
from disegno.weights.ctrlora_files import read_condition
from disegno.weights.identify import identify
from disegno.weights.load import load_file
from disegno.weights.save import save_safetensors

pytestmark = pytest.mark.e2e

FACTS = Facts("disc", "threshold", {"level": 3}, 24, 12, {"held_out": 0.5}, "CC0")


@dataclass(frozen=True)
class World:
    """A folder with models, and a studio that knows them."""

    folder: Path
    studio: Studio

    def opened(self, train: Mapping[str, Pairs], held: Mapping[str, Pairs], **fields: Any) -> Opened:
        small = {"name": "disc", "data": ("in memory",), "model": "mini", "width": 64, "height": 64, "rank": 4}
        request = make_teach_request(small | fields)
        opening = open_training(request, train, held, self.studio)
        while True:
            try:
                next(opening)
            except StopIteration as end:
                return end.value


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Generator[World]:
    folder = tmp_path_factory.mktemp("world")
    miniature.write_sd1_checkpoint(folder / "mini.safetensors")
    miniature.write_sd1_folder(folder / "mini_v", miniature.Miniature(prediction="v"))
    write_base(folder / "base.safetensors")
    Image.fromarray(Discs(1).read(0).condition).save(folder / "condition.png")
    studio = Studio(Settings(model_dirs=(folder,), cache_dir=folder / "cache", dtype="fp32", device="cpu"))
    yield World(folder, studio)


def stacked(examples: Examples, rows: list[int], seed: int, step: int) -> Batch:
    picked = [examples[i] for i in rows]
    tensors = {name: torch.stack([example[name] for example in picked]) for name in picked[0]}
    return Batch(
        tensors, tuple(row_seed(seed, step, place) for place in range(len(rows))), examples.task(rows[0]), step
    )


def loss_on(learner: Learner, examples: Examples) -> float:
    """Return the mean loss over the examples, task by task, three draws each."""
    learner.module.eval()
    losses: list[Tensor] = []
    for task in dict.fromkeys(examples.task(i) for i in range(len(examples))):
        rows = [i for i in range(len(examples)) if examples.task(i) == task]
        with torch.no_grad():
            losses += [learner.module(stacked(examples, rows, 99, draw), learner.turns[0].name) for draw in range(3)]
    learner.module.train()
    return float(torch.cat(losses).mean())


def teach(learner: Learner, examples: Examples, steps: int, batch: int = 4) -> None:
    """Take some steps, as plain as can be: the tasks in turn."""
    optimisers = [torch.optim.AdamW(list(turn.parameters.values()), lr=turn.rate) for turn in learner.turns]
    tasks = list(dict.fromkeys(examples.task(i) for i in range(len(examples))))
    for step in range(steps):
        own = [i for i in range(len(examples)) if examples.task(i) == tasks[step % len(tasks)]]
        order = torch.randperm(len(own), generator=torch.Generator().manual_seed(step))
        for turn, optimiser in zip(learner.turns, optimisers, strict=True):
            optimiser.zero_grad()
            learner.module(stacked(examples, [own[i] for i in order[:batch]], 0, step), turn.name).mean().backward()
            torch.nn.utils.clip_grad_norm_(list(turn.parameters.values()), 1.0)
            optimiser.step()


def drawn(world: World, name: str, model: str = "mini", **fields: Any) -> bytes:
    unit = ControlUnit(name=name, image=str(world.folder / "condition.png"), annotate="none", **fields)
    request = Request(prompt="a red disc on blue", model=model, seed=1, steps=2, width=64, height=64, controls=(unit,))
    result = list(generate(request, studio=world.studio))[-1]
    assert isinstance(result, Result)
    return result.images[0].tobytes()


def zero_gradients(turn: Turn) -> set[str]:
    return {name for name, p in turn.parameters.items() if p.grad is None or not p.grad.abs().max()}


@pytest.mark.parametrize("fields", [{}, {"model": "mini_v", "alpha": 8.0, "min_snr": 5.0, "offset_noise": 0.1}])
def test_ctrlora_learns_and_its_file_draws(world: World, fields: dict[str, Any]) -> None:
    opened = world.opened({"": Discs(24)}, {"": Discs(8, seed=1)}, recipe="ctrlora", rate=1e-2, **fields)
    learner, held = opened.learner, opened.held_out
    assert held is not None and not opened.warnings
    before = loss_on(learner, held)
    teach(learner, opened.examples, 12)
    after = loss_on(learner, held)
    assert after < 0.93 * before, (before, after)
    assert not zero_gradients(learner.turns[0])
    path = world.folder / "taught.safetensors"
    learner.save(path, FACTS)
    off = drawn(world, str(path), strength=0.0)
    assert drawn(world, str(path)) != off
    card = identify(path)
    assert (card.kind, card.mechanism, card.family, card.rank, card.annotator) == (
        "control", "ctrlora", "sd1", 4, "threshold",
    )  # fmt: skip
    assert card.base_sha256 == world.studio.library.sha256(identify(world.folder / "base.safetensors"))


def test_what_is_saved_is_what_was_taught(world: World) -> None:
    """Opened again by the engine's own code, merged into the base: the same residuals."""
    opened = world.opened({"": Discs(8)}, {}, recipe="ctrlora", alpha=2.0, lora_dropout=0.2, rate=1e-2)
    learner: Any = opened.learner
    teach(learner, opened.examples, 3)
    learner.save(world.folder / "same.safetensors", FACTS)
    example = opened.examples[0]
    t, tokens = torch.tensor([500.0]), example["tokens"][None]
    latent = example["condition_latent"][None]
    with torch.no_grad():
        learner.module.eval()
        learner.trained.lora_net.turn("")
        taught = residuals(learner.trained.net, placed(latent, world.studio.memory.policy), t, tokens)
        file = read_condition(world.folder / "same.safetensors")
        again = learner.base.residuals(ctrlora.merged(learner.base, file.tensors), latent, t, tokens)
    for ours, theirs in zip((*taught.down, taught.mid), (*again.down, again.mid), strict=True):
        assert float((ours - theirs).norm() / theirs.norm()) <= 1e-6  # float32: merged and unmerged sums


def test_going_on_upon_another_base_is_said(world: World, tmp_path: Path) -> None:
    data, path = {"": Discs(8)}, world.folder / "on_its_own.safetensors"
    first = world.opened(data, {}, recipe="ctrlora")
    first.learner.save(path, FACTS)
    base = world.folder / "base.safetensors"
    other = tmp_path / "another.safetensors"
    save_safetensors(other, {name: tensor.clone() for name, tensor in load_file(base).items()}, {"note": "another"})
    said = [world.opened(data, {}, recipe="ctrlora", start=str(path), base=str(on)).doubts for on in (base, other)]
    assert said[0] == () and len(said[1]) == 1
    assert world.studio.library.sha256(identify(base)) in said[1][0]


def test_that_there_are_no_buckets_is_said(world: World) -> None:
    said = world.opened({"": Discs(2)}, {}, recipe="ctrlora", width=72).doubts
    assert len(said) == 1 and said[0].startswith("Buckets are off: 72x64 are no multiples of ")
    assert not world.opened({"": Discs(2)}, {}, recipe="ctrlora", width=72, buckets=False).doubts


def test_going_on_from_a_file_begins_where_it_ended(world: World) -> None:
    data = {"": Discs(8)}
    first = world.opened(data, {}, recipe="ctrlora", rate=1e-2, alpha=2.0).learner
    teach(first, world.opened(data, {}, recipe="ctrlora").examples, 2)
    first.save(world.folder / "first.safetensors", FACTS)
    start = str(world.folder / "first.safetensors")
    again = world.opened(data, {}, recipe="ctrlora", start=start, alpha=2.0)
    batch = stacked(again.examples, [0, 1], 5, 0)
    torch.testing.assert_close(again.learner.module(batch), first.module(batch), atol=1e-6, rtol=1e-6)


def test_dropout_belongs_to_its_row_and_is_off_when_looking(world: World) -> None:
    opened = world.opened({"": Discs(4)}, {}, recipe="ctrlora", lora_dropout=0.5, caption_dropout=0.5, rate=1e-2)
    learner = opened.learner
    teach(learner, opened.examples, 2)
    both = stacked(opened.examples, [0, 1], 3, 0)
    alone = Batch({k: v[1:] for k, v in both.rows.items()}, both.seeds[1:], both.task, both.step)
    together = learner.module(both)
    torch.testing.assert_close(learner.module(alone)[0], together[1], atol=1e-5, rtol=1e-5)
    assert torch.equal(learner.module(both), together)
    learner.module.eval()
    assert not torch.allclose(learner.module(both), together)


def test_checkpointing_gives_the_same_gradients(world: World) -> None:
    """Even where activations are dropped: what is recomputed drops the same."""
    gradients = []
    for checkpointing in (False, True):
        fields = {"recipe": "ctrlora", "lora_dropout": 0.3, "checkpointing": checkpointing, "rank": 4}
        opened = world.opened({"": Discs(4)}, {}, **fields)
        turn = opened.learner.turns[0]
        for name, parameter in turn.parameters.items():
            if name.endswith("up.weight"):  # zero at first: nothing would reach `down`
                torch.nn.init.constant_(parameter, 0.01)
        opened.learner.module(stacked(opened.examples, [0, 1], 3, 0)).mean().backward()
        gradients.append({name: p.grad for name, p in turn.parameters.items()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-7, rtol=1e-4, msg=name)


def test_a_file_of_nan_is_never_written(world: World) -> None:
    learner = world.opened({"": Discs(4)}, {}, recipe="ctrlora").learner
    path = world.folder / "diverged.safetensors"
    learner.save(path, FACTS)
    whole = path.read_bytes()
    with torch.no_grad():
        next(iter(learner.turns[0].parameters.values())).fill_(float("nan"))
    with pytest.raises(CorruptFile, match="diverged"):
        learner.save(path, FACTS)
    assert path.read_bytes() == whole and not list(world.folder.glob("*.tmp"))


def test_other_weights_than_the_parameters_can_be_saved(world: World) -> None:
    learner = world.opened({"": Discs(4)}, {}, recipe="ctrlora").learner
    averages = {name: torch.full_like(p, 0.5) for name, p in learner.turns[0].parameters.items()}
    learner.save(world.folder / "average.safetensors", FACTS, averages)
    assert all((t == 0.5).all() for t in load_file(world.folder / "average.safetensors").values())


def test_a_files_header_says_how_it_was_made_and_no_path(world: World) -> None:
    learner = world.opened({"": Discs(4)}, {}, recipe="ctrlora").learner
    learner.save(world.folder / "told.safetensors", FACTS)
    words = dict(identify(world.folder / "told.safetensors").metadata)
    assert words["disegno.training_pairs"] == "24" and words["disegno.steps"] == "12"
    assert words["disegno.params"] == '{"level": 3}' and words["disegno.metrics"] == '{"held_out": 0.5}'
    assert words["disegno.licence"] == "CC0" and words["modelspec.license"] == "CC0"
    assert str(world.folder) not in str(words) and "/" not in words["disegno.made_by"]


def residual_of(learner: Any, batch: Batch) -> Tensor:
    """Return what the learner's control adds in the middle."""
    kept: list[Tensor] = []
    handle = learner.module.control.controlnet_mid_block.register_forward_hook(lambda _, __, out: kept.append(out))
    learner.module(batch)
    handle.remove()
    return kept[0]


def test_full_learns_a_whole_base(world: World, caplog: pytest.LogCaptureFixture) -> None:
    data = {"": Discs(24)}
    opened = world.opened(data, {"": Discs(8, seed=1)}, recipe="full", rate=3e-3)
    assert opened.held_out is not None
    before = loss_on(opened.learner, opened.held_out)
    teach(opened.learner, opened.examples, 10)
    assert loss_on(opened.learner, opened.held_out) < 0.93 * before
    path = world.folder / "whole.safetensors"
    opened.learner.save(path, FACTS)
    assert identify(path).mechanism == "ctrlora-full"
    assert drawn(world, str(path)) != drawn(world, str(path), strength=0.0)
    assert not caplog.messages  # it is its own base: nothing is said of the one that it was taught from
    with pytest.raises(RequestError, match=r"whole\.safetensors was taught as a whole.*--recipe full.*--base"):
        world.opened(data, {}, recipe="ctrlora", start=str(path))
    again = world.opened(data, {}, recipe="full", start=str(path))
    assert not again.doubts
    batch = stacked(opened.examples, [0, 1], 5, 0)
    torch.testing.assert_close(residual_of(again.learner, batch), residual_of(opened.learner, batch))

    first = drawn(world, str(path))
    teach(opened.learner, opened.examples, 10)
    opened.learner.save(path, FACTS)  # as for every look at a training
    assert drawn(world, str(path)) != first


def test_controlnet_begins_with_nothing_and_learns(world: World) -> None:
    data = {"": Discs(24)}
    opened = world.opened(data, {"": Discs(8, seed=1)}, recipe="controlnet", rate=1e-2, caption_dropout=0.0)
    learner, held = opened.learner, opened.held_out
    assert held is not None
    assert not residual_of(learner, stacked(opened.examples, [0], 0, 0)).any()
    before = loss_on(learner, held)
    teach(learner, opened.examples, 12)
    assert loss_on(learner, held) < 0.95 * before
    assert not {name for name in zero_gradients(learner.turns[0]) if "class" not in name}
    path = world.folder / "plain.safetensors"
    learner.save(path, FACTS)
    assert identify(path).mechanism == "controlnet"
    assert drawn(world, str(path)) != drawn(world, str(path), strength=0.0)
    again = world.opened(data, {}, recipe="controlnet", start=str(path))
    batch = stacked(opened.examples, [0, 1], 5, 0)
    torch.testing.assert_close(residual_of(again.learner, batch), residual_of(learner, batch))


@pytest.mark.parametrize("base", [None, "base"])
def test_a_base_learns_conditions_that_share_it(world: World, base: str | None) -> None:
    data = {"disc": Discs(12), "rim": Discs(12, outline=True)}
    held = {"disc": Discs(4, seed=1), "rim": Discs(4, seed=1, outline=True)}
    opened = world.opened(data, held, recipe="base", base=base, rate=1e-2, alpha=2.0, model="mini_v")
    learner: Any = opened.learner
    before = loss_on(learner, opened.held_out)  # pyright: ignore[reportArgumentType]
    teach(learner, opened.examples, 14)
    assert loss_on(learner, opened.held_out) < 0.95 * before  # pyright: ignore[reportArgumentType]
    batch = stacked(opened.examples, [12, 13], 3, 0)
    assert batch.task == "rim"
    learner.turns[0].parameters["conv_in.weight"].grad = None
    for parameter in learner.turns[0].parameters.values():
        parameter.grad = None
    learner.module(batch).mean().backward()
    moved = {name for name, p in learner.turns[0].parameters.items() if p.grad is not None and p.grad.abs().max()}
    assert any(name.startswith("loras.rim.") for name in moved) and "conv_in.weight" in moved
    assert not any(name.startswith("loras.disc.") for name in moved)  # one condition a batch
    folder = world.folder / f"pretrained_{base}"
    folder.mkdir()
    learner.save(folder / "b.safetensors", FACTS)
    assert {p.name for p in folder.iterdir()} == {"b.safetensors", "b_disc.safetensors", "b_rim.safetensors"}
    assert identify(folder / "b.safetensors").mechanism == "ctrlora-base"
    card = identify(folder / "b_rim.safetensors")
    assert card.base_sha256 == identify(folder / "b.safetensors").sha256() and card.name == "rim"
    use = {"base": str(folder / "b.safetensors"), "model": "mini_v"}
    pictures = {drawn(world, str(folder / f"b_{task}.safetensors"), **use) for task in ("disc", "rim")}
    assert len(pictures) == 2 and drawn(world, str(folder / "b_rim.safetensors"), strength=0.0, **use) not in pictures


@pytest.mark.parametrize("model", ["mini", "mini_v"])
def test_text_to_image_makes_a_model(world: World, model: str) -> None:
    data = {"": Discs(24)}
    fields = {"recipe": "text_to_image", "rate": 3e-3, "caption_dropout": 0.0, "model": model}
    opened = world.opened(data, {"": Discs(8, seed=1)}, **fields)
    assert opened.held_out is not None and opened.about.saves == "folder"
    before = loss_on(opened.learner, opened.held_out)
    teach(opened.learner, opened.examples, 10)
    assert loss_on(opened.learner, opened.held_out) < 0.9 * before
    path = world.folder / f"taught_{model}"
    opened.learner.save(path, FACTS)
    opened.learner.save(path, FACTS)  # a later save of the same training
    assert not list(world.folder.glob(".*.tmp"))
    again = world.studio.backbone(str(path))
    assert again.prediction.name == {"mini": "epsilon", "mini_v": "v"}[model]
    batch = stacked(opened.examples, [0, 1], 5, 0)
    module: Any = opened.learner.module
    with torch.no_grad():
        expected = module.net(batch.rows["latent"], 500, batch.rows["tokens"]).sample
        torch.testing.assert_close(again.net(batch.rows["latent"], 500, batch.rows["tokens"]).sample, expected)
    with pytest.raises(RequestError, match="there already"):
        (world.folder / "other").mkdir(exist_ok=True)
        opened.learner.save(world.folder / "other", FACTS)


def test_the_autoencoder_learns_against_a_critic(world: World) -> None:
    data = {"": Discs(8)}
    opened = world.opened(data, {"": Discs(2, seed=1)}, recipe="vae", rate=1e-2, steps=20)
    learner: Any = opened.learner
    assert [turn.name for turn in learner.turns] == ["autoencoder", "critic"] and learner.module.critic_from == 5
    before = loss_on(learner, opened.held_out)  # pyright: ignore[reportArgumentType]
    teach(learner, opened.examples, 4, batch=2)
    assert loss_on(learner, opened.held_out) < 0.95 * before  # pyright: ignore[reportArgumentType]
    assert not zero_gradients(learner.turns[0]) and not zero_gradients(learner.turns[1])
    path = world.folder / "taught_vae"
    learner.save(path, FACTS)
    again = world.studio.backbone(str(path))
    with torch.no_grad():
        for name, tensor in again.vae.state_dict().items():
            assert torch.equal(tensor, learner.turns[0].parameters[name]), name


def test_the_critics_weight_belongs_to_its_row(world: World) -> None:
    opened = world.opened({"": Discs(3)}, {}, recipe="vae", steps=1)
    learner: Any = opened.learner
    batch = stacked(opened.examples, [0, 1, 2], 3, 0)
    assert learner.module.critic_from == 0
    alone = [Batch({k: v[i : i + 1] for k, v in batch.rows.items()}, batch.seeds[i : i + 1], "", 0) for i in range(3)]
    gradients: list[dict[str, Tensor]] = []
    for parts in ([batch], alone):
        torch.cat([learner.module(part, "autoencoder") for part in parts]).sum().backward()
        gradients.append({name: p.grad.clone() for name, p in learner.turns[0].parameters.items()})
        learner.module.zero_grad()
    together, one_by_one = (torch.cat([gradient.flatten() for gradient in own.values()]) for own in gradients)
    assert float((one_by_one - together).norm()) <= 1e-2 * float(together.norm())


def test_several_conditions_need_a_recipe_for_several(world: World) -> None:
    with pytest.raises(RequestError, match="learns one condition; 2 were given"):
        world.opened({"disc": Discs(2), "rim": Discs(2, outline=True)}, {}, recipe="ctrlora")
