"""References against the equations, written out slowly: every attention by hand, every block by its number.

The rules are sd-webui-controlnet's, in the numbers of the blocks: of Stable Diffusion 1 12 of the encoder, the middle
and 12 of the decoder; of SDXL 9, the middle and 9.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from disegno.backbones import miniature_sdxl, sdxl
from disegno.backbones.miniature import Miniature, open_miniature
from disegno.controls.base import Condition
from disegno.controls.reference import ReferenceControl, open_reference
from disegno.controls.strength import Use, Used, apply
from disegno.core.curve import parse_curve
from disegno.core.errors import RequestError, WrongFamily
from disegno.core.request import ControlUnit
from disegno.diffusion.call import Call, Row, Suffix
from disegno.memory import FULL_PRECISION, Memory

pytestmark = pytest.mark.parity

ATTENDING = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"
SD1 = {
    "block_out_channels": (8, 16, 32, 32),
    "layers_per_block": 2,
    "down_block_types": (ATTENDING[0],) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + (ATTENDING[1],) * 3,
    "norm_num_groups": 4,
    "attention_head_dim": 2,
}


def _features(encoder: tuple[int, ...], num_decoder: int) -> dict[str, float]:
    """Return block -> the weight above which its features are changed."""
    num = len(encoder)
    return {
        "mid": 0.0,
        **{f"in{i}": 2 - 2 * n / num for n, i in enumerate(encoder)},
        **{f"out{i}": 2 * i / num_decoder for i in range(num_decoder)},
    }


FEATURES = {"sd1": _features((4, 5, 7, 8, 10, 11), 8), "sdxl": _features((4, 5, 7, 8), 6)}
NUM_ATTENTIONS = {"sd1": 16, "sdxl": 17}
Attend = Callable[[Any, Tensor], Tensor]
Change = Callable[[str, Tensor], Tensor]


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def backbone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    if request.param == "sd1":
        return open_miniature(made=Miniature(unet=SD1))
    made = miniature_sdxl.Sdxl(unet=miniature_sdxl.THREE_LEVELS)
    return sdxl.open(
        miniature_sdxl.write_file(tmp_path_factory.mktemp("model") / "m.safetensors", made), Memory(FULL_PRECISION)
    )


@pytest.fixture(scope="module")
def call(backbone: Any) -> Call:
    """Two images, each with its prompt and its negative prompt."""
    g = torch.Generator().manual_seed(3)
    rows = tuple(Row(i % 2, i < 2, str(i), 0.5, seed=40 + i % 2) for i in range(4))
    is_sdxl = backbone.family == "sdxl"
    x, tokens = torch.randn(4, 4, 8, 8, generator=g), torch.randn(4, 7, 96 if is_sdxl else 32, generator=g)
    pooled = torch.randn(4, 64, generator=g) if is_sdxl else None
    return Call(x, torch.full((4,), 401.4), tokens, rows, net=backbone.evaluate, pooled=pooled)


def _control(backbone: Any, name: str, seed: int = 1, **unit: Any) -> ReferenceControl:
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(seed))
    return open_reference(ControlUnit(name=name, **unit), backbone).prepare(Condition(image, str(seed)))


# ---- the UNet and the rules, by hand


def _attention(attn: Any, x: Tensor, context: Tensor) -> Tensor:
    q, k, v = (
        layer(y).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
        for layer, y in ((attn.to_q, x), (attn.to_k, context), (attn.to_v, context))
    )
    weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
    return attn.to_out[0]((weights @ v).transpose(1, 2).flatten(2))


def _transformer(transformer: Any, h: Tensor, tokens: Tensor, attend: Attend) -> Tensor:
    is_linear = isinstance(transformer.proj_in, torch.nn.Linear)
    inner = transformer.norm(h) if is_linear else transformer.proj_in(transformer.norm(h))
    inner = inner.flatten(2).transpose(1, 2)
    inner = transformer.proj_in(inner) if is_linear else inner
    for block in transformer.transformer_blocks:
        inner = attend(block.attn1, block.norm1(inner)) + inner
        inner = _attention(block.attn2, block.norm2(inner), tokens) + inner
        inner = block.ff(block.norm3(inner)) + inner
    inner = transformer.proj_out(inner) if is_linear else inner
    inner = inner.transpose(1, 2).reshape(h.shape)
    return (inner if is_linear else transformer.proj_out(inner)) + h


def _embedded(net: Any, call: Call) -> Tensor:
    emb = net.time_embedding(net.time_proj(call.t))
    if call.pooled is None:
        return emb
    sizes = net.add_time_proj(torch.tensor([64.0, 64, 0, 0, 64, 64])).flatten().expand(len(emb), -1)
    return emb + net.add_embedding(torch.cat([call.pooled, sizes], dim=1))


def _unet(net: Any, x: Tensor, call: Call, attend: Attend, change: Change) -> Tensor:
    emb, tokens = _embedded(net, call), call.tokens
    h = net.conv_in(x)
    skips, k = [h], 0
    for block in net.down_blocks:
        for n, resnet in enumerate(block.resnets):
            k += 1
            h = resnet(h, emb)
            if hasattr(block, "attentions"):
                h = _transformer(block.attentions[n], h, tokens, attend)
            h = change(f"in{k}", h)
            skips.append(h)
        if block.downsamplers:
            k += 1
            h = block.downsamplers[0](h)
            skips.append(h)
    middle = net.mid_block
    h = _transformer(middle.attentions[0], middle.resnets[0](h, emb), tokens, attend)
    h = change("mid", middle.resnets[1](h, emb))
    k = 0
    for block in net.up_blocks:
        for n, resnet in enumerate(block.resnets):
            h = resnet(torch.cat([h, skips.pop()], 1), emb)
            if hasattr(block, "attentions"):
                h = _transformer(block.attentions[n], h, tokens, attend)
            if block.upsamplers and n == len(block.resnets) - 1:
                h = block.upsamplers[0](h)
            h = change(f"out{k}", h)
            k += 1
    return net.conv_out(net.conv_act(net.conv_norm_out(h)))


def _plain(attn: Any, x: Tensor) -> Tensor:
    return _attention(attn, x, x)


Kept = dict[Any, list[tuple[Any, ...]]]


def _write(
    backbone: Any, call: Call, control: ReferenceControl, weight: float, ranks: dict[Any, float], kept: Kept
) -> None:
    """Draw a unit's reference: keep the tokens of its attentions, and the mean and variance of its features."""

    def store(attn: Any, x: Tensor) -> Tensor:
        if control.attends and weight > ranks[attn]:
            kept.setdefault(attn, []).append((control.fidelity, x))
        return _plain(attn, x)

    def measure(name: str, h: Tensor) -> Tensor:
        if control.matches and weight > FEATURES[backbone.family].get(name, 9):
            var, mean = torch.var_mean(h, dim=(2, 3), keepdim=True, correction=0)
            kept.setdefault(name, []).append((control.fidelity, mean, var))
        return h

    _unet(backbone.net, control(call).references[0].x, call, store, measure)


