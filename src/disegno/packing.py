"""Frozen layers whose weights lie as oneDNN wants them, so that it does not rearrange them at every call.

In bfloat16 on a CPU, torch's eager convolution and linear layers copy their weights into oneDNN's blocked order at
every call. Packed once, a step of Stable Diffusion 1.5 is faster (benchmarks/bench_sd15.py), with the same bits: the
same kernels run on the same numbers. Only the packed copy is kept; `state_dict` gives the weights back in their order.
"""

from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from disegno.weights.packed_tensor import PackedTensor

_OPS = ("_reorder_convolution_weight", "_convolution_pointwise", "_reorder_linear_weight", "_linear_pointwise")
# Packed into blocks of 48, the small pictures of a UNet meet the reference kernel (384 channels at 8x8: 39 ms, not 0.8;
# 192 at 16x16): oneDNN chooses the block for a larger picture than it is then shown.
SLOW_BLOCK = 48
_NO_ACTIVATION: tuple[str, list[object], str] = ("none", [], "")


def can_pack() -> bool:
    """Return whether this torch has oneDNN's packed operators and the processor computes bfloat16 with them."""
    has_ops = torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in _OPS)
    return has_ops and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class _Packed(nn.Module):
    """What both kinds share: the packed weight, given back in its own order on demand. Only for inference on a CPU."""

    packed: Tensor
    bias: Tensor | None

    def __deepcopy__(self, memo: dict[int, object]) -> "_Packed":
        return self  # frozen, and oneDNN's tensors cannot be copied: a copy of the net shares it

    @property
    def weight(self) -> Tensor:
        """Return the weight in its own order: a copy, made now."""
        return self.packed.to_dense()

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = self.weight


class PackedConv2d(_Packed):
    """A frozen convolution. x: (b c h w) -> (b o h' w'). Gradients reach x through the plain operator.

    `padding_mode`: as nn.Conv2d's; it may be changed.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        assert isinstance(conv.padding, tuple), "padding by name has no place here"
        self.bias, self.padding_mode, self.kernel_size = conv.bias, "zeros", conv.kernel_size
        self.how = (list(conv.stride), list(conv.padding), list(conv.dilation), conv.groups)
        stride, padding, dilation, groups = self.how
        self.packed = torch.ops.mkldnn._reorder_convolution_weight(conv.weight, padding, stride, dilation, groups)

    def forward(self, x: Tensor) -> Tensor:
        return self._convolved(x) if self.padding_mode == "zeros" else self._padded_otherwise(x)

    def _convolved(self, x: Tensor) -> Tensor:
        return self.weighted(x, self.bias)

    def weighted(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Return W x + bias, with zeros beyond the edges."""
        stride, padding, dilation, groups = self.how
        if torch.is_grad_enabled() and x.requires_grad:
            return F.conv2d(x, self.weight, bias, stride, padding, dilation, groups)
        return torch.ops.mkldnn._convolution_pointwise(
            x, self.packed, bias, padding, stride, dilation, groups, *_NO_ACTIVATION
        )

    def _padded_otherwise(self, x: Tensor) -> Tensor:
        """Return what it gives with padding that is no zeros: of a larger picture, the middle.

        The packed weight is for its own padding, which then falls outside.
        """
        stride, padding, dilation, _ = self.how
        wide = [p * s for p, s in zip(padding, stride, strict=True)]
        sides = [
            (side + 2 * p - d * (k - 1) - 1) // s + 1
            for side, p, d, k, s in zip(x.shape[2:], padding, dilation, self.kernel_size, stride, strict=True)
        ]
        out = self._convolved(F.pad(x, (wide[1], wide[1], wide[0], wide[0]), self.padding_mode))
        return out[:, :, padding[0] : padding[0] + sides[0], padding[1] : padding[1] + sides[1]]


class PackedLinear(_Packed):
    """A frozen linear layer. x: (... i) -> (... o). Gradients reach x through the plain operator."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.bias = linear.bias
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.weighted(x, self.bias)

    def weighted(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Return W x + bias."""
        if torch.is_grad_enabled() and x.requires_grad:
            return F.linear(x, self.weight, bias)
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, bias, *_NO_ACTIVATION)


def _packed(module: nn.Module) -> nn.Module | None:
    if isinstance(module, nn.Linear | nn.Conv2d) and isinstance(module.weight, PackedTensor):  # it would be unpacked
        return None
    if type(module) is nn.Linear:
        return PackedLinear(module)
    if type(module) is not nn.Conv2d or module.padding_mode != "zeros" or isinstance(module.padding, str):
        return None
    # 1x1: as matrices already; packed, oneDNN takes a reference kernel (measured 51 ms for 1280 channels at 8x8, not 2)
    is_slow = max(module.kernel_size) == 1 or module.out_channels % SLOW_BLOCK == 0
    return None if is_slow else PackedConv2d(module)


