"""Latents as whole patches, for nets that are transformers of patches, and their tokens as maps."""

import torch
from torch import Tensor
from torch.nn import functional as F

from disegno.diffusion.call import Residuals


def whole_patches(x: Tensor, patch: int) -> Tensor:
    """Return x (b c h w) with sides of whole patches: what is missing goes on at the other side. ComfyUI parity."""
    height, width = x.shape[-2:]
    more = -height % patch, -width % patch
    return F.pad(x, (0, more[1], 0, more[0]), mode="circular") if any(more) else x


def tokens_to_map(tokens: Tensor, height: int, width: int) -> Tensor:
    """Return the tokens of h w patches, (b hw d), as a map, (b d h w)."""
    return tokens.transpose(1, 2).unflatten(2, (height, width))


def map_to_tokens(x: Tensor) -> Tensor:
    """Return a map (b d h w) as tokens, (b hw d): the inverse of `tokens_to_map`."""
    return x.flatten(2).transpose(1, 2)


def block_residuals(residuals: Residuals, like: Tensor) -> list[Tensor]:
    """Return what is added after each of a transformer's blocks, (b n d), as diffusers wants it.

    Residuals of a transformer lie as maps of its tokens, so that regions act on them as on a UNet's. The last block,
    which takes none, is given the last one's.
    """
    maps = (*residuals.down, residuals.mid, residuals.mid)
    return [map_to_tokens(part.to(like.device, like.dtype)) for part in maps]


def spread(maps: tuple[Tensor, ...], num_blocks: int) -> Residuals:
    """Return the residuals of a net of fewer blocks, at even distances after those of the model. diffusers parity."""
    distance = num_blocks / len(maps)
    *down, mid = (maps[int(i / distance)] for i in range(num_blocks - 1))
    return Residuals(tuple(down), mid)


def with_pooled(tokens: Tensor, pooled: Tensor | None) -> Tensor:
    """Return text states with the pooled state as one token more behind them, (b n+1 d); without one, the tokens."""
    if pooled is None:
        return tokens
    return torch.cat([tokens, F.pad(pooled.to(tokens), (0, tokens.shape[-1] - pooled.shape[-1]))[:, None]], dim=1)


def without_pooled(tokens: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Return the tokens (b n d) and the pooled state (b p) of width p: the inverse of `with_pooled`."""
    return tokens[:, :-1], tokens[:, -1, :width]
