"""What a backbone is: a model family, opened. Text to tokens, pictures to latents and back, and one evaluation.

A family is one module in this folder (or of another package, by the entry point group `disegno.backbones`) with

    FAMILY: str                                                 what a control must be made for
    def open(path: Path | None, memory: Memory) -> Backbone     its weights, once a process; None: those that it ships

and, where a model of it may come without a VAE, `open(path, memory, vae: Path | None)`, which then takes that of
another file or folder, and

    def brings_vae(path: Path) -> bool                          whether a model's file or folder has one in it
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from disegno.diffusion.call import Call, Weakness
from disegno.diffusion.prediction import Prediction
from disegno.diffusion.schedules import NoiseTable
from disegno.text.learnt import TextOptions
from disegno.weights.built_in import FewSteps


def text_key(tokens: Tensor) -> str:
    """Return the name by content of one row's text states (n d): of the text, and of all that was done to it."""
    data = tokens.detach().float().cpu().contiguous()
    return hashlib.sha256(repr(tuple(data.shape)).encode() + data.view(torch.uint8).numpy().tobytes()).hexdigest()


@dataclass(frozen=True)
class TextStates:
    """What the net attends to. `keys` name each row by content, for sharing; `warnings` say what was cut off."""

    tokens: Tensor  # b n d
    pooled: Tensor | None  # b p
    keys: tuple[str, ...]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Defaults:
    """What a request leaves open: the values that this model was made for."""

    width: int
    height: int
    steps: int
    cfg: float
    sampler: str
    schedule: str


class Backbone(Protocol):
    """A model family, opened. Stateless between calls; modules are placed by `memory.py`."""

    @property
    def family(self) -> str:
        """sd1, diorama, ...: what a control must be made for."""
        ...

    @property
    def name(self) -> str:
        """The file's, folder's or built-in model's name."""
        ...

    @property
    def prediction(self) -> Prediction:
        """What the net's output means."""
        ...

    @property
    def table(self) -> NoiseTable:
        """The noise levels that the net was trained at."""
        ...

    @property
    def defaults(self) -> Defaults:
        """What a request leaves open."""
        ...

    @property
    def latent_channels(self) -> int:
        """The channels of a picture's latents."""
        ...

    @property
    def in_channels(self) -> int:
        """The channels that the net is shown: more than the latents' for inpainting and editing models."""
        ...

    @property
    def downscale(self) -> int:
        """Pixels per latent cell, on one side."""
        ...

    @property
    def net(self) -> nn.Module:
        """The denoiser (a diffusers UNet2DConditionModel for the SD families)."""
        ...

    @property
    def vae(self) -> nn.Module:
        """The autoencoder."""
        ...

    @property
    def fingerprint(self) -> str:
        """The name by content of what was loaded: part of every cache key."""
        ...

    @property
    def conditions(self) -> Mapping[str, Path]:
        """The control conditions that the model ships: name -> file."""
        ...

    @property
    def base_control(self) -> Path | None:
        """The Base ControlNet that the model ships for its conditions."""
        ...

    @property
    def few_steps(self) -> FewSteps | None:
        """How the model draws in few steps, with a LoRA that it ships or as it is; None where it does not."""
        ...

    @property
    def preview(self) -> Path | None:
        """The tiny decoder (TAESD) that the model ships for previews of its latents."""
        ...

    @property
    def warnings(self) -> Sequence[str]:
        """What happened since the model was opened that a person should know, in plain words."""
        ...

    def encode_text(self, prompts: Sequence[str], clip_skip: int = 1) -> TextStates:
        """Return the text states of each caption as it is written, (b n d): one chunk each, the rest is cut off."""
        ...

    def read_prompt(self, text: str, options: TextOptions) -> TextStates:
        """Return the text states of a prompt of any length with its emphasis, (1 kn d) of its k chunks."""
        ...

    def predicting(self, name: str) -> "Backbone":
        """Return this model with another meaning of its output, the same nets. Raises RequestError where none fits."""
        ...

    @property
    def lora_nets(self) -> Mapping[str, nn.Module]:
        """What a style LoRA may change: "unet" and "te" (the text encoder; "te2", "te3": more), where there are."""
        ...

    def encode_image(self, images: Tensor) -> Tensor:
        """Return the latents' mode times the scaling factor, (b c h/8 w/8), of what the VAE is shown.

        images: (b 3 h w), in the range that the caller chose ([-1, 1] for pictures).
        """
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Return pictures (b 3 h w), float32 in [0, 1]."""
        ...

    def evaluate(self, call: Call) -> Tensor:
        """Return the net's raw output for a call, (b c h w), float32. Gradients pass through."""
        ...

    def check_size(self, width: int, height: int) -> None:
        """Raise RequestError when the net cannot draw this size."""
        ...


@runtime_checkable
class Weakens(Protocol):
    """A backbone whose net can be weakened in some rows of a call, to be guided away from."""

    def check_weakness(self, weakness: Weakness) -> None:
        """Raise RequestError where the net cannot be weakened so."""
        ...


@runtime_checkable
class JoinsSkips(Protocol):
    """A backbone whose net has a decoder with skip connections, which can weigh the two anew in some rows of a call."""

    def check_joins(self) -> None:
        """Raise RequestError where the net has no level at which it could."""
        ...


DepthReader = Callable[[Tensor], Tensor]
"""Pictures (b 3 h w), RGB in [0, 1], to their depth (b 1 h w): what is near is large."""


@runtime_checkable
class TakesVae(Protocol):
    """A backbone that may be given another VAE than it came with."""

    def with_vae(self, path: Path) -> Backbone:
        """Return this model with the VAE of a file or folder, the same nets beside it. Raises ModelFileError."""
        ...


@runtime_checkable
class Refines(Protocol):
    """A backbone that may be a refiner: a model that only ends what another one began."""

    @property
    def refines(self) -> bool: ...


@runtime_checkable
class ReadsDepth(Protocol):
    """A backbone that may tell the depth of pictures: one that is shown depth."""

    @property
    def depth(self) -> DepthReader | None:
        """What tells it; None where the model came without."""
        ...
