"""The evaluation of a UNet that takes up other pictures (reference-only): it draws each of them first, then its own.

What the chosen blocks make of a reference at the rows' own noise level and text is kept. While the picture itself is
drawn, a self-attention reads the kept tokens beside its own (K, V = own, kept), and features are given the kept mean
and variance (AdaIN: Huang and Belongie 2017, eq. 8). Facts of sd-webui-controlnet's reference_only and reference_adain.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import torch
from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor, nn

from disegno.backbones._layer_inputs import given
from disegno.diffusion.call import Call, Reference

_LEAST_VARIANCE = 1e-6  # A1111 parity
_LEAST_FIDELITY = 1e-5  # A1111 parity: below it the negative prompt's rows take up as much as the others

Forward = Callable[[Call], Tensor]
Place = tuple[nn.Module, float]  # a module, and the share of the net above which it takes a reference up
Left = dict[int, list[tuple[Tensor, float]]]  # of each row of the call: what each reference left, and its fidelity
Kept = dict[nn.Module, Left]
Out = Tensor | tuple[Tensor]


def attention_places(net: Any) -> list[Place]:
    """Return the self-attentions, the wide ones first: the i-th of n takes up what has a share of more than i / n."""
    parts = [*net.down_blocks, net.mid_block, *net.up_blocks]
    blocks = [each for part in parts for each in part.modules() if isinstance(each, BasicTransformerBlock)]
    blocks.sort(key=lambda block: -block.attn1.query_dim)
    places = [(block, i / len(blocks)) for i, block in enumerate(blocks)]
    return [(block.attn1, least) for block, least in places if not block.only_cross_attention]


def feature_places(net: Any) -> list[Place]:
    """Return what features are given a reference's mean and variance after: the middle first, then ever shallower.

    The layers of all levels but the shallowest; without the decoder's last one, which leads there, but in SDXL. A1111
    parity, for nets of any depth: of Stable Diffusion 1 its input blocks 4, 5, 7, 8, 10 and 11, and output blocks 0 to
    7; of SDXL 4, 5, 7 and 8, and 0 to 5.
    """
    encoder = [layer for block in net.down_blocks[1:] for layer in _layers(block)]
    decoder = [layer for block in net.up_blocks[:-1] for layer in [*_layers(block)[:-1], block.upsamplers[-1]]]
    if net.config["addition_embed_type"] != "text_time":
        decoder = decoder[:-1]
    down = [(layer, 2 * (1 - i / len(encoder))) for i, layer in enumerate(encoder)]
    return [(net.mid_block, 0.0), *down, *((layer, 2 * i / len(decoder)) for i, layer in enumerate(decoder))]


def _layers(block: Any) -> list[nn.Module]:
    """Return what each layer of a level ends with."""
    return list(getattr(block, "attentions", None) or block.resnets)


def taking_up(net: nn.Module, call: Call, forward: Forward) -> Tensor:
    """Return the net's output for a call with references, (b c h w). `forward`: for one without."""
    tokens, moments = Kept(), Kept()
    for reference in call.references:
        _draw(net, reference, call, forward, tokens, moments)
    reading = [(attention, _reading(left, call)) for attention, left in tokens.items()]
    matching = [(module, _matching(left, call)) for module, left in moments.items()]
    with _hooked([*reading, *matching]):
        return forward(replace(call, references=()))


# ---- a reference is drawn


