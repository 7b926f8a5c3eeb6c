"""ControlNet for Stable Diffusion 3 and 3.5: a few of the transformer's blocks, which see the noisy latent and the
condition's latents, and add to the blocks of the model at even distances.

diffusers' SD3ControlNetModel, as a file or folder: InstantX's and alimama's nets for SD 3 medium (the second inpaints:
one channel more), Stability AI's for 3.5 large (blocks that see no text, on the model's own patches). The last come in
Stability AI's own files too, which say what they were made for, and so how a picture is shown to them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from diffusers import SD3ControlNetModel
from torch import Tensor, nn
from torch.nn import functional as F

from disegno.controls._net import weight_of
from disegno.controls.base import Condition, Host, Layers, add, key_of
from disegno.core.errors import UnknownKind, WrongFamily
from disegno.diffusion.call import Call
from disegno.diffusion.patches import spread, tokens_to_map, whole_patches
from disegno.memory import Memory
from disegno.weights.card import FileCard
from disegno.weights.json_table import read_json
from disegno.weights.keys import mmdit, sd3_control
from disegno.weights.parts import told_of, weights_of
from disegno.weights.shapes import sides

families = ("sd3",)

_PATCHES = "pos_embed_input.proj.weight"
_POOLED = "time_text_embed.text_embedder.linear_1.weight"
_TELLING = {  # what sizes are read from -> how many sides it has
    _PATCHES: 4,
    _POOLED: 2,
    "pos_embed.proj.weight": 4,
    "pos_embed.pos_embed": 3,
    "context_embedder.weight": 2,
}
# What the control must have in common with the model's transformer: where it stands in both configurations.
_SHARED = {
    "pooled_projection_dim": "the width of the pooled text",
    "joint_attention_dim": "the width of the text",
    "in_channels": "the channels of the latents",
}
# What the VAE is shown of a picture in [0, 1], by what the net was made for. Stability AI parity: canny beyond white;
# depth black where it is near, which everywhere else here is white (ComfyUI turns it too).
_SHOWN: Mapping[str, Callable[[Tensor], Tensor]] = {
    "": lambda x: x * 2 - 1,
    "blur": lambda x: x * 2 - 1,
    "canny": lambda x: x * 127.5 + 0.5,
    "depth": lambda x: 1 - x * 2,
}
_ANNOTATORS = {"blur": "blur", "canny": "canny"}
_FOLDER_ONLY = ("force_zeros_for_pooled_projection", "pos_embed_type")  # what shapes cannot tell


def recognises(card: FileCard) -> bool:
    """Return whether the file is a ControlNet of this family."""
    return card.mechanism == "controlnet" and card.family in families


class Sd3Host(Host, Protocol):
    """A backbone whose net is a transformer; its VAE says how its latents were moved."""

    @property
    def vae(self) -> nn.Module: ...


def width_of(net: nn.Module) -> int:
    """Return a transformer's width."""
    config = _config(net)
    return int(config["attention_head_dim"]) * int(config["num_attention_heads"])


def _config(net: nn.Module) -> Mapping[str, Any]:
    return cast(Mapping[str, Any], net.config)


