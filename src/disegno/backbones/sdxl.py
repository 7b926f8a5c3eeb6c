"""Stable Diffusion XL and its refiner: from a diffusers folder, or from one file of the original layout.

Podell et al. 2023. Which of the two a model is, its tensors tell: the refiner has one text encoder. What a file may say
of itself: see `_reading.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPTextConfig

from disegno.backbones._beside import clips_beside
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
from disegno.backbones._mmdit import states_of
from disegno.backbones._reading import check_family, check_folder, folder_nets, nets_of, shapes_of, told_prediction
from disegno.backbones._two_texts import TwoTexts
from disegno.backbones._vae_file import brings_vae
from disegno.backbones.base import Defaults, TextStates
from disegno.core.errors import KeyMismatch, RequestError, UnknownKind
from disegno.diffusion.call import Call
from disegno.diffusion.told import told_beauty, told_size
from disegno.memory import Memory
from disegno.text.clip import END_ID, OPENCLIP_PAD, ClipText, config_of, open_clip, projected
from disegno.text.described import described
from disegno.text.learnt import TextOptions
from disegno.weights import configs
from disegno.weights.json_table import read_json
from disegno.weights.keys import ldm, openclip
from disegno.weights.load import open_file
from disegno.weights.parts import folder_tensors, has_weights, told_of
from disegno.weights.scaled import unscaled
from disegno.weights.tensor_file import TensorFile

__all__ = ["FAMILY", "Parts", "Sdxl", "brings_vae", "check_told", "open", "read_file", "read_folder"]

FAMILY = "sdxl"
DEFAULTS = Defaults(1024, 1024, steps=20, cfg=7.0, sampler="DPM++ 2M", schedule="automatic")
_PROJECTION = "text_projection.weight"
_NUMBERS = {True: 6, False: 5}  # that the UNet is told of sizes, by whether there is a CLIP-L
_CLIP_L = "conditioner.embedders.0.transformer."
_CLIP_G = ("conditioner.embedders.1.model.", "conditioner.embedders.0.model.")  # of the base, of the refiner


@dataclass(frozen=True)
class Text:
    """A text encoder, read: its tensors by CLIPTextModel's names, its projection beside them."""

    tensors: Tensors
    config: CLIPTextConfig


@dataclass(frozen=True)
class Parts:
    """A model, read. `clip_l`: None in the refiner. `prediction`: by diffusers' word; None: nothing tells."""

    nets: Nets
    clip_l: Text | None
    clip_g: Text
    scheduler: Config
    prediction: str | None


@dataclass(frozen=True)
class Sdxl(LatentDiffusion):
    """An open model: a `Backbone`."""

    text: TwoTexts

    @property
    def refines(self) -> bool:
        """Whether it is the refiner, which reads with one encoder."""
        return self.text.clip_l is None

    @torch.no_grad()
    def encode_text(self, prompts: Sequence[str], clip_skip: int = 1) -> TextStates:
        return states_of(*self.text.read_all(prompts))

    @torch.no_grad()
    def read_prompt(self, text: str, options: TextOptions) -> TextStates:
        return states_of(*self.text.read_all_prompt(text, options))

    def _added(self, call: Call, x: Tensor) -> dict[str, Tensor]:
        assert call.pooled is not None, "SDXL wants the pooled text"
        pooled, chosen = call.pooled.to(x), [row.told for row in call.rows]
        if self.refines:
            return told_beauty(pooled, x, [row.positive for row in call.rows], chosen)
        return told_size(pooled, x, chosen)


def open(path: Path | None, memory: Memory, vae: Path | None = None) -> Sdxl:
    """Return the model in a folder or file. `vae`: the file or folder of one, where the model brings none.

    Raises ModelFileError about it, RequestError without a path.
    """
    if path is None:
        raise RequestError("Stable Diffusion XL ships no weights with this program: give a model file or folder.")
    parts, name = read_folder(path, vae) if path.is_dir() else read_file(path, vae), path.name
    check_told(parts, name)
    unet, autoencoder = open_nets(parts.nets, name, memory, told=("text_time",))
    prediction = prediction_of(parts.prediction or "epsilon", name)
    texts = [text.tensors for text in (parts.clip_l, parts.clip_g) if text is not None]
    return Sdxl(
        family=FAMILY,
        name=name,
        prediction=prediction,
        table=noise_table_of(parts.scheduler, name),
        defaults=DEFAULTS,
        net=unet,
        vae=autoencoder,
        text=TwoTexts(
            None if parts.clip_l is None else _open(parts.clip_l, END_ID, memory, f"CLIP-L of {name}"),
            _open(parts.clip_g, OPENCLIP_PAD, memory, f"OpenCLIP-G of {name}"),
        ),
        memory=memory,
        fingerprint=fingerprint(parts.nets.unet, parts.nets.vae, *texts),
    )


def check_told(parts: Parts, name: str) -> None:
    """Raise UnknownKind where the UNet wants to be told other numbers, KeyMismatch where a text encoder lacks."""
    projection = parts.clip_g.tensors.get(_PROJECTION)
    if projection is None:
        raise KeyMismatch(f"The OpenCLIP-G of {name} has no text_projection. Use a complete model.")
    texts = [text.config.hidden_size for text in (parts.clip_l, parts.clip_g) if text is not None]
    config = parts.nets.unet_config
    width, each = config.get("projection_class_embeddings_input_dim"), config.get("addition_time_embed_dim")
    expected = len(projection) + _NUMBERS[parts.clip_l is not None] * (each or 0)
    if width != expected:
        raise UnknownKind(
            f"The UNet of {name} is told {width} numbers beside its tokens, not {expected}: Stable Diffusion XL's is"
            " told a pooled text and 6 sizes, its refiner's (without CLIP-L) 5. Choose another model."
        )
    if config["cross_attention_dim"] != sum(texts):
        raise KeyMismatch(
            f"The UNet of {name} reads a text of {config['cross_attention_dim']} numbers a token, its text encoders"
            f" write {sum(texts)}. One of them is missing or of another model: use a complete model."
        )


