"""CtrLoRA under Stable Diffusion 3, end to end on the miniature: a base from two conditions, then a third one on it."""

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from disegno import ControlUnit, Request, Result, Settings, Studio, generate
from disegno.backbones import miniature_sd3
from disegno.controls import ctrlora
from disegno.core.errors import UnknownKind, WrongFamily
from disegno.core.teach import make_teach_request
from disegno.diffusion.patches import with_pooled, without_pooled
from disegno.memory import FULL_PRECISION, Memory
from disegno.training.base import Batch, Examples, Facts, Learner, row_seed
from disegno.training.denoising import residuals
from disegno.training.estimating import estimate
from disegno.training.miniature import Discs, write_base
from disegno.training.opening import Opened, open_training
from disegno.training.pairs import Pairs
from disegno.training.recipes import RECIPES
from disegno.weights.ctrlora_files import read_condition
from disegno.weights.identify import identify
from disegno.weights.load import load_file
from disegno.weights.save import save_safetensors

pytestmark = pytest.mark.e2e

FACTS = Facts("disc", "threshold", {"level": 3}, 24, 12, {"held_out": 0.5}, "CC0")
ENCODERS = ("clip_l", "clip_g")


@dataclass(frozen=True)
class World:
    """A folder with the model, and a studio that knows it."""

    folder: Path
    studio: Studio

    def opened(self, train: Mapping[str, Pairs], **fields: Any) -> Opened:
        small = {"name": "disc", "data": tuple(f"{task}=in memory" for task in train), "model": "sd3"}
        request = make_teach_request(small | {"width": 64, "height": 64, "rank": 4} | fields)
        opening = open_training(request, train, {}, self.studio)
        while True:
            try:
                next(opening)
            except StopIteration as end:
                return end.value


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Generator[World]:
    folder = tmp_path_factory.mktemp("world")
    miniature_sd3.write_folder(folder / "sd3", encoders=ENCODERS)
    Image.fromarray(Discs(1).read(0).condition).save(folder / "condition.png")
    settings = Settings(model_dirs=(folder,), cache_dir=folder / "cache", dtype="fp32", device="cpu")
    yield World(folder, Studio(settings))


def _stacked(examples: Examples, rows: list[int], seed: int, step: int) -> Batch:
    picked = [examples[i] for i in rows]
    tensors = {name: torch.stack([example[name] for example in picked]) for name in picked[0]}
    seeds = tuple(row_seed(seed, step, place) for place in range(len(rows)))
    return Batch(tensors, seeds, examples.task(rows[0]), step)


def _tasks(examples: Examples) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for i in range(len(examples)):
        found.setdefault(examples.task(i), []).append(i)
    return found


@torch.no_grad()
def _loss(learner: Learner, examples: Examples) -> float:
    learner.module.eval()
    draws = [_stacked(examples, rows, 99, draw) for rows in _tasks(examples).values() for draw in range(3)]
    mean = float(torch.cat([learner.module(batch, learner.turns[0].name) for batch in draws]).mean())
    learner.module.train()
    return mean


def _teach(learner: Learner, examples: Examples, steps: int) -> None:
    (turn,), tasks = learner.turns, list(_tasks(examples).values())
    optimiser = torch.optim.AdamW(list(turn.parameters.values()), lr=turn.rate)
    for step in range(steps):
        rows = tasks[step % len(tasks)]
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(step))[:4].tolist()
        optimiser.zero_grad()
        learner.module(_stacked(examples, [rows[i] for i in order], 0, step), turn.name).mean().backward()
        torch.nn.utils.clip_grad_norm_(list(turn.parameters.values()), 1.0)
        optimiser.step()


def _drawn(world: World, name: Path, base: Path, strength: float = 1.0) -> bytes:
    image = str(world.folder / "condition.png")
    unit = ControlUnit(name=str(name), image=image, annotate="none", base=str(base), strength=strength)
    request = Request(prompt="a red disc", model="sd3", seed=1, steps=2, width=64, height=64, controls=(unit,))
    result = list(generate(request, studio=world.studio))[-1]
    assert isinstance(result, Result)
    return result.images[0].tobytes()


@pytest.fixture(scope="module")
def base(world: World) -> Path:
    """Return a base that was taught here, with its two conditions beside it."""
    opened = world.opened({"filled": Discs(12), "rim": Discs(12, outline=True)}, recipe="base", rate=3e-3)
    before = _loss(opened.learner, opened.examples)
    _teach(opened.learner, opened.examples, 16)
    after = _loss(opened.learner, opened.examples)
    assert after < 0.97 * before, (before, after)
    path = world.folder / "made.safetensors"
    opened.learner.save(path, FACTS)
    return path


