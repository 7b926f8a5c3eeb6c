"""What a training will take, before it begins: the same code runs on meta tensors, and one pass is timed.

Nothing is guessed from formulas: the recipe opens its modules, the optimiser its states, and a step goes forward and
backward, all of it without numbers (`ledger.py`). What the device's libraries take beside it is a reserve, measured.
"""

import gc
import logging
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from disegno.core.errors import ResourceError
from disegno.core.settings import Settings
from disegno.core.teach import TeachRequest
from disegno.diffusion.told import is_told
from disegno.engine.studio import Studio
from disegno.memory import Memory, Policy
from disegno.room import free_bytes
from disegno.training.base import Batch, Estimate, Learner, TeachProgress
from disegno.training.batches import Reader
from disegno.training.cache import Canvases
from disegno.training.expected import gib, parts_of
from disegno.training.ground import Ground, open_ground, opening_of, training_memory
from disegno.training.joining import CONDITION, name_of
from disegno.training.layers import MAX_PLAIN_SCORES
from disegno.training.ledger import META, Ledger, counting
from disegno.training.lesson import Lesson
from disegno.training.optimise import Pupil, collect, forget, norm, open_pupil, update
from disegno.training.order import order_of
from disegno.training.recipe import About, Recipe, Wanted
from disegno.training.recipes import RECIPES
from disegno.training.step import is_out_of_memory

log = logging.getLogger(__name__)

STAGE = "estimated"
NUM_TOKENS = 77  # of a caption, by one encoder: CLIP's, and none here has more
QUICK_SECONDS = 5.0  # a pass that took less is timed once more: the first one also warms up

# What is taken beside tensors. A GPU: the driver's context, cuBLAS's and cuDNN's workspaces. A CPU: Python and torch
# with all that a training and its looks import, and what glibc keeps (measured: 0.95 GiB in all, of which 0.1 tensors).
# And of the tensors' own bytes, what lies between them.
_RESERVES = {"cpu": 850 << 20, "cuda": 700 << 20}
_BETWEEN = 0.05
GPU = Policy(torch.device("cuda"), torch.bfloat16, torch.channels_last, torch.bfloat16, packs=False)


@dataclass(frozen=True)
class Sizes:
    """What of a training decides its memory beside its modules: the canvas in pixels, (n d) of a caption's states."""

    width: int
    height: int
    tokens: tuple[int, int]
    latent_channels: int
    downscale: int


def estimate(request: TeachRequest, settings: Settings, policy: Policy | None = None, num_local: int = 1) -> Estimate:
    """Return what the training takes, not timed. `policy`: of another machine. `num_local`: processes on this one.

    Raises what its opening raises: UnknownName, RequestError, ModelFileError.
    """
    recipe: Recipe = RECIPES.load(request.recipe)  # pyright: ignore[reportAssignmentType]
    real, studio = policy or training_memory(settings).policy, Studio(settings)
    on_cpu = real.device.type == "cpu"
    with counting(MAX_PLAIN_SCORES if on_cpu else 0) as ledger:
        ground = open_ground(request, recipe.ABOUT, studio, on_meta(real))
        sizes = _sizes(request, ground)
        ground.backbone.encode_image(torch.empty(1, 3, sizes.height, sizes.width))
        opened = ledger.peak
        opening = opening_of(request, ground, recipe.ABOUT, _tasks(request, recipe.ABOUT), _states(sizes), studio)
        del ground
        gc.collect()  # the VAE and the text encoder are gone before anything trains
        counted = count(recipe.open(opening), request, recipe.ABOUT.wants, sizes, ledger)
    free = free_bytes(real.device) if policy is None else None
    shared = free // num_local if free is not None and on_cpu else free
    return replace(with_reserve(counted, opened, real.device.type), available=shared)


def on_meta(policy: Policy) -> Memory:
    """Return a memory that lays out as the policy does, and takes none."""
    return Memory(replace(policy, device=META))


def with_reserve(counted: Estimate, opened: int, device: str) -> Estimate:
    """Return what was counted, with what the caches' filling takes and what lies beside and between the tensors."""
    tensors = max(counted.total, opened)
    return replace(counted, opening=opened, reserve=_RESERVES.get(device, 0) + int(_BETWEEN * tensors))


