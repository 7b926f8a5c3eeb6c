"""The recipes of the systems beside ControlNet and CtrLoRA on miniatures: what they save draws in the engine."""

from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from disegno import ControlUnit, Request, Result, Settings, Studio, generate
from disegno.backbones import miniature
from disegno.controls.base import Condition
from disegno.core.errors import RequestError
from disegno.core.teach import make_teach_request
from disegno.diffusion.call import Call, Residuals, Row, Stream, Suffix
from disegno.training.base import Batch, Examples, Facts, Learner, row_seed
from disegno.training.miniature import Discs
from disegno.training.opening import Opened, open_training
from disegno.training.recipes.uni_controlnet import kept_of, stack_of
from disegno.weights.identify import identify
from disegno.weights.load import load_file
from kit.clip import write_clip

pytestmark = pytest.mark.e2e

FACTS = Facts("disc", None, {}, 24, 12, {}, "CC0")
CONTENT = "uni-controlnet-global"
DATA = {"xs": ("",), "t2i": ("",), "unicontrol": ("canny", "seg"), "uni-controlnet": ("canny", "seg"), CONTENT: ("",)}
MECHANISMS = {
    "xs": "controlnet-xs", "t2i": "t2i-adapter", "unicontrol": "unicontrol",
    "uni-controlnet": "uni-controlnet", CONTENT: "uni-controlnet",
}  # fmt: skip
KNOWN = {"xs": (), "t2i": (), "unicontrol": ("canny", "seg"), "uni-controlnet": ("canny", "seg"), CONTENT: ("content",)}


@dataclass(frozen=True)
class World:
    """A folder with a model, and a studio that knows it."""

    folder: Path
    studio: Studio

    def opened(self, recipe: str, tasks: tuple[str, ...], **fields: Any) -> Opened:
        small = {"name": "disc", "data": ("in memory",), "model": "mini", "width": 64, "height": 64, "recipe": recipe}
        train = {task: Discs(8, outline=task == "canny") for task in tasks}
        held = {task: Discs(4, seed=1, outline=task == "canny") for task in tasks}
        opening = open_training(make_teach_request(small | fields), train, held, self.studio)
        while True:
            try:
                next(opening)
            except StopIteration as end:
                return end.value


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Generator[World]:
    folder = tmp_path_factory.mktemp("systems")
    miniature.write_sd1_checkpoint(folder / "mini.safetensors")
    Image.fromarray(Discs(1).read(0).condition).save(folder / "condition.png")
    clip = write_clip(folder / "clip")
    settings = Settings(model_dirs=(folder,), cache_dir=folder / "c", dtype="fp32", device="cpu", clip=clip)
    yield World(folder, Studio(settings))


def _batch(examples: Examples, task: str, step: int, num: int = 4) -> Batch:
    own = [i for i in range(len(examples)) if examples.task(i) == task]
    order = torch.randperm(len(own), generator=torch.Generator().manual_seed(step)).tolist()[:num]
    picked = [examples[own[i]] for i in order]
    rows = {name: torch.stack([example[name] for example in picked]) for name in picked[0]}
    return Batch(rows, tuple(row_seed(0, step, place) for place in range(len(picked))), task, step)


def _tasks(examples: Examples) -> list[str]:
    return list(dict.fromkeys(examples.task(i) for i in range(len(examples))))


def _teach(learner: Learner, examples: Examples, steps: int) -> None:
    parameters = list(learner.turns[0].parameters.values())
    optimiser, tasks = torch.optim.AdamW(parameters, lr=learner.turns[0].rate), _tasks(examples)
    for step in range(steps):
        optimiser.zero_grad()
        learner.module(_batch(examples, tasks[step % len(tasks)], step)).mean().backward(inputs=parameters)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()


def _loss(learner: Learner, examples: Examples) -> float:
    learner.module.eval()
    with torch.no_grad():
        losses = [learner.module(_batch(examples, task, 99 + n)) for task in _tasks(examples) for n in range(3)]
    learner.module.train()
    return float(torch.cat(losses).mean())


def _drawn(world: World, path: Path, **fields: Any) -> bytes:
    unit = ControlUnit(name=str(path), image=str(world.folder / "condition.png"), annotate="none", **fields)
    request = Request(prompt="a red disc on blue", model="mini", seed=1, steps=2, width=64, height=64, controls=(unit,))
    result = list(generate(request, studio=world.studio))[-1]
    assert isinstance(result, Result)
    return result.images[0].tobytes()


@pytest.mark.parametrize("recipe", DATA)
def test_it_learns_and_its_file_draws(recipe: str, world: World) -> None:
    tasks = DATA[recipe]
    opened = world.opened(recipe, tasks, rate=1e-2 if recipe in ("xs", CONTENT) else 2e-3)
    learner, held = opened.learner, opened.held_out
    assert held is not None and not opened.warnings
    before = _loss(learner, held)
    _teach(learner, opened.examples, 16)
    after = _loss(learner, held)
    share = 0.998 if recipe == CONTENT else 0.93  # by the text alone, of a net that was never taught text
    assert after < share * before, (before, after)
    path = world.folder / f"{recipe}.safetensors"
    learner.save(path, FACTS)
    card = identify(path)
    layout = "" if recipe in (CONTENT, "t2i") else "ldm"  # an adapter has no blocks whose names would tell
    assert (card.kind, card.mechanism, card.family, card.layout) == ("control", MECHANISMS[recipe], "sd1", layout)
    assert card.tasks == KNOWN[recipe]
    told = {"task": KNOWN[recipe][0]} if KNOWN[recipe] else {}
    assert _drawn(world, path, **told) != _drawn(world, path, strength=0.0, **told)