@dataclass(frozen=True)
class ControlNetSd3:
    """A prepared ControlNet. `latents`: the condition's, (1 c h w), with the mask where it inpaints."""

    net: SD3ControlNetModel
    model: nn.Module
    latents: Tensor
    key: str
    positive_only: bool = False
    sees_x: bool = True

    def __call__(self, call: Call) -> Call:
        """Return the call with this control's residuals added: maps of tokens, (b d h w), one a block."""
        config, like = _config(self.net), weight_of(self.net)
        assert call.pooled is not None, "Stable Diffusion 3 wants the pooled text"
        x, shown = (whole_patches(part.to(like), int(config["patch_size"])) for part in (call.x, self.latents))
        pooled = call.pooled.to(like)
        samples = self.net(
            hidden_states=x if self.net.pos_embed is not None else self.model.get_submodule("pos_embed")(x),
            controlnet_cond=shown.expand(len(x), -1, -1, -1),
            encoder_hidden_states=None if self.net.context_embedder is None else call.tokens.to(like),
            pooled_projections=torch.zeros_like(pooled) if config["force_zeros_for_pooled_projection"] else pooled,
            timestep=call.t.to(like.device),
            return_dict=False,
        )[0]
        height, width = (side // int(config["patch_size"]) for side in x.shape[-2:])
        maps = [tokens_to_map(sample, height, width) for sample in samples]
        return add(call, spread(tuple(maps), int(_config(self.model)["num_layers"])))


@dataclass(frozen=True)
class ControlNetSd3Controller:
    """A ControlNet's weights, open. `made_for`: blur, canny or depth where its file says so, else ""."""

    name: str
    annotator: str | None
    net: SD3ControlNetModel
    backbone: Sd3Host
    fingerprint: str
    made_for: str = ""

    def layers(self, task: str) -> Layers:
        """Return what a unit's layers weigh: the model's blocks, but for the last."""
        return Layers(int(_config(self.backbone.net)["num_layers"]) - 1)

    def prepare(self, condition: Condition) -> ControlNetSd3:
        """Return the control for one condition."""
        image, holes = _SHOWN[self.made_for](condition.image), condition.mask
        if holes is not None:
            image = torch.where(holes > 0.5, -1.0, image)
        latents = self.backbone.encode_image(image)
        if self._takes_no_shift():
            vae = _config(self.backbone.vae)
            latents = latents + float(vae.get("shift_factor") or 0.0) * float(vae["scaling_factor"])
        if int(_config(self.net)["extra_conditioning_channels"]):
            latents = torch.cat([latents, _kept(holes, latents)], dim=1)
        key = key_of("controlnet-sd3", self.fingerprint, condition.key)
        return ControlNetSd3(self.net, self.backbone.net, latents, key)

    def _takes_no_shift(self) -> bool:
        """Return whether latents are taken as the VAE gives them. diffusers parity: InstantX's nets; none inpaints."""
        config = _config(self.net)
        return bool(config["force_zeros_for_pooled_projection"]) and not int(config["extra_conditioning_channels"])


def _kept(holes: Tensor | None, latents: Tensor) -> Tensor:
    """Return the mask that an inpainting net is shown, (1 1 h w): 1 where the picture is kept."""
    if holes is None:
        return torch.ones_like(latents[:, :1])
    return 1 - F.interpolate(holes.to(latents), size=latents.shape[-2:])


def open(path: Path, backbone: Sd3Host, memory: Memory) -> ControlNetSd3Controller:
    """Return the ControlNet in this file or folder. Raises UnknownKind, WrongFamily, KeyMismatch, CorruptFile."""
    tensors, files, fingerprint = weights_of(path)
    words = files[0].metadata
    made_for = made_for_of(tensors, path.name)
    if sd3_control.MARK in tensors:
        tensors = sd3_control.from_original(tensors)
    told = read_json(path / "config.json") if path.is_dir() else told_of(files[0])
    for key, num in _TELLING.items():
        if key in tensors:
            sides(path.name, tensors, key, num)
    config = config_of(path.name, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    config |= {name: told[name] for name in _FOLDER_ONLY if name in told}
    check_fits(path.name, config, backbone)

    def make() -> SD3ControlNetModel:
        with torch.device("meta"):  # positions are in the file
            return SD3ControlNetModel(**config)

    net = memory.without_fp16().build(make, tensors, path.name)
    annotator = words.get("disegno.annotator") or _ANNOTATORS.get(made_for)
    return ControlNetSd3Controller(path.stem, annotator, net, backbone, fingerprint, made_for)


def made_for_of(tensors: Mapping[str, Tensor], name: str) -> str:
    """Return what Stability AI's file says that it was made for; "" where nothing tells. Raises UnknownKind."""
    if sd3_control.CONTROL_TYPE not in tensors:
        return ""
    told, known = int(tensors[sd3_control.CONTROL_TYPE].flatten()[0]), sd3_control.CONTROL_TYPES
    if not 0 <= told < len(known):
        raise UnknownKind(f"{name} is of the control type {told}; known are 0 to {len(known) - 1}: {', '.join(known)}.")
    return known[told]


def config_of(name: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Return SD3ControlNetModel's configuration from its tensors' shapes. Raises UnknownKind where one is missing."""
    try:
        width, shown, patch, _ = shapes[_PATCHES]
        inner, pooled = shapes[_POOLED]
    except (KeyError, ValueError) as error:
        raise UnknownKind(f"{name} has no tensor {error}: it is no ControlNet of Stable Diffusion 3.") from error
    if inner == pooled:
        raise UnknownKind(
            f"{name} reads what the model has made of the pooled text, as no published ControlNet does; known are those"
            " for 3.5 large, which read the pooled text itself."
        )
    channels = shapes.get("pos_embed.proj.weight", (0, shown))[1]
    places = shapes.get("pos_embed.pos_embed")
    dual = {int(key.split(".")[1]) for key in shapes if key.startswith("transformer_blocks.") and ".attn2." in key}
    caption, joint = shapes.get("context_embedder.weight", (width, None))
    return {
        "patch_size": patch,
        "in_channels": channels,
        "out_channels": channels,
        "num_layers": mmdit.num_blocks(shapes),
        "attention_head_dim": mmdit.HEAD_WIDTH,
        "num_attention_heads": width // mmdit.HEAD_WIDTH,
        "joint_attention_dim": joint,
        "caption_projection_dim": caption,
        "pooled_projection_dim": pooled,
        "pos_embed_max_size": 96 if places is None else round(places[1] ** 0.5),
        "extra_conditioning_channels": shown - channels,
        "dual_attention_layers": tuple(sorted(dual)),
        "qk_norm": "rms_norm" if any(key.endswith(".attn.norm_q.weight") for key in shapes) else None,
        "pos_embed_type": "sincos",
        "use_pos_embed": "pos_embed.proj.weight" in shapes,
        "force_zeros_for_pooled_projection": joint is not None,  # 3.5 large's see no text; their pooled one is given
    }


def check_fits(name: str, config: Mapping[str, Any], backbone: Host) -> None:
    """Raise WrongFamily where the control was made for a transformer of other sizes."""
    theirs = _config(backbone.net)
    sizes = {meaning: (config[field], theirs.get(field)) for field, meaning in _SHARED.items() if config[field]}
    own = int(config["attention_head_dim"]) * int(config["num_attention_heads"])
    sizes["the width of the blocks"] = own, width_of(backbone.net)
    for meaning, (given, wanted) in sizes.items():
        if given != wanted:
            raise WrongFamily(
                f"{name} does not fit the open model {backbone.name} ({backbone.family}): {meaning} is {given}, the"
                f" model's is {wanted}. Choose a control that was made for this size of Stable Diffusion 3."
            )
