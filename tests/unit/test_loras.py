"""LoRAs are put on and taken off: exactly, on packed layers too; what does not fit is said."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from disegno.backbones import miniature
from disegno.backbones._latent_diffusion import LatentDiffusion
from disegno.core.errors import CorruptFile, KeyMismatch, ModelFileError, UnknownKind
from disegno.core.request import LoraUse
from disegno.loras.apply import NO_LORAS, Loras, Worn, put_on
from disegno.loras.dialects import address_of
from disegno.loras.files import read_lora
from disegno.loras.matrices import Scale, difference
from disegno.memory import FULL_PRECISION, Memory, Policy
from disegno.packing import PackedConv2d, PackedLinear, can_pack, pack, with_weight
from disegno.weights.identify import identify
from disegno.weights.keys import ldm
from disegno.weights.save import save_safetensors

pytestmark = pytest.mark.unit

BF16 = Policy(torch.device("cpu"), torch.bfloat16, torch.channels_last, vae_dtype=torch.bfloat16)
TO_Q, CONV = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q", "mid_block.resnets.0.conv1"
FC1 = "encoder.layers.0.mlp.fc1"


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def model(request: pytest.FixtureRequest) -> LatentDiffusion:
    """Return the miniature, its layers plain; in bfloat16 packed where this machine can."""
    return miniature.open_miniature(Memory(FULL_PRECISION if request.param == "fp32" else BF16))


def _randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.3


def _kohya(*modules: str, rank: int = 4, start: str = "lora_unet_", seed: int = 0) -> dict[str, Tensor]:
    shapes = {TO_Q: ((32,), (32,)), CONV: ((64, 3, 3), (64, 1, 1)), FC1: ((32,), (64,))}
    tensors: dict[str, Tensor] = {}
    for module in modules:
        inner, outer = shapes.get(module, ((32,), (32,)))
        stem = start + module.replace(".", "_")
        tensors[f"{stem}.lora_down.weight"] = _randn(rank, *inner, seed=seed)
        tensors[f"{stem}.lora_up.weight"] = _randn(outer[0], rank, *outer[1:], seed=seed + 1)
    return tensors


def _worn(folder: Path, tensors: dict[str, Tensor], name: str = "ink", **use: object) -> Worn:
    save_safetensors(folder / f"{name}.safetensors", tensors, {})
    return Worn(read_lora(identify(folder / f"{name}.safetensors")), LoraUse(name=name, **use))


@torch.no_grad()
def _output(model: LatentDiffusion) -> Tensor:
    dtype = model.net.dtype
    x, tokens = _randn(2, 4, 8, 8).to(dtype), _randn(2, 77, 32, seed=1).to(dtype)
    return model.net(x, torch.tensor([10.0, 700.0]), tokens, return_dict=False)[0]


def _modules(model: LatentDiffusion) -> list[int]:
    return [id(module) for net in model.lora_nets.values() for module in net.modules()]


# ---- on and off


def test_taking_off_is_exact(model: LatentDiffusion, tmp_path: Path) -> None:
    before, modules = _output(model), _modules(model)
    weights = {name: tensor.clone() for name, tensor in model.net.state_dict().items()}
    loras = put_on(model.lora_nets, [_worn(tmp_path, _kohya(TO_Q, CONV))])
    with loras.on("unet"):
        assert not torch.equal(_output(model), before)
    assert torch.equal(_output(model), before)
    assert _modules(model) == modules
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.net.state_dict().items())


def test_an_error_while_they_are_on_takes_them_off(model: LatentDiffusion, tmp_path: Path) -> None:
    modules = _modules(model)
    loras = put_on(model.lora_nets, [_worn(tmp_path, _kohya(TO_Q))])
    with pytest.raises(ZeroDivisionError), loras.on("unet"):
        _ = 1 / 0
    assert _modules(model) == modules


def test_a_copy_is_packed_where_its_layer_is(model: LatentDiffusion, tmp_path: Path) -> None:
    seats = put_on(model.lora_nets, [_worn(tmp_path, _kohya(TO_Q, CONV))]).seats["unet"]
    packs = model.net.dtype == torch.bfloat16 and can_pack()
    expected = [PackedLinear, PackedConv2d] if packs else [nn.Linear, nn.Conv2d]
    assert [type(seat.other) for seat in seats] == expected == [type(seat.own) for seat in seats]


def test_the_copy_is_the_sum(model: LatentDiffusion, tmp_path: Path) -> None:
    tensors = _kohya(TO_Q)
    (seat,) = put_on(model.lora_nets, [_worn(tmp_path, tensors, strength=0.5)]).seats["unet"]
    down, up = tensors.values()
    expected = (seat.own.weight.float() + 0.5 * up @ down).to(model.net.dtype)
    assert torch.allclose(seat.other.weight, expected, atol=1e-6)


def test_two_add_up_whatever_their_order(model: LatentDiffusion, tmp_path: Path) -> None:
    one, two = (_worn(tmp_path, _kohya(TO_Q, seed=7 * n), f"n{n}") for n in (1, 2))
    outputs = []
    for worn in ([one], [two], [one, two], [two, one]):
        loras = put_on(model.lora_nets, worn)
        with loras.on("unet"):
            outputs.append(_output(model))
    assert torch.allclose(outputs[2], outputs[3], atol=1e-2 if model.net.dtype == torch.bfloat16 else 1e-5)
    assert not torch.equal(outputs[2], outputs[0]) and not torch.equal(outputs[2], outputs[1])


def test_parts_have_strengths_of_their_own(model: LatentDiffusion, tmp_path: Path) -> None:
    tensors = _kohya(TO_Q) | _kohya(FC1, start="lora_te_text_model_")
    only_text = put_on(model.lora_nets, [_worn(tmp_path, tensors, strength=0.0, text_strength=1.0)])
    assert [part for part, seats in only_text.seats.items() if seats] == ["te"]
    both = put_on(model.lora_nets, [_worn(tmp_path, tensors, strength=0.5)])
    assert {part: len(seats) for part, seats in both.seats.items()} == {"unet": 1, "te": 1}
    plain = model.encode_text(["a cat"]).tokens
    with both.on("te"):
        assert not torch.equal(model.encode_text(["a cat"]).tokens, plain)
    assert torch.equal(model.encode_text(["a cat"]).tokens, plain)


def test_a_rank_is_cut_but_its_scale_is_not(model: LatentDiffusion, tmp_path: Path) -> None:
    tensors = _kohya(TO_Q) | {f"lora_unet_{TO_Q.replace('.', '_')}.alpha": torch.tensor(2.0)}
    (seat,) = put_on(model.lora_nets, [_worn(tmp_path, tensors, rank=1)]).seats["unet"]
    down, up, _ = tensors.values()
    expected = (seat.own.weight.float() + 2 / 4 * up[:, :1] @ down[:1]).to(model.net.dtype)
    assert torch.allclose(seat.other.weight, expected, atol=1e-6)


def test_a_full_difference_changes_the_bias_too(model: LatentDiffusion, tmp_path: Path) -> None:
    stem = "lora_unet_time_embedding_linear_1"
    tensors = {f"{stem}.diff": _randn(128, 32), f"{stem}.diff_b": _randn(128), **_kohya(TO_Q)}
    seats = put_on(model.lora_nets, [_worn(tmp_path, tensors)]).seats["unet"]
    seat = next(seat for seat in seats if seat.name == "linear_1")
    shifted = (seat.own.bias.float() + tensors[f"{stem}.diff_b"]).to(model.net.dtype)
    assert torch.equal(seat.other.bias, shifted)


def test_the_norms_of_a_lora_are_changed(model: LatentDiffusion, tmp_path: Path) -> None:
    norm = "down_blocks.0.attentions.0.norm"
    stem, own = f"lora_unet_{norm.replace('.', '_')}", model.net.get_submodule(norm)
    tensors = {f"{stem}.w_norm": _randn(32), f"{stem}.b_norm": _randn(32, seed=1)}
    loras = put_on({"unet": model.net}, [_worn(tmp_path, tensors, strength=0.5)])
    with loras.on("unet"):
        changed = model.net.get_submodule(norm)
        for name, added in (("weight", tensors[f"{stem}.w_norm"]), ("bias", tensors[f"{stem}.b_norm"])):
            kept = own.get_parameter(name)
            assert torch.equal(changed.get_parameter(name), (kept.float() + 0.5 * added).to(kept.dtype))
    assert model.net.get_submodule(norm) is own and loras.warnings == ()


def test_the_first_layer_of_a_model_that_inpaints_keeps_its_other_channels(tmp_path: Path) -> None:
    net = miniature.open_miniature(made=miniature.Miniature(in_channels=9)).net
    tensors = {
        "lora_unet_conv_in.lora_down.weight": _randn(4, 4, 3, 3),
        "lora_unet_conv_in.lora_up.weight": _randn(32, 4, 1, 1, seed=1),
    }
    own = net.get_parameter("conv_in.weight").clone()
    with put_on({"unet": net}, [_worn(tmp_path, tensors)]).on("unet"):
        changed = net.get_parameter("conv_in.weight")
        assert torch.equal(changed[:, 4:], own[:, 4:]) and not torch.equal(changed[:, :4], own[:, :4])


def test_none_are_no_loras(model: LatentDiffusion) -> None:
    assert put_on(model.lora_nets, []).key == NO_LORAS.key == ""
    with NO_LORAS.on("unet"), NO_LORAS.on("te"):
        pass


def test_keys_tell_content_and_strength_apart(tmp_path: Path) -> None:
    model = miniature.open_miniature()
    a, b = _kohya(TO_Q), _kohya(TO_Q, seed=5)

    def key(tensors: dict[str, Tensor], **use: object) -> str:
        return put_on(model.lora_nets, [_worn(tmp_path, tensors, **use)]).key

    keys = [key(a), key(b), key(a, strength=0.5), key(a, text_strength=0.5), key(a, rank=2)]
    assert len(set(keys)) == 5 and key(a) == keys[0]


# ---- names


def test_the_originals_names_are_known(tmp_path: Path) -> None:
    model = miniature.open_miniature()
    original = ldm.unet_originals([f"{TO_Q}.weight", *model.net.state_dict()])[f"{TO_Q}.weight"].removesuffix(".weight")
    assert original.startswith("input_blocks.1.1.")
    ours = put_on(model.lora_nets, [_worn(tmp_path, _kohya(TO_Q), "ours")])
    renamed = {key.replace(TO_Q.replace(".", "_"), original.replace(".", "_")): t for key, t in _kohya(TO_Q).items()}
    theirs = put_on(model.lora_nets, [_worn(tmp_path, renamed, "theirs")])
    for loras in (ours, theirs):
        assert [seat.parent for seat in loras.seats["unet"]] == [model.net.get_submodule(TO_Q.rpartition(".")[0])]


@pytest.mark.parametrize(
    ("key", "address"),
    [
        ("lora_unet_mid_block_x.lora_down.weight", ("unet", "mid_block_x", "lora_down")),
        ("lora_te_text_model_encoder_layers_0_mlp_fc1.alpha", ("te", "encoder_layers_0_mlp_fc1", "alpha")),
        ("unet.a.b.lora.up.weight", ("unet", "a_b", "lora_up")),
        ("text_encoder.text_model.encoder.x.lora_linear_layer.down.weight", ("te", "encoder_x", "lora_down")),
        ("base_model.model.text_model.encoder.x.lora_A.weight", ("te", "encoder_x", "lora_down")),
        ("base_model.model.a.attn1.to_q.lora_B.default.weight", ("unet", "a_attn1_to_q", "lora_up")),
        ("unet.a.attn1.processor.to_out_lora.up.weight", ("unet", "a_attn1_to_out_0", "lora_up")),
        ("diffusion_model.input_blocks.1.1.x.lora_magnitude_vector", ("unet", "input_blocks_1_1_x", "magnitude")),
        ("lora_unet_x.hada_w1_a", ("unet", "x", "hada_w1_a")),
        ("lora_unet_x.lokr_t2", ("unet", "x", "lokr_t2")),
        ("lora_unet_x.oft_blocks", ("unet", "x", "oft_blocks")),
        ("oft_unet_x.oft_blocks", ("unet", "x", "oft_blocks")),
        ("lycoris_mid_block_x.lokr_w1", ("unet", "mid_block_x", "lokr_w1")),
        ("lycoris_text_model_encoder_x.lokr_w1", ("te", "encoder_x", "lokr_w1")),
        ("lora_unet_x.w_norm", ("unet", "x", "diff")),
        ("lora_unet_x.b1.weight", ("unet", "x", "glora_b1")),
        ("unet.a.x.lora_A.my-style.weight", ("unet", "a_x", "lora_down")),
        ("unet.a.x.lora_magnitude_vector.my-style", ("unet", "a_x", "magnitude")),
        ("unet.a.x.lora_B.bias", None),
        ("conv_in.other", None),
    ],
)
def test_names_are_taken_apart(key: str, address: tuple[str, str, str] | None) -> None:
    assert address_of(key) == address


# ---- what does not fit


def _error(folder: Path, tensors: dict[str, Tensor]) -> Loras:
    return put_on(miniature.open_miniature().lora_nets, [_worn(folder, tensors)])


def test_some_of_many_is_a_warning(tmp_path: Path) -> None:
    loras = _error(tmp_path, _kohya(TO_Q, CONV, "nowhere.at.all"))
    assert loras.warnings == ("The LoRA 'ink': 2 of 3 modules applied; this model has no place for the others.",)


def test_tensors_of_no_known_kind_are_told(tmp_path: Path) -> None:
    worn = _worn(tmp_path, _kohya(TO_Q) | {"bundle_emb.x.emb_params": _randn(1, 32), "lora_unet_a.weight": _randn(2)})
    said = put_on(miniature.open_miniature().lora_nets, [worn]).warnings
    assert len(said) == 1 and "2 of its tensors are of no known kind and do nothing: bundle_emb.x" in said[0]


def test_none_of_many_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(
        KeyMismatch, match="'ink' applies to none of this model's layers: its 2 modules are unet no_where, unet"
    ):
        _error(tmp_path, _kohya("nowhere", "no.where"))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda t, s: t | {f"{s}.lora_up.weight": torch.ones(16, 4)}, "lora_up (16, 4)"),
        (lambda t, s: t | {f"{s}.lora_down.weight": torch.ones(4, 16)}, "lora_down (4, 16)"),
        (lambda t, s: t | {f"{s}.lora_down.weight": torch.ones(3, 32)}, "lora_down (3, 32)"),
        (lambda t, s: {f"{s}.lora_down.weight": torch.ones(4, 32)}, "lacks the matrix 'lora_up'"),
        (lambda t, s: t | {f"{s}.dora_scale": torch.ones(1, 5)}, "dora_scale (1, 5)"),
        (lambda t, s: {f"{s}.hada_w1_a": torch.ones(32, 4), f"{s}.hada_w1_b": torch.ones(4, 32)}, "hada_w2_a"),
        (lambda t, s: {f"{s}.oft_blocks": torch.ones(3, 2, 2)}, "oft_blocks (3, 2, 2)"),
        (lambda t, s: {f"{s}.oft_blocks": torch.ones(2, 2)}, "oft_blocks (2, 2)"),
        (lambda t, s: {f"{s}.weight": torch.ones(7), f"{s}.on_input": torch.tensor(1)}, "weight (7,)"),
        (lambda t, s: {f"{s}.diff": torch.ones(32, 32), f"{s}.diff_b": torch.ones(7)}, "diff_b (7,) has no bias"),
    ],
)
def test_matrices_of_other_shapes_are_an_error(
    spoil: Callable[[dict[str, Tensor], str], dict[str, Tensor]], words: str, tmp_path: Path
) -> None:
    tensors = spoil(_kohya(TO_Q), f"lora_unet_{TO_Q.replace('.', '_')}") | _kohya(CONV, seed=3)
    with pytest.raises(KeyMismatch) as caught:
        _error(tmp_path, tensors)
    assert words in str(caught.value) and f"does not fit unet {TO_Q}" in str(caught.value)


def test_a_file_of_no_known_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownKind, match="holds no matrices that can be used"):
        _worn(tmp_path, {"lora_unet_x.oft_diag": torch.ones(2, 2, 2)})


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    tensors = _kohya(TO_Q)
    next(iter(tensors.values()))[0, 0] = torch.nan
    with pytest.raises(CorruptFile, match="ink"):
        _worn(tmp_path, tensors)


@pytest.mark.parametrize(
    ("config", "error"),
    [
        ("{", CorruptFile),
        ("[]", CorruptFile),
        ('{"lora_alpha": "much"}', CorruptFile),
        ('{"alpha_pattern": {"(a|b)+": 2}}', UnknownKind),
    ],
)
def test_a_configuration_that_cannot_be_read_is_an_error(
    config: str, error: type[ModelFileError], tmp_path: Path
) -> None:
    save_safetensors(tmp_path / "adapter_model.safetensors", _kohya(TO_Q), {})
    (tmp_path / "adapter_config.json").write_text(config, "utf-8")
    with pytest.raises(error):
        read_lora(identify(tmp_path / "adapter_model.safetensors"))


def test_diffusers_header_states_the_scale(tmp_path: Path) -> None:
    words = {"lora_adapter_metadata": '{"unet.r": 4, "unet.lora_alpha": 2, "text_encoder.lora_alpha": 8}'}
    tensors = {f"unet.{TO_Q}.lora_A.weight": _randn(4, 32), f"unet.{TO_Q}.lora_B.weight": _randn(32, 4)}
    save_safetensors(tmp_path / "x.safetensors", tensors, words)
    file = read_lora(identify(tmp_path / "x.safetensors"))
    assert (file.scale_of("unet", "any").alpha, file.scale_of("te", "any").alpha) == (2.0, 8.0)


def test_the_hash_is_that_which_others_show(tmp_path: Path) -> None:
    import hashlib

    save_safetensors(tmp_path / "x.safetensors", _kohya(TO_Q), {"sshs_model_hash": "ab" * 32})
    assert read_lora(identify(tmp_path / "x.safetensors")).hash == "ab" * 32
    save_safetensors(tmp_path / "y.safetensors", _kohya(TO_Q), {})
    data = (tmp_path / "y.safetensors").read_bytes()
    body = data[8 + int.from_bytes(data[:8], "little") :]
    assert read_lora(identify(tmp_path / "y.safetensors")).hash == hashlib.sha256(body).hexdigest()


# ---- layers with another weight


@pytest.mark.parametrize("layer", [nn.Linear(8, 6), nn.Conv2d(8, 6, 3, 2, 1), nn.Conv2d(8, 4, 3, groups=2, bias=False)])
def test_a_layer_with_its_own_weight_is_itself(layer: nn.Module) -> None:
    x = _randn(2, 8) if isinstance(layer, nn.Linear) else _randn(2, 8, 9, 9)
    layer = layer.to(torch.bfloat16).requires_grad_(False)
    x = x.to(torch.bfloat16)
    weight, bias = layer.weight.clone(), None if layer.bias is None else layer.bias.clone()
    expected = layer(x)
    layers = [layer]
    if can_pack():
        holder = nn.Sequential(layer)
        assert pack(holder) == 1
        layers += [holder[0]]
    for each in layers:
        copy = with_weight(each, weight.float(), bias)
        assert type(copy) is type(each) and torch.equal(copy(x), expected)
        assert not torch.equal(with_weight(each, weight * 2, bias)(x), expected)
        assert torch.equal(each(x), expected)


_KINDS: tuple[tuple[str, ...], ...] = (
    ("lora_down", "lora_up"),
    ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),
    ("lokr_w1", "lokr_w2"),
    ("glora_a1", "glora_a2", "glora_b1", "glora_b2"),
    ("oft_blocks",),
    ("diff",),
    ("lora_down", "lora_up", "dora_scale"),
)


@pytest.mark.parametrize("shape", [(), (7,), (2, 3, 5)], ids=str)
@pytest.mark.parametrize("names", _KINDS, ids=lambda names: names[-1])
def test_matrices_with_too_few_sides_do_not_fit(names: tuple[str, ...], shape: tuple[int, ...]) -> None:
    weight = torch.ones(4, 6)
    for spoilt in names:
        given = {name: torch.ones(2, 2) for name in names} | {spoilt: torch.ones(shape)}
        if "dora_scale" in names:
            given |= {"lora_down": torch.ones(2, 6), "lora_up": torch.ones(4, 2), spoilt: torch.ones(shape)}
        with pytest.raises(KeyMismatch, match=r"fit|lacks"):
            difference(weight, given, Scale())