@pytest.mark.parametrize("recipe", DATA)
def test_what_is_saved_is_what_was_taught(recipe: str, world: World) -> None:
    """Opened by the engine's own code: what the control adds is what it added while it learned. And it can go on."""
    tasks = DATA[recipe]
    opened = world.opened(recipe, tasks, rate=1e-2)
    learner: Any = opened.learner
    _teach(learner, opened.examples, 3)
    path = world.folder / f"same-{recipe}.safetensors"
    learner.save(path, FACTS)
    learner.module.eval()
    batch = _batch(opened.examples, _tasks(opened.examples)[0], 0, num=1)
    task = KNOWN[recipe][0] if KNOWN[recipe] else ""
    if recipe == "uni-controlnet":
        batch = Batch({n: t for n, t in batch.rows.items() if n != "condition.seg"}, batch.seeds, batch.task, 0)
    x, t, tokens = torch.randn(1, 4, 8, 8), torch.tensor([500.0]), batch.rows["tokens"]
    picture = batch.rows.get("condition", batch.rows.get("condition.canny"))
    assert picture is not None
    backbone = world.studio.backbone("mini")
    unit = ControlUnit(name=str(path), image="", task=task or None)
    control = world.studio.controller(unit, backbone).prepare(Condition(picture.float() / 255, "a", task=task))
    call = Call(x, t, tokens, (Row(0, True, "a", 0.0),), net=backbone.evaluate)
    with torch.no_grad():
        shown: Residuals | Stream | Tensor = learner.module.show(batch, x, t, tokens)
        taught = Call(call.x, call.t, call.tokens, call.rows, call.net, **_acting(shown)).run()
        again = control(call).run()
    torch.testing.assert_close(again, taught, atol=1e-5, rtol=1e-4)
    gone_on: Any = world.opened(recipe, tasks, start=str(path)).learner
    assert gone_on.turns[0].parameters.keys() == learner.turns[0].parameters.keys()
    for name, tensor in gone_on.turns[0].parameters.items():
        assert torch.equal(tensor, learner.turns[0].parameters[name]), name


def _acting(shown: Residuals | Stream | Tensor) -> dict[str, Any]:
    if isinstance(shown, Tensor):
        return {"suffixes": tuple((Suffix(own, "taught"),) for own in shown)}
    return {"streams": (shown,)} if isinstance(shown, Stream) else {"residuals": shown}


def test_conditions_of_one_picture_are_one_row(world: World) -> None:
    opened = world.opened("uni-controlnet", ("canny", "seg"))
    examples = opened.examples
    assert len(examples) == 8 and _tasks(examples) == ["canny seg"]
    assert set(examples[0]) == {"latent", "tokens", "condition.canny", "condition.seg"}


def test_conditions_are_kept_dropped_and_never_moved() -> None:
    rows = {"condition.seg": torch.full((64, 3, 8, 8), 255, dtype=torch.uint8)}
    batch = Batch(rows, tuple(range(64)), "seg", 0)
    assert stack_of(batch, drops=False)[:, 18:].eq(1).all() and not stack_of(batch, drops=False)[:, :18].any()
    kept = torch.stack([kept_of(torch.Generator().manual_seed(seed)) for seed in range(4000)])
    shares = [(kept.sum(1) == 7).float().mean(), (kept.sum(1) == 0).float().mean(), kept.mean()]
    expected: list[float] = [0.1 + 0.8 / 128, 0.1 + 0.8 / 128, 0.5]
    assert [float(share) for share in shares] == pytest.approx(expected, abs=0.02)