def _by_hand(backbone: Any, call: Call, units: list[tuple[ReferenceControl, float]]) -> Tensor:
    """Return the output for units with their weights."""
    net = backbone.net
    parts = [*net.down_blocks, net.mid_block, *net.up_blocks]
    order = [m for part in parts for m in part.modules() if type(m).__name__ == "BasicTransformerBlock"]
    order.sort(key=lambda m: -m.norm1.normalized_shape[0])
    ranks = {m.attn1: i / len(order) for i, m in enumerate(order)}
    assert len(order) == NUM_ATTENTIONS[backbone.family]
    kept = Kept()
    for control, weight in units:
        _write(backbone, call, control, weight, ranks, kept)

    def blend(plain: Tensor, taken: Tensor, kept: list[tuple[Any, ...]]) -> Tensor:
        f = sum(each[0] for each in kept) / len(kept)
        out = taken.clone()
        for i, row in enumerate(call.rows):
            if not row.positive:
                out[i] = f * plain[i] + (1 - f) * taken[i]
        return out

    def attend(attn: Any, x: Tensor) -> Tensor:
        if attn not in kept:
            return _plain(attn, x)
        context = torch.cat([x, *(each[1] for each in kept[attn])], dim=1)
        return blend(_plain(attn, x), _attention(attn, x, context), kept[attn])

    def change(name: str, h: Tensor) -> Tensor:
        if name not in kept:
            return h
        new_mean, new_var = (sum(each[i] for each in kept[name]) / len(kept[name]) for i in (1, 2))
        var, mean = torch.var_mean(h, dim=(2, 3), keepdim=True, correction=0)
        std, new_std = (v.clamp_min(1e-6).sqrt() for v in (var, new_var))
        return blend(h, (h - mean) / std * new_std + new_mean, kept[name])

    return _unet(net, call.x, call, attend, change)


