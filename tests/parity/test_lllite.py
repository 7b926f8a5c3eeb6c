"""ControlNet-LLLite against its formula, written out here and put around the layers one by one; and its files.

No published file was at hand: their names and shapes are built on meta tensors.
"""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from corpus import headers
from disegno.backbones import miniature_sdxl, sdxl
from disegno.backbones._layer_inputs import shifting
from disegno.backbones.miniature import SD1, Miniature, open_miniature
from disegno.controls import controlnet_lllite
from disegno.controls.base import Condition
from disegno.controls.reference import open_reference
from disegno.controls.strength import Use, Used, apply
from disegno.core.errors import CorruptFile, KeyMismatch, ModelFileError, RequestError, UnknownKind, WrongFamily
from disegno.core.request import ControlUnit
from disegno.diffusion.call import Call, Row
from disegno.engine.sharing import merged
from disegno.memory import FULL_PRECISION, Memory, Policy
from disegno.weights.identify import identify
from kit import lllite as kit

pytestmark = pytest.mark.parity

MEMORY = Memory(FULL_PRECISION)
CLOSE = {"atol": 2e-5, "rtol": 0}  # outputs reach 3; float32, the same sums in another order
PLACES = {"sd1": kit.SD1, "sdxl": kit.SDXL}


@pytest.fixture(scope="module", params=["sdxl", "sd1"])
def host(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    if request.param == "sd1":
        return open_miniature(MEMORY)
    made = miniature_sdxl.Sdxl(unet=miniature_sdxl.THREE_LEVELS)
    return sdxl.open(miniature_sdxl.write_file(tmp_path_factory.mktemp("xl") / "xl.safetensors", made), MEMORY)


@pytest.fixture(scope="module")
def old() -> Any:
    return open_miniature(MEMORY)


def _condition(size: tuple[int, int] = (64, 64), seed: int = 1) -> Condition:
    image = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(seed))
    return Condition(image, f"{size} {seed}")