def test_what_is_dropped_says_nothing_of_the_noise_level() -> None:
    """Both come from the row's seed: of one stream, rows that keep all would be rows of little noise."""
    seeds = tuple(range(400))
    shown = Batch({"condition.seg": torch.full((400, 3, 1, 1), 255, dtype=torch.uint8)}, seeds, "seg", 0)
    kept = stack_of(shown, drops=True)[:, 18, 0, 0]
    first = torch.stack([torch.rand((), generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    assert kept[first < 0.1].mean() < 0.9 and kept[(first >= 0.1) & (first < 0.2)].mean() > 0.1


@pytest.mark.parametrize(("recipe", "message"), [("unicontrol", "its tasks are hed"), ("uni-controlnet", "its cond")])
def test_other_tasks_are_refused(recipe: str, message: str, world: World) -> None:
    with pytest.raises(RequestError, match=message):
        world.opened(recipe, ("canny", "stripes"))


def test_a_batch_teaches_its_own_stem(world: World) -> None:
    learner: Any = world.opened("unicontrol", ("canny", "blur")).learner
    names = set(learner.turns[0].parameters)
    assert "input_hint_block_list_moe.1.0.weight" in names and "input_hint_block_list_moe.0.0.weight" not in names
    loss = learner.module(_batch(world.opened("unicontrol", ("canny", "blur")).examples, "blur", 0)).mean()
    loss.backward(inputs=list(learner.turns[0].parameters.values()))
    gradients = {name: p.grad for name, p in learner.turns[0].parameters.items() if p.grad is not None}
    assert gradients["controlnet_mid_block.weight"].any()
    assert "input_hint_block_list_moe.1.0.weight" not in gradients  # canny's, and the batch was of blur


def test_v1_0_leaves_its_hypernet_alone(world: World) -> None:
    learner: Any = world.opened("unicontrol", ("canny",)).learner
    assert "task_id_hypernet.0.weight" in learner.turns[0].parameters
    path = world.folder / "v10.safetensors"
    replace(learner, version="v1.0").save(path, FACTS)
    gone_on: Any = world.opened("unicontrol", ("canny",), start=str(path)).learner
    assert gone_on.version == "v1.0"
    frozen = ("task_id_", "input_hint_block_zeroconv_0.1.", "input_hint_block_zeroconv_1.1.")
    assert not [name for name in gone_on.turns[0].parameters if name.startswith(frozen)]
    assert "input_hint_block_zeroconv_0.0.weight" in gone_on.turns[0].parameters


@pytest.mark.parametrize("recipe", DATA)
def test_what_it_was_told_not_to_keep_is_made_again(recipe: str, world: World) -> None:
    """The same loss and gradients, with fewer bytes kept for the backward pass; of xs, far fewer."""
    found = [_passed(world.opened(recipe, DATA[recipe], checkpointing=each)) for each in (False, True)]
    (loss, kept, gradients), (again, fewer, recomputed) = found
    assert again == loss and fewer < (0.6 if recipe == "xs" else 0.95) * kept
    assert gradients.keys() == recomputed.keys() and any(g.any() for g in gradients.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(recomputed[name], gradient, atol=1e-7, rtol=1e-5)


def _passed(opened: Opened) -> tuple[float, int, dict[str, torch.Tensor]]:
    """Return the loss of a step, the bytes that are kept between its passes, and its gradients."""
    learner: Any = opened.learner
    _teach(learner, opened.examples, 2)  # zero convolutions would hide what lies before them
    storages: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    parameters = learner.turns[0].parameters
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = learner.module(_batch(opened.examples, _tasks(opened.examples)[0], 0)).mean()
    kept = sum(storages.values())
    loss.backward(inputs=list(parameters.values()))
    return float(loss.detach()), kept, {name: p.grad for name, p in parameters.items() if p.grad is not None}


def test_both_adapters_end_in_one_file(world: World) -> None:
    """Each is taught by itself and leaves the other as it is, in either order, as the original's `integrate` does."""
    local: Any = world.opened("uni-controlnet", ("canny", "seg")).learner
    local.save(world.folder / "local.safetensors", FACTS)
    content: Any = world.opened(CONTENT, ("",), start=str(world.folder / "local.safetensors")).learner
    content.save(world.folder / "both.safetensors", FACTS)
    again: Any = world.opened("uni-controlnet", ("canny", "seg"), start=str(world.folder / "both.safetensors")).learner
    again.save(world.folder / "again.safetensors", FACTS)
    both, last = (load_file(world.folder / f"{name}.safetensors") for name in ("both", "again"))
    assert identify(world.folder / "both.safetensors").tasks == ("canny", "seg", "content")
    assert identify(world.folder / "again.safetensors").tasks == ("canny", "seg", "content")
    assert both.keys() == last.keys() and all(torch.equal(tensor, last[name]) for name, tensor in both.items())
    assert _drawn(world, world.folder / "both.safetensors", task="content")


def test_content_is_dropped_row_by_row_and_needs_a_clip(world: World) -> None:
    opened = world.opened(CONTENT, ("",))
    learner: Any = opened.learner
    batch = _batch(opened.examples, "", 0)
    x, t = torch.randn(4, 4, 8, 8), torch.full((4,), 500.0)
    made = learner.module.show(batch, x, t, batch.rows["tokens"])
    alone = replace(batch, rows={n: r[2:3] for n, r in batch.rows.items()}, seeds=batch.seeds[2:3])
    one = learner.module.show(alone, x[2:3], t[2:3], alone.rows["tokens"])
    torch.testing.assert_close(one, made[2:3])  # what is dropped is the row's own, whatever its batch is
    learner.module.eval()
    whole = learner.module.show(batch, x, t, batch.rows["tokens"])
    assert made.shape == (4, 4, 32) and not torch.allclose(made, whole)
    studio = Studio(replace(world.studio.settings, clip=None))
    with pytest.raises(RequestError, match="Name its folder in the setting clip"):
        World(world.folder, studio).opened(CONTENT, ("",))
