"""The model under which something learns: opened so that gradients can pass through it, and bared when caches are full.

A ground is what one paints on. While the caches fill it is a whole backbone; a recipe is given one part of it.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from disegno.backbones.base import Backbone, Refines
from disegno.core.errors import ModelFileError, RequestError, WrongFamily
from disegno.core.settings import Settings
from disegno.core.teach import TeachRequest
from disegno.engine.studio import Studio
from disegno.memory import Memory, Policy, decide
from disegno.training.recipe import About, Model, Opening
from disegno.training.recipes import RECIPES
from disegno.weights.card import FileCard

log = logging.getLogger(__name__)


def training_memory(settings: Settings) -> Memory:
    """Return how a training keeps its tensors: as a generation does, but never in float16, and not packed.

    Gradients of float16 nets vanish or overflow without a loss scale; bfloat16 has float32's range. GPUs without it
    (NVIDIA's of before Ampere) only imitate it, slowly: float32 there. Raises RequestError where float16 was asked for.
    """
    if settings.dtype == "fp16":
        raise RequestError("dtype is fp16, in which a training loses its gradients. Choose auto, bf16 or fp32.")
    policy = decide(settings)
    if policy.dtype == torch.float16:
        has_bf16 = policy.device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
        policy = replace(policy, dtype=torch.bfloat16 if has_bf16 else torch.float32)
    return Memory(replace(policy, packs=False, vae_dtype=policy.dtype))


def _vae_dtype(about: About, memory: Memory) -> torch.dtype:
    return torch.float32 if about.part == "vae" else memory.policy.vae_dtype


@dataclass(frozen=True)
class Ground:
    """A whole model, open for a training. `source`: its file or folder; None: the built-in one."""

    source: Path | None
    backbone: Backbone
    memory: Memory

    @property
    def policy(self) -> Policy:
        return self.memory.policy

    def bared(self, about: About) -> Model:
        """Return the one part of the model that this recipe learns with or from."""
        own = self.backbone
        return Model(
            source=self.source,
            family=own.family,
            name=own.name,
            fingerprint=own.fingerprint,
            module=own.net if about.part == "net" else own.vae,
            prediction=own.prediction,
            table=own.table,
            downscale=own.downscale,
            base_control=own.base_control,
        )


def open_ground(request: TeachRequest, about: About, studio: Studio, memory: Memory | None = None) -> Ground:
    """Return the model of the request, opened for a training. `memory`: unset, this machine's.

    Raises UnknownName, ModelFileError, RequestError.
    """
    memory = memory or training_memory(studio.settings)
    card = studio.find_model(request.model)
    if card is not None:
        _check_family(request, card, about)
    exact = Memory(replace(memory.policy, dtype=torch.float32, vae_dtype=_vae_dtype(about, memory)))
    backbone = studio.open_model(card, exact if about.exact else memory, studio.find_vae(None, card))
    if backbone.in_channels != backbone.latent_channels:
        raise WrongFamily(
            f"{backbone.name} was made for inpainting or editing (its net sees {backbone.in_channels} channels). "
            "Teach under a text-to-image model."
        )
    if isinstance(backbone, Refines) and backbone.refines:
        raise WrongFamily(f"{backbone.name} is a refiner: it ends what others began. Teach under its base model.")
    if about.saves == "file" and about.makes == "control" and request.name in backbone.conditions:
        raise RequestError(
            f"{backbone.name} brings a control named {request.name!r} of its own, which would be found in place of "
            f"what is taught. Choose another name: disegno teach my-{request.name}"
        )
    return Ground(card and card.path, backbone, memory)


def _check_family(request: TeachRequest, card: FileCard, about: About) -> None:
    """Raise WrongFamily where the recipe cannot teach under models of this family."""
    if card.family in about.unlike:
        others = [name for name in RECIPES if card.family not in RECIPES.load(name).ABOUT.unlike]
        raise WrongFamily(
            f"The recipe {request.recipe} does not teach under {card.name}, which is for {card.family}. Use another "
            f"recipe ({', '.join(others)}), or a model of another family."
        )


def opening_of(
    request: TeachRequest, ground: Ground, about: About, tasks: Sequence[str], empty: Tensor | None, studio: Studio
) -> Opening:
    """Return what the recipe opens its weights from. Let go of the ground after it: it holds the VAE and the text."""
    if len(tasks) > 1 and not about.several:
        raise RequestError(
            f"The recipe {request.recipe} learns one condition; {len(tasks)} were given ({', '.join(tasks)}). "
            "Use the recipe base for several, or teach them one by one."
        )
    base = _base(request, ground, studio) if about.on_base or request.base is not None else None
    start = None if request.start is None else _start(request.start, about, studio)
    clip = _clip(request, studio) if about.sees else None
    return Opening(request, ground.bared(about), ground.memory, tuple(tasks), empty, base, start, clip)


def _clip(request: TeachRequest, studio: Studio) -> Path:
    """Return the folder of the settings' CLIP. Raises RequestError where none is named."""
    if studio.settings.clip is None:
        raise RequestError(
            f"The recipe {request.recipe} learns from what a CLIP sees in pictures. Name its folder in the setting clip"
            " (DISEGNO_CLIP=clip-vit-large-patch14)."
        )
    return studio.settings.clip.expanduser()


def _base(request: TeachRequest, ground: Ground, studio: Studio) -> Path:
    """Return the Base ControlNet's file. Raises RequestError."""
    try:
        return studio.find_base(request.base, ground.backbone)
    except RequestError as error:
        if request.base is not None:
            raise
        raise RequestError(f"{error} Or use the recipe controlnet, which needs none.") from error


def _start(name: str, about: About, studio: Studio) -> Path:
    """Return the file to go on from: a path, or a control or LoRA of the library."""
    if (path := Path(name).expanduser()).exists():
        return path
    try:
        return studio.library.find(name, "lora").path if about.makes == "lora" else studio.find_control(name).path
    except ModelFileError as error:
        raise RequestError(f"There is nothing to go on from: {error}") from error
