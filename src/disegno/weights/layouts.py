"""The networks of a whole model, family by family: where each lies in one file and in a diffusers folder, and how its
tensors go from one form to the other, bit by bit.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from disegno.weights import configs
from disegno.weights.keys import ldm, midas, mmdit, openclip, sd3_control

Tensors = Mapping[str, Tensor]
Table = Callable[[Iterable[str]], dict[str, str]]

_NET, _TEXT = "diffusion_pytorch_model", "model"  # how diffusers' and transformers' files of weights are called
_HF = "text_model."
_PROJECTION = "text_projection.weight"
_EMBEDDING, _TIED = "shared.weight", "encoder.embed_tokens.weight"  # of T5: one tensor by two names
_ATTENTION = re.compile(r"(en|de)coder\.mid(_block\.attentions\.0\.to_|\.attn_1\.(q|k|v|proj_out)\.)")


@dataclass(frozen=True)
class Part:
    """One network of a model.

    `prefix`: in one file; `other_prefix`: in some. `folder`, `stem`: in a diffusers folder, of this `library` and class
    `cls`. `to_diffusers`, `to_ldm`: its tensors by the other names, without the prefix; those that have no place are
    left out. `placed`: which of a file's names have one. `kept`: which of a folder's. `optional`: a model may lack it.
    `whole`: nothing of a folder's may be left out of one file: the network would lack it.
    """

    prefix: str
    folder: str
    cls: str
    to_diffusers: Callable[[Tensors], dict[str, Tensor]]
    to_ldm: Callable[[Tensors], dict[str, Tensor]]
    placed: Callable[[Tensors], Set[str]]
    kept: Callable[[Tensors], Set[str]]
    config: Callable[[Tensors], dict[str, Any]] = configs.unet_config
    library: str = "diffusers"
    optional: bool = False
    whole: bool = False
    other_prefix: str = ""

    def keys_in(self, keys: Iterable[str]) -> dict[str, str]:
        """Return name without prefix -> key, of the keys that are this network's in one file."""
        own, other = dict[str, str](), dict[str, str]()
        for key in keys:
            if key.startswith(self.prefix):
                own[key.removeprefix(self.prefix)] = key
            elif self.other_prefix and key.startswith(self.other_prefix):
                other[key.removeprefix(self.other_prefix)] = key
        return own or other

    @property
    def stem(self) -> str:
        """Return how its file of weights is called in a folder."""
        return _NET if self.library == "diffusers" else _TEXT


def _renamed(tensors: Tensors, table: Table) -> dict[str, Tensor]:
    return {new: tensors[name] for name, new in table(tensors).items()}


def _by_tables(prefix: str, folder: str, cls: str, there: Table, back: Table) -> Part:
    """Return a part whose tensors are renamed and nothing else."""
    return Part(
        prefix=prefix,
        folder=folder,
        cls=cls,
        to_diffusers=lambda tensors: _fitted(_renamed(tensors, there), 2),
        to_ldm=lambda tensors: _fitted(_renamed(tensors, back), 4),
        placed=lambda tensors: there(tensors).keys(),
        kept=lambda tensors: back(tensors).keys(),
    )


def _fitted(tensors: Tensors, num_axes: int) -> dict[str, Tensor]:
    """Return the tensors, the VAE's attention as matrices (2 axes) or as 1x1 convolutions (4)."""
    return {
        name: tensor.reshape(tensor.shape[:2] + (1,) * (num_axes - 2))
        if tensor.ndim in (2, 4) and tensor.ndim != num_axes and _ATTENTION.search(name)
        else tensor
        for name, tensor in tensors.items()
    }


def _vae_originals(names: Iterable[str]) -> dict[str, str]:
    """Return a diffusers VAE's names -> original, also those that its attention had before diffusers 0.12."""
    modern = ldm.modern_vae_names(names)
    originals = ldm.vae_originals(modern.values())
    return {name: originals[new] for name, new in modern.items() if new in originals}


# ---- text encoders


def _text_names(names: Iterable[str]) -> dict[str, str]:
    return {name: name for name in names if not name.endswith("position_ids")}


def _clip_names(names: Iterable[str]) -> dict[str, str]:
    """Return the names of a CLIP of Stable Diffusion 3, its projection too."""
    return {name: name for name in _text_names(names) if name.startswith(_HF) or name == _PROJECTION}


