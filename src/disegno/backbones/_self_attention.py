"""The evaluation of a UNet that takes up other pictures (reference-only): it draws each of them first, then its own.

What the chosen blocks make of a reference at the rows' own noise level and text is kept; while the picture itself is
drawn, a self-attention reads the kept tokens beside its own (K, V = own, kept), and features are given the kept mean
and variance (AdaIN: Huang and Belongie 2017, eq. 8). Facts of sd-webui-controlnet's reference_only and reference_adain.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, cast

import torch
from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor, nn

from disegno.diffusion.call import Call, Reference

_LEAST_VARIANCE = 1e-6
_LEAST_FIDELITY = 1e-5  # A1111 parity: below it the negative prompt's rows take up as much as the others

Forward = Callable[[Call], Tensor]
Place = tuple[nn.Module, float]  # a module, and the share of the net above which it takes a reference up


def attention_places(net: Any) -> list[Place]:
    """Return the self-attentions, the wide ones first: the i-th of n takes up what has a share of more than i / n."""
    parts = [*net.down_blocks, net.mid_block, *net.up_blocks]
    blocks = [each for part in parts for each in part.modules() if isinstance(each, BasicTransformerBlock)]
    blocks.sort(key=lambda block: -block.attn1.query_dim)
    places = [(block, i / len(blocks)) for i, block in enumerate(blocks)]
    return [(block.attn1, least) for block, least in places if not block.only_cross_attention]


def feature_places(net: Any) -> list[Place]:
    """Return what features are given a reference's mean and variance after: the middle first, then ever shallower.

    The layers of all levels but the shallowest, and not the decoder's last one, which leads there. A1111 parity, for
    nets of any depth: in Stable Diffusion 1 its input blocks 4, 5, 7, 8, 10, 11 and output blocks 0 to 7.
    """
    encoder = [layer for block in net.down_blocks[1:] for layer in _layers(block, "")]
    decoder = [layer for block in net.up_blocks[:-1] for layer in _layers(block, "upsamplers")][:-1]
    down = [(layer, 2 * (1 - i / len(encoder))) for i, layer in enumerate(encoder)]
    return [(net.mid_block, 0.0), *down, *((layer, 2 * i / len(decoder)) for i, layer in enumerate(decoder))]


def _layers(block: Any, samplers: str) -> list[nn.Module]:
    """Return what each layer of a level ends with; the last one with the level's sampler of this kind."""
    layers = list(getattr(block, "attentions", None) or block.resnets)
    ends: Sequence[nn.Module] = getattr(block, samplers, None) or () if samplers else ()
    return [*layers[:-1], ends[-1]] if ends else layers


K = TypeVar("K")


@dataclass
class _Kept:
    """What references left behind: of each place and each row of the call, in the references' order."""

    tokens: dict[nn.Module, dict[int, list[tuple[Tensor, float]]]] = field(default_factory=dict)
    moments: dict[nn.Module, dict[int, list[tuple[tuple[Tensor, Tensor], float]]]] = field(default_factory=dict)

    @staticmethod
    def put(
        kept: dict[nn.Module, dict[int, list[tuple[K, float]]]], at: nn.Module, row: int, what: K, f: float
    ) -> None:
        """Keep what a reference of this fidelity left for a row."""
        kept.setdefault(at, {}).setdefault(row, []).append((what, f))


def taking_up(net: nn.Module, call: Call, forward: Forward) -> Tensor:
    """Return the net's output for a call with references, (b c h w). `forward`: for one without."""
    kept = _Kept()
    for reference in call.references:
        _write(net, reference, call, forward, kept)
    hooks = [
        *((at, _reading(rows, call)) for at, rows in kept.tokens.items()),
        *((at, _matching(rows, call)) for at, rows in kept.moments.items()),
    ]
    with _hooked(hooks):
        return forward(replace(call, references=()))


