"""The stages: what each learns from, what trains, and what it leaves. All of them run in the program's one loop."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from disegno.controls.ctrlora import merged, open_base
from disegno.controls.ctrlora import open as open_condition
from disegno.core.settings import Settings
from disegno.core.teach import TeachRequest
from disegno.diffusion.call import Residuals
from disegno.engine.studio import Studio
from disegno.training.base import Batch, Facts, Learner, Turn
from disegno.training.denoising import Denoising, Shown, placed
from disegno.training.ground import Ground, open_ground, opening_of, training_memory
from disegno.training.lesson import Lesson, Opening
from disegno.training.recipe import About
from disegno.training.recipes import RECIPES
from disegno.training.result import condition_path
from disegno.training.trial import through_vae

from .chapters import Ahead, ChapterOrder, Composer, Drawn, FromChapters, Numbers, Source, Wish, chunks, to_tensor
from .decoder import open_decoder
from .detector import open_learner
from .device_draws import DeviceObjective
from .few import open_few
from .haste import hasten
from .newborn import built_in, write_newborn
from .scale import Course, Scale
from .stock import Stock
from .tiny import open_tiny
from .world.maps import BASE_CONDITIONS, NEW_CONDITIONS
from .world.pack import Wardrobe

SEED = 0
ENCODED_AT_ONCE = 128


@dataclass(frozen=True)
class Stage:
    """One stage. `start`: the stage whose result it starts from; "" is a newborn model. `recipe`: the program's.

    `rather`: a stage whose result it starts from where there is one. `conditions`: what it is shown; `encodes`: what of
    a scene's tensors the model's own encoders make. `shrink`: how many times smaller its pictures are.
    """

    start: str
    recipe: str
    leaves: str
    encodes: tuple[str, ...] = ()
    conditions: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ("",)
    labels: bool = False
    rather: str = ""
    shrink: int = 1


PLAIN = 2  # batches without a drawing between two with one, in the stage "obey"
TURNS = tuple(name for each in (*BASE_CONDITIONS, *NEW_CONDITIONS) for name in (*[""] * PLAIN, each))

STAGES: dict[str, Stage] = {
    "vae": Stage("", "vae", "folder", ("target", "condition"), BASE_CONDITIONS),
    "half": Stage("vae", "text_to_image", "folder", ("latent", "tokens"), shrink=2),
    "net": Stage("vae", "text_to_image", "folder", ("latent", "tokens"), rather="half"),
    "base": Stage("net", "base", "file", ("latent", "condition_latent", "tokens"), BASE_CONDITIONS, BASE_CONDITIONS),
    "obey": Stage("", "text_to_image", "folder", ("latent", "condition_latent", "tokens"), TURNS, TURNS, rather="net"),
    "few": Stage("net", "", "file", ("latent", "tokens"), rather="obey"),
    "decoder": Stage("net", "", "file", ("latent", "target"), rather="obey"),
    "tiny": Stage("vae", "", "file", ("latent", "target")),
    "detector": Stage("", "", "file", ("target",), labels=True),
}


@dataclass(frozen=True)
class Place:
    """Where a run is, and with what. `wardrobe`: in place of the pack, drawn here without other processes.

    `stock`: where shared chapters lie (stock.py), in place of composing. `made`: tensors of chapters that an earlier
    stage of this process has made with the same encoders, by (encoders, name, chapter). `compiled`: whether nets are.
    """

    run: Path
    scale: Scale
    settings: Settings
    pack: Path | None = None
    workers: int = 0
    wardrobe: Wardrobe | None = None
    stock: Path | None = None
    made: dict[tuple[str, str, int], Tensor] = field(default_factory=dict)
    compiled: bool = False

    def folder(self, stage: str) -> Path:
        return self.run / "stages" / stage

    def result(self, stage: str) -> Path:
        """Return where a stage's result lies."""
        suffix = ".safetensors" if STAGES[stage].leaves == "file" else ""
        return self.folder(stage) / f"{stage}{suffix}"

    def origin(self, stage: str) -> str:
        """Return the stage whose result a stage starts from (detector: sees through); "" is a newborn model."""
        if stage == "detector":
            return next((each for each in ("obey", "net", "vae") if self.result(each).exists()), "")
        start, rather = STAGES[stage].start, STAGES[stage].rather
        return rather if rather and self.result(rather).exists() else start

    def model_of(self, stage: str) -> Path:
        """Return the model that a stage starts from."""
        if origin := self.origin(stage):
            return self.result(origin)
        return write_newborn(self.run / "newborn", self.scale, None if self.wardrobe is None else self.wardrobe.looks)

    @property
    def net(self) -> Path:
        """Return the model with the newest net."""
        newest = self.result("obey")
        return newest if newest.exists() else self.result("net")

    @property
    def judged(self) -> Path | None:
        """Return the run's model, whose pictures a detector will judge; None where there is none yet."""
        origin = self.origin("detector")
        return self.result(origin) if origin else None