def _open(text: Text, pad: int, memory: Memory, what: str) -> ClipText:
    own = {name: tensor for name, tensor in text.tensors.items() if name != _PROJECTION}
    return projected(open_clip(own, text.config, memory, what, pad), text.tensors.get(_PROJECTION))


# ---- one file

_EDM = ("edm_mean", "edm_vpred.sigma_max")  # marks of Playground 2.5 and CosXL


def _check_noise(name: str, by_edm: bool) -> None:
    """Raise UnknownKind where a model was trained over other noise levels than Stable Diffusion's."""
    if by_edm:
        raise UnknownKind(
            f"{name} was trained over EDM's noise levels (Playground 2.5, CosXL), which are not drawn here. "
            "Choose another model."
        )


def read_file(path: Path, vae: Path | None = None) -> Parts:
    """Return the parts of a checkpoint: pruned or whole, with EMA weights (not used) or without; or of a net alone.

    Where it has no text encoders, those beside it are used.
    """
    with open_file(path) as file:
        check_family(file, FAMILY)
        _check_noise(path.name, any(mark in file for mark in _EDM))
        told = told_of(file)
        nets = _scaled(nets_of(file, told, vae), told.get("vae", {}))
        clip_l, clip_g = _texts_of(file, nets)
        return Parts(
            nets=nets,
            clip_l=clip_l,
            clip_g=clip_g,
            scheduler={"rescale_betas_zero_snr": "ztsnr" in file},
            prediction=told_prediction(file, told),
        )


def _texts_of(file: TensorFile, nets: Nets) -> tuple[Text | None, Text]:
    """Return the text encoders of a file, or where it has none, those beside it. Raises KeyMismatch."""
    left, right = _under(file, _CLIP_L), next((found for prefix in _CLIP_G if (found := _under(file, prefix))), {})
    if right:
        return _clip_l(left) if left else None, _clip_g(right)
    own = {} if left else clips_beside(file.path, ["clip_g"]).get("clip_g", {})
    if not own:
        raise KeyMismatch(
            f"{file.path.name} has no OpenCLIP ({_CLIP_G[0]}...). Use a complete checkpoint, or put OpenCLIP-G's and"
            " CLIP-L's own files beside it, as clip_g.safetensors and clip_l.safetensors."
        )
    clip_g = Text(own, config_of(shapes_of(own), act="gelu"))
    if nets.unet_config["cross_attention_dim"] == clip_g.config.hidden_size:  # the refiner
        return None, clip_g
    other = clips_beside(file.path, ["clip_l"]).get("clip_l", {})
    if not other:
        raise KeyMismatch(
            f"{file.path.name} has no CLIP-L, in it or beside it. Put CLIP-L's own file there, as clip_l.safetensors."
        )
    return Text(other, config_of(shapes_of(other))), clip_g


def _scaled(nets: Nets, told: Config) -> Nets:
    """Return the nets, the latents in SDXL's scale: no tensor tells it. `told`: what a header says of the VAE."""
    return replace(nets, vae_config=nets.vae_config | {"scaling_factor": configs.SDXL_SCALING_FACTOR} | told)


def _under(file: TensorFile, prefix: str) -> dict[str, Tensor]:
    keys = [key for key in file.contents.entries if key.startswith(prefix)]
    return unscaled({key.removeprefix(prefix): file.tensor(key) for key in keys})


def _clip_l(tensors: Tensors) -> Text:
    own = {new: tensors[name] for name, new in ldm.text_names(tensors).items()}
    return Text(own, config_of(shapes_of(own)))


def _clip_g(tensors: Tensors) -> Text:
    own = openclip.whole(tensors)
    return Text(own, config_of(shapes_of(own), act="gelu"))


# ---- a diffusers folder


def read_folder(path: Path, vae: Path | None = None) -> Parts:
    """Return the parts of a diffusers folder. `vae`: where it brings none. Raises WrongFamily, CorruptFile."""
    check_folder(path, FAMILY)
    scheduler = read_json(path / "scheduler" / "scheduler_config.json")
    _check_noise(path.name, str(scheduler.get("_class_name")).startswith("EDM"))
    told, nets = scheduler.get("prediction_type"), folder_nets(path, vae)
    return Parts(
        nets=nets if has_weights(path, "vae") else _scaled(nets, {}),
        clip_l=_folder_text(path, "text_encoder", projects=False) if has_weights(path, "text_encoder") else None,
        clip_g=_folder_text(path, "text_encoder_2", projects=True),
        scheduler=scheduler,
        prediction=None if told is None else str(told),
    )


def _folder_text(path: Path, part: str, projects: bool) -> Text:
    tensors = folder_tensors(path, part)
    own = {new: tensors[name] for name, new in ldm.text_names(tensors).items()}
    if projects and _PROJECTION in tensors:
        own[_PROJECTION] = tensors[_PROJECTION]
    config = path / part / "config.json"
    return Text(own, described(CLIPTextConfig, read_json(config), str(config)))