@torch.no_grad()
def pack(net: nn.Module, linears: bool = True) -> int:
    """Return how many of the net's layers are packed now, in place. All must be frozen, bfloat16 and on the CPU.

    `linears`: False leaves linear layers alone, where other weights stand in for theirs.
    """
    num = 0
    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and not linears:
                continue
            if (packed := _packed(child)) is not None:
                setattr(parent, name, packed.eval())
                num += 1
    return num


LAYERS: tuple[type[nn.Module], ...] = (nn.Linear, nn.Conv2d, PackedLinear, PackedConv2d)
NORMS: tuple[type[nn.Module], ...] = (nn.GroupNorm, nn.LayerNorm)


def weighted(layer: nn.Module, x: Tensor, bias: Tensor | None, weight: Tensor | None = None) -> Tensor:
    """Return W x + bias by the weight W of a layer of `LAYERS`; its own bias and padding mode do not count.

    For a net that shares another's weights. A convolution sees zeros beyond the edges. `weight`: W in place of the
    layer's, which is not packed.
    """
    if isinstance(layer, PackedLinear | PackedConv2d):
        assert weight is None, "a packed layer takes its own weight"
        return layer.weighted(x, bias)
    assert isinstance(layer, nn.Linear | nn.Conv2d), f"{type(layer).__name__} has no weight that can be shared"
    weight = layer.weight if weight is None else weight
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight, bias)
    return F.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)


def weight_shape(layer: nn.Module) -> tuple[int, ...]:
    """Return the shape of the weight of a layer of `LAYERS` or `NORMS`, without unpacking it."""
    return tuple(layer.packed.shape if isinstance(layer, _Packed) else layer.get_parameter("weight").shape)


def _empty_like(module: nn.Module) -> nn.Linear | nn.Conv2d:
    """Return a plain layer of the same sizes, without a weight to speak of and without bias."""
    if isinstance(module, nn.Linear | PackedLinear):
        return nn.Linear(module.in_features, module.out_features, bias=False, device="meta")
    if isinstance(module, nn.Conv2d):
        assert not isinstance(module.padding, str), "padding by name has no place here"
        stride, padding, dilation, groups = module.stride, module.padding, module.dilation, module.groups
        mode = module.padding_mode
    else:
        assert isinstance(module, PackedConv2d), f"{type(module).__name__} has no weight that can be replaced"
        (stride, padding, dilation, groups), mode = module.how, "zeros"
    out, inner, *kernel = module.weight.shape
    sizes = (inner * groups, out, tuple(kernel), tuple(stride), tuple(padding), tuple(dilation), groups)
    return nn.Conv2d(*sizes, bias=False, padding_mode=mode, device="meta")  # pyright: ignore[reportArgumentType]


def _norm_with(norm: nn.Module, weight: Tensor, bias: Tensor | None) -> nn.Module:
    made, dtype = deepcopy(norm), norm.get_parameter("weight").dtype
    for name, values in (("weight", weight), ("bias", bias)):
        made.register_parameter(name, None if values is None else nn.Parameter(values.to(dtype), requires_grad=False))
    return made.eval()


@torch.no_grad()
def with_weight(module: nn.Module, weight: Tensor, bias: Tensor | None) -> nn.Module:
    """Return a frozen layer like this one (of `LAYERS` or `NORMS`), packed where it is, with another weight and bias.

    They are taken over in the layer's own dtype and order of memory. The layer itself is only read.
    """
    if isinstance(module, NORMS):
        return _norm_with(module, weight, bias)
    own, made = (
        module.get_parameter("weight") if not isinstance(module, _Packed) else module.packed,
        _empty_like(module),
    )
    weight = weight.to(own.dtype)
    channels_last = own.ndim == 4 and not own.is_mkldnn and own.is_contiguous(memory_format=torch.channels_last)
    order = torch.channels_last if channels_last else torch.contiguous_format
    made.weight = nn.Parameter(weight.contiguous(memory_format=order), requires_grad=False)
    if bias is not None:
        made.bias = nn.Parameter(bias.to(own.dtype), requires_grad=False)
    if isinstance(module, PackedLinear):
        assert isinstance(made, nn.Linear)
        return PackedLinear(made).eval()
    if isinstance(module, PackedConv2d):
        assert isinstance(made, nn.Conv2d)
        return PackedConv2d(made).eval()
    return made.eval()