def request_of(place: Place, name: str, steps: int | None = None) -> TeachRequest:
    """Return the request of a stage: all that decides its weights beside the world."""
    stage, course = STAGES[name], place.scale.courses[name]
    return TeachRequest(
        name=name,
        data=(f"world-{place.scale.size}",),
        recipe=stage.recipe or "text_to_image",
        model=str(place.model_of(name)),
        width=place.scale.size,
        height=place.scale.size,
        steps=steps or course.steps,
        batch=course.batch,
        rank=course.rank,
        rate=course.rate,
        rate_schedule=course.decay,
        warmup=course.warmup,
        start=str(brought) if (brought := place.run / "brought" / name / f"{name}.safetensors").exists() else None,
        ema=course.ema,
        caption_dropout=course.caption_dropout,
        timesteps=course.timesteps,
        optimiser=course.optimiser,
        holdout=0,
        validate_every=0,
        save_every=10**9,
        seed=SEED,
        licence="Apache-2.0",
    )


Encode = Callable[[Drawn, Sequence[str]], Mapping[str, Tensor]]  # a chapter's tensors, of the names that are asked for


@dataclass(frozen=True)
class Worldly:
    """A recipe's learner whose batches come from chapters (`Learner`)."""

    module: FromChapters
    turns: Sequence[Turn]
    learner: Learner

    def save(self, path: Path, facts: Facts, weights: Mapping[str, Tensor] | None = None) -> None:
        self.learner.save(path, facts, weights)


def open_stage(place: Place, name: str, request: TeachRequest) -> Opening:
    """Yield nothing, and return the lesson of a stage."""
    yield from ()
    stage, course = STAGES[name], place.scale.courses[name]
    wish = Wish(place.scale.size, stage.conditions, stage.labels)
    learner, encode, fingerprint = _OPENERS[name](place, name, request)
    source, encoders = source_of(place, wish, course), encoders_of(place, name)
    chapters = Made(source, encode, stage.encodes, encoders, place.made, stage.shrink)
    order = order_of(place, name, request)
    module = FromChapters(learner.module, chapters, order, course.side)
    return Lesson(
        request=request,
        learner=Worldly(module.train(), learner.turns, learner),
        examples=Numbers(course.chapter, stage.tasks),
        held_out=None,
        facts=Facts(name=name, training_pairs=order.scenes(request.steps), licence="Apache-2.0"),
        fingerprint=hashlib.sha256(f"{fingerprint} {wish} {course}".encode()).hexdigest(),
        order=order,
    )


def order_of(place: Place, name: str, request: TeachRequest) -> ChapterOrder:
    """Return which scenes each step of a stage takes."""
    course = place.scale.courses[name]
    more = course.window, course.lead, course.most
    return ChapterOrder(request.seed, request.batch, course.chapter, course.uses, STAGES[name].tasks, *more)


def source_of(place: Place, wish: Wish, course: Course) -> Source:
    """Return where chapters come from: the stock, or composed by this process or by its workers."""
    if place.stock is not None and is_stocked(wish.conditions):
        return Ahead(Stock(place.stock, course.chapter, wish.size, shows=bool(wish.conditions)), course.most)
    return Composer(wish, course.chapter, place.pack, place.workers, place.wardrobe)


def is_stocked(conditions: tuple[str, ...]) -> bool:
    """Return whether the shared chapters show these conditions."""
    return conditions in ((), BASE_CONDITIONS)


SHARED = ("latent", "tokens")  # the same for every stage after the VAE's


@dataclass(frozen=True)
class Made:
    """Chapters as tensors (`Chapters`). `made`: what was made before with the same `encoders`; "": nothing is kept.

    `shrink`: the stage's, of which the latents are.
    """

    source: Source
    encode: Encode
    names: tuple[str, ...]
    encoders: str
    made: dict[tuple[str, str, int], Tensor]
    shrink: int = 1

    def tensors(self, number: int) -> Mapping[str, Tensor]:
        """Return each name's tensor, (scenes ...)."""
        there = {name: self.made[key] for name in self.names if (key := self._key(name, number)) in self.made}
        missing = [name for name in self.names if name not in there]
        new = dict(self.encode(self.source.chapter(number), missing)) if missing else {}
        kept = SHARED if self.encoders else ()
        self.made.update({self._key(name, number): tensor for name, tensor in new.items() if name in kept})
        return there | new

    def _key(self, name: str, number: int) -> tuple[str, str, int]:
        return self.encoders, f"{name}/{self.shrink}" if name == "latent" else name, number


