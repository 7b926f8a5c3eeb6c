"""A net's layers while something in it learns: the same mathematics as diffusers', faster backward on a CPU.

master weights    what trains is float32; a layer casts it to the dtype of its input when it is used, so that the
                  optimiser's small steps are not lost and products run in bfloat16
group norm        bfloat16, channels last: a backward of sums and two fused products (measured at 320 x 64 x 64 on
                  one core: 2 ms, PyTorch's 5.6; at 4 x 32 x 128 x 128, as in a VAE: 3.6 ms, PyTorch's 81)
attention         few tokens: plain products (4096 x 77 tokens, forward and backward: 19 ms, fused 40; 256 x 256: 8 ms,
                  fused 15); many: in blocks, which keeps no matrix of scores (4096 x 4096: 0.68 s, fused 0.98)
"""

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from torch import Tensor, nn

from disegno.training.attention import BlockedAttention

MAX_PLAIN_SCORES = 1024 * 1024  # of one head: above it a matrix of scores costs more memory than it saves time
MIN_FAST_NORM = 1024  # places of a feature map: below it PyTorch's own backward is as fast


_PLAIN_PROCESSORS = (AttnProcessor, AttnProcessor2_0)  # not those of joint tokens


def install(net: nn.Module) -> None:
    """Give every layer of the net, trained or frozen, its forward from here."""
    for module in net.modules():
        forward = _FORWARDS.get(type(module))
        if forward is not None:
            module.forward = partial(forward, module)
        if isinstance(module, Attention) and type(module.processor) in _PLAIN_PROCESSORS:
            module.set_processor(cast(Any, Attend()))


class Attend:
    """Attention by plain products where there are few tokens on a CPU, in blocks where many in bfloat16, else fused."""

    plain, fused = AttnProcessor(), AttnProcessor2_0()

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """Return the mixed states, of the shape of `hidden_states`: (b n d), or (b c h w)."""
        num_queries = hidden_states[0].numel() // hidden_states.shape[1 if hidden_states.ndim == 4 else -1]
        num_keys = num_queries if encoder_hidden_states is None else encoder_hidden_states.shape[1]
        # meta: no numbers are made, only counted; which kernel the device would take is known there (ledger.py)
        on_cpu = hidden_states.device.type == "cpu"
        is_small = num_queries * num_keys <= MAX_PLAIN_SCORES and on_cpu
        if (
            on_cpu
            and not is_small
            and hidden_states.dtype == torch.bfloat16
            and attention_mask is None
            and _is_bare(attn)
        ):
            return _in_blocks(attn, hidden_states, encoder_hidden_states)
        how: Any = self.plain if is_small else self.fused
        return how(attn, hidden_states, encoder_hidden_states, attention_mask, temb)


def _is_bare(attn: Attention) -> bool:
    """Tell whether attention is projections and softmax only, as in a transformer's block."""
    norms = attn.group_norm, attn.spatial_norm, attn.norm_q, attn.norm_k, attn.norm_cross
    added = attn.residual_connection or attn.rescale_output_factor != 1 or attn.is_causal
    return not added and all(norm is None for norm in norms)


def _in_blocks(attn: Attention, x: Tensor, context: Tensor | None) -> Tensor:
    """Return the mixed states, (b n c)."""
    context = x if context is None else context
    assert attn.to_k is not None and attn.to_v is not None and attn.to_out is not None  # as in every such block
    parts = attn.to_q(x), attn.to_k(context), attn.to_v(context)
    q, k, v = (part.unflatten(-1, (attn.heads, -1)).transpose(1, 2).flatten(0, 1).contiguous() for part in parts)
    mixed: Tensor = BlockedAttention.apply(q, k, v)  # pyright: ignore[reportAssignmentType]
    joined = mixed.unflatten(0, (len(x), attn.heads)).transpose(1, 2).flatten(2)  # b n h d
    return attn.to_out[1](attn.to_out[0](joined))


class FastGroupNorm(torch.autograd.Function):
    """Group norm of a channels-last (b c h w), in bfloat16, whose backward is sums and two fused products."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        """Return the normalised x."""
        b, c, h, w = x.shape
        y, mean, rstd = torch.native_group_norm(x, weight, bias, b, c, h * w, groups, eps)
        ctx.save_for_backward(x, weight, mean, rstd)
        ctx.groups = groups
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None, None]:
        """Return the gradients of x, weight and bias."""
        x, weight, mean, rstd = ctx.saved_tensors
        (b, c, h, w), g = x.shape, ctx.groups
        k, count = c // g, h * w * (c // g)
        dy, x = (v.permute(0, 2, 3, 1).reshape(b, h * w, c) for v in (grads[0], x))  # b hw c
        sum_dy = dy.sum(1, dtype=torch.float32).view(b, g, k)
        sum_dyx = (dy * x).sum(1, dtype=torch.float32).view(b, g, k)
        mean, rstd, gain = mean.float().view(b, g, 1), rstd.float().view(b, g, 1), weight.float().view(1, g, k)
        slope = ((sum_dy * gain).sum(2, keepdim=True) * mean - (sum_dyx * gain).sum(2, keepdim=True)) * rstd**3 / count
        shift = -slope * mean - (sum_dy * gain).sum(2, keepdim=True) * rstd / count
        on_dy, on_x, constant = (v.expand(b, g, k).reshape(b, 1, c).to(x.dtype) for v in (rstd * gain, slope, shift))
        dx = torch.addcmul(torch.addcmul(constant, x, on_x), dy, on_dy).view(b, h, w, c).permute(0, 3, 1, 2)
        if not ctx.needs_input_grad[1]:
            return dx, None, None, None, None
        d_weight = ((sum_dyx - sum_dy * mean) * rstd).sum(0).view(c)
        return dx, d_weight.to(weight.dtype), sum_dy.sum(0).view(c).to(weight.dtype), None, None


def _like(x: Tensor, weight: Tensor | None) -> Any:
    return weight if weight is None else weight.to(x.dtype)


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    return F.linear(x, _like(x, layer.weight), _like(x, layer.bias))


def _conv(layer: nn.Conv2d, x: Tensor) -> Tensor:
    assert layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    weight, bias = _like(x, layer.weight), _like(x, layer.bias)
    return F.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)


def _layer_norm(layer: nn.LayerNorm, x: Tensor) -> Tensor:
    return F.layer_norm(x, layer.normalized_shape, _like(x, layer.weight), _like(x, layer.bias), layer.eps)


def _group_norm(layer: nn.GroupNorm, x: Tensor) -> Tensor:
    weight, bias = _like(x, layer.weight), _like(x, layer.bias)
    slow = x.ndim == 4 and x.dtype == torch.bfloat16 and x.device.type == "cpu" and x.requires_grad
    if slow and x.shape[2] * x.shape[3] >= MIN_FAST_NORM and x.is_contiguous(memory_format=torch.channels_last):
        return FastGroupNorm.apply(x, weight, bias, layer.num_groups, layer.eps)  # pyright: ignore[reportReturnType]
    return F.group_norm(x, layer.num_groups, weight, bias, layer.eps)


_FORWARDS: dict[type, Callable[[Any, Tensor], Tensor]] = {
    nn.Linear: _linear,
    nn.Conv2d: _conv,
    nn.LayerNorm: _layer_norm,
    nn.GroupNorm: _group_norm,
}
