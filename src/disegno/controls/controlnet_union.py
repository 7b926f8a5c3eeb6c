"""ControlNet Union (xinsir, ControlNetPlus): one ControlNet for SDXL that knows several kinds of conditions.

It is told the kinds of what it is shown, and was taught with several at once: units of one file that are used alike are
one evaluation. diffusers' ControlNetUnionModel. There, rows of a batch attend to each other while the shown pictures
are fused; rows that are alike, as a guided step's are, attend to themselves alone, which all do here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import ControlNetModel
from diffusers.models.controlnets.controlnet_union import ControlNetUnionModel
from torch import Tensor, nn

from disegno.controls._net import layers_of, open_net, weight_of
from disegno.controls.base import Condition, Control, Host, Layers, add, key_of
from disegno.core.errors import KeyMismatch, UnknownKind
from disegno.diffusion.call import Call, Residuals
from disegno.diffusion.told import told_size
from disegno.memory import Memory
from disegno.weights.card import FileCard
from disegno.weights.json_table import read_json
from disegno.weights.parts import weights_of
from disegno.weights.union_files import MECHANISM, TASKS, num_types, tasks_of

families = ("sdxl",)

_HEADS = 8  # of the fusing transformer, which leave no trace in the shapes: as published


def recognises(card: FileCard) -> bool:
    """Return whether the file is a ControlNet Union."""
    return card.mechanism == MECHANISM


class _Alone(nn.MultiheadAttention):
    """Each token attends to itself alone."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, **_: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the tokens' (b n d), and no weights."""
        alone = query.reshape(1, -1, query.shape[-1])  # one token long, b n of them
        return super().forward(alone, alone, alone, need_weights=False)[0].reshape(query.shape), None


@dataclass(frozen=True, eq=False)
class Union:
    """Prepared conditions. `shown`: number of each kind -> its features, (1 c h/8 w/8): they depend on nothing else."""

    net: ControlNetUnionModel
    shown: Mapping[int, Tensor]
    key: str
    sees_x: bool = True
    positive_only: bool = False

    def __call__(self, call: Call) -> Call:
        """Return the call with this control's residuals added."""
        assert call.pooled is not None, "SDXL's controls want the pooled text"
        like, num = weight_of(self.net), len(call.x)
        x, tokens, pooled = (part.to(like) for part in (call.x, call.tokens, call.pooled))
        kinds = torch.zeros(num, int(self.net.config["num_control_type"]), device=x.device)
        kinds[:, list(self.shown)] = 1
        down, mid = self.net(
            x,
            call.t.to(x.device),
            tokens,
            [features.to(like).expand(num, *features.shape[1:]) for features in self.shown.values()],
            kinds,
            list(self.shown),
            added_cond_kwargs=told_size(pooled, x, [row.told for row in call.rows]),
            return_dict=False,
        )
        return add(call, Residuals(tuple(down), mid))

    def join(self, other: Control) -> Control | None:
        """Return both as one; None where they are of different files, or show one kind twice."""
        if not isinstance(other, Union) or other.net is not self.net or self.shown.keys() & other.shown.keys():
            return None
        return Union(self.net, {**self.shown, **other.shown}, key_of(self.key, other.key))


@dataclass(frozen=True)
class UnionController:
    """A ControlNet Union's weights, open. `stem`: image (1 3 h w) -> features (1 c h/8 w/8)."""

    name: str
    annotator: str | None
    net: ControlNetUnionModel
    stem: nn.Module
    tasks: Mapping[str, str | None]
    fingerprint: str

    def layers(self, task: str) -> Layers:
        """Return what a unit's layers weigh."""
        return layers_of(cast(ControlNetModel, self.net))

    def prepare(self, condition: Condition) -> Union:
        """Return the control for one condition, `condition.task`."""
        image = condition.image if condition.mask is None else condition.image * (1 - condition.mask)  # a black hole
        with torch.no_grad():
            features = self.stem(image.to(weight_of(self.stem)))
        key = key_of(MECHANISM, self.fingerprint, condition.task, condition.key)
        return Union(self.net, {TASKS[condition.task].number: features}, key)


def open(path: Path, backbone: Host, memory: Memory) -> UnionController:
    """Return the ControlNet Union in this file or folder. Raises UnknownKind, WrongFamily, KeyMismatch, CorruptFile."""
    tensors, files, fingerprint = weights_of(path)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    num = num_types(shapes)
    if not num:
        raise UnknownKind(f"{path.name} holds no ControlNet Union: it has no task_embedding. Give such a file.")
    told = read_json(path / "config.json") if path.is_dir() else {}
    own = _own_config(path.name, shapes, told)

    def make(config: dict[str, Any]) -> ControlNetModel:
        net = ControlNetUnionModel(**{name: value for name, value in config.items() if name != "mid_block_type"}, **own)
        for layer in net.transformer_layes:
            layer.attn = _Alone(own["num_trans_channel"], own["num_trans_head"])
        return cast(ControlNetModel, net)

    net = cast(ControlNetUnionModel, open_net(path.name, tensors, backbone, memory, told, make=make))
    stem = net.controlnet_cond_embedding
    net.add_module("controlnet_cond_embedding", nn.Identity())
    words = files[0].metadata
    tasks = {name: TASKS[name].annotator for name in tasks_of(num)}
    packed = memory.pack(net, linears=False)  # an attention reads the weights of its last layer itself
    return UnionController(path.stem, words.get("disegno.annotator"), packed, stem, tasks, fingerprint)


def _own_config(name: str, shapes: Mapping[str, tuple[int, ...]], told: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sizes of what fuses the shown pictures, by the class's names. Raises KeyMismatch."""
    try:
        num, width = shapes["task_embedding"]
        projected = shapes["spatial_ch_projs.weight"][0]
    except KeyError as error:
        raise KeyMismatch(
            f"{name} is an incomplete ControlNet Union: it has no tensor {error}. Fetch it again."
        ) from error
    layers = {key.split(".")[1] for key in shapes if key.startswith("transformer_layes.")}
    return {
        "num_control_type": num,
        "num_trans_channel": width,
        "num_trans_head": int(told.get("num_trans_head") or _HEADS),
        "num_trans_layer": len(layers),
        "num_proj_channel": projected,
    }
