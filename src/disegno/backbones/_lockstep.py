"""The evaluation of a UNet with other nets beside it, block by block (ControlNet-XS: Zavadski et al. 2023, fig. 3).

Without a net beside it, the same as the UNet's own `forward`, bit for bit.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from disegno.diffusion.call import Residuals, Steps, Stream

Beside = Sequence[tuple[Stream, Steps]]


def evaluate(
    net: UNet2DConditionModel,
    x: Tensor,
    t: Tensor,
    tokens: Tensor,
    residuals: Residuals | None = None,
    streams: Sequence[Stream] = (),
    added: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Return the net's output, (b c h w). x: (b c h w), t: (b,), tokens: (b n d), as `net.forward` wants them.

    `added`: what SDXL's is told besides (`added_cond_kwargs`).
    """
    t = t.expand(len(x))
    emb = net.time_embedding(net.time_proj(t).to(x.dtype))  # b e
    told = None if added is None else net.get_aug_embed(emb, tokens, dict(added))
    beside = [(stream, _begun(stream, x, emb, t, tokens, told)) for stream in streams]
    emb = _embedded(emb, beside)
    emb = emb if told is None else emb + told
    h, skips = _encoder(net, x, emb, tokens, beside)
    h = net.mid_block(h, emb, encoder_hidden_states=tokens)
    h = _added(h, [(stream, len(skips), steps.middle(h[stream.rows])) for stream, steps in beside])
    if residuals is not None:
        h = h + residuals.mid
        skips = [skip + own for skip, own in zip(skips, residuals.down, strict=True)]
    h = _decoder(net, h, skips, emb, tokens, beside)
    assert net.conv_norm_out is not None and net.conv_act is not None, "Stable Diffusion's nets have both"
    return net.conv_out(net.conv_act(net.conv_norm_out(h)))


def _begun(stream: Stream, x: Tensor, emb: Tensor, t: Tensor, tokens: Tensor, told: Tensor | None) -> Steps:
    rows = stream.rows
    return stream.begin(x[rows], emb[rows], t[rows], tokens[rows], None if told is None else told[rows])


def _embedded(emb: Tensor, beside: Beside) -> Tensor:
    """Return the embedding of t (b e) that the model's blocks are given; where several nets have one, their mean."""
    own = [(stream.rows, steps.embedded) for stream, steps in beside if steps.embedded is not None]
    if not own:
        return emb
    sums, nums = torch.zeros_like(emb), torch.zeros_like(emb[:, :1])
    for rows, each in own:
        sums = sums.index_add(0, rows, each.to(emb.dtype))
        nums = nums.index_add(0, rows, torch.ones_like(nums[rows]))
    return torch.where(nums > 0, sums / nums.clamp_min(1), emb)


def _added(h: Tensor, parts: Sequence[tuple[Stream, int, Tensor | None]]) -> Tensor:
    """Return h with what each stream adds to its rows. parts: the stream, which residual, what it adds (r c h w)."""
    for stream, i, own in parts:
        if own is None:
            continue
        weighed = stream.weigh(i, own).to(h.dtype)
        h = h + weighed if len(weighed) == len(h) else h.index_add(0, stream.rows, weighed)
    return h


def _encoder(
    net: UNet2DConditionModel, x: Tensor, emb: Tensor, tokens: Tensor, beside: Beside
) -> tuple[Tensor, list[Tensor]]:
    """Return the encoder's output and its skip connections, shallow to deep."""
    h, skips = x, list[Tensor]()

    def keep(h: Tensor) -> Tensor:
        k = len(skips)
        h = _added(h, [(stream, k, steps.encoded(k, h[stream.rows])) for stream, steps in beside])
        for stream, steps in beside:
            steps.corrected(k, h[stream.rows])
        skips.append(h)
        return h

    h = keep(net.conv_in(h))
    for block in net.down_blocks:
        for resnet, attention in _layers(block):
            h = keep(_attended(_residual(block, resnet, h, emb), attention, tokens))
        for sampler in getattr(block, "downsamplers", None) or ():
            h = keep(sampler(h))
    return h, skips


def _decoder(
    net: UNet2DConditionModel, h: Tensor, skips: list[Tensor], emb: Tensor, tokens: Tensor, beside: Beside
) -> Tensor:
    """Return the decoder's output. `skips` is used up, from the end."""
    k = 0
    for i, block in enumerate(net.up_blocks):
        for resnet, attention in _layers(block):
            h = _added(h, [(stream, len(skips) - 1, steps.decoding(k)) for stream, steps in beside])
            h = _residual(block, resnet, torch.cat([h, skips.pop()], dim=1), emb)
            h = _attended(h, attention, tokens)
            k += 1
        size = skips[-1].shape[2:] if i < len(net.up_blocks) - 1 else None
        for sampler in getattr(block, "upsamplers", None) or ():
            h = sampler(h, size if size is not None and size != _doubled(h) else None)
    return h


def _doubled(h: Tensor) -> torch.Size:
    return torch.Size(2 * side for side in h.shape[2:])


def _layers(block: Any) -> list[tuple[nn.Module, nn.Module | None]]:
    """Return a level's residual blocks, each with its attention."""
    attentions: Sequence[nn.Module | None] = getattr(block, "attentions", None) or (None,) * len(block.resnets)
    return list(zip(block.resnets, attentions, strict=True))


def _residual(block: Any, resnet: nn.Module, h: Tensor, emb: Tensor) -> Tensor:
    """Return h after a residual block, which is run again in the backward pass where the net was told so.

    Attentions, and the middle, see to that themselves.
    """
    if torch.is_grad_enabled() and block.gradient_checkpointing:
        return checkpoint(resnet, h, emb, use_reentrant=False, preserve_rng_state=False)
    return resnet(h, emb)


def _attended(h: Tensor, attention: nn.Module | None, tokens: Tensor) -> Tensor:
    return h if attention is None else attention(h, encoder_hidden_states=tokens, return_dict=False)[0]