# ---- what is held to them


@pytest.mark.parametrize("name", ["reference-only", "reference-adain", "reference-adain-attn"])
@pytest.mark.parametrize(("weight", "fidelity"), [(1.0, 0.5), (0.4, 0.0), (2.0, 1.0)])
def test_the_equations(name: str, weight: float, fidelity: float, backbone: Any, call: Call) -> None:
    control = _control(backbone, name, params={"fidelity": fidelity})
    found = Used(control, Use(weight))(call).run()
    torch.testing.assert_close(found, _by_hand(backbone, call, [(control, weight)]), atol=2e-5, rtol=1e-4)
    assert (found - call.run())[:2].abs().max() > 1e-2
    assert ((found - call.run())[2:].abs().max() > 1e-2) == (fidelity < 1)


def test_several_at_once(backbone: Any, call: Call) -> None:
    """Where two are taken up both are read, and of fidelity, mean and variance it is the mean."""
    units = [
        (_control(backbone, "reference-only", 1, params={"fidelity": 0.2}), 1.0),
        (_control(backbone, "reference-adain-attn", 2, mode="control"), 0.5),
        (_control(backbone, "reference-adain", 3, mode="prompt"), 1.0),
    ]
    found = apply([Used(control, Use(weight)) for control, weight in units], call).run()
    torch.testing.assert_close(found, _by_hand(backbone, call, units), atol=2e-5, rtol=1e-4)


def test_noise_is_of_the_seed_and_the_timestep(backbone: Any, call: Call) -> None:
    control = _control(backbone, "reference-only")
    abar = backbone.table.alphas_cumprod[401]  # A1111 parity: the timestep, rounded

    def noise(call: Call) -> Tensor:
        return (control(call).references[0].x - abar.sqrt() * control.latents) / (1 - abar).sqrt()

    own = noise(call)
    torch.testing.assert_close(own[:2], own[2:])  # the prompt's and the negative prompt's
    assert torch.equal(noise(replace(call, t=call.t - 0.3)), own)
    others = [own[1], noise(replace(call, t=call.t + 1))[0], torch.randn(4, 8, 8, generator=_generator(40))]
    assert all((own[0] - other).abs().max() > 1 for other in others)
    assert abs(float(own.std()) - 1) < 0.1


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_equal_rows_are_drawn_once_and_the_net_is_left_as_it_was(backbone: Any, call: Call) -> None:
    before, asked = call.run(), list[int]()
    handle = backbone.net.register_forward_pre_hook(lambda _, args: asked.append(len(args[0])))
    twins = replace(call, rows=tuple(replace(row, seed=7, text=str(row.positive)) for row in call.rows))
    apply([Used(_control(backbone, "reference-only"), Use())], twins).run()
    apply([Used(_control(backbone, "reference-only", mode="control"), Use())], call).run()
    handle.remove()
    assert asked == [2, 4, 2, 4]  # equal rows once; and with a fidelity of 1 the negative prompt has no reference
    assert torch.equal(call.run(), before)
    assert not any(module._forward_hooks for module in backbone.net.modules())


