"""Control-LoRA against the full ControlNet that it stands for, and against diffusers' own loader of such files."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from corpus import headers
from disegno.backbones import miniature, miniature_sd2, miniature_sd3, miniature_sdxl, sd1, sd2, sd3, sdxl
from disegno.controls import control_lora, controlnet
from disegno.controls._borrowed import Borrowed, Place, _has_many_places
from disegno.controls._net import ToldControlNet, run
from disegno.controls.base import Condition
from disegno.core.errors import CorruptFile, ModelFileError, UnknownKind, WrongFamily
from disegno.core.request import LoraUse
from disegno.diffusion.call import Call, Residuals, Row
from disegno.diffusion.told import told_size
from disegno.loras.apply import Worn, put_on
from disegno.loras.files import read_lora
from disegno.memory import FULL_PRECISION, Memory, Policy, build_empty
from disegno.packing import PackedLinear, can_pack, pack
from disegno.weights.convert import convert
from disegno.weights.identify import identify
from kit import control_lora as kit
from kit import xl

pytestmark = pytest.mark.parity

MEMORY = Memory(FULL_PRECISION)
META = Memory(Policy(torch.device("meta"), torch.float32))
IMAGE = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
XL = miniature_sdxl.Sdxl(unet=miniature_sdxl.THREE_LEVELS)
BOUND = {"atol": 1e-4, "rtol": 0.0}  # of residuals up to 32; 2.5e-5 at most was seen: sums in another order


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> sdxl.Sdxl:
    return sdxl.open(miniature_sdxl.write_file(tmp_path_factory.mktemp("xl") / "base.safetensors", XL), MEMORY)


@pytest.fixture(scope="module")
def made(host: sdxl.Sdxl) -> kit.Made:
    return kit.make(host.net, 5)


@pytest.fixture(scope="module")
def path(made: kit.Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _written(tmp_path_factory.mktemp("files") / "control-lora-canny-rank4.safetensors", made.file)


def _written(path: Path, tensors: Mapping[str, Tensor]) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


def _call(host: Any, num: int = 2, seed: int = 0) -> Call:
    """Rows at two noise levels, for a model of any family."""
    g, config = torch.Generator().manual_seed(seed), host.net.config
    width = config.get("projection_class_embeddings_input_dim")
    pooled = None if width is None else torch.randn(num, width - 6 * 256, generator=g)
    rows = tuple(Row(i, i == 0, str(i), 0.5) for i in range(num))
    x, tokens = torch.randn(num, 4, 8, 12, generator=g), torch.randn(num, 7, config["cross_attention_dim"], generator=g)
    return Call(x, torch.linspace(7, 981, num), tokens, rows, host.evaluate, pooled)


def _ours(host: Any, path: Path, call: Call, memory: Memory = MEMORY) -> tuple[Tensor, ...]:
    return _flat(control_lora.open(path, host, memory).prepare(Condition(IMAGE, "k"))(call).residuals)


def _flat(residuals: Residuals | None) -> tuple[Tensor, ...]:
    assert residuals is not None
    return (*residuals.down, residuals.mid)


@torch.no_grad()
def _theirs(net: ControlNetModel, call: Call) -> tuple[Tensor, ...]:
    told = None if call.pooled is None else told_size(call.pooled, call.x)
    hint = IMAGE.expand(len(call.rows), -1, -1, -1)
    down, mid = net(call.x, call.t, call.tokens, hint, added_cond_kwargs=told, return_dict=False)
    return (*down, mid)


def _full(host: Any, tensors: Mapping[str, Tensor]) -> ControlNetModel:
    net = ControlNetModel(**kit.config_of(host.net))
    net.load_state_dict(dict(tensors))
    return net.eval()


def _close(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...], **bound: float) -> None:
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, **(bound or BOUND))


# ---- what it adds


def test_it_is_the_full_controlnet(host: sdxl.Sdxl, made: kit.Made, path: Path) -> None:
    card = identify(path)
    assert (card.kind, card.mechanism, card.family, card.layout) == ("control", "control-lora", "sdxl", "ldm")
    assert card.rank == kit.RANK
    call = _call(host)
    ours = _ours(host, path, call)
    assert len(ours) == 10
    _close(ours, _theirs(_full(host, made.full), call))
    own = {name: tensor for name, tensor in host.net.state_dict().items() if name in made.full}
    unlike = _theirs(_full(host, {**made.full, **own}), call)  # without the differences it is another
    assert all(not torch.allclose(a, b, atol=0.01) for a, b in zip(ours, unlike, strict=True))


@pytest.mark.filterwarnings("ignore:While injecting the PEFT adapters:RuntimeWarning")
def test_it_is_what_diffusers_makes_of_the_file(host: sdxl.Sdxl, made: kit.Made, path: Path) -> None:
    """The base as they take it, a copy of the UNet's encoder; their names of ours; their scale, alpha = rank.

    Theirs (0.42 with peft 0.21) leaves the UNet's bias in each layer with a difference, where ComfyUI and A1111 take
    the file's: put right here.
    """
    theirs = ControlNetModel.from_unet(host.net)
    theirs.load_lora_adapter(dict(made.file), prefix=None)
    biases = {name: t for name, t in theirs.state_dict().items() if name.endswith(".base_layer.bias")}
    assert biases and all(torch.equal(t, host.net.get_parameter(_plain(name))) for name, t in biases.items())
    theirs.load_state_dict({name: made.full[_plain(name)] for name in biases}, strict=False)
    call = _call(host)
    _close(_ours(host, path, call), _theirs(theirs.eval(), call))


def _plain(name: str) -> str:
    return name.replace(".base_layer.", ".")


FAMILIES: dict[str, Any] = {
    "sd1": lambda folder: sd1.open(miniature.write_sd1_checkpoint(folder / "m.safetensors"), MEMORY),
    "sd2": lambda folder: sd2.open(miniature_sd2.write_checkpoint(folder / "m.safetensors"), MEMORY),
    "sdxl, two levels": lambda folder: sdxl.open(miniature_sdxl.write_file(folder / "m.safetensors"), MEMORY),
    "sd1 that inpaints": lambda _: miniature.open_miniature(made=miniature.Miniature(in_channels=9)),
    "sd1 that edits": lambda _: miniature.open_miniature(made=miniature.Miniature(in_channels=8)),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_with_a_unet(family: str, tmp_path: Path) -> None:
    host = FAMILIES[family](tmp_path)
    made, call = kit.make(host.net, 7), _call(host)
    ours = _ours(host, _written(tmp_path / "c.safetensors", made.file), call)
    _close(ours, _theirs(_full(host, made.full), call))


def test_what_the_file_does_not_have_is_the_models(host: sdxl.Sdxl, made: kit.Made, tmp_path: Path) -> None:
    """A layer, its bias or its norm left out; a weight that is there whole, with its bias or without."""
    theirs, full, file = host.net.state_dict(), dict(made.full), dict(made.file)
    resnet, attention = "down_blocks.1.resnets.0", "down_blocks.1.attentions.0.transformer_blocks.0"
    names = {"conv1": "in_layers.2", "norm1": "in_layers.0", "norm2": "out_layers.0", "conv2": "out_layers.3"}
    old = {name: f"input_blocks.4.0.{original}" for name, original in names.items()}
    for key in (f"{old['conv1']}.up", f"{old['conv1']}.down", f"{old['conv1']}.bias"):
        del file[key]
    full |= {f"{resnet}.conv1.{part}": theirs[f"{resnet}.conv1.{part}"] for part in ("weight", "bias")}
    for key in (f"{old['norm1']}.weight", f"{old['norm1']}.bias", f"{old['norm2']}.weight"):
        del file[key]
    lost = ("norm1.weight", "norm1.bias", "norm2.weight")
    full |= {f"{resnet}.{part}": theirs[f"{resnet}.{part}"] for part in lost}
    for key in (f"{old['conv2']}.up", f"{old['conv2']}.down", f"{old['conv2']}.bias"):
        del file[key]
    file[f"{old['conv2']}.weight"] = full[f"{resnet}.conv2.weight"]
    full[f"{resnet}.conv2.bias"] = theirs[f"{resnet}.conv2.bias"]
    for half in ("up", "down"):  # a layer with its own bias and the model's weight
        del file[f"input_blocks.4.1.transformer_blocks.0.ff.net.2.{half}"]
    full[f"{attention}.ff.net.2.weight"] = theirs[f"{attention}.ff.net.2.weight"]
    del file["time_embed.0.bias"]
    full["time_embedding.linear_1.bias"] = theirs["time_embedding.linear_1.bias"]
    call = _call(host)
    _close(_ours(host, _written(tmp_path / "c.safetensors", file), call), _theirs(_full(host, full), call))


def test_matrices_may_be_written_as_convolutions_and_the_other_way(
    host: sdxl.Sdxl, made: kit.Made, path: Path, tmp_path: Path
) -> None:
    """Peers flatten both, so files have either; and the extracted ones' prefix."""
    turned = {
        name: tensor.flatten(1) if tensor.ndim == 4 else tensor[:, :, None, None]
        for name, tensor in made.file.items()
        if name.endswith((".up", ".down"))
    }
    file = {f"control_model.{name}": tensor for name, tensor in {**made.file, **turned}.items()}
    file["lora_controlnet"] = file.pop("control_model.lora_controlnet")
    call = _call(host)
    _close(_ours(host, _written(tmp_path / "c.safetensors", file), call), _ours(host, path, call), atol=0, rtol=0)


