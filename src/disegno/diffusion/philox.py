"""The numbers that an NVIDIA card draws: Philox words through Box and Muller's sine branch, on any device."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_LOW = 0xFFFFFFFF
_TIMES, _MORE = (0xD2511F53, 0xCD9E8D57), (0x9E3779B9, 0xBB67AE85)  # of the counter's words, of the key's
_ROUNDS = 10
_TURN = float(np.float32(2 * np.pi))


def _high(product: Tensor) -> Tensor:
    """Return the upper half of products of 64 bits: int64 holds all of their bits, whatever its sign."""
    return product >> 32 & _LOW


def philox(counter: Sequence[Tensor], key: Tensor) -> Tensor:
    """Return 4 random 32-bit words for each counter, (4 ... n), int64. `counter`: 4 words, each (... n).

    `key`: of 64 bits, of a shape that goes with them. Salmon et al. 2011, Philox4x32-10.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key & _LOW, _high(key)
    for _ in range(_ROUNDS):
        p0, p1 = c0 * _TIMES[0], c2 * _TIMES[1]
        c0, c1, c2, c3 = _high(p1) ^ c1 ^ k0, p1 & _LOW, _high(p0) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + _MORE[0]) & _LOW, (k1 + _MORE[1]) & _LOW
    return torch.stack(torch.broadcast_tensors(c0, c1, c2, c3))


def nv_normals(
    seeds: Sequence[int], shape: Sequence[int], num_draws: int = 0, device: torch.device | str = "cpu"
) -> Tensor:
    """Return what torch.randn draws on an NVIDIA card for each seed after so many draws, (k c h w), float32.

    `seeds`: each in [0, 2^64). `shape`: (c h w).
    """
    signed = [seed - 2**64 if seed >= 2**63 else seed for seed in seeds]
    key = torch.tensor(signed, dtype=torch.int64, device=device)[:, None]  # k 1
    place = torch.arange(math.prod(shape), device=device).expand(len(seeds), -1)  # k n
    none = torch.zeros_like(place)
    words = philox((none + num_draws, none, place, none), key)[:2].double()  # 2 k n
    u, angle = (words[0] + 0.5) * 2.0**-32, (words[1] + 0.5) * _TURN * 2.0**-32
    return ((-2 * u.log()).sqrt() * angle.sin()).float().reshape(-1, *shape)
