"""Orthogonal finetuning: a weight's outputs, turned together in blocks of a few, by rotations that are near to none.

OFT     R = (1 + Q) (1 - Q)^-1, Q = q - q^T, a block each     Qiu et al. 2023; Cayley's transform
BOFT    a product of such, each of which mixes other outputs   Liu et al. 2023 (butterflies)

LyCORIS parity: R is taken transposed by OFT, and as it is by BOFT.
"""

import torch
from torch import Tensor


def rotated(weight: Tensor, blocks: Tensor, bound: float) -> Tensor:
    """Return R W, of the weight's shape (o ...). `blocks`: (n b b), or of butterflies (m n b b).

    `bound`: what |Q| is at most; 0: it has no bound. Raises RuntimeError where the blocks do not fit.
    """
    if blocks.ndim not in (3, 4):
        raise RuntimeError("neither blocks nor butterflies")
    turns = _rotations(blocks, bound)
    if blocks.ndim == 3:
        parts = weight.reshape(*blocks.shape[:2], -1)  # o ... -> n b f
        return (turns.transpose(1, 2) @ parts).reshape(weight.shape)
    rows = weight.flatten(1) if weight.ndim > 1 else weight[:, None]
    for level, turn in enumerate(turns):
        apart = 2**level * blocks.shape[-1] // 2
        rows = rows.unflatten(0, (-1, 2, apart)).transpose(1, 2).reshape(*turn.shape[:2], -1)  # n b f
        rows = (turn @ rows).reshape(-1, apart, 2, rows.shape[-1]).transpose(1, 2).flatten(0, 2)  # o f
    return rows.reshape(weight.shape)


def _rotations(blocks: Tensor, bound: float) -> Tensor:
    turned = blocks - blocks.transpose(-1, -2)
    length = torch.linalg.vector_norm(turned)
    if 0 < bound < length:
        turned = turned * (bound / length)
    one = torch.eye(blocks.shape[-1], device=blocks.device)
    return torch.linalg.solve(one - turned, one + turned, left=False)  # (1 + Q) (1 - Q)^-1