def test_shuffle_models_average(host: sdxl.Sdxl, made: kit.Made, tmp_path: Path) -> None:
    """By the name, as ComfyUI and A1111: `control_lora_rank128_v11e_sd15_shuffle_fp16`."""
    path = _written(tmp_path / "control_lora_rank4_v11e_shuffle_fp16.safetensors", made.file)
    assert control_lora.open(path, host, MEMORY).prepare(Condition(IMAGE, "k")).positive_only
    call = _call(host)
    means = [t.mean((2, 3), keepdim=True).expand_as(t) for t in _theirs(_full(host, made.full), call)]
    _close(_ours(host, path, call), tuple(means))


@torch.no_grad()
@pytest.mark.parametrize("sees_more", [False, True])
def test_both_ways_of_multiplying_give_the_same(sees_more: bool) -> None:
    """Few places: up (down x) beside W x; many: (W + up down) x. A model that inpaints sees more than the control."""
    linear, first = nn.Linear(24, 16), nn.Conv2d(9 if sees_more else 4, 16, 3, stride=2, padding=1)
    net = nn.ModuleDict({"linear": linear, "first": first})
    cases = {
        "linear": (nn.Linear(24, 16), lambda n: torch.randn(n, 3, 24), 2),
        "first": (nn.Conv2d(4, 16, 3, stride=2, padding=1), lambda n: torch.randn(n, 4, 6, 6), 1),
    }
    for name, (like, make, few) in cases.items():
        layer = Borrowed(like, Place(net, name), rank=2, biased=True)
        assert layer.up is not None and layer.down is not None
        own = net.get_submodule(name)
        assert isinstance(own, nn.Linear | nn.Conv2d)
        up, down = layer.up.get_parameter("weight"), layer.down.get_parameter("weight")
        nn.init.normal_(layer.bias)
        like.weight += own.weight[:, : like.weight.shape[1]] - like.weight  # now the model's
        like.weight += (up.flatten(1) @ down.flatten(1)).reshape(like.weight.shape)
        like.bias.copy_(layer.bias)
        for num in (few, 40):
            x = make(num)
            assert _has_many_places(x, own) is (num == 40)
            torch.testing.assert_close(layer(x), like(x), atol=1e-5, rtol=0)


