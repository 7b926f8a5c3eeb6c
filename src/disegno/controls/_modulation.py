"""UniControl's modulation, folded into weights (Qin et al. 2023, section 3.2).

A HyperNet reads the text encoder's state of the first token of a task's instruction, and scales the input channels of
some convolutions: conv(x * s) = conv with W * s. That token is BOS, and CLIP is causal: its state is the same for every
instruction, and for none. So the tasks of a file differ by their stems only, and everything folds once.
"""

from collections.abc import Iterable, Mapping
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

Version = Literal["v1.0", "v1.1"]
Weights = Mapping[str, Tensor]

ZERO = "controlnet_down_blocks."
# What a stem's layers are called in a file, and their strides; the modulated ones are `input_hint_block_zeroconv_*`
_STRIDES = {"stem": (1, 1, 2), "share": (1, 2, 1, 2)}


def scales(own: Weights, feature: Tensor) -> dict[str, Tensor]:
    """Return what the HyperNet makes of a feature (d): name of its head -> a factor for each input channel, (c)."""
    h = F.linear(feature, own["task_id_hypernet.0.weight"], own["task_id_hypernet.0.bias"])
    h = F.silu(F.linear(F.silu(h), own["task_id_hypernet.2.weight"], own["task_id_hypernet.2.bias"]))
    heads = [n.removesuffix(".weight") for n in own if n.startswith("task_id_layernet") and n.endswith(".weight")]
    return {head: F.linear(h, own[f"{head}.weight"], own[f"{head}.bias"]) for head in heads}


def folded_zeros(encoder: Weights, factors: Weights) -> dict[str, Tensor]:
    """Return the zero convolutions' weights with the modulation in them, by diffusers' names."""
    names = [name for name in encoder if name.startswith(ZERO) and name.endswith(".weight")]
    return {name: _modulated(encoder[name], factors[f"task_id_layernet.{name.split('.')[1]}"]) for name in names}


def folded_hint(own: Weights, factors: Weights, number: int, version: Version) -> dict[str, Tensor]:
    """Return the weights of the hint's nine convolutions for the stem of this number, as `hint_block` names them."""
    layers = [f"input_hint_block_list_moe.{number}.{i}" for i in (0, 2, 4)]
    share = [f"input_hint_block_share.{i}" for i in (0, 2, 4, 6)]
    names = [*layers, "0", *share, "1"]
    folded: dict[str, Tensor] = {}
    for i, name in enumerate(names):
        weight, bias = (
            _zero(own, factors, name, version) if len(name) == 1 else (own[f"{name}.weight"], own[f"{name}.bias"])
        )
        folded |= {f"{i}.weight": weight, f"{i}.bias": bias}
    return folded


def _zero(own: Weights, factors: Weights, which: str, version: Version) -> tuple[Tensor, Tensor]:
    """Return a hint's modulated convolution; v1.1 adds its second one, which is not modulated."""
    name = f"input_hint_block_zeroconv_{which}"
    weight = _modulated(own[f"{name}.0.weight"], factors[f"task_id_layernet_zeroconv_{which}"])
    bias = own[f"{name}.0.bias"]
    if version == "v1.0":
        return weight, bias
    return weight + own[f"{name}.1.weight"], bias + own[f"{name}.1.bias"]


def _modulated(weight: Tensor, factors: Tensor) -> Tensor:
    return weight * factors.to(weight)[None, :, None, None]


def hint(image: Tensor, weights: Weights) -> Tensor:
    """Return a condition's features, (b c h/8 w/8). image: (b 3 h w), RGB in [0, 1]."""
    return shared(stem(image, weights), weights)


def stem(image: Tensor, weights: Weights) -> Tensor:
    """Return what the task's own convolutions make of a condition, (b 32 h/2 w/2)."""
    return _convolved(image, weights, range(_NUM_OWN))


def shared(features: Tensor, weights: Weights) -> Tensor:
    """Return what all tasks' convolutions make of a stem's features, (b c h/8 w/8)."""
    return _convolved(features, weights, range(_NUM_OWN, len(_ALL_STRIDES)))


def _convolved(h: Tensor, weights: Weights, numbers: Iterable[int]) -> Tensor:
    for i in numbers:
        weight, bias = (weights[f"{i}.{part}"].to(h.dtype) for part in ("weight", "bias"))
        h = F.conv2d(h, weight, bias, stride=_ALL_STRIDES[i], padding=1)
        h = h if i in _BARE else F.silu(h)
    return h


_ALL_STRIDES = (*_STRIDES["stem"], 1, *_STRIDES["share"], 1)
_NUM_OWN = len(_STRIDES["stem"])
_BARE = (3, 8)  # no activation after the modulated ones: the first of the shared, and the last


class HintBlock(nn.Module):
    """The folded hint block of one task."""

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        self.weights = nn.ParameterDict({name.replace(".", "_"): nn.Parameter(t) for name, t in weights.items()})

    def forward(self, image: Tensor) -> Tensor:
        """Return a condition's features, (b c h/8 w/8)."""
        return self.shared(self.stem(image))

    def stem(self, image: Tensor) -> Tensor:
        """Return the features of the task's own part, (b 32 h/2 w/2)."""
        return stem(image, self._named)

    def shared(self, features: Tensor) -> Tensor:
        """Return what the part that all tasks share makes of them, (b c h/8 w/8)."""
        return shared(features, self._named)

    @property
    def _named(self) -> dict[str, Tensor]:
        return {name.replace("_", "."): weight for name, weight in self.weights.items()}