def _draw(net: nn.Module, reference: Reference, call: Call, forward: Forward, tokens: Kept, moments: Kept) -> None:
    """Draw a reference as each row that takes it up would be drawn, equal ones once, and keep what it leaves."""
    all_positive = all(one.fidelity >= 1 for one in call.references)  # then the others take nothing up
    rows = reference.rows.tolist()
    taking = [i for i, row in enumerate(rows) if call.rows[row].positive or not all_positive]
    whats = {i: (replace(call.rows[rows[i]], image=0), float(call.t[rows[i]])) for i in taking}
    distinct = {what: i for i, what in reversed(whats.items())}
    if not distinct:
        return
    chosen = list(distinct.values())
    own = call.take(torch.tensor([rows[i] for i in chosen]))
    own = replace(own, x=reference.x[chosen].to(call.x), extra=_extra(own.extra, reference.latents))
    sources = {i: list(distinct).index(what) for i, what in whats.items()}

    def keeping(left: Left, least: float, see: Callable[[tuple[Tensor, ...], Out], Tensor]) -> Any:
        def hook(_: nn.Module, args: tuple[Tensor, ...], out: Out) -> None:
            seen = see(args, out)
            for i, source in sources.items():
                if reference.shares[i] > least:
                    left.setdefault(rows[i], []).append((seen[source], reference.fidelity))

        return hook

    attentions = attention_places(net) if reference.attends else []
    features = feature_places(net) if reference.matches else []
    hooks = [(at, keeping(tokens.setdefault(at, {}), least, lambda args, _: args[0])) for at, least in attentions]
    hooks += [
        (at, keeping(moments.setdefault(at, {}), least, lambda _, out: _moments(_first(out)))) for at, least in features
    ]
    with _hooked(hooks):
        forward(own)


def _extra(extra: Tensor | None, latents: Tensor) -> Tensor | None:
    """Return what the net is shown beside a reference: of an inpainting model, all of the picture and no hole."""
    if extra is None or extra.shape[1] != latents.shape[1] + 1:
        return extra
    return torch.cat([torch.zeros_like(extra[:, :1]), latents.to(extra).expand(len(extra), -1, -1, -1)], dim=1)


def _moments(x: Tensor) -> Tensor:
    """Return each channel's mean and variance, (b 2 c 1 1)."""
    variance, mean = torch.var_mean(x.float(), dim=(2, 3), keepdim=True, correction=0)
    return torch.stack([mean, variance], dim=1)


# ---- what it left is taken up


def _reading(left: Left, call: Call) -> Any:
    """Return the hook of a self-attention that reads what was left beside its own tokens."""

    def hook(attention: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        x, mixed = args[0], out.clone()  # b n d
        for group in _groups(left, call):
            kept = [torch.stack([left[row][k][0] for row in group]) for k in range(len(left[group[0]]))]
            context = torch.cat([x[group], *kept], dim=1)  # r kn d
            with given(group, x.shape[1]):
                taken = attention.forward(x[group], encoder_hidden_states=context)
            _mix(mixed, group, taken, left, call)
        return mixed

    return hook


def _matching(left: Left, call: Call) -> Any:
    """Return the hook of a module whose features are given the mean and variance that were left."""

    def hook(_: nn.Module, args: object, out: Out) -> Out:
        mixed = _first(out).clone()  # b c h w
        for group in _groups(left, call):
            x = mixed[group].float()
            mean, variance = _moments(x).unbind(1)  # r c 1 1
            kept = [torch.stack([moments for moments, _ in left[row]]).mean(0) for row in group]
            new_mean, new_variance = torch.stack(kept).unbind(1)
            _mix(mixed, group, (x - mean) / _std(variance) * _std(new_variance) + new_mean, left, call)
        return mixed if isinstance(out, Tensor) else (mixed,)

    return hook


def _std(variance: Tensor) -> Tensor:
    return variance.clamp_min(_LEAST_VARIANCE).sqrt()


def _groups(left: Left, call: Call) -> list[list[int]]:
    """Return the rows that take something up, in groups of as many references."""
    groups: dict[int, list[int]] = {}
    for row, some in left.items():
        if _fidelity(row, some, call) < 1:
            groups.setdefault(len(some), []).append(row)
    return list(groups.values())


def _fidelity(row: int, some: Sequence[tuple[Tensor, float]], call: Call) -> float:
    """Return how much of a row stays as it would be without: of the prompt's none; of several references the mean."""
    mean = 0.0 if call.rows[row].positive else sum(fidelity for _, fidelity in some) / len(some)
    return mean if mean > _LEAST_FIDELITY else 0.0


def _mix(mixed: Tensor, group: Sequence[int], taken: Tensor, left: Left, call: Call) -> None:
    """Make the group's rows f plain + (1 - f) taken."""
    for row, own in zip(group, taken, strict=True):
        if fidelity := _fidelity(row, left[row], call):
            own = fidelity * mixed[row] + (1 - fidelity) * own
        mixed[row] = own


def _first(out: Out) -> Tensor:
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