# ---- whose weights they are


def test_the_models_weights_are_in_memory_once(host: sdxl.Sdxl, made: kit.Made, path: Path) -> None:
    before = {name: tensor.clone() for name, tensor in host.net.state_dict().items()}
    controller = control_lora.open(path, host, MEMORY)
    own = [*controller.net.parameters(), *controller.stem.parameters()]
    assert sum(tensor.numel() for tensor in own) == sum(tensor.numel() for tensor in made.file.values())
    theirs = {tensor.data_ptr() for tensor in host.net.parameters()}
    assert not theirs & {tensor.data_ptr() for tensor in own}
    borrowed = [layer for layer in controller.net.modules() if isinstance(layer, Borrowed)]
    seats = {id(layer) for layer in host.net.modules()}
    assert len(borrowed) == sum(name.endswith(".up") for name in made.file)
    assert all(id(layer.place.layer) in seats for layer in borrowed)
    controller.prepare(Condition(IMAGE, "k"))(_call(host))
    assert all(torch.equal(tensor, before[name]) for name, tensor in host.net.state_dict().items())


def test_a_style_lora_on_the_model_is_on_its_control(
    host: sdxl.Sdxl, made: kit.Made, path: Path, tmp_path: Path
) -> None:
    """A1111 and ComfyUI parity. The difference stays what it is; the file's norms and biases stay, too."""
    worn = put_on(host.lora_nets, [_style(tmp_path)])
    call = _call(host)
    alone = _ours(host, path, call)
    changed = {"down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.weight", "conv_in.weight"}
    with worn.on("unet"):
        styled = {name: tensor.clone() for name, tensor in host.net.state_dict().items()}
        inside = _ours(host, path, call)
    full = dict(made.full)
    for name in changed:
        assert not torch.equal(styled[name], host.net.state_dict()[name])
        full[name] = full[name] + styled[name] - host.net.state_dict()[name]
    _close(inside, _theirs(_full(host, full), call))
    assert not torch.allclose(inside[-1], alone[-1], atol=0.01)
    controller = control_lora.open(path, host, MEMORY)  # opened before it is put on: what counts is the moment
    with worn.on("unet"):
        again = _flat(controller.prepare(Condition(IMAGE, "k"))(call).residuals)
    _close(again, inside, atol=0, rtol=0)
    _close(_flat(controller.prepare(Condition(IMAGE, "k"))(call).residuals), alone, atol=0, rtol=0)


