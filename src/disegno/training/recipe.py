"""What a recipe is: which tensors of a pair it learns from, what of the model trains, and how the result is saved.

A recipe is one module in `recipes/` (or of another package, by the entry point group `disegno.recipes`) with

    ABOUT: About                                what it learns from and what it leaves
    def open(opening: Opening) -> Learner       what trains, once a training

It never loops. A training goes

    opened = yield from open_training(request, {"": train}, {"": held}, studio)      training/opening.py
    rows   = opened.learner.module(batch, turn.name); rows.mean().backward(); ...     training/trainer.py
    opened.learner.save(path, facts)

where `path` is NAME.safetensors for a recipe that saves a file, the folder NAME for one that saves a folder.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from torch import Tensor, nn

from disegno.core.teach import TeachRequest
from disegno.diffusion.prediction import Prediction
from disegno.diffusion.schedules import NoiseTable
from disegno.memory import Memory
from disegno.training.base import Learner

Wanted = Literal["latent", "condition_latent", "tokens", "target", "condition"]
"""What a row of `Examples` may hold, by name:

    latent              the target's latents, scaled to unit variance (c h w), float32
    condition_latent    the condition's, which the VAE is shown in [0, 1] (c h w), float32
    tokens              the caption's text states (n d)
    target, condition   the pictures' pixels (3 h w), uint8
"""


OF_LORA = ("rank", "alpha", "lora_dropout")
OF_NOISE = ("timesteps", "min_snr", "offset_noise", "caption_dropout")


@dataclass(frozen=True)
class About:
    """What is known of a recipe before anything is opened. `summary`: one line.

    `wants`: the tensors that it learns from. `part`: what of the model stays in memory. `several`: it learns several
    conditions, TASK=DATA each; a round of batches takes every task once, in a new order (CtrLoRA's pretraining).
    `joins`: it learns several conditions of one picture together: pairs of one target and caption are one row, whose
    pictures are called `condition.TASK`. `beside`: a file of each condition lies beside the one that it saves, as
    `result.condition_path` names it. `on_base`: it adapts a Base ControlNet. `exact`: what trains starts from that
    part, which is opened in float32. `saves`: one file, or a folder that is a whole model. `sees`: it wants the CLIP of
    the settings. `task`: what the result is asked for while it learns, where its file may know several conditions.
    `makes`: what the file is. `unlike`: families whose models it cannot teach under. `unused`: fields of a request that
    have no effect.
    """

    summary: str
    wants: tuple[Wanted, ...]
    part: Literal["net", "vae"] = "net"
    several: bool = False
    joins: bool = False
    beside: bool = False
    on_base: bool = False
    exact: bool = False
    saves: Literal["file", "folder"] = "file"
    sees: bool = False
    task: str | None = None
    makes: Literal["control", "lora"] = "control"
    unlike: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()


@dataclass(frozen=True)
class Model:
    """The model under which something learns: one part of it, frozen and placed; the others are no longer in memory.

    `module`: its net, or its VAE. `source`: its file or folder; None: the built-in model. `downscale`: pixels per
    latent cell, on one side.
    """

    source: Path | None
    family: str
    name: str
    fingerprint: str
    module: nn.Module
    prediction: Prediction
    table: NoiseTable
    downscale: int
    base_control: Path | None

    @property
    def net(self) -> nn.Module:
        """Return the net: what a control that is opened beside it must fit."""
        return self.module


@dataclass(frozen=True)
class Opening:
    """What a recipe opens its weights from.

    `empty`: the text states of the empty caption (n d), where the recipe wants tokens. `tasks`: the conditions' names,
    ("",) where there is one. `base`: the Base ControlNet's file. `start`: the file of the same kind to go on from.
    `clip`: the folder of a CLIP, where the recipe wants one. `packs`: whether frozen nets may be laid out for
    inference; not where they will be compiled, since the compiler lays weights out by itself.
    """

    request: TeachRequest
    model: Model
    memory: Memory
    tasks: tuple[str, ...]
    empty: Tensor | None = None
    base: Path | None = None
    start: Path | None = None
    clip: Path | None = None
    packs: bool = True


class Recipe(Protocol):
    """A recipe's module."""

    @property
    def ABOUT(self) -> About: ...

    def open(self, opening: Opening) -> Learner:
        """Return what trains. Raises RequestError about the request, ModelFileError about a file."""
        ...