def _sizes(request: TeachRequest, ground: Ground) -> Sizes:
    """Return the largest of the request's canvases, and the model's shapes."""
    backbone = ground.backbone
    canvases = Canvases.of(backbone, request.width, request.height, request.buckets).sizes
    width, height = max(canvases, key=lambda size: size[0] * size[1])
    return Sizes(width, height, _caption(backbone.net), backbone.latent_channels, backbone.downscale)


def _caption(net: nn.Module) -> tuple[int, int]:
    """Return (n, d) of a caption's states: a chunk of CLIP's; of SD 3 also T5's; the pooled state behind, if any."""
    config: Mapping[str, Any] = getattr(net, "config", {})
    if "joint_attention_dim" in config:
        return 2 * NUM_TOKENS + 1, int(config["joint_attention_dim"])
    return NUM_TOKENS + is_told(config), int(config.get("cross_attention_dim", 0))


def _states(sizes: Sizes) -> Tensor:
    return torch.empty(sizes.tokens, device=META)


def _tasks(request: TeachRequest, about: About) -> tuple[str, ...]:
    return tuple(given.partition("=")[0] for given in request.data) if about.several else ("",)


# ---- counted


def count(
    learner: Learner, request: TeachRequest, wants: Sequence[Wanted], sizes: Sizes, ledger: Ledger
) -> Estimate:  # fmt: skip
    """Return what a step takes of a learner that lives on meta tensors, all of them in the ledger; no reserve yet."""
    gc.collect()
    pupils = [open_pupil(turn, request) for turn in learner.turns]
    weights = ledger.mark()
    for number, pupil in enumerate(pupils):
        _passes(learner, pupil, request, _batch(request, wants, sizes, learner, number))
    step, before = ledger.peak - weights, ledger.mark()
    for pupil in pupils:
        update(pupil, 1e-4, request.clip, norm(pupil), 0)
    states, transient = ledger.live - before, ledger.peak - ledger.live
    for pupil in pupils:
        forget(pupil)
    gradients = before - weights
    return Estimate(weights, states, max(step, gradients + transient), 0, 0)


def _passes(learner: Learner, pupil: Pupil, request: TeachRequest, batch: Batch) -> None:
    """Go forward and backward; twice where gradients are added up: they are there while the second pass goes."""
    for _ in range(min(request.accumulate, 2)):
        loss = learner.module(batch, pupil.turn.name).sum()
        torch.autograd.backward(loss, inputs=list(pupil.turn.parameters.values()))
        del loss
        collect(pupil)


def _batch(request: TeachRequest, wants: Sequence[Wanted], sizes: Sizes, learner: Learner, number: int) -> Batch:
    """Return a batch of the request's size, without numbers, late in the training: nothing is still switched off."""
    b, h, w = request.batch, sizes.height, sizes.width
    latent = b, sizes.latent_channels, h // sizes.downscale, w // sizes.downscale
    shapes: dict[Wanted, tuple[tuple[int, ...], torch.dtype]] = {
        "latent": (latent, torch.float32),
        "condition_latent": (latent, torch.float32),
        "tokens": ((b, *sizes.tokens), torch.float32),
        "target": ((b, 3, h, w), torch.uint8),
        "condition": ((b, 3, h, w), torch.uint8),
    }
    rows: dict[str, Tensor] = {name: torch.empty(shapes[name][0], dtype=shapes[name][1], device=META) for name in wants}
    about = RECIPES.load(request.recipe).ABOUT
    tasks = _tasks(request, about)
    if about.joins:
        picture = rows.pop(CONDITION)
        rows |= {name_of(task): picture for task in tasks}
    return Batch(rows, tuple(range(b)), tasks[0], request.steps - 1)


# ---- timed


