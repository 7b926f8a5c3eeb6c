"""What Stable Diffusion 1.x and 2.x share: one CLIP reads the prompt, and so a model is read and opened alike."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from diffusers import UNet2DConditionModel
from transformers import CLIPTextConfig

from disegno.backbones._depth import DepthParts, depth_in, open_depth
from disegno.backbones._fingerprint import fingerprint
from disegno.backbones._latent_diffusion import (
    Config,
    LatentDiffusion,
    Nets,
    Tensors,
    noise_table_of,
    open_nets,
    prediction_of,
)
from disegno.backbones._reading import check_folder, folder_nets
from disegno.backbones.base import Defaults
from disegno.diffusion.prediction import Prediction
from disegno.memory import Memory
from disegno.text.clip import open_clip
from disegno.text.described import described
from disegno.weights.json_table import read_json
from disegno.weights.keys import ldm
from disegno.weights.parts import folder_tensors

_SCHEDULER = Path("scheduler", "scheduler_config.json")


@dataclass(frozen=True)
class Parts:
    """A model, read. `prediction`: what its output means, by diffusers' word; None: nothing tells.

    `depth`: of a model that sees depth, what estimates it.
    """

    nets: Nets
    text: Tensors
    text_config: CLIPTextConfig
    scheduler: Config
    prediction: str | None
    depth: DepthParts | None = None


@dataclass(frozen=True)
class Family:
    """What a family has of its own. `pad`: the token behind a prompt's end.

    `tried`: (the net, the model's name) -> what its output means where nothing tells, and what is said about it.
    """

    name: str
    pad: int
    defaults: Callable[[Prediction], Defaults]
    tried: Callable[[UNet2DConditionModel, str], tuple[str, list[str]]]


def read_folder(path: Path, family: str, vae: Path | None) -> Parts:
    """Return the parts of a diffusers folder. `vae`: where it brings none. Raises WrongFamily, CorruptFile."""
    check_folder(path, family)
    text, scheduler = folder_tensors(path, "text_encoder"), read_json(path / _SCHEDULER)
    told, config = scheduler.get("prediction_type"), path / "text_encoder" / "config.json"
    return Parts(
        nets=folder_nets(path, vae),
        text={new: text[name] for name, new in ldm.text_names(text).items()},
        text_config=described(CLIPTextConfig, read_json(config), str(config)),
        scheduler=scheduler,
        prediction=None if told is None else str(told),
        depth=depth_in(path),
    )


def open_parts(parts: Parts, name: str, memory: Memory, family: Family) -> LatentDiffusion:
    """Return the open model. Raises KeyMismatch, UnknownKind."""
    unet, vae = open_nets(parts.nets, name, memory)
    told, warnings = (parts.prediction, list[str]()) if parts.prediction else family.tried(unet, name)
    prediction = prediction_of(told, name)
    return LatentDiffusion(
        family=family.name,
        name=name,
        prediction=prediction,
        table=noise_table_of(parts.scheduler, name),
        defaults=family.defaults(prediction),
        net=unet,
        vae=vae,
        text=open_clip(parts.text, parts.text_config, memory, f"The text encoder of {name}", family.pad),
        memory=memory,
        fingerprint=fingerprint(parts.nets.unet, parts.nets.vae, parts.text),
        warnings=warnings,
        depth=parts.depth and open_depth(parts.depth, memory, f"The depth estimator of {name}"),
    )