def encoders_of(place: Place, name: str) -> str:
    """Return what latents and text states of shared chapters depend on; "" where no chapters are shared."""
    stage = STAGES[name]
    if place.stock is None or not is_stocked(stage.conditions) or not set(stage.encodes) & set(SHARED):
        return ""
    return hashlib.sha256((place.model_of(name) / "vae.safetensors").read_bytes()).hexdigest()


# ---- what trains


Opened = tuple[Learner, Encode, str]  # what trains, what makes its tensors, what else decides the result


def _with_model(place: Place, name: str, request: TeachRequest) -> Opened:
    """Open a recipe of the program, or the few steps, beside the model that it starts from."""
    learner, ground = open_taught(place, name, request)
    return learner, encoder_of(ground, STAGES[name].shrink), ground.backbone.fingerprint


def open_taught(place: Place, name: str, request: TeachRequest) -> tuple[Learner, Ground]:
    """Return what a stage teaches, and the model beside it."""
    stage = STAGES[name]
    studio = Studio(place.settings)
    recipe = RECIPES.load(request.recipe)
    ground = open_ground(request, recipe.ABOUT, studio)
    empty = ground.backbone.encode_text([""]).tokens[0] if "tokens" in stage.encodes else None
    tasks = stage.tasks if recipe.ABOUT.several else ("",)
    opening = opening_of(request, ground, recipe.ABOUT, tasks, empty, studio)
    opening = replace(opening, packs=not place.compiled)
    learner = open_few(opening, request.rate or 0.0) if name == "few" else recipe.open(opening)
    device = ground.policy.device
    objective = getattr(learner.module, "objective", None)
    if device.type == "cuda" and objective is not None and not isinstance(objective, DeviceObjective):
        learner.module.objective = DeviceObjective(objective, device)
    if place.compiled:
        hasten(learner.module)
    return learner, ground


def _with_drawings(place: Place, name: str, request: TeachRequest) -> Opened:
    """Open the net, to be taught on; where a batch shows a drawing, under what the Base, frozen, makes of it."""
    learner, ground = open_taught(place, name, request)
    assert isinstance(learner.module, Denoising)
    shown, digest = drawings_of(place, ground)
    learner.module.show = shown
    return learner, encoder_of(ground), f"{ground.backbone.fingerprint} {digest}"


def drawings_of(place: Place, ground: Ground) -> tuple[Shown, str]:
    """Return what adds the residuals of a batch's condition, and the digest of the Base that makes them.

    The run's own Base and its conditions, or the built-in model's; a condition that has no file adds nothing.
    """
    own, built = place.result("base"), built_in()
    path = own if own.exists() else built / "basecn.safetensors"
    base = open_base(path, ground.backbone, ground.memory)
    weights: dict[str, dict[str, Tensor]] = {}
    for task in (*BASE_CONDITIONS, *NEW_CONDITIONS):
        file = condition_path(own, task) if own.exists() else built / f"control_{task}.safetensors"
        if file.exists():
            weights[task] = merged(base, open_condition(file, ground.backbone, ground.memory, base).tensors)

    @torch.no_grad()
    def shown(batch: Batch, x: Tensor, t: Tensor, tokens: Tensor) -> Residuals | None:
        if batch.task not in weights:
            return None
        return base.residuals(weights[batch.task], placed(batch.rows["condition_latent"], ground.policy), t, tokens)

    return shown, base.sha256


def _with_latents(place: Place, name: str, request: TeachRequest) -> Opened:
    """Open the tiny decoder beside the model whose latents it learns."""
    ground = open_ground(request, About("", ("latent",)), Studio(place.settings))
    learner = open_tiny(ground.memory, request.rate or 0.0, request.seed)
    return learner, encoder_of(ground), ground.backbone.fingerprint


def _with_decoder(place: Place, name: str, request: TeachRequest) -> Opened:
    """Open a sharper decoder beside the model whose latents it learns."""
    ground = open_ground(request, About("", ("latent",)), Studio(place.settings))
    backbone = ground.backbone
    rate, widths = request.rate or 0.0, place.scale.decoder
    learner = open_decoder(backbone.vae, backbone.scaling_factor, ground.memory, rate, request.seed, widths)
    return learner, encoder_of(ground), ground.backbone.fingerprint


