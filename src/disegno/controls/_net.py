"""The network that ControlNet and CtrLoRA share, diffusers' ControlNetModel: built from tensors of any size; run.

Of SDXL it is told the pooled text, too, which comes as one token more behind the text (`with_pooled`).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from diffusers import ControlNetModel
from torch import Tensor, nn
from torch.func import functional_call

from disegno.controls.base import Body, Layers
from disegno.core.errors import UnknownKind, WrongFamily
from disegno.diffusion.call import Residuals
from disegno.diffusion.patches import without_pooled
from disegno.diffusion.told import Told, pooled_width, told_size
from disegno.memory import Memory
from disegno.weights.configs import told_config
from disegno.weights.keys.control import HINT_PREFIX, Sizes, sizes_of
from disegno.weights.shapes import require_shapes, sides

Config = Mapping[str, object]

# What shapes cannot tell. A control net copies its backbone's encoder: the backbone answers where the file does not.
UNTOLD = ("attention_head_dim", "num_attention_heads", "norm_num_groups", "norm_eps", "flip_sin_to_cos", "freq_shift")
# What must be as in the backbone: the text that is attended to, the latent, the skip connections that are added to.
_SHARED = {
    "cross_attention_dim": "the width of the text",
    "out_channels": "the latent's channels",  # not in_channels: a model that inpaints or edits has more
    "block_out_channels": "the widths of the levels",
    "layers_per_block": "the blocks of a level",
}
_OURS = {"out_channels": "in_channels"}
_COLOURS = 3  # of the picture that a hint block is shown
# What sizes are read from: convolutions, and one linear layer.
_TELLING = re.compile(
    r"conv_in\.weight|down_blocks\.\d+\.resnets\.0\.conv1\.weight|controlnet_cond_embedding\.(conv_in|blocks\.\d+)\.weight"
    r"|mid_block\.attentions\.0\.transformer_blocks\.0\.attn2\.(?P<linear>to_k)\.weight"
)


class ToldControlNet(ControlNetModel):
    """SDXL's: called as the others are, with the pooled text behind the text, and told the canvas' size."""

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        controlnet_cond: Tensor,
        chosen: Sequence[Told] = (),
        **more: Any,
    ) -> Any:
        """Return what the class does. encoder_hidden_states: (b n+1 d). `chosen`: of each row; none: the usual."""
        tokens, pooled = without_pooled(encoder_hidden_states, pooled_width(self.config))
        told = told_size(pooled, sample, chosen)
        return super().forward(sample, timestep, tokens, controlnet_cond, added_cond_kwargs=told, **more)


def _config(net: nn.Module) -> Config:
    return getattr(net, "config", {})


def _untold(config: Config) -> dict[str, Any]:
    return {name: config[name] for name in UNTOLD if config.get(name) is not None}


def _plain(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _check_fits(name: str, sizes: Sizes, backbone: Body) -> None:
    """Raise WrongFamily where the control net was made for a backbone of other sizes."""
    theirs = _config(backbone.net)
    for field, meaning in _SHARED.items():
        ours, wanted = getattr(sizes, _OURS.get(field, field)), _plain(theirs.get(field))
        if None not in (ours, wanted) and ours != wanted:
            raise WrongFamily(
                f"{name} does not fit the open model {backbone.name} ({backbone.family}): {meaning} is {ours}, "
                f"the model's is {wanted}. Choose a control that was made for {backbone.family}."
            )


def config_of(name: str, tensors: Mapping[str, Tensor], backbone: Body, told: Config | None = None) -> dict[str, Any]:
    """Return the class's configuration of the control net with these tensors (their shapes alone count).

    Raises UnknownKind, WrongFamily, KeyMismatch.
    """
    for key in tensors:
        if (match := _TELLING.fullmatch(key)) is not None:
            sides(name, tensors, key, 2 if match["linear"] else 4)
    try:
        sizes = sizes_of({key: tuple(tensor.shape) for key, tensor in tensors.items()})
    except (KeyError, IndexError) as error:
        raise UnknownKind(
            f"{name} is no control net: it has no tensor {error}. Give a ControlNet or CtrLoRA file."
        ) from error
    _check_fits(name, sizes, backbone)
    return asdict(sizes) | _untold(_config(backbone.net)) | _untold(told or {}) | told_config(tensors)


def make_net(config: dict[str, Any]) -> ControlNetModel:
    """Return the net of a configuration: of SDXL's told the pooled text and the canvas' size."""
    return ToldControlNet(**config) if config.get("addition_embed_type") else ControlNetModel(**config)


def open_net(
    name: str,
    tensors: Mapping[str, Tensor],
    backbone: Body,
    memory: Memory,
    told: Config | None = None,
    alter: Callable[[ControlNetModel], None] | None = None,
    make: Callable[[dict[str, Any]], ControlNetModel] = make_net,
) -> ControlNetModel:
    """Return the control net with these weights (diffusers' names), frozen and placed.

    `told`: a config that came with the file. `alter`: what differs from the class, before the weights are taken.
    `make`: the net of a configuration, instead of the class's.
    `name` is for the messages. Raises UnknownKind, WrongFamily, KeyMismatch.
    """
    config = config_of(name, tensors, backbone, told)

    def built() -> ControlNetModel:
        net = make(config)
        if not any(key.startswith(HINT_PREFIX) for key in tensors):
            net.add_module("controlnet_cond_embedding", nn.Identity())
        if alter is not None:
            alter(net)
        return net

    return memory.build(built, tensors, name)


def require_colours(name: str, tensors: Mapping[str, Tensor]) -> None:
    """Raise UnknownKind where the file `name` has no hint block, KeyMismatch where its first layer sees no picture."""
    if not any(key.startswith(HINT_PREFIX) for key in tensors):
        raise UnknownKind(f"{name} has no hint block: it is no ControlNet. A CtrLoRA base is opened with a condition.")
    first = f"{HINT_PREFIX}conv_in.weight"
    if first in tensors and (shape := sides(name, tensors, first, 4))[1] != _COLOURS:
        require_shapes(name, tensors, {first: (shape[0], _COLOURS, *shape[2:])})


def layers_of(net: ControlNetModel) -> Layers:
    """Return what a unit's layers weigh: what the net adds to the encoder's blocks, and to the middle."""
    return Layers(len(net.controlnet_down_blocks) + 1)


def weight_of(net: nn.Module) -> Tensor:
    """Return one of the net's weights: for its device and dtype."""
    return next(net.parameters())


Weights = Mapping[str, Tensor]


def run(
    net: nn.Module,
    sample: Tensor,
    hint: Tensor,
    t: Tensor,
    tokens: Tensor,
    weights: Weights | None = None,
    chosen: Sequence[Told] = (),
) -> Residuals:
    """Return the residuals, in the net's dtype. sample: (b c h w), hint: added after conv_in, t: b, tokens: (b n d).

    `weights`: used in place of the net's own of these names, for this call only. One call at a time where it is given.
    `chosen`: what the model is told of each row beside its size, which SDXL's control nets are told too.
    """
    like = weight_of(net)
    given = (sample.to(like), t.to(like.device), tokens.to(like))
    named = {"controlnet_cond": hint.to(like), "return_dict": False}
    named |= {"chosen": chosen} if isinstance(net, ToldControlNet) else {}
    down, mid = functional_call(net, dict(weights or {}), given, named, tie_weights=False)
    return Residuals(tuple(down), mid)
