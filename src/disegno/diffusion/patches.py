"""Latents as whole patches, for nets that are transformers of patches, and their tokens as maps."""

from torch import Tensor
from torch.nn import functional as F


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
