"""LoRAs of Stable Diffusion 3 and 2 against diffusers, peft, and weights merged under the original's own names.

Tolerance: 3e-5 on outputs of size 1, as in test_loras.py: ours are merged into float32 weights, peft's run beside them.
Measured: 3e-6.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline, UNet2DConditionModel
from torch import Tensor, nn

from disegno import Request, Result, Settings, Studio, generate
from disegno.backbones import miniature_sd2, miniature_sd3, sd2, sd3
from disegno.backbones._mmdit import Mmdit
from disegno.core.errors import KeyMismatch, WrongFamily
from disegno.core.request import LoraUse
from disegno.loras.apply import Loras, Worn, put_on
from disegno.loras.files import read_lora
from disegno.loras.matrices import difference
from disegno.memory import FULL_PRECISION, Memory
from disegno.weights.identify import identify
from disegno.weights.keys import mmdit
from disegno.weights.save import save_safetensors
from kit.vocabulary import trained

pytestmark = pytest.mark.parity

ATOL = 3e-5
RANK = 4
TEXTS = {"te": "text_encoder", "te2": "text_encoder_2", "te3": "text_encoder_3"}
ATTENTION = ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj", "to_out.0", "to_add_out")
OF_TEXT = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    miniature_sd3.write_folder(folder / "sd3", tokenizer=trained())
    miniature_sd2.write_folder(folder / "sd2")
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> Mmdit:
    return sd3.open(folder / "sd3", Memory(FULL_PRECISION))


def _randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape))) * 0.2


def _inputs() -> dict[str, Tensor]:
    return {
        "hidden_states": _randn(2, 16, 8, 8) * 5,
        "encoder_hidden_states": _randn(2, 20, miniature_sd3.JOINT) * 5,
        "pooled_projections": _randn(2, sum(miniature_sd3.WIDTHS.values())) * 5,
        "timestep": torch.tensor([10.0, 700.0]),
    }


@torch.no_grad()
def _output(net: nn.Module) -> Tensor:
    return net(**_inputs(), return_dict=False)[0]


def _worn(path: Path, tensors: dict[str, Tensor], **use: Any) -> Worn:
    save_safetensors(path, tensors, {})
    card = identify(path)
    assert card.kind == "lora" and card.family in ("sd3", "")
    return Worn(read_lora(card), LoraUse(name=path.stem, **use))


def _with(loras: Loras, net: nn.Module) -> Tensor:
    with loras.on("unet"):
        return _output(net)


# ---- diffusers' and peft's names


def _linears(net: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    ends = (*ATTENTION, "ff.net.0.proj", "ff_context.net.2", "proj_out", "norm_out.linear", "norm1.linear", *OF_TEXT)
    for name, module in net.named_modules():
        if isinstance(module, nn.Linear) and any(name == end or name.endswith(f".{end}") for end in ends):
            yield name, module


def _diffusers(model: Mmdit) -> dict[str, Tensor]:
    """Return a file as diffusers saves it: the transformer, and the text encoders that diffusers trains."""
    tensors: dict[str, Tensor] = {}
    for part, net in model.lora_nets.items():
        if part == "te3":
            continue
        start = {"unet": "transformer.", "te": "text_encoder.text_model.", "te2": "text_encoder_2.text_model."}[part]
        for i, (name, module) in enumerate(_linears(net)):
            tensors[f"{start}{name}.lora_A.weight"] = _randn(RANK, module.in_features, seed=i)
            tensors[f"{start}{name}.lora_B.weight"] = _randn(module.out_features, RANK, seed=i + 1)
    return tensors


def test_diffusers_files_do_what_diffusers_does(model: Mmdit, folder: Path, tmp_path: Path) -> None:
    tensors = _diffusers(model)
    worn = _worn(tmp_path / "x.safetensors", tensors)
    assert len(tensors) > 60
    pipeline: Any = StableDiffusion3Pipeline.from_pretrained(
        folder / "sd3", tokenizer=None, tokenizer_2=None, tokenizer_3=None, **_parts(folder / "sd3")
    )
    pipeline.load_lora_weights(str(tmp_path), weight_name="x.safetensors", adapter_name="x")
    ids = torch.arange(77)[None]
    plain, before = _output(model.net), [_clip(model, part)(ids) for part in ("te", "te2")]
    with torch.no_grad():
        expected = _output(pipeline.transformer)
        states = [getattr(pipeline, TEXTS[part]).text_model(ids).last_hidden_state for part in ("te", "te2")]
    loras = put_on(model.lora_nets, [worn])
    assert loras.warnings == ()
    with loras.on("te", "te2"):
        read = [_clip(model, part)(ids) for part in ("te", "te2")]
    assert torch.allclose(_with(loras, model.net), expected, atol=ATOL)
    assert (expected - plain).abs().max() > 0.05
    assert all(torch.allclose(a, b, atol=ATOL) for a, b in zip(read, states, strict=True))
    assert all((a - b).abs().max() > 0.05 for a, b in zip(read, before, strict=True))
    assert torch.equal(_output(model.net), plain)  # taken off exactly


def _clip(model: Mmdit, part: str) -> Any:
    @torch.no_grad()
    def read(ids: Tensor) -> Tensor:
        net: Any = model.lora_nets[part]
        return net(ids).last_hidden_state

    return read


def _parts(folder: Path) -> dict[str, Any]:
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler
    from transformers import CLIPTextModelWithProjection, T5EncoderModel

    return {
        "transformer": SD3Transformer2DModel.from_pretrained(folder / "transformer"),
        "vae": AutoencoderKL.from_pretrained(folder / "vae"),
        "text_encoder": CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder"),
        "text_encoder_2": CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder_2"),
        "text_encoder_3": T5EncoderModel.from_pretrained(folder / "text_encoder_3"),
        "scheduler": FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler"),
    }


def _net(model: Mmdit) -> SD3Transformer2DModel:
    net = SD3Transformer2DModel(**miniature_sd3.SD3.net_config)
    net.load_state_dict(model.net.state_dict())
    return net.eval()


@pytest.mark.parametrize("kind", ["lora", "dora", "loha", "lokr"])
def test_pefts_files_do_what_peft_does(kind: str, model: Mmdit, tmp_path: Path) -> None:
    targets = [*ATTENTION, "ff.net.0.proj", "ff_context.net.2"]
    config = {
        "lora": peft.LoraConfig(r=RANK, lora_alpha=3, target_modules=targets),
        "dora": peft.LoraConfig(r=RANK, lora_alpha=3, target_modules=targets, use_dora=True),
        "loha": peft.LoHaConfig(r=RANK, alpha=3, target_modules=targets),
        "lokr": peft.LoKrConfig(r=RANK, alpha=3, target_modules=targets),
    }[kind]
    theirs = peft.get_peft_model(_net(model), config)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if any(mark in name for mark in ("lora_A", "lora_B", "hada_", "lokr_")):
                parameter.copy_(_randn(*parameter.shape) / 2)
    theirs.save_pretrained(str(tmp_path))
    expected = _output(theirs.eval())
    worn = Worn(read_lora(identify(tmp_path / "adapter_model.safetensors")), LoraUse(name="x"))
    loras = put_on(model.lora_nets, [worn])
    assert loras.warnings == () and (expected - _output(model.net)).abs().max() > 0.01
    assert torch.allclose(_with(loras, model.net), expected, atol=ATOL)


# ---- the original's names, where queries, keys and values are one layer


def _kohya(model: Mmdit, kind: str) -> dict[str, Tensor]:
    """Return a file as sd-scripts and LyCORIS save it, of every layer of the transformer."""
    tensors: dict[str, Tensor] = {}
    for i, (name, weight) in enumerate(mmdit.to_original(model.net.state_dict()).items()):
        if not name.endswith(".weight") or weight.ndim < 2:
            continue
        stem = "lora_unet_" + name.removesuffix(".weight").replace(".", "_")
        out, inner = weight.shape[0], weight.shape[1:].numel()
        if kind == "lokr":
            tensors[f"{stem}.lokr_w1"] = _randn(2, 1, seed=i)
            tensors[f"{stem}.lokr_w2"] = _randn(out // 2, inner, seed=i)
            continue
        tensors[f"{stem}.lora_down.weight"] = _randn(RANK, *weight.shape[1:], seed=i)
        tensors[f"{stem}.lora_up.weight"] = _randn(out, RANK, *(1,) * (weight.ndim - 2), seed=i + 1)
        tensors[f"{stem}.alpha"] = torch.tensor(2.0)
        if kind == "dora":
            tensors[f"{stem}.dora_scale"] = weight.flatten(1).norm(dim=1).reshape(-1, 1) * 1.2
    return tensors


@pytest.mark.parametrize("kind", ["lora", "lokr", "dora"])
def test_kohyas_files_change_what_the_originals_weights_would_be(kind: str, model: Mmdit, tmp_path: Path) -> None:
    worn = _worn(tmp_path / "x.safetensors", _kohya(model, kind), strength=0.5)
    original = mmdit.to_original(model.net.state_dict())
    changed = dict(original)
    for name, weight in original.items():
        matrices = worn.file.modules.get(("unet", name.removesuffix(".weight").replace(".", "_")))
        if matrices is not None:
            changed[name] = weight + 0.5 * difference(weight, matrices, worn.file.scale_of("unet", name))
    assert sum(not torch.equal(changed[name], original[name]) for name in original) == len(worn.file.modules)
    net = _net(model)
    net.load_state_dict(mmdit.from_original(changed))
    loras = put_on(model.lora_nets, [worn])
    plain, made = _output(model.net), _with(loras, model.net)
    assert loras.warnings == () and (made - plain).abs().max() > 0.01
    assert torch.allclose(made, _output(net), atol=ATOL)
    assert torch.equal(_output(model.net), plain)


def test_kohyas_files_change_each_text_encoder(model: Mmdit, tmp_path: Path) -> None:
    layers = {
        "lora_te1_text_model_encoder_layers_0_mlp_fc1": (32, 64),
        "lora_te2_text_model_encoder_layers_0_mlp_fc1": (64, 128),
        "lora_te3_encoder_block_0_layer_0_SelfAttention_q": (miniature_sd3.JOINT, 64),
    }
    tensors: dict[str, Tensor] = {}
    for stem, (inner, outer) in layers.items():
        tensors |= {f"{stem}.lora_down.weight": _randn(RANK, inner), f"{stem}.lora_up.weight": _randn(outer, RANK)}
    loras = put_on(model.lora_nets, [_worn(tmp_path / "x.safetensors", tensors)])
    assert {part: len(seats) for part, seats in loras.seats.items()} == {"te": 1, "te2": 1, "te3": 1}
    assert loras.warnings == () and loras.change("te3") and not loras.change("unet")
    plain = _halves(model)
    with loras.on("te"):
        of_clip = _halves(model)
    with loras.on("te3"):
        of_t5 = _halves(model)
    same = [[torch.equal(a, b) for a, b in zip(half, plain, strict=True)] for half in (of_clip, of_t5, _halves(model))]
    assert same == [[False, True], [True, False], [True, True]]


def _halves(model: Mmdit) -> tuple[Tensor, Tensor]:
    """Return what the two CLIPs say of a prompt, and what T5 says."""
    tokens = model.encode_text(["a red car"]).tokens
    return tokens[:, :77], tokens[:, 77:]


# ---- through the engine


@pytest.fixture(scope="module")
def studio(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Studio:
    model = sd3.open(folder / "sd3", Memory(FULL_PRECISION))
    save_safetensors(folder / "ink.safetensors", _kohya(model, "lora"), {})
    fc1 = "lora_te2_text_model_encoder_layers_0_mlp_fc1"
    of_text = {f"{fc1}.lora_down.weight": _randn(RANK, 64), f"{fc1}.lora_up.weight": _randn(128, RANK)}
    save_safetensors(folder / "words.safetensors", of_text, {})
    mid = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    old = {
        f"{mid}.lora_down.weight": _randn(RANK, 64),
        f"{mid}.lora_up.weight": _randn(64, RANK),
        "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": _randn(RANK, 64),
        "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": _randn(128, RANK),
    }
    save_safetensors(folder / "old.safetensors", old, {"ss_base_model_version": "sd_v2"})
    cache = tmp_path_factory.mktemp("cache")
    return Studio(Settings(model_dirs=(folder,), cache_dir=cache, dtype="fp32", device="cpu"))


def _draw(studio: Studio, prompt: str, model: str) -> bytes:
    request = Request(prompt=prompt, model=model, seed=1, steps=3, width=64, height=64)
    last = list(generate(request, studio=studio))[-1]
    assert isinstance(last, Result) and last.warnings == ()
    return last.images[0].tobytes()


@pytest.mark.parametrize(("model", "lora"), [("sd3", "ink"), ("sd3", "words"), ("sd2", "old")])
def test_a_tag_changes_the_picture_and_leaves_nothing(studio: Studio, model: str, lora: str) -> None:
    plain = _draw(studio, "a cat", model)
    worn = [_draw(studio, f"a cat<lora:{lora}:{strength}>", model) for strength in ("0.5", "1", "0")]
    assert len({plain, worn[0], worn[1]}) == 3 and worn[2] == plain
    assert _draw(studio, "a cat", model) == plain


def test_one_of_another_family_is_refused(studio: Studio) -> None:
    with pytest.raises(WrongFamily, match="is for sd3, the open model is sd2"):
        _draw(studio, "a cat<lora:ink:1>", "sd2")
    with pytest.raises(WrongFamily, match="is for sd2, the open model is sd3"):
        _draw(studio, "a cat<lora:old:1>", "sd3")


def test_a_lora_of_another_size_is_refused(model: Mmdit, tmp_path: Path) -> None:
    stem = "lora_unet_joint_blocks_1_x_block_attn_qkv"
    wide = {f"{stem}.lora_down.weight": _randn(RANK, 1536), f"{stem}.lora_up.weight": _randn(4608, RANK)}
    with pytest.raises(KeyMismatch, match=r"does not fit unet transformer_blocks\.1\.attn\.to_q"):
        put_on(model.lora_nets, [_worn(tmp_path / "wide.safetensors", wide)])


# ---- Stable Diffusion 2


def test_pefts_files_change_stable_diffusion_2(folder: Path, tmp_path: Path) -> None:
    backbone = sd2.open(folder / "sd2", Memory(FULL_PRECISION))
    net = UNet2DConditionModel(**miniature_sd2.UNET)
    net.load_state_dict(backbone.net.state_dict())
    theirs = peft.get_peft_model(net.eval(), peft.LoraConfig(r=RANK, lora_alpha=3, target_modules=["to_q", "proj_in"]))
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_" in name:
                parameter.copy_(_randn(*parameter.shape))
    theirs.save_pretrained(str(tmp_path))
    given = _randn(2, 4, 8, 8) * 5, torch.tensor([10.0, 700.0]), _randn(2, 77, miniature_sd2.WIDTH) * 5
    with torch.no_grad():
        expected, plain = theirs.eval()(*given, return_dict=False)[0], backbone.net(*given, return_dict=False)[0]
    worn = Worn(read_lora(identify(tmp_path / "adapter_model.safetensors")), LoraUse(name="x"))
    loras = put_on(backbone.lora_nets, [worn])
    with loras.on("unet"), torch.no_grad():
        made = backbone.net(*given, return_dict=False)[0]
    assert loras.warnings == () and (made - plain).abs().max() > 0.01
    assert torch.allclose(made, expected, atol=ATOL)