def _write(net: nn.Module, reference: Reference, call: Call, forward: Forward, kept: _Kept) -> None:
    """Draw a reference as the rows that take it up would be drawn, each different one once, and keep what it leaves."""
    # with a fidelity of 1 the negative prompt's rows take up nothing
    deaf = all(one.fidelity >= 1 for one in call.references)
    rows = [(i, row) for i, row in enumerate(reference.rows.tolist()) if call.rows[row].positive or not deaf]
    whats = [(replace(call.rows[row], image=0), float(call.t[row])) for _, row in rows]
    distinct = list(dict.fromkeys(whats))
    if not distinct:
        return
    chosen = [rows[whats.index(what)] for what in distinct]
    own = call.take(torch.tensor([row for _, row in chosen]))
    own = replace(own, x=reference.x[[i for i, _ in chosen]].to(call.x), extra=_extra(own.extra, reference.latents))
    readers = [(row, distinct.index(what), reference.shares[i]) for (i, row), what in zip(rows, whats, strict=True)]

    def keep_tokens(at: nn.Module, least: float) -> Any:
        def hook(_: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
            for row, place, share in readers:
                if share > least:
                    kept.put(kept.tokens, at, row, args[0][place], reference.fidelity)

        return hook

    def keep_moments(at: nn.Module, least: float) -> Any:
        def hook(_: nn.Module, args: object, out: Tensor | tuple[Tensor]) -> None:
            var, mean = torch.var_mean(_first(out).float(), dim=(2, 3), keepdim=True, correction=0)  # r c 1 1
            for row, place, share in readers:
                if share > least:
                    kept.put(kept.moments, at, row, (mean[place], var[place]), reference.fidelity)

        return hook

    with _hooked(
        [
            *((at, keep_tokens(at, least)) for at, least in attention_places(net) if reference.attends),
            *((at, keep_moments(at, least)) for at, least in feature_places(net) if reference.matches),
        ]
    ):
        forward(own)


def _extra(extra: Tensor | None, latents: Tensor) -> Tensor | None:
    """Return what the net is shown beside a reference: of an inpainting model, all of the picture and no hole."""
    if extra is None or extra.shape[1] != latents.shape[1] + 1:
        return extra
    return torch.cat([torch.zeros_like(extra[:, :1]), latents.to(extra).expand(len(extra), -1, -1, -1)], dim=1)


def _reading(rows: dict[int, list[tuple[Tensor, float]]], call: Call) -> Any:
    """Return the hook of a self-attention that reads what was kept beside its own tokens."""

    def hook(attention: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        x, out = args[0], out.clone()  # b n d
        for group in _groups(rows, call):
            stacks = [torch.stack([rows[row][k][0] for row in group]) for k in range(len(rows[group[0]]))]
            context = torch.cat([x[group], *stacks], dim=1)  # r kn d
            _mix(out, group, attention.forward(x[group], encoder_hidden_states=context), rows, call)
        return out

    return hook


def _matching(rows: dict[int, list[tuple[tuple[Tensor, Tensor], float]]], call: Call) -> Any:
    """Return the hook of a module whose features are given the kept mean and variance."""

    def hook(_: nn.Module, args: object, out: Tensor | tuple[Tensor]) -> Tensor | tuple[Tensor]:
        x = _first(out).clone()  # b c h w
        for group in _groups(rows, call):
            own = x[group].float()
            var, mean = torch.var_mean(own, dim=(2, 3), keepdim=True, correction=0)  # r c 1 1
            means, variances = (
                torch.stack([torch.stack([what[i] for what, _ in rows[row]]).mean(0) for row in group]) for i in (0, 1)
            )
            _mix(x, group, (own - mean) / _std(var) * _std(variances) + means, rows, call)
        return x if isinstance(out, Tensor) else (x,)

    return hook


def _std(variance: Tensor) -> Tensor:
    return variance.clamp_min(_LEAST_VARIANCE).sqrt()


def _groups(rows: dict[int, list[tuple[Any, float]]], call: Call) -> list[list[int]]:
    """Return the rows that take something up, in groups of as many references."""
    groups: dict[int, list[int]] = {}
    for row, some in rows.items():
        if call.rows[row].positive or _fidelity(some) < 1:
            groups.setdefault(len(some), []).append(row)
    return list(groups.values())


def _fidelity(some: list[tuple[Any, float]]) -> float:
    return sum(fidelity for _, fidelity in some) / len(some)


def _mix(out: Tensor, group: list[int], taken: Tensor, rows: dict[int, list[tuple[Any, float]]], call: Call) -> None:
    """Put into `out`, at the group's rows, what they became; the negative prompt's in part: f plain + (1 - f) taken."""
    for row, own in zip(group, taken, strict=True):
        fidelity = 0.0 if call.rows[row].positive else _fidelity(rows[row])
        out[row] = own if fidelity <= _LEAST_FIDELITY else fidelity * out[row] + (1 - fidelity) * own


def _first(out: Tensor | tuple[Tensor]) -> Tensor:
    return out if isinstance(out, Tensor) else out[0]


@contextmanager
def _hooked(hooks: Sequence[tuple[nn.Module, Any]]) -> Generator[None]:
    """Within, each module's output is seen, or replaced, by its hook; afterwards none is left. One thread at a time."""
    handles = [cast(Any, at).register_forward_hook(hook) for at, hook in hooks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