def _style(folder: Path) -> Worn:
    """A style LoRA with a bias of its own, before which the control's own bias goes."""
    g = torch.Generator().manual_seed(9)
    query, first = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q", "lora_unet_conv_in"
    tensors = {
        f"{query}.lora_up.weight": torch.randn(64, 2, generator=g),
        f"{query}.lora_down.weight": torch.randn(2, 64, generator=g),
        f"{query}.alpha": torch.tensor(2.0),
        f"{first}.diff": torch.randn(32, 4, 3, 3, generator=g),
        f"{first}.diff_b": torch.randn(32, generator=g),
    }
    return Worn(read_lora(identify(_written(folder / "ink.safetensors", tensors))), LoraUse(name="ink"))


@pytest.mark.skipif(not can_pack(), reason="this processor has no packed bfloat16 kernels")
def test_beside_a_packed_model(host: sdxl.Sdxl, made: kit.Made, path: Path, tmp_path: Path) -> None:
    """bfloat16 on a CPU, the model's layers laid out for oneDNN: no further from float32 than the whole ControlNet is.

    Of a residual's size 0.021 was seen, of the whole one's 0.018.
    """
    half, call = Memory(Policy(torch.device("cpu"), torch.bfloat16)), _call(host)
    packed = sdxl.open(miniature_sdxl.write_file(tmp_path / "base.safetensors", XL), half)
    whole = controlnet.open(_written(tmp_path / "whole.safetensors", made.full), packed, half)
    real = _theirs(_full(host, made.full), call)
    with torch.no_grad():
        ours = _ours(packed, path, call, half)
        theirs = _flat(whole.prepare(Condition(IMAGE, "k"))(call).residuals)
    assert any(isinstance(layer.place.layer, PackedLinear) for layer in _borrowed(packed, path, half))
    assert _apart(ours, real) < 1.5 * _apart(theirs, real) < 0.1