def _t5_names(names: Iterable[str]) -> dict[str, str]:
    """Return the names of T5's encoder, its embedding once."""
    names = list(names)
    own = {name: name for name in names if name.startswith(("shared.", "encoder.")) and name != _TIED}
    return own if _EMBEDDING in own or _TIED not in names else own | {_TIED: _EMBEDDING}


def _from_openclip(tensors: Tensors) -> dict[str, Tensor]:
    return {_HF + name: tensor for name, tensor in openclip.used(tensors).items()}


def _to_openclip(tensors: Tensors) -> dict[str, Tensor]:
    return openclip.to_openclip({name.removeprefix(_HF): tensor for name, tensor in tensors.items()})


def _from_tower(tensors: Tensors) -> dict[str, Tensor]:
    """Return SDXL's OpenCLIP-G, its projection beside it, as a folder has it."""
    found = openclip.whole(tensors)
    return {name if name == _PROJECTION else _HF + name: tensor for name, tensor in found.items()}


def _to_tower(tensors: Tensors) -> dict[str, Tensor]:
    own = _clip_names(tensors)
    return openclip.from_whole({name.removeprefix(_HF): tensors[name] for name in own})


def _unprojected(tensors: Tensors) -> dict[str, Tensor]:
    """Return CLIP-L as a folder wants it. Stability AI parity: its pooled state is not projected, which in a folder is
    a projection that changes nothing.
    """
    own = {name: tensor for name, tensor in _renamed(tensors, _clip_names).items() if name != _PROJECTION}
    width = int(configs.text_config(own)["hidden_size"])
    dtype = own[f"{_HF}embeddings.token_embedding.weight"].dtype
    return own | {_PROJECTION: torch.eye(width, dtype=torch.float32).to(dtype)}


def _changes_nothing(projection: Tensor) -> bool:
    return torch.equal(projection.float(), torch.eye(len(projection), projection.shape[1]))


def _bare(tensors: Tensors) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in _renamed(tensors, _clip_names).items() if name != _PROJECTION}


def _kept_of_clip_l(tensors: Tensors) -> Set[str]:
    lost = {_PROJECTION} if _PROJECTION in tensors and not _changes_nothing(tensors[_PROJECTION]) else set[str]()
    return _clip_names(tensors).keys() - lost


def _encoder(name: str, folder: str, cls: str, table: Table, config: Callable[[Tensors], dict[str, Any]]) -> Part:
    """Return a text encoder of Stable Diffusion 3."""
    part = _by_tables(f"text_encoders.{name}.transformer.", folder, cls, table, table)
    return replace(part, config=config, library="transformers", optional=True)


# ---- the parts, and the models


def _unet_of_64(tensors: Tensors) -> dict[str, Any]:
    sizes = configs.unet_config(tensors)
    return sizes | configs.heads_of_64(sizes)