def timed(lesson: Lesson) -> float | None:
    """Return the seconds of one step, by a pass of its first rows whose gradients are dropped; None without memory.

    The weights, the random numbers and the order of the rows stay as they are.
    """
    request, module = lesson.request, lesson.learner.module
    device = next(iter(lesson.learner.turns[0].parameters.values())).device
    order = order_of(lesson.examples, request.seed, request.batch)
    batch = Reader(lesson.examples, order, workers=0, owns=True, device=device).read(0, 1)
    module.train()
    try:
        seconds = _pass_seconds(lesson, batch)
        if seconds < QUICK_SECONDS:
            seconds = _pass_seconds(lesson, batch)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        log.warning("There is too little memory for %d rows in one pass: the training will halve them.", request.batch)
        return None
    return seconds * request.accumulate


def _pass_seconds(lesson: Lesson, batch: Batch) -> float:
    began = time.perf_counter()
    for turn in lesson.learner.turns:
        parameters = list(turn.parameters.values())
        try:
            loss = lesson.learner.module(batch, turn.name).mean()
            loss.backward(inputs=parameters)
            float(loss.detach())  # waits for the device
        finally:
            for parameter in parameters:
                parameter.grad = None
    return time.perf_counter() - began


# ---- said


def estimating(
    request: TeachRequest, settings: Settings, num_local: int, refuses: bool
) -> Generator[TeachProgress, None, Estimate]:
    """Yield that it goes on, and return the estimate. Raises ResourceError where it cannot fit, unless told not to."""
    yield TeachProgress(0, request.steps, "estimating")
    found = estimate(request, settings, num_local=num_local)
    if refuses and not found.fits:
        raise ResourceError(refusal(request, settings, found))
    return found


def refusal(request: TeachRequest, settings: Settings, found: Estimate) -> str:
    """Return why a training does not fit, and what of it to change so that it does."""
    assert found.available is not None
    said = f"This training would take {gib(found.total)}, and {gib(found.available)} are free: {parts_of(found)}."
    for changed, flags in smaller(sized_request(request, settings)):
        other = estimate(changed, settings)
        if other.fits:
            return f"{said} It fits with {flags} ({gib(other.total)})."
    return f"{said} Free memory, choose a smaller model or another device, or go on all the same with --try-anyway."


def sized_request(request: TeachRequest, settings: Settings) -> TeachRequest:
    """Return the request with the canvas that the model was made for, where it names none."""
    if request.width and request.height:
        return request
    about, policy = RECIPES.load(request.recipe).ABOUT, training_memory(settings).policy
    usual = open_ground(request, about, Studio(settings), on_meta(policy)).backbone.defaults
    return replace(request, width=request.width or usual.width, height=request.height or usual.height)


def on_gpus(request: TeachRequest, settings: Settings) -> dict[tuple[str, ...], Estimate]:
    """Return what this training, and lighter ones, would take on a GPU, in bfloat16: what differs -> what it takes."""
    light = replace(request, checkpointing=True)
    lightest = replace(light, optimiser="adamw8bit")
    variants = {"as asked": request, "--checkpointing": light, "--checkpointing --optimiser adamw8bit": lightest}
    return {(said,): estimate(asked, settings, GPU) for said, asked in variants.items()}


def smaller(request: TeachRequest) -> Iterator[tuple[TeachRequest, str]]:
    """Yield the request made smaller and smaller, and the flags of that; first what changes no result."""
    flags: list[str] = []
    for changes, word in _steps_down(request):
        request = replace(request, **changes)
        flags.append(word)
        yield request, " ".join(flags)


def _steps_down(request: TeachRequest) -> Iterator[tuple[dict[str, object], str]]:
    if not request.checkpointing:
        yield {"checkpointing": True}, "--checkpointing"
    if request.batch > 1:
        rows = request.batch * request.accumulate
        yield {"batch": 1, "accumulate": rows}, f"--batch 1 --accumulate {rows}"
    if request.optimiser != "adamw8bit":
        yield {"optimiser": "adamw8bit"}, "--optimiser adamw8bit"
    about = RECIPES.load(request.recipe).ABOUT
    if (about.on_base or about.makes == "lora") and request.rank > 32:
        yield {"rank": 32}, "--rank 32"
    for side in (768, 512, 384, 256, 128):
        if request.width is not None and request.width > side:
            yield {"width": side, "height": side}, f"--width {side} --height {side}"