@torch.no_grad()
@pytest.mark.skipif(not can_pack(), reason="this processor has no packed bfloat16 kernels")
def test_packed_matrices_beside_a_layer_that_is_not_packed() -> None:
    """Of 48 channels, a convolution is left as it is, and one of 8 to the difference's rank is not."""
    own, like = (nn.Conv2d(8, 48, 3, padding=1).to(torch.bfloat16) for _ in range(2))
    layer = Borrowed(like, Place(nn.ModuleDict({"own": own}), "own"), rank=8).to(torch.bfloat16)
    like.weight.copy_(own.weight + (layer.up.weight.flatten(1) @ layer.down.weight.flatten(1)).reshape(48, 8, 3, 3))
    like.bias.copy_(own.bias)
    assert pack(layer.requires_grad_(False)) == 1
    x = torch.randn(2, 8, 16, 16, dtype=torch.bfloat16)
    assert _has_many_places(x, own)
    torch.testing.assert_close(layer(x), like(x), atol=0.03, rtol=0.03)


def _apart(some: tuple[Tensor, ...], others: tuple[Tensor, ...]) -> float:
    """Return by which share of its size a residual is off at most."""
    return max(float((a.float() - b).norm() / b.norm()) for a, b in zip(some, others, strict=True))


def _borrowed(host: Any, path: Path, memory: Memory) -> list[Borrowed]:
    return [layer for layer in control_lora.open(path, host, memory).net.modules() if isinstance(layer, Borrowed)]


# ---- the published files, by names and shapes


def _published(tmp_path: Path, config: Mapping[str, Any], rank: int) -> tuple[Any, Path]:
    """Return a model of this size, without numbers, and a file that is a hole."""
    net = build_empty(lambda: UNet2DConditionModel(**config))
    return net, headers.write_header(tmp_path / "c.safetensors", kit.shapes(net, rank))


@pytest.mark.parametrize(("rank", "megabytes", "millions", "more"), [(256, 774, 386, 0.09), (128, 396, 197, 0.05)])
def test_the_published_files_for_sdxl(rank: int, megabytes: int, millions: int, more: float, tmp_path: Path) -> None:
    """control-lora-*-rank256 and -rank128: as large as they are listed, to the megabyte; and what they take."""
    net, path = _published(tmp_path, xl.BASE, rank)
    assert round(path.stat().st_size / 1e6) == megabytes
    card = identify(path)
    assert (card.mechanism, card.family, card.layout, card.rank) == ("control-lora", "sdxl", "ldm", rank)
    model: Any = SimpleNamespace(net=net, family="sdxl", name="xl", fingerprint="xl")
    with pytest.MonkeyPatch.context() as patch:
        read = control_lora.read_control_lora
        patch.setattr(control_lora, "read_control_lora", lambda at: _on_meta(read(at)))
        opened = control_lora.open(path, model, META)
    num = sum(name.endswith(".up") for name in kit.shapes(net, rank))
    assert sum(isinstance(layer, Borrowed) for layer in opened.net.modules()) == num == 383
    assert opened.layers("").num == 10
    full = build_empty(lambda: ToldControlNet(**kit.config_of(net)))
    full.add_module("controlnet_cond_embedding", nn.Identity())
    own, whole = (sum(p.numel() for p in one.parameters()) for one in (opened.net, full))
    assert (round(own / 1e6), round(whole / 1e6)) == (millions, 1250)
    assert round(_work(opened.net) / _work(full) - 1, 2) == more


def _work(net: ControlNetModel) -> int:
    """Return how many operations a step at 1024 pixels takes, of a prompt's row and a negative prompt's."""
    x, hint, tokens = (torch.empty(s, device="meta") for s in ((2, 4, 128, 128), (1, 320, 128, 128), (2, 78, 2048)))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run(net, x, hint, torch.empty(2, device="meta"), tokens)
    return counter.get_total_flops()


def _on_meta(file: Any) -> Any:
    whole = {name: tensor.to("meta") for name, tensor in file.whole.items()}
    pairs = {name: replace(pair, up=pair.up.to("meta"), down=pair.down.to("meta")) for name, pair in file.pairs.items()}
    return replace(file, whole=whole, pairs=pairs)