CONTROL = _by_tables(ldm.CONTROL_PREFIX, "", "ControlNetModel", ldm.unet_names, ldm.unet_originals)
UNET = _by_tables(ldm.UNET_PREFIX, "unet", "UNet2DConditionModel", ldm.unet_names, ldm.unet_originals)
VAE = replace(
    _by_tables(ldm.VAE_PREFIX, "vae", "AutoencoderKL", ldm.vae_names, _vae_originals),
    config=configs.vae_config,
    whole=True,
)
CLIP = replace(
    _by_tables("cond_stage_model.transformer.", "text_encoder", "CLIPTextModel", _text_names, _text_names),
    config=configs.text_config,
    library="transformers",
)
OPENCLIP = replace(
    CLIP,
    prefix=openclip.PREFIX,
    to_diffusers=_from_openclip,
    to_ldm=_to_openclip,
    placed=lambda tensors: set(openclip.used_names(tensors)),
    kept=lambda tensors: tensors.keys(),
    config=lambda tensors: configs.text_config(tensors) | {"hidden_act": "gelu", "pad_token_id": 0},
    other_prefix=openclip.SGM_PREFIX,
)
UNET_OF_64 = replace(UNET, config=_unet_of_64)
MMDIT = Part(
    prefix=mmdit.PREFIX,
    folder="transformer",
    cls="SD3Transformer2DModel",
    to_diffusers=mmdit.from_original,
    to_ldm=mmdit.to_original,
    placed=lambda tensors: tensors.keys() - set(mmdit.unknown_names(tensors)),
    kept=lambda tensors: mmdit.from_original(mmdit.to_original(tensors)).keys(),
    config=lambda tensors: mmdit.config_of({name: tuple(tensor.shape) for name, tensor in tensors.items()}),
)
SD3_CONTROL = Part(
    prefix="",
    folder="",
    cls="SD3ControlNetModel",
    to_diffusers=sd3_control.from_original,
    to_ldm=sd3_control.to_original,
    placed=sd3_control.placed,
    kept=sd3_control.kept,
)
DEPTH = Part(
    prefix=midas.PREFIX,
    folder="depth_estimator",
    cls="DPTForDepthEstimation",
    to_diffusers=midas.from_original,
    to_ldm=midas.to_original,
    placed=midas.placed,
    kept=midas.kept,
    config=lambda tensors: midas.config_of({name: tuple(tensor.shape) for name, tensor in tensors.items()}),
    library="transformers",
    optional=True,
)
_PROJECTED = "CLIPTextModelWithProjection"
CLIP_L = replace(
    _encoder("clip_l", "text_encoder", _PROJECTED, _clip_names, configs.projected_config),
    to_diffusers=_unprojected,
    to_ldm=_bare,
    placed=lambda tensors: _clip_names(tensors).keys() - {_PROJECTION},
    kept=_kept_of_clip_l,
)
CLIP_G = _encoder(
    "clip_g",
    "text_encoder_2",
    _PROJECTED,
    _clip_names,
    lambda tensors: configs.projected_config(tensors) | {"hidden_act": "gelu", "pad_token_id": 0},
)
T5 = _encoder("t5xxl", "text_encoder_3", "T5EncoderModel", _t5_names, configs.t5_config)
XL_VAE = replace(VAE, config=configs.sdxl_vae_config)
XL_CLIP_L = replace(CLIP, prefix="conditioner.embedders.0.transformer.")
XL_CLIP_G = Part(
    prefix="conditioner.embedders.1.model.",
    folder="text_encoder_2",
    cls=_PROJECTED,
    to_diffusers=_from_tower,
    to_ldm=_to_tower,
    placed=lambda tensors: set(openclip.whole_names(tensors)),
    kept=lambda tensors: _clip_names(tensors).keys(),
    config=CLIP_G.config,
    library="transformers",
)
_REFINER: tuple[Part, ...] = (UNET, XL_VAE, replace(XL_CLIP_G, prefix="conditioner.embedders.0.model."))

MODELS: Mapping[str, tuple[Part, ...]] = {
    "sd1": (UNET, VAE, CLIP),
    "sd2": (UNET_OF_64, VAE, OPENCLIP, DEPTH),
    "sdxl": (UNET, XL_VAE, XL_CLIP_L, XL_CLIP_G),
    "sd3": (MMDIT, VAE, CLIP_L, CLIP_G, T5),
}
_PIPELINES = {DEPTH.folder: "StableDiffusionDepth2ImgPipeline", MMDIT.folder: "StableDiffusion3Pipeline"}
_XL_PIPELINES = {
    False: "StableDiffusionXLImg2ImgPipeline",
    True: "StableDiffusionXLPipeline",
}  # has it CLIP-L?
NETWORKS: Mapping[tuple[str, str], Part] = {
    ("control", ""): CONTROL,
    ("control", "sd3"): SD3_CONTROL,
    ("unet", ""): UNET,
    ("unet", "sd3"): MMDIT,
    ("vae", ""): VAE,
    ("text", ""): CLIP,
}
"""(kind, family) -> what a file of one network is; "": of every other family."""


def network_of(kind: str, family: str) -> Part | None:
    """Return what a file of one network of this kind and family is; None where there is no table for it."""
    return NETWORKS.get((kind, family)) or NETWORKS.get((kind, ""))


def parts_of(family: str, has_clip_l: bool) -> tuple[Part, ...]:
    """Return the networks of a model of this family; of Stable Diffusion 1 where there is no table for it.

    `has_clip_l`: SDXL's refiner has not.
    """
    if family == "sdxl" and not has_clip_l:
        return _REFINER
    return MODELS.get(family, MODELS["sd1"])


def pipeline_of(folders: Iterable[str]) -> str:
    """Return diffusers' name for what a model with these folders is."""
    folders = set(folders)
    if UNET.folder in folders and XL_CLIP_G.folder in folders:
        return _XL_PIPELINES[XL_CLIP_L.folder in folders]
    return next((name for folder, name in _PIPELINES.items() if folder in folders), "StableDiffusionPipeline")