def test_a_base_learns_and_its_conditions_draw(world: World, base: Path) -> None:
    card = identify(base)
    assert (card.kind, card.mechanism, card.family) == ("control", "ctrlora-base", "sd3")
    drawn = {task: base.with_name(f"made_{task}.safetensors") for task in ("filled", "rim")}
    for path in drawn.values():
        assert (identify(path).mechanism, identify(path).family, identify(path).rank) == ("ctrlora", "sd3", 4)
    off = _drawn(world, drawn["filled"], base, 0.0)
    assert len({off, *(_drawn(world, path, base) for path in drawn.values())}) == 3


def test_a_condition_learns_on_it_and_what_is_saved_is_what_was_taught(world: World, base: Path) -> None:
    opened = world.opened({"": Discs(12, seed=5)}, recipe="ctrlora", base=str(base), rate=2e-2, data=("in memory",))
    learner = opened.learner
    before = _loss(learner, opened.examples)
    _teach(learner, opened.examples, 30)
    assert _loss(learner, opened.examples) < 0.985 * before  # measured 0.975: the base knows discs already
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in learner.turns[0].parameters.values())
    path = world.folder / "third.safetensors"
    learner.save(path, FACTS)
    condition, empty = read_condition(path), opened.examples.empty
    assert empty is not None and (condition.info.family, condition.rank) == ("sd3", 4)
    latent, t = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([100.0, 900.0])
    tokens = torch.stack([empty, empty])
    again = learner.base.residuals(ctrlora.merged(learner.base, condition.tensors), latent, t, tokens)
    learner.module.eval()
    taught = residuals(learner.module.control, latent, t, tokens)
    pairs: list[tuple[Tensor, Tensor]] = [*zip(again.down, taught.down, strict=True), (again.mid, taught.mid)]
    assert len(pairs) == miniature_sd3.NUM_BLOCKS - 1
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in pairs)  # merged before, added after: float32
    assert _drawn(world, path, base) != _drawn(world, path, base, 0.0)


@pytest.mark.parametrize("recipe", ["base", "ctrlora"])
def test_what_it_will_take_is_counted(world: World, base: Path, recipe: str) -> None:
    own = {"name": "disc", "data": ("in memory",), "model": "sd3", "width": 64, "height": 64, "rank": 4}
    more = {"data": ("filled=a", "rim=b")} if recipe == "base" else {"base": str(base)}
    found = estimate(make_teach_request(own | more | {"recipe": recipe}), world.studio.settings)
    assert found.weights > 0 and found.optimiser > 0 and found.total > found.weights


@pytest.mark.parametrize("recipe", [name for name in RECIPES if name not in ("base", "ctrlora", "full", "lora")])
def test_other_recipes_say_so_before_anything_is_computed(world: World, recipe: str) -> None:
    with pytest.raises(WrongFamily, match=r"does not teach under sd3, .* \(base, ctrlora, full, lora\)"):
        world.opened({"": Discs(2)}, recipe=recipe, data=("in memory",))


def test_bases_of_others_are_refused(world: World, base: Path, tmp_path: Path) -> None:
    model = world.studio.backbone("sd3")
    memory = Memory(FULL_PRECISION)
    with pytest.raises(UnknownKind, match="no Base ControlNet for Stable Diffusion 3"):
        ctrlora.open_base(write_base(tmp_path / "old.safetensors"), model, memory)
    tensors = load_file(base)
    wide = tensors | {"pos_embed.proj.weight": torch.zeros(128, 16, 2, 2)}
    save_safetensors(tmp_path / "wide.safetensors", wide, {})
    with pytest.raises(WrongFamily, match="its blocks are 128 wide, the model's 64"):
        ctrlora.open_base(tmp_path / "wide.safetensors", model, memory)


def test_the_pooled_text_travels_as_one_token_more() -> None:
    tokens, pooled = torch.randn(2, 5, 8), torch.randn(2, 3)
    packed = with_pooled(tokens, pooled)
    assert packed.shape == (2, 6, 8) and with_pooled(tokens, None) is tokens
    back = without_pooled(packed, 3)
    assert torch.equal(back[0], tokens) and torch.equal(back[1], pooled)