# ---- what is damaged, or of another kind


def _refused(host: Any, path: Path, error: type[ModelFileError] = ModelFileError) -> str:
    with pytest.raises(error) as refused:
        control_lora.open(path, host, MEMORY)
    return str(refused.value)


def test_what_is_incomplete_is_named(host: sdxl.Sdxl, made: kit.Made, tmp_path: Path) -> None:
    def said(tensors: Mapping[str, Tensor]) -> str:
        return _refused(host, _written(tmp_path / "c.safetensors", tensors))

    query = "input_blocks.4.1.transformer_blocks.0.attn1.to_q"
    without = {name: {key: t for key, t in made.file.items() if key != name} for name in made.file}
    assert "attn1.to_q it has .down alone" in said(without[f"{query}.up"])
    assert "attn1.to_q it has .up alone" in said(without[f"{query}.down"])
    assert "controlnet_down_blocks.3.weight" in said(without["zero_convs.3.0.weight"])
    assert "controlnet_mid_block.bias" in said(without["middle_block_out.0.bias"])
    assert "conv_out.weight" in said(without["input_hint_block.14.weight"])
    no_hint = {key: t for key, t in made.file.items() if not key.startswith("input_hint_block.")}
    assert "no hint block" in said(no_hint)
    assert "lora_controlnet" in said(without["lora_controlnet"])
    both = {**made.file, f"{query}.weight": torch.zeros(64, 64)}
    assert "both a weight" in said(both)
    ranks = {**made.file, f"{query}.down": torch.zeros(3, 64)}
    assert "up (64, 4) and down (3, 64), expected (o r) and (r i)" in said(ranks)
    flat = {**made.file, f"{query}.down": torch.zeros(4)}
    assert "down (4,)" in said(flat)
    wide = {**made.file, f"{query}.down": torch.zeros(4, 65)}
    assert "difference to down_blocks.1.attentions.0" in said(wide) and "(64, 65)" in said(wide)
    grey = {**made.file, "input_hint_block.0.weight": torch.zeros(16, 1, 3, 3)}
    assert "(16, 1, 3, 3), expected (16, 3, 3, 3)" in said(grey)
    odd = {
        **made.file,
        "output_blocks.0.0.in_layers.2.up": torch.zeros(8, 2),
        "output_blocks.0.0.in_layers.2.down": torch.zeros(2, 8),
    }
    assert "the model has no such layer" in said(odd)


def test_numbers_that_are_none_are_refused(host: sdxl.Sdxl, made: kit.Made, tmp_path: Path) -> None:
    tensors = {**made.file, "time_embed.0.up": torch.full_like(made.file["time_embed.0.up"], torch.nan)}
    assert "NaN" in _refused(host, _written(tmp_path / "c.safetensors", tensors), CorruptFile)


def test_a_model_of_another_kind_is_refused_in_words(made: kit.Made, path: Path, tmp_path: Path) -> None:
    other = sd1.open(miniature.write_sd1_checkpoint(tmp_path / "sd1.safetensors"), MEMORY)
    assert "does not fit the open model sd1.safetensors (sd1)" in _refused(other, path, WrongFamily)
    refiner = miniature_sdxl.write_file(tmp_path / "refiner.safetensors", miniature_sdxl.Sdxl(refines=True))
    assert "does not fit the open model" in _refused(sdxl.open(refiner, MEMORY), path, WrongFamily)
    joint = sd3.open(miniature_sd3.write_file(tmp_path / "sd3.safetensors", encoders=()), MEMORY)
    assert "is a difference to a UNet's encoder" in _refused(joint, path, WrongFamily)


def test_it_has_one_form(path: Path, tmp_path: Path) -> None:
    """Repacked under its own names bit by bit; there is no other."""
    done = convert(path, tmp_path / "again.safetensors")
    assert (done.card.mechanism, done.card.num_tensors) == ("control-lora", identify(path).num_tensors)
    with pytest.raises(UnknownKind, match="cannot be renamed to diffusers"):
        convert(path, tmp_path / "out.safetensors", "diffusers")
