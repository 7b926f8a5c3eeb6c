"""IP-Adapter's networks (Ye et al. 2023, section 3.2), under their published names."""

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from disegno.weights.ip_adapter_files import PROJECTION, Form
from disegno.weights.shapes import sides

HEAD = 64  # channels of a head of the resampler
Shapes = Mapping[str, tuple[int, ...]]


class Projection(nn.Module):
    """An embedding (b e) -> a few tokens (b m d)."""

    def __init__(self, seen: int, out: int, width: int) -> None:
        super().__init__()
        self.proj, self.norm = nn.Linear(seen, out), nn.LayerNorm(width)

    def forward(self, seen: Tensor) -> Tensor:
        return self.norm(self.proj(seen).unflatten(-1, (-1, len(self.norm.weight))))  # b m*d -> b m d


class FullProjection(nn.Module):
    """Hidden states (b n e) -> as many tokens (b n d)."""

    def __init__(self, seen: int, middle: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(nn.Linear(seen, middle), nn.GELU(), nn.Linear(middle, width), nn.LayerNorm(width))

    def forward(self, seen: Tensor) -> Tensor:
        return self.proj(seen)


class _Perceiver(nn.Module):
    """Attention of the queries to the states and to themselves."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.heads = max(1, inner // HEAD)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_q, self.to_kv = nn.Linear(width, inner, bias=False), nn.Linear(width, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, width, bias=False)

    def forward(self, states: Tensor, queries: Tensor) -> Tensor:
        states, queries = self.norm1(states), self.norm2(queries)
        both = self.to_kv(torch.cat([states, queries], dim=1)).chunk(2, dim=-1)
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (self.to_q(queries), *both))
        return self.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def _feed_forward(width: int, inner: int) -> nn.Sequential:
    layers = nn.Linear(width, inner, bias=False), nn.GELU(), nn.Linear(inner, width, bias=False)
    return nn.Sequential(nn.LayerNorm(width), *layers)


class Resampler(nn.Module):
    """Hidden states (b n e) -> as many tokens as there are queries, (b m d)."""

    def __init__(self, seen: int, width: int, queries: tuple[int, int], sizes: Sequence[tuple[int, int]]) -> None:
        """`queries`: how many, and their width. `sizes`: of each block, inside its attention and its feed-forward."""
        super().__init__()
        num, inner = queries
        self.latents = nn.Parameter(torch.empty(1, num, inner))
        self.proj_in, self.proj_out = nn.Linear(seen, inner), nn.Linear(inner, width)
        self.norm_out = nn.LayerNorm(width)
        self.layers = nn.ModuleList(
            nn.ModuleList([_Perceiver(inner, heads), _feed_forward(inner, hidden)]) for heads, hidden in sizes
        )

    def forward(self, seen: Tensor) -> Tensor:
        queries, states = self.latents.expand(len(seen), -1, -1), self.proj_in(seen)
        for block in self.layers:
            assert isinstance(block, nn.ModuleList)
            attend, feed_forward = block
            queries = attend(states, queries) + queries
            queries = feed_forward(queries) + queries
        return self.norm_out(self.proj_out(queries))


class _Pair(nn.Module):
    """Keys and values of the tokens, for one cross-attention."""

    def __init__(self, out: int, width: int) -> None:
        super().__init__()
        self.to_k_ip, self.to_v_ip = nn.Linear(width, out, bias=False), nn.Linear(width, out, bias=False)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        return self.to_k_ip(tokens), self.to_v_ip(tokens)


class IpNet(nn.Module):
    """All of an adapter. `pairs`: the number of each attention in the file, its width, the width of the tokens."""

    def __init__(self, form: Form, shapes: Shapes, pairs: Sequence[tuple[str, int, int]]) -> None:
        super().__init__()
        own = {name.removeprefix(PROJECTION): shape for name, shape in shapes.items() if name.startswith(PROJECTION)}
        self.image_proj = _PROJECTIONS[form](own, pairs[0][2])
        self.ip_adapter = nn.ModuleDict({number: _Pair(out, width) for number, out, width in pairs})

    def read(self, seen: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return keys and values of each attention, (b m w), of what CLIP saw: (b e) or (b n e)."""
        tokens = self.image_proj(seen)
        return [pair(tokens) for pair in self.ip_adapter.values()]


_sides = partial(sides, "The IP-Adapter's projection")


def _plain(shapes: Shapes, width: int) -> Projection:
    out, seen = _sides(shapes, "proj.weight", 2)
    return Projection(seen, out, width)


def _full(shapes: Shapes, width: int) -> FullProjection:
    middle, seen = _sides(shapes, "proj.0.weight", 2)
    return FullProjection(seen, middle, width)


def _resampler(shapes: Shapes, width: int) -> Resampler:
    num = sum(name.endswith(".0.to_q.weight") for name in shapes)
    names = [(f"layers.{i}.0.to_q.weight", f"layers.{i}.1.1.weight") for i in range(num)]
    sizes = [(_sides(shapes, heads, 2)[0], _sides(shapes, hidden, 2)[0]) for heads, hidden in names]
    _, num_queries, inner = _sides(shapes, "latents", 3)
    return Resampler(_sides(shapes, "proj_in.weight", 2)[1], width, (num_queries, inner), sizes)


_PROJECTIONS = {"plain": _plain, "full": _full, "plus": _resampler}