def test_rows_that_it_does_not_reach_keep_their_bits(backbone: Any, call: Call) -> None:
    rows = tuple(replace(row, progress=0.1 + 0.8 * (row.image == 1)) for row in call.rows)
    found = Used(_control(backbone, "reference-adain-attn"), Use(end=0.5))(replace(call, rows=rows)).run()
    moved = [i for i in range(4) if not torch.equal(found[i], call.run()[i])]
    assert moved == [0, 2]


def test_a_curve_is_a_share_and_texts_may_have_suffixes(backbone: Any, call: Call) -> None:
    control = _control(backbone, "reference-only")
    half = Used(control, Use(0.5))(call).run()
    assert torch.equal(Used(control, Use(1.0, curve=parse_curve("0.5@0,0.5@1")))(call).run(), half)
    more = Suffix(torch.randn(3, call.tokens.shape[-1], generator=_generator(1)), "other")
    suffixed = replace(call, suffixes=((more,), (), (more,), ()))
    found = Used(control, Use())(suffixed).run()
    alone = [Used(control, Use())(suffixed.take(torch.tensor([i]))).run() for i in range(4)]
    torch.testing.assert_close(found, torch.cat(alone), atol=2e-5, rtol=1e-4)


def test_an_inpainting_net_sees_all_of_the_reference() -> None:
    backbone = open_miniature(made=Miniature(in_channels=9))
    control, shown = _control(backbone, "reference-only"), list[Tensor]()
    call = Call(torch.randn(1, 4, 8, 8), torch.tensor([500.0]), torch.randn(1, 7, 32), (Row(0, True, "", 0.0),),
                net=backbone.evaluate, extra=torch.ones(1, 5, 8, 8))  # fmt: skip
    backbone.net.register_forward_pre_hook(lambda _, args: shown.append(args[0]))
    Used(control, Use())(call).run()
    assert not shown[0][:, 4].any() and torch.equal(shown[0][:, 5:], control.latents)
    assert torch.equal(shown[1][:, 4:], torch.ones(1, 5, 8, 8))


@pytest.mark.parametrize(
    ("unit", "said"),
    [
        ({"region": "mask.png"}, "leave out its region"),
        ({"layers": (1.0,) * 13}, "leave out its layers"),
        ({"mix": True, "annotate": "canny"}, "leave out its annotate and mix"),
        ({"params": {"fidelty": 0.5}}, "leave out its fidelty"),
        ({"params": {"fidelity": 1.5}}, "a number from 0 to 1, not 1.5"),
    ],
)
def test_what_has_no_meaning_is_refused(unit: dict[str, Any], said: str, backbone: Any) -> None:
    with pytest.raises(RequestError, match=said):
        _control(backbone, "reference-only", **unit)


def test_a_model_without_a_unet_is_refused(backbone: Any) -> None:
    with pytest.raises(WrongFamily, match="has no UNet"):
        open_reference(ControlUnit(name="reference-only"), replace(backbone, family="sd3"))


def test_modes_and_the_hires_pass_say_the_fidelity(backbone: Any) -> None:
    def fidelity(which: Any = "first", **unit: Any) -> float:
        return open_reference(ControlUnit(name="reference-only", **unit), backbone, which).fidelity

    power = 3 if backbone.family == "sdxl" else 1  # A1111 parity
    assert [fidelity(), fidelity(params={"fidelity": 0.3}), fidelity(mode="control"), fidelity(mode="prompt")] == [
        *(0.5**power, 0.3**power, 1.0, 0.0)
    ]
    assert [fidelity("hires"), fidelity("hires", mode="control")] == [0.0, 1.0]