def _judging(place: Place, name: str, request: TeachRequest) -> Opened:
    """Open the detector. Where the run has a model, every second scene is shown as its autoencoder leaves it."""
    memory = training_memory(place.settings)
    device = memory.policy.device
    learner = open_learner(memory, request.rate or 0.0, request.seed, request.start)
    model = place.judged and open_ground(request, About("", ("latent",)), Studio(place.settings)).backbone

    def encode(drawn: Drawn, names: Sequence[str]) -> Mapping[str, Tensor]:
        target = to_tensor(drawn.images, device)
        if model:
            target[1::2] = to_tensor(np.stack([through_vae(image, model) for image in drawn.images[1::2]]), device)
        return {
            "target": target,
            "noun": torch.from_numpy(np.stack([labels.noun for labels in drawn.labels])).to(device),
            "colour": torch.from_numpy(np.stack([labels.colour for labels in drawn.labels])).to(device),
        }

    return learner, encode, f"detector {model.fingerprint}" if model else "detector"


_OPENERS = {
    "vae": _with_model, "half": _with_model, "net": _with_model, "base": _with_model, "obey": _with_drawings,
    "few": _with_model, "tiny": _with_latents, "decoder": _with_decoder, "detector": _judging,
}  # fmt: skip


def encoder_of(ground: Ground, shrink: int = 1) -> Encode:
    """Return what makes a chapter's tensors: pixels as they are, latents and text states by the model's encoders.

    `shrink`: how many times smaller the pictures are encoded.
    """
    device = ground.policy.device
    makers: dict[str, Callable[[Drawn], Tensor]] = {
        "target": lambda drawn: to_tensor(drawn.images, device),
        "condition": lambda drawn: to_tensor(drawn.conditions, device),
        "latent": lambda drawn: _latents(ground, drawn.images, signed=True, shrink=shrink),
        "condition_latent": lambda drawn: _drawing_latents(ground, drawn),
        "tokens": lambda drawn: _tokens(ground, drawn),
    }
    return lambda drawn, names: {name: makers[name](drawn) for name in names}


@torch.no_grad()
def _latents(ground: Ground, pictures: np.ndarray, signed: bool, shrink: int = 1) -> Tensor:
    """Return latents' modes, (n 4 h/8 w/8); conditions are shown in [0, 1], as CtrLoRA shows them."""
    vae, policy = ground.backbone.vae, ground.policy
    parts = []
    for part in chunks(len(pictures), ENCODED_AT_ONCE):
        x = to_tensor(pictures[part], policy.device).float() / 255
        x = avg_pool2d(x, shrink) if shrink > 1 else x
        x = (x * 2 - 1 if signed else x).to(vae.dtype).contiguous(memory_format=policy.memory_format)
        parts.append(vae.encode(x, return_dict=False)[0].mode().float() * ground.backbone.scaling_factor)
    return torch.cat(parts)


def _drawing_latents(ground: Ground, drawn: Drawn) -> Tensor:
    """Return the latents of the conditions, (n 4 h/8 w/8); black ones, most of "obey"'s, are encoded once."""
    is_drawn = drawn.conditions.reshape(len(drawn.conditions), -1).any(axis=1)
    shown = np.concatenate([np.zeros_like(drawn.conditions[:1]), drawn.conditions[is_drawn]])
    at = torch.from_numpy(np.where(is_drawn, np.cumsum(is_drawn), 0))
    found = _latents(ground, shown, signed=False)
    return found[at.to(found.device)]


@torch.no_grad()
def _tokens(ground: Ground, drawn: Drawn) -> Tensor:
    """Return the captions' states, (n 48 384), in 16 bits."""
    read = ground.backbone.text.read
    parts = [read(drawn.captions[part], 1)[0] for part in chunks(len(drawn.captions), 4 * ENCODED_AT_ONCE)]
    return torch.cat(parts).to(torch.bfloat16)


def measured(place: Place, count: int) -> tuple[Tensor, Tensor]:
    """Return the mean and the deviation of the taught VAE's channels, over held-out scenes."""
    request = replace(request_of(place, "net"), model=str(place.result("vae")))
    ground = open_ground(request, RECIPES.load("text_to_image").ABOUT, Studio(place.settings))
    composer = Composer(Wish(place.scale.size, stream=2), count, place.pack, 0, place.wardrobe)
    drawn = composer.chapter(0)
    latents = _latents(ground, drawn.images, signed=True).cpu()
    return latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))