def _call(host: Any, size: tuple[int, int] = (8, 8), num: int = 2) -> Call:
    generator = torch.Generator().manual_seed(3)
    is_xl = host.family == "sdxl"
    x = torch.randn(num, 4, *size, generator=generator)
    tokens = torch.randn(num, 7, 96 if is_xl else 32, generator=generator)
    rows = tuple(Row(i // 2, i % 2 == 1, str(i), 0.0) for i in range(num))
    pooled = torch.randn(num, 64, generator=generator) if is_xl else None
    return Call(x, torch.full((num,), 500.0), tokens, rows, net=host.evaluate, pooled=pooled)


def _drawn(host: Any, seed: int = 0, **fields: Any) -> dict[str, Tensor]:
    return kit.tensors(host.net, kit.attended(host.net, PLACES[host.family]), seed, **fields)


def _opened(folder: Path, host: Any, tensors: Mapping[str, Tensor], name: str = "a") -> Any:
    return controlnet_lllite.open(kit.write(folder / f"{name}.safetensors", tensors), host, MEMORY)


# ---- the formula, independently


def _plain(own: Mapping[str, Tensor], image: Tensor, x: Tensor, level: tuple[int, int]) -> Tensor:
    """Return what is added to x. own: one layer's tensors. image: (1 3 h w), in [0, 1]. level: (h, w) of x's places."""
    embedded = image * 2 - 1
    sides = [own[key].shape[-1] for key in sorted(own) if key.startswith("conditioning1") and key.endswith("weight")]
    whole = 1
    for side in sides:
        whole *= side
    height, width = embedded.shape[2:]
    rows = torch.arange(-(-height // whole) * whole).clamp(max=height - 1)
    columns = torch.arange(-(-width // whole) * whole).clamp(max=width - 1)
    embedded = embedded[:, :, rows][:, :, :, columns]  # the last row and column again, where squares are not whole
    for i, side in enumerate(sides):
        key = f"conditioning1.{2 * i}"
        embedded = F.conv2d(embedded.relu() if i else embedded, own[f"{key}.weight"], own[f"{key}.bias"], stride=side)
    if embedded.shape[2:] != level:  # the nearest by the places' centres
        at = [((torch.arange(n) + 0.5) * m / n).floor().long() for n, m in zip(level, embedded.shape[2:], strict=True)]
        embedded = embedded[:, :, at[0]][:, :, :, at[1]]
    if x.ndim == 3:
        embedded = embedded.permute(0, 2, 3, 1).reshape(1, level[0] * level[1], -1)
    embedded = embedded.repeat(len(x), *[1] * (x.ndim - 1))

    def layer(part: str, x: Tensor) -> Tensor:
        weight, bias = own[f"{part}.0.weight"], own[f"{part}.0.bias"]
        return F.conv2d(x, weight, bias) if weight.ndim == 4 else F.linear(x, weight, bias)

    both = torch.cat([embedded, layer("down", x).relu()], dim=1 if x.ndim == 4 else 2)
    return layer("up", layer("mid", both).relu())


# A file's tensors, its picture, its strength: one, or one for each pixel (1 1 h w)
Wrapping = tuple[Mapping[str, Tensor], Tensor, float | Tensor]


@contextmanager
def _wrapped(
    net: nn.Module, layers: Mapping[str, str], controls: Sequence[Wrapping], size: tuple[int, int], from_call: int = 0
) -> Generator[None]:
    """Within, the layers' own forward is another: of x and what every control adds to x.

    layers: published name -> diffusers'. `from_call`: the first calls of each layer are left as they are.
    """
    levels = {0: size}
    for i in range(4):
        levels[i + 1] = -(-levels[i][0] // 2), -(-levels[i][1] // 2)
    depth = len(net.config["block_out_channels"]) - 1  # pyright: ignore[reportArgumentType, reportIndexIssue]
    undone: list[tuple[nn.Module, Any]] = []
    for name, place in layers.items():
        layer, before, num = net.get_submodule(place), net.get_submodule(place).forward, [0]
        parts = place.split(".")
        level = levels[depth if parts[0] == "mid_block" else int(parts[1])]
        if parts[0] == "up_blocks":
            level = levels[depth - int(parts[1])]

        def forward(x: Tensor, name: str = name, before: Any = before, level: Any = level, num: Any = num) -> Tensor:
            num[0] += 1
            if num[0] <= from_call:
                return before(x)
            own = x if x.ndim == 4 else x[:, : level[0] * level[1]]
            more = torch.zeros_like(x)
            for tensors, image, strength in controls:
                prefix = f"lllite_unet_{name}."
                its = {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}
                factor: Any = strength
                if isinstance(strength, Tensor):  # the mean of each place's pixels
                    factor = strength.unfold(2, strength.shape[2] // level[0], strength.shape[2] // level[0])
                    factor = factor.unfold(3, strength.shape[3] // level[1], strength.shape[3] // level[1])
                    factor = factor.mean((4, 5)).flatten(2).transpose(1, 2)  # 1 n 1
                more[:, : own.shape[1]] += factor * _plain(its, image, own, level)
            return before(x + more)

        layer.forward = forward
        undone.append((layer, before))
    try:
        yield
    finally:
        for layer, _ in undone:
            del layer.forward


@torch.no_grad()
def _theirs(host: Any, call: Call, controls: Sequence[Wrapping], layers: Any = None, from_call: int = 0) -> Tensor:
    found = layers or kit.attended(host.net, PLACES[host.family])
    names = {name: layer for name, (layer, _) in found.items()}
    size = (call.x.shape[2], call.x.shape[3])
    with _wrapped(host.net, names, controls, size, from_call):
        return call.run()


@torch.no_grad()
def test_it_is_the_formula(host: Any, tmp_path: Path) -> None:
    tensors, call, condition = _drawn(host), _call(host), _condition()
    control, before = _opened(tmp_path, host, tensors).prepare(condition), call.run()
    for strength in (1.0, 0.35):
        ours = Used(control, Use(strength))(call).run()
        torch.testing.assert_close(ours, _theirs(host, call, [(tensors, condition.image, strength)]), **CLOSE)
        assert (ours - before).abs().amax() > 0.1
    assert torch.equal(call.run(), before), "nothing stays installed"


@torch.no_grad()
def test_several_see_the_input_as_it_is(host: Any, tmp_path: Path) -> None:
    """Their order changes nothing. A1111 parity."""
    files, call, conditions = [_drawn(host, i) for i in (0, 1)], _call(host), [_condition(seed=i) for i in (1, 2)]
    controls = [
        Used(_opened(tmp_path, host, file, str(i)).prepare(condition), Use(strength))
        for i, (file, condition, strength) in enumerate(zip(files, conditions, (0.8, 0.5), strict=True))
    ]
    wrapped = [(file, c.image, s) for file, c, s in zip(files, conditions, (0.8, 0.5), strict=True)]
    ours = apply(controls, call).run()
    torch.testing.assert_close(ours, _theirs(host, call, wrapped), **CLOSE)
    torch.testing.assert_close(apply(controls[::-1], call).run(), ours, **CLOSE)


@torch.no_grad()
def test_within_a_region(host: Any, tmp_path: Path) -> None:
    """Each place is weighed by the mean over its pixels."""
    tensors, call, condition = _drawn(host), _call(host), _condition()
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., :20, 8:44] = 0.8
    control = _opened(tmp_path, host, tensors).prepare(condition)
    ours = Used(control, Use(0.5, region=mask))(call).run()
    torch.testing.assert_close(ours, _theirs(host, call, [(tensors, condition.image, 0.5 * mask)]), **CLOSE)
    assert (ours - call.run()).abs().amax() > 0.02


@torch.no_grad()
def test_what_adds_nothing_changes_no_bit(host: Any, tmp_path: Path) -> None:
    """As at the beginning of a training; but its bias is not zero there: kohya's weights of `up` alone are."""
    tensors, call = _drawn(host), _call(host)
    zero = {name: torch.zeros_like(t) if ".up." in name else t for name, t in tensors.items()}
    control = _opened(tmp_path, host, zero).prepare(_condition())
    assert torch.equal(Used(control, Use())(call).run(), call.run())
    biased = zero | {name: t for name, t in tensors.items() if name.endswith(".up.0.bias")}
    assert not torch.equal(_opened(tmp_path, host, biased, "b").prepare(_condition())(call).run(), call.run())


@torch.no_grad()
@pytest.mark.parametrize("size", [(9, 13), (8, 11)], ids=str)
def test_any_size_of_a_canvas(size: tuple[int, int], host: Any, tmp_path: Path) -> None:
    tensors, call, condition = _drawn(host), _call(host, size), _condition((size[0] * 8, size[1] * 8))
    ours = _opened(tmp_path, host, tensors).prepare(condition)(call).run()
    torch.testing.assert_close(ours, _theirs(host, call, [(tensors, condition.image, 1.0)]), **CLOSE)


@torch.no_grad()
def test_an_embedding_of_another_size_is_taken_at_its_nearest_places(old: Any, tmp_path: Path) -> None:
    """As of a layer deeper than kohya's three depths reach: Stable Diffusion 1's fourth level."""
    layers = {name: (layer, (4, 2)) for name, (layer, _) in kit.attended(old.net, kit.SD1).items()}
    tensors, call, condition = kit.tensors(old.net, layers), _call(old, (9, 13)), _condition((72, 104))
    ours = _opened(tmp_path, old, tensors).prepare(condition)(call).run()
    torch.testing.assert_close(ours, _theirs(old, call, [(tensors, condition.image, 1.0)], layers), **CLOSE)


CONVOLUTIONS = {
    "input_blocks_4_0_in_layers_2": ("down_blocks.1.resnets.0.conv1", (4, 4)),
    "input_blocks_6_0_op": ("down_blocks.1.downsamplers.0.conv", (4, 4)),
    "middle_block_1_proj_in": ("mid_block.attentions.0.proj_in", (4, 4, 2)),
    "middle_block_1_transformer_blocks_0_ff_net_2": ("mid_block.attentions.0.transformer_blocks.0.ff.net.2", (4, 4, 2)),
    "output_blocks_1_1_transformer_blocks_0_attn2_to_q": (
        "up_blocks.0.attentions.1.transformer_blocks.0.attn2.to_q",
        (4, 4, 2),
    ),
}


@torch.no_grad()
@pytest.mark.parametrize("host", ["sdxl"], indirect=True)
def test_convolutions_feed_forwards_and_the_decoder_by_either_name(host: Any, tmp_path: Path) -> None:
    """What kohya's trainer can be told to take beside the attentions; and diffusers' names of the same layers."""
    tensors, call, condition = kit.tensors(host.net, CONVOLUTIONS), _call(host), _condition()
    ours = _opened(tmp_path, host, tensors).prepare(condition)(call).run()
    torch.testing.assert_close(ours, _theirs(host, call, [(tensors, condition.image, 1.0)], CONVOLUTIONS), **CLOSE)
    assert (ours - call.run()).abs().amax() > 0.05
    theirs = {
        f"lllite_unet_{CONVOLUTIONS[head.removeprefix('lllite_unet_')][0].replace('.', '_')}.{rest}": tensor
        for (head, _, rest), tensor in ((name.partition("."), tensor) for name, tensor in tensors.items())
    }
    assert theirs.keys().isdisjoint(tensors)
    assert torch.equal(_opened(tmp_path, host, theirs, "b").prepare(condition)(call).run(), ours)


@torch.no_grad()
def test_rows_differ_in_file_picture_and_strength(host: Any, tmp_path: Path) -> None:
    """Four calls in one: each as alone, and the rows of the one without keep their bits."""
    one, two = (_opened(tmp_path, host, _drawn(host, i), str(i)) for i in (0, 1))
    call = _call(host)
    units = [
        [Used(one.prepare(_condition()), Use(0.6))],
        [],
        [Used(two.prepare(_condition(seed=2)), Use(mode="control"))],
        [Used(two.prepare(_condition(seed=3)), Use()), Used(one.prepare(_condition(seed=2)), Use(0.3))],
    ]
    calls = [apply(some, call) for some in units]
    both = merged(calls)
    assert [shift.rows.tolist() for shift in both.shifts] == [[0, 1], [5], [6, 7], [6, 7]]
    together = both.run().split(2)
    for own, found in zip(calls, together, strict=True):
        torch.testing.assert_close(found, own.run(), **CLOSE)
    bare = merged([call] * 4).run().split(2)
    assert torch.equal(together[1], bare[1]) and torch.equal(together[2][0], bare[2][0])


@torch.no_grad()
def test_beside_a_reference(host: Any, tmp_path: Path) -> None:
    """The reference is drawn without it; of the tokens that a self-attention reads, it acts on the picture's own."""
    tensors, condition = _drawn(host), _condition()
    full = _call(host)
    call = full.take(torch.tensor([1]))  # of the prompt: it takes all of the reference up
    reference = Used(open_reference(ControlUnit(name="reference-only"), host).prepare(_condition(seed=2)), Use())
    control = Used(_opened(tmp_path, host, tensors).prepare(condition), Use(0.7))
    ours = apply([reference, control], call).run()
    theirs = _theirs(host, reference(call), [(tensors, condition.image, 0.7)], from_call=1)
    torch.testing.assert_close(ours, theirs, **CLOSE)
    assert (ours - reference(call).run()).abs().amax() > 0.05
    layers = (0.7,) * len(PLACES[host.family])
    some = Used(control.control, Use(layers=layers, mode="control"))  # the prompt's row alone has it
    half = apply([reference, some], full).run()
    assert torch.equal(half[0], reference(full).run()[0])
    torch.testing.assert_close(half[1:], ours, **CLOSE)


@torch.no_grad()
def test_a_weight_for_each_block(host: Any, tmp_path: Path) -> None:
    """The encoder's, then the middle's."""
    tensors, call, condition = _drawn(host), _call(host), _condition()
    controller = _opened(tmp_path, host, tensors)
    places = PLACES[host.family]
    only = next(iter(places))
    left = {name: layer for name, layer in kit.attended(host.net, places).items() if name.startswith(f"{only}_")}
    ours = Used(controller.prepare(condition), Use(layers=(0.5, *(0.0,) * (len(places) - 1))))(call).run()
    torch.testing.assert_close(ours, _theirs(host, call, [(tensors, condition.image, 0.5)], left), **CLOSE)
    with pytest.raises(RequestError, match=f"13 layer weights, but adds to {len(places)} blocks of this model"):
        controller.layers("").require((1.0,) * 13)


@torch.no_grad()
def test_in_half_precision(old: Any, tmp_path: Path) -> None:
    """bfloat16, channels last, the net's layers packed where the processor can: 8 bits of mantissa."""
    memory = Memory(Policy(torch.device("cpu"), torch.bfloat16, torch.channels_last))
    host, tensors, call = open_miniature(memory), _drawn(old), _call(old)
    path = kit.write(tmp_path / "a.safetensors", tensors)
    control = controlnet_lllite.open(path, host, memory).prepare(_condition())
    assert {each.embedded.dtype for each in control.told.values()} == {torch.bfloat16}
    found = control(replace(call, net=host.evaluate)).run()
    exact, plain = controlnet_lllite.open(path, old, MEMORY).prepare(_condition())(call).run(), call.run()
    assert (found - exact).abs().mean() < 0.05 * (exact - plain).abs().mean()


# ---- files


def _published(hidden: int = 64, embedded: int = 32) -> headers.Shapes:
    """Return the names and shapes of kohya-ss/controlnet-lllite's files (v01032064e): attentions of SDXL's encoder."""
    blocks = {"input_blocks_4_1": 2, "input_blocks_5_1": 2, "input_blocks_7_1": 10, "input_blocks_8_1": 10}
    found: headers.Shapes = {}
    for block, num in (blocks | {"middle_block_1": 10}).items():
        width, squares = (640, (4, 4)) if num == 2 else (1280, (4, 4, 2))
        for i in range(num):
            for query in kit.QUERIES:
                own = kit.shapes(width, squares, embedded, hidden)
                name = f"lllite_unet_{block}_transformer_blocks_{i}_{query}"
                found |= {f"{name}.{part}": shape for part, shape in own.items()}
    return found


ARCHITECTURE = {"modelspec.architecture": "stable-diffusion-xl-v1-base/control-net-lllite"}


@pytest.mark.parametrize("sizes", [(64, 32), (16, 16), (32, 64)], ids=str)
def test_a_published_file_is_what_is_built_for_it(sizes: tuple[int, int], tmp_path: Path) -> None:
    """All of its 136 nets find their layer, and what they add fits what the layers are given: on meta tensors."""
    shapes = _published(*sizes)
    path = headers.write_header(tmp_path / "controllllite_v01032064e_sdxl_canny.safetensors", shapes, ARCHITECTURE)
    card = identify(path)
    assert (card.kind, card.mechanism, card.family, card.layout) == ("control", "controlnet-lllite", "sdxl", "kohya")
    assert identify(headers.write_header(tmp_path / "bare.safetensors", shapes)).family == "sdxl"
    net = miniature_sdxl.sdxl_unet()
    host: Any = _MetaHost(net)
    controller = controlnet_lllite.open(path, host, MEMORY)
    assert len(controller.places) == len(controller.nets) == 136
    assert {name: tuple(t.shape) for name, t in controller.nets.state_dict().items()} == shapes
    assert sorted(set(controller.depths.values())) == [4, 5, 7, 8, 9] and controller.num_residuals == 10
    assert controller.layers("").num == 5
    if sizes != (64, 32):
        return
    controller.nets.to("meta")
    size = (1024, 832)
    with torch.device("meta"):
        control = controller.prepare(Condition(torch.empty(1, 3, *size), "a"))
        x, t, tokens = torch.empty(1, 4, 128, 104), torch.empty(1), torch.empty(1, 77, 2048)
        told = {"text_embeds": torch.empty(1, 1280), "time_ids": torch.empty(1, 6)}
    squares = {tuple(each.embedded.shape) for each in control.told.values()}
    assert squares == {(1, 32, 64, 52), (1, 32, 32, 26)}
    seen: list[str] = []
    call = control(Call(x, t, tokens, (Row(0, True, "", 0.0),), net=lambda _: x))
    counted = {name: _counting(name, each, seen) for name, each in control.told.items()}
    with shifting(net, [replace(call.shifts[0], added=counted)], x), torch.no_grad():
        out = net(x, t, tokens, added_cond_kwargs=told, return_dict=False)[0]
    assert out.shape == x.shape and sorted(seen) == sorted(control.told)


@dataclass(frozen=True)
class _MetaHost:
    net: nn.Module
    family: str = "sdxl"
    name: str = "xl"
    fingerprint: str = ""


def _counting(name: str, told: Any, seen: list[str]) -> Any:
    def added(x: Tensor, size: tuple[int, int]) -> Tensor:
        seen.append(name)
        assert tuple(told.embedded.shape[2:]) == size, "nothing is resized"
        return told(x, size)

    return added


def test_half_precision_and_torchs_own_format(old: Any, tmp_path: Path) -> None:
    tensors = {name: t.half() for name, t in _drawn(old).items()}
    torch.save(tensors, tmp_path / "a.pth")
    assert identify(tmp_path / "a.pth").mechanism == "controlnet-lllite"
    a = controlnet_lllite.open(tmp_path / "a.pth", old, MEMORY).prepare(_condition())(_call(old)).run()
    b = _opened(tmp_path, old, {n: t.float() for n, t in tensors.items()}).prepare(_condition())(_call(old)).run()
    assert torch.equal(a, b)


def _spoilt(tensors: dict[str, Tensor]) -> dict[str, tuple[type[ModelFileError], str, dict[str, Tensor]]]:
    """Return what can be wrong: the error, some of its words, and the tensors."""
    first = next(iter(tensors)).partition(".")[0]
    squares = f"{first}.conditioning1.2.weight"
    head, tail = first.replace("transformer_blocks_0", "transformer_blocks_7"), f"{first}."

    def renamed(new: str) -> dict[str, Tensor]:
        return {name.replace(tail, f"{new}.") if name.startswith(tail) else name: t for name, t in tensors.items()}

    ours = "lllite_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    twice = tensors | {name.replace(tail, f"{ours}."): t for name, t in tensors.items() if name.startswith(tail)}
    wide = {name: torch.zeros(shape) for name, shape in kit.shapes(40, (4, 2)).items()}
    conv = {name: torch.zeros(shape) for name, shape in kit.shapes(32, (4, 2), is_conv=True).items()}

    def without(start: str) -> dict[str, Tensor]:
        return {name: t for name, t in tensors.items() if not name.startswith(tail + start)}

    def beside(name: str, tensor: Tensor) -> dict[str, Tensor]:
        return tensors | {name: tensor}

    def instead(own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return tensors | {tail + name: t for name, t in own.items()}

    deep = {name: torch.zeros(shape) for name, shape in kit.shapes(32, (4,) * 40).items()}
    same = "two nets for down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    unknown = f"a net for {head}, a layer that the model has not.*made for sd1"
    time = renamed("lllite_unet_mid_block_resnets_0_time_emb_proj")
    return {
        "a stranger": (UnknownKind, "'lora_te_x.alpha' is none of its", beside("lora_te_x.alpha", torch.ones(1))),
        "a part gone": (KeyMismatch, f"incomplete.*{first}.down.0.weight", without("down.0.weight")),
        "no drawing": (KeyMismatch, "incomplete.*conditioning1.0.weight", without("cond")),
        "mid gone": (KeyMismatch, f"2 missing: {first}.mid.0.bias", without("mid")),
        "another part": (KeyMismatch, f"1 unexpected: {tail}film", beside(f"{tail}film", torch.ones(1))),
        "other squares": (UnknownKind, "squares of 3 x 3 pixels", beside(squares, torch.zeros(8, 4, 3, 3))),
        "no squares": (UnknownKind, "squares of 2 x 4 pixels", beside(squares, torch.zeros(8, 4, 2, 4))),
        "too deep": (UnknownKind, "more than 64 x 64 pixels one place", instead(deep)),
        "no such layer": (WrongFamily, unknown, renamed(head)),
        "of the text": (WrongFamily, "attn2_to_k, a layer", renamed(first.replace("attn1_to_q", "attn2_to_k"))),
        "of the time": (WrongFamily, "time_emb_proj, a layer", time),
        "twice": (KeyMismatch, same, twice),
        "too wide": (WrongFamily, "linear layer of 32, the file a linear layer of 40", instead(wide)),
        "a convolution": (WrongFamily, "linear layer of 32, the file a convolution of 32", instead(conv)),
        "no numbers": (CorruptFile, "NaN or infinite", beside(f"{tail}up.0.bias", torch.full((32,), torch.nan))),
    }


def test_what_does_not_fit_is_refused_in_words(old: Any, tmp_path: Path) -> None:
    for name, (error, words, tensors) in _spoilt(_drawn(old)).items():
        with pytest.raises(error, match=words) as refused:
            _opened(tmp_path, old, tensors, name)
        assert str(refused.value).startswith(name) and str(refused.value).endswith("."), refused.value


def test_files_of_other_models_are_told_from_it(old: Any, tmp_path: Path) -> None:
    deeper = Miniature(unet={"block_out_channels": (64, 128)})
    with pytest.raises(WrongFamily, match="linear layer of 64, the file a linear layer of 32"):
        _opened(tmp_path, open_miniature(MEMORY, deeper), _drawn(old))
    assert deeper != SD1 and identify(kit.write(tmp_path / "sd1.safetensors", _drawn(old))).family == "sd1"
    for name in ("lllite_dit_blocks_0_self_attn_q_proj.down.weight", "lllite_conditioning1.conv1.weight"):
        path = headers.write_header(tmp_path / "anima.safetensors", {name: (4, 4)})
        with pytest.raises(UnknownKind, match="a ControlNet-LLLite of Anima"):
            identify(path)
    with pytest.raises(UnknownKind, match="none of its names"):
        controlnet_lllite.open(headers.write_header(tmp_path / "cn.safetensors", headers.controlnet()), old, MEMORY)
