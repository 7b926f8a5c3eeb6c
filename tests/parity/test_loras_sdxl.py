"""LoRAs of Stable Diffusion XL against diffusers' loader, peft, and the names of published files.

Tolerance: 3e-5 on outputs of size 1, as in test_loras.py: ours are merged into float32 weights, peft's run beside them.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from corpus import headers
from disegno import Request, Result, Settings, Studio, generate
from disegno.backbones import miniature, sdxl
from disegno.backbones import miniature_sdxl as mini
from disegno.backbones.miniature_sdxl import Sdxl
from disegno.core.errors import WrongFamily
from disegno.core.request import LoraUse, Refiner
from disegno.diffusion.schedules import find_schedule, plan_sigmas, scaled_linear_table
from disegno.loras.apply import Loras, Worn, put_on
from disegno.loras.dialects import address_of, places_in, squashed
from disegno.loras.files import read_lora
from disegno.loras.matrices import difference
from disegno.memory import FULL_PRECISION, Memory
from disegno.packing import LAYERS, NORMS
from disegno.samplers.catalogue import find_sampler
from disegno.text.clip_tokens import LENGTH, tokenizer
from disegno.weights.identify import identify
from disegno.weights.keys import ldm
from disegno.weights.save import save_safetensors
from kit import xl

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")]

ATOL = 3e-5
RANK = 4
PROMPT = "a red car"
TEXTS = {"te": "text_encoder", "te2": "text_encoder_2"}
LINEAR = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out")
CONVOLUTIONS = ("conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv")
OF_TEXT = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mini.write_folder(tmp_path_factory.mktemp("models") / "xl")


@pytest.fixture(scope="module")
def model(folder: Path) -> sdxl.Sdxl:
    return sdxl.open(folder, Memory(FULL_PRECISION))


def _randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape))) * 0.2


def _inputs() -> dict[str, Any]:
    ids = torch.tensor([[64.0, 64, 0, 0, 64, 64]] * 2)
    return {
        "sample": _randn(2, 4, 8, 8) * 5,
        "timestep": torch.tensor([10.0, 700.0]),
        "encoder_hidden_states": _randn(2, 77, sum(mini.WIDTHS.values())) * 5,
        "added_cond_kwargs": {"text_embeds": _randn(2, mini.WIDTHS["clip_g"]) * 5, "time_ids": ids},
    }


@torch.no_grad()
def _output(net: nn.Module) -> Tensor:
    return net(**_inputs(), return_dict=False)[0]


def _worn(path: Path, tensors: Mapping[str, Tensor], words: Mapping[str, str] | None = None) -> Worn:
    save_safetensors(path, tensors, words or {})
    return Worn(read_lora(identify(path)), LoraUse(name=path.stem))


def _with(loras: Loras, net: nn.Module) -> Tensor:
    with loras.on("unet"):
        return _output(net)


# ---- files that diffusers reads


def _layers(model: sdxl.Sdxl, kernels: bool = True) -> Iterator[tuple[str, str, dict[str, Tensor]]]:
    """Yield LoRA matrices for the model's layers: the part, the module, down and up."""
    ends = (*LINEAR, *CONVOLUTIONS, *OF_TEXT)
    for part, net in model.lora_nets.items():
        for i, (name, module) in enumerate(net.named_modules()):
            if not any(name == end or name.endswith(f".{end}") for end in ends):
                continue
            if isinstance(module, nn.Linear):
                shapes = (RANK, module.in_features), (module.out_features, RANK)
            elif isinstance(module, nn.Conv2d) and kernels:
                shapes = (RANK, module.in_channels, *module.kernel_size), (module.out_channels, RANK, 1, 1)
            else:
                continue
            yield part, name, {"down": _randn(*shapes[0], seed=i), "up": _randn(*shapes[1], seed=i + 1)}


def _kohya(model: sdxl.Sdxl, originals: Mapping[str, str] | None = None) -> dict[str, Tensor]:
    """Return a file as sd-scripts saves it. `originals`: the UNet's names in the original, by ours."""
    starts = {"unet": "lora_unet_", "te": "lora_te1_text_model_", "te2": "lora_te2_text_model_"}
    tensors: dict[str, Tensor] = {}
    for part, name, matrices in _layers(model):
        own = originals[name] if originals and part == "unet" else name
        stem = starts[part] + squashed(own)
        tensors |= {f"{stem}.lora_{half}.weight": matrix for half, matrix in matrices.items()}
        tensors[f"{stem}.alpha"] = torch.tensor(2.0)
    return tensors


def _originally(model: sdxl.Sdxl) -> dict[str, Tensor]:
    """Return the same file by the original's names: input_blocks_4_1..., which sd-scripts writes for SDXL."""
    names = [f"{name}.weight" for name, _ in model.net.named_modules()]
    found = ldm.unet_originals(names).items()
    return _kohya(model, {ours.removesuffix(".weight"): theirs.removesuffix(".weight") for ours, theirs in found})


def _diffusers(model: sdxl.Sdxl) -> dict[str, Tensor]:
    """Return a file as diffusers saves it today."""
    halves, tensors = {"down": "lora_A", "up": "lora_B"}, dict[str, Tensor]()
    for part, name, matrices in _layers(model):
        stem = f"unet.{name}" if part == "unet" else f"{TEXTS[part]}.text_model.{name}"
        tensors |= {f"{stem}.{halves[half]}.weight": matrix for half, matrix in matrices.items()}
    return tensors


def _old_diffusers(model: sdxl.Sdxl) -> dict[str, Tensor]:
    """Return a file as diffusers' scripts saved it before peft: attention alone, and text encoders of their own."""
    tensors: dict[str, Tensor] = {}
    for part, name, matrices in _layers(model, kernels=False):
        block, _, projection = name.removesuffix(".0").rpartition(".")
        if part == "unet" and projection in ("to_q", "to_k", "to_v", "to_out"):
            stem = f"unet.{block}.processor.{projection}_lora"
        elif part != "unet" and projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
            stem = f"{TEXTS[part]}.text_model.{name}.lora_linear_layer"
        else:
            continue
        tensors |= {f"{stem}.{half}.weight": matrix for half, matrix in matrices.items()}
    return tensors


def _tokenizer(pad: str) -> CLIPTokenizer:
    merges = json.loads(tokenizer().to_str())["model"]["merges"]
    words = tokenizer().get_vocab()
    return CLIPTokenizer(vocab=words, merges=[tuple(m) for m in merges], model_max_length=LENGTH, pad_token=pad)


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Any:
    return StableDiffusionXLPipeline(
        vae=AutoencoderKL.from_pretrained(folder / "vae"),
        text_encoder=CLIPTextModel.from_pretrained(folder / "text_encoder"),
        text_encoder_2=CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder_2"),
        tokenizer=_tokenizer("<|endoftext|>"),
        tokenizer_2=_tokenizer("!"),
        unet=UNet2DConditionModel.from_pretrained(folder / "unet"),
        scheduler=EulerDiscreteScheduler(),
    )


@torch.no_grad()
@pytest.mark.parametrize("write", [_kohya, _originally, _diffusers, _old_diffusers], ids=lambda write: write.__name__)
def test_files_do_what_diffusers_does(write: Any, model: sdxl.Sdxl, pipeline: Any, tmp_path: Path) -> None:
    worn = _worn(tmp_path / "x.safetensors", write(model))
    assert identify(tmp_path / "x.safetensors").kind == "lora"
    assert {part for part, _ in worn.file.modules} == {"unet", "te", "te2"}
    pipeline.load_lora_weights(str(tmp_path), weight_name="x.safetensors", adapter_name="x")
    states, _, pooled, _ = pipeline.encode_prompt(PROMPT, device=torch.device("cpu"), num_images_per_prompt=1)
    expected = _output(pipeline.unet)
    pipeline.unload_lora_weights()
    plain, before = _output(model.net), model.encode_text([PROMPT])
    loras = put_on(model.lora_nets, [worn])
    assert loras.warnings == ()
    with loras.on("te", "te2"):
        read = model.encode_text([PROMPT])
    assert torch.allclose(_with(loras, model.net), expected, atol=ATOL)
    assert torch.allclose(read.tokens, states, atol=ATOL)
    assert read.pooled is not None and torch.allclose(read.pooled, pooled, atol=ATOL)
    assert (expected - plain).abs().max() > 0.05 and torch.equal(_output(model.net), plain)  # taken off exactly
    width = mini.WIDTHS["clip_l"]
    assert all((states - before.tokens)[..., part].abs().max() > 0.02 for part in (slice(width), slice(width, None)))


@torch.no_grad()
def test_what_diffusers_trainers_save_does_what_they_trained(model: sdxl.Sdxl, folder: Path, tmp_path: Path) -> None:
    """As train_dreambooth_lora_sdxl.py: peft's adapters on the three nets, their alphas in the header."""
    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    texts: list[Any] = [
        CLIPTextModel.from_pretrained(folder / "text_encoder"),
        CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder_2"),
    ]
    net: Any = unet
    net.add_adapter(peft.LoraConfig(r=RANK, lora_alpha=3, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    for text in texts:
        text.add_adapter(peft.LoraConfig(r=RANK, lora_alpha=6, target_modules=["q_proj", "v_proj", "out_proj"]))
    for part in (net, *texts):
        for name, parameter in part.named_parameters():
            if "lora_" in name:
                parameter.copy_(_randn(*parameter.shape))
    parts = dict(zip(("unet", "text_encoder", "text_encoder_2"), (net, *texts), strict=True))
    layers = {f"{name}_lora_layers": peft.get_peft_model_state_dict(part) for name, part in parts.items()}
    told = {f"{name}_lora_adapter_metadata": part.peft_config["default"].to_dict() for name, part in parts.items()}
    StableDiffusionXLPipeline.save_lora_weights(str(tmp_path), **layers, **told)
    worn = Worn(read_lora(identify(tmp_path / "pytorch_lora_weights.safetensors")), LoraUse(name="x"))
    loras = put_on(model.lora_nets, [worn])
    assert loras.warnings == () and {part for part, some in loras.seats.items() if some} == {"unet", "te", "te2"}
    assert torch.allclose(_with(loras, model.net), _output(net.eval()), atol=ATOL)
    with loras.on("te", "te2"):
        read = model.encode_text([PROMPT])
    outs = [
        text.eval()(clip.tokenize([PROMPT])[0], output_hidden_states=True)
        for text, clip in zip(texts, (model.text.clip_l, model.text.clip_g), strict=True)
        if clip is not None
    ]
    states = torch.cat([out.hidden_states[-2] for out in outs], dim=-1)
    assert torch.allclose(read.tokens, states, atol=ATOL)
    assert read.pooled is not None and torch.allclose(read.pooled, outs[1].text_embeds, atol=ATOL)


@pytest.mark.parametrize("kind", ["lora", "dora", "loha", "lokr"])
def test_pefts_files_do_what_peft_does(kind: str, model: sdxl.Sdxl, tmp_path: Path) -> None:
    targets = [*LINEAR, "conv1", "conv2"]
    config = {
        "lora": peft.LoraConfig(r=RANK, lora_alpha=3, target_modules=targets),
        "dora": peft.LoraConfig(r=RANK, lora_alpha=3, target_modules=targets, use_dora=True),
        "loha": peft.LoHaConfig(r=RANK, alpha=3, target_modules=targets),
        "lokr": peft.LoKrConfig(r=RANK, alpha=3, target_modules=targets),
    }[kind]
    net = UNet2DConditionModel(**mini.SDXL.unet_config)
    net.load_state_dict(model.net.state_dict())
    theirs = peft.get_peft_model(net.eval(), config)
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


@pytest.mark.parametrize("kind", ["lokr", "dora"])
def test_lycoris_files_change_what_the_originals_weights_would_be(kind: str, model: sdxl.Sdxl, tmp_path: Path) -> None:
    """By the original's names, of every layer of the UNet: its timestep's and its sizes' too."""
    tensors: dict[str, Tensor] = {}
    weights = {name: t for name, t in model.net.state_dict().items() if name.endswith(".weight") and t.ndim > 1}
    originals = ldm.unet_originals(weights)
    assert originals.keys() == weights.keys()
    for i, (name, weight) in enumerate(weights.items()):
        stem, out = "lora_unet_" + squashed(originals[name].removesuffix(".weight")), len(weight)
        if kind == "lokr":
            tensors[f"{stem}.lokr_w1"] = _randn(2, 1, seed=i)
            tensors[f"{stem}.lokr_w2"] = _randn(out // 2, *weight.shape[1:], seed=i)
            continue
        tensors[f"{stem}.lora_down.weight"] = _randn(RANK, *weight.shape[1:], seed=i)
        tensors[f"{stem}.lora_up.weight"] = _randn(out, RANK, *(1,) * (weight.ndim - 2), seed=i + 1)
        tensors[f"{stem}.dora_scale"] = weight.flatten(1).norm(dim=1).reshape(-1, *(1,) * (weight.ndim - 1)) * 1.2
    worn = _worn(tmp_path / "x.safetensors", tensors)
    net = UNet2DConditionModel(**mini.SDXL.unet_config)
    changed = dict(model.net.state_dict())
    for name, weight in weights.items():
        stem = squashed(originals[name].removesuffix(".weight"))
        changed[name] = weight + difference(weight, worn.file.modules["unet", stem], worn.file.scale_of("unet", stem))
    net.load_state_dict(changed)
    loras = put_on(model.lora_nets, [worn])
    assert loras.warnings == () and len(loras.seats["unet"]) == len(weights)
    torch.testing.assert_close(_with(loras, model.net), _output(net.eval()), atol=ATOL, rtol=1e-4)


@torch.no_grad()
def test_the_pooled_texts_projection_is_a_layer_too(model: sdxl.Sdxl, folder: Path, tmp_path: Path) -> None:
    """OneTrainer's files have matrices for it."""
    width, stem = mini.WIDTHS["clip_g"], "lora_te2_text_projection"
    down, up = _randn(RANK, width), _randn(width, RANK, seed=1)
    tensors = {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up, f"{stem}.alpha": torch.tensor(2.0)}
    loras = put_on(model.lora_nets, [_worn(tmp_path / "x.safetensors", tensors)])
    theirs = CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder_2")
    theirs.text_projection.weight += 2 / RANK * up @ down
    ids, _ = model.text.clip_g.tokenize([PROMPT])
    plain = model.encode_text([PROMPT])
    with loras.on("te2"):
        read = model.encode_text([PROMPT])
    assert loras.warnings == () and read.pooled is not None and plain.pooled is not None
    assert torch.allclose(read.pooled, theirs(ids).text_embeds, atol=ATOL)
    assert torch.equal(read.tokens, plain.tokens) and (read.pooled - plain.pooled).abs().max() > 0.05


# ---- the names of published files

CLIPS = {"te": (768, 3072, 12, 12), "te2": (1280, 5120, 32, 20)}  # widths, layers, heads


def _real() -> dict[str, nn.Module]:
    """Return the published nets, on the meta device."""
    with torch.device("meta"):
        nets: dict[str, nn.Module] = {"unet": UNet2DConditionModel(**xl.BASE)}
        for part, (width, inner, layers, heads) in CLIPS.items():
            config = CLIPTextConfig(
                hidden_size=width, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads
            )
            nets[part] = CLIPTextModel(config)
    return nets


def _trained(transformers: Mapping[str, int]) -> set[str]:
    """Return the modules of a UNet that sd-scripts trains by default: of its transformers, by their blocks' number."""
    heads = [f"attn{n}_to_{which}" for n in (1, 2) for which in ("q", "k", "v", "out_0")]
    inner = [*heads, "ff_net_0_proj", "ff_net_2"]
    found: set[str] = set()
    for name, num in transformers.items():
        stem = f"lora_unet_{name}"
        found |= {f"{stem}_proj_in", f"{stem}_proj_out"}
        found |= {f"{stem}_transformer_blocks_{i}_{module}" for i in range(num) for module in inner}
    return found


# Their numbers are those that sd-scripts reports: 722 of the UNet, 72 of CLIP-L, 192 of OpenCLIP-G
ORIGINALS = {f"input_blocks_{b}_1": 2 for b in (4, 5)} | {f"input_blocks_{b}_1": 10 for b in (7, 8)}
ORIGINALS |= {"middle_block_1": 10} | {f"output_blocks_{b}_1": 10 if b < 3 else 2 for b in range(6)}
DIFFUSERS = {f"down_blocks_{i}_attentions_{j}": num for i, num in ((1, 2), (2, 10)) for j in range(2)}
DIFFUSERS |= {"mid_block_attentions_0": 10}
DIFFUSERS |= {f"up_blocks_{i}_attentions_{j}": num for i, num in ((0, 10), (1, 2)) for j in range(3)}
OF_CLIP = [
    *(f"self_attn_{which}_proj" for which in ("q", "k", "v", "out")),
    *("mlp_fc1", "mlp_fc2"),
]
# What LCM-LoRA, Lightning and Hyper-SD change besides: residual blocks, samplers, the ends, what the timestep becomes
BESIDE = (
    "lora_unet_down_blocks_0_resnets_0_conv1",
    "lora_unet_down_blocks_0_downsamplers_0_conv",
    "lora_unet_down_blocks_1_resnets_0_conv_shortcut",
    "lora_unet_mid_block_resnets_1_time_emb_proj",
    "lora_unet_up_blocks_1_upsamplers_0_conv",
    "lora_unet_conv_in",
    "lora_unet_conv_out",
    "lora_unet_time_embedding_linear_1",
    "lora_unet_add_embedding_linear_2",
    "lora_unet_input_blocks_1_0_in_layers_2",
    "lora_unet_input_blocks_3_0_op",
    "lora_unet_input_blocks_4_0_skip_connection",
    "lora_unet_middle_block_0_emb_layers_1",
    "lora_unet_output_blocks_2_2_conv",
    "lora_unet_output_blocks_5_2_conv",
    "lora_unet_output_blocks_8_0_out_layers_3",
    "lora_unet_time_embed_0",
    "lora_unet_label_emb_0_0",
    "lora_unet_out_2",
)


def test_every_name_of_published_files_has_its_place() -> None:
    places = places_in(_real(), (*LAYERS, *NORMS))
    originals, diffusers = _trained(ORIGINALS), _trained(DIFFUSERS)
    texts = {
        f"lora_{tag}_text_model_encoder_layers_{i}_{module}"
        for tag, num in (("te1", 12), ("te2", 32))
        for i in range(num)
        for module in OF_CLIP
    }
    assert (len(originals), len(diffusers), len(texts)) == (722, 722, 72 + 192)
    for stem in (*originals, *diffusers, *texts, *BESIDE):
        address = address_of(f"{stem}.lora_down.weight")
        assert address is not None and (address.part, address.module) in places, stem
    found = {places["unet", stem.removeprefix("lora_unet_")][0].name for stem in originals}
    assert found == {places["unet", stem.removeprefix("lora_unet_")][0].name for stem in diffusers}


WORDS = {
    "sd-scripts": {"ss_base_model_version": "sdxl_base_v1-0"},
    "sd-scripts 0.9": {"ss_base_model_version": "sdxl_base_v0-9"},
    "modelspec": {"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"},
    "modelspec, old": {"modelspec.architecture": "stable-diffusion-xl-v1-base"},
}


@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS)
def test_a_trainers_header_tells_the_family(words: dict[str, str], tmp_path: Path) -> None:
    stem = "lora_te2_text_model_encoder_layers_0_mlp_fc1"  # SD 3 has such a text encoder, too
    tensors = {f"{stem}.lora_down.weight": _randn(RANK, 64), f"{stem}.lora_up.weight": _randn(128, RANK)}
    save_safetensors(tmp_path / "x.safetensors", tensors, words)
    assert identify(tmp_path / "x.safetensors").family == "sdxl"
    save_safetensors(tmp_path / "y.safetensors", tensors, {})
    assert identify(tmp_path / "y.safetensors").family == ""


# ---- through the engine


@pytest.fixture(scope="module")
def studio(folder: Path, model: sdxl.Sdxl, tmp_path_factory: pytest.TempPathFactory) -> Studio:
    models = folder.parent
    mini.write_file(models / "refiner.safetensors", Sdxl(seed=4, refines=True))
    miniature.write_sd1_checkpoint(models / "one.safetensors")
    said = {"ss_base_model_version": "sdxl_base_v1-0"}  # a miniature's text is as wide as no published one
    save_safetensors(models / "ink.safetensors", _originally(model), said)
    only = {name: tensor for name, tensor in _kohya(model).items() if name.startswith("lora_te2_")}
    save_safetensors(models / "words.safetensors", only, said)
    headers.write_header(models / "old.safetensors", headers.lora(768, modules=4))
    cache = tmp_path_factory.mktemp("cache")
    return Studio(Settings(model_dirs=(models,), cache_dir=cache, dtype="fp32", device="cpu"))


def _result(studio: Studio, prompt: str, model: str = "xl", **fields: Any) -> Result:
    fields = {"steps": 3} | fields
    request = Request(prompt=prompt, model=model, seed=1, width=64, height=64, **fields)
    last = list(generate(request, studio=studio))[-1]
    assert isinstance(last, Result)
    return last


def _draw(studio: Studio, prompt: str, **fields: Any) -> bytes:
    result = _result(studio, prompt, **fields)
    assert result.warnings == ()
    return result.images[0].tobytes()


@pytest.mark.parametrize("lora", ["ink", "words"])
def test_a_tag_changes_the_picture_and_leaves_nothing(studio: Studio, lora: str) -> None:
    plain = _draw(studio, "a cat")
    worn = [_draw(studio, f"a cat<lora:{lora}:{strength}>") for strength in ("0.5", "1", "0")]
    assert len({plain, worn[0], worn[1]}) == 3 and worn[2] == plain
    assert _draw(studio, "a cat") == plain


def test_one_of_another_family_is_refused(studio: Studio) -> None:
    with pytest.raises(WrongFamily, match="is for sd1, the open model is sdxl"):
        _draw(studio, "a cat<lora:old:1>")
    with pytest.raises(WrongFamily, match="is for sdxl, the open model is sd1"):
        _draw(studio, "a cat<lora:ink:1>", model="one")


def test_on_the_refiner_it_does_nothing_and_says_so(studio: Studio) -> None:
    """A1111 parity: a LoRA's matrices do not fit the refiner's nets, and are passed over there."""
    refiner = Refiner(model="refiner", at=0.4, share="steps")
    plain, worn = (_result(studio, prompt, refiner=refiner) for prompt in ("a cat", "a cat<lora:ink:1>"))
    assert plain.warnings == () and worn.images[0].tobytes() != plain.images[0].tobytes()
    assert worn.warnings == ("The LoRA 'ink' does nothing on the refiner refiner.safetensors, whose nets are others.",)
    both: dict[str, Any] = {"loras": (LoraUse(name="ink"),), "refiner": refiner}
    assert _result(studio, "a cat", **both).images[0].tobytes() == worn.images[0].tobytes()


@pytest.mark.parametrize(
    ("sampler", "schedule", "steps", "cfg"),
    [("LCM", "automatic", 4, 1.5), ("Euler", "SGM Uniform", 4, 1.0), ("DDIM", "Turbo", 1, 1.0)],
    ids=["LCM-LoRA", "Lightning", "Turbo, Hyper-SD"],
)
def test_few_steps_loras_have_their_samplers(
    studio: Studio, sampler: str, schedule: str, steps: int, cfg: float
) -> None:
    fields: dict[str, Any] = {"sampler": sampler, "schedule": find_schedule(schedule).name, "cfg": cfg, "steps": steps}
    worn, plain = (_draw(studio, prompt, **fields) for prompt in ("a<lora:ink:1>", "a"))
    assert worn != plain
    if sampler == "LCM":
        return
    trailing = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="trailing"
    )
    trailing.set_timesteps(steps)
    levels = plan_sigmas(find_sampler(sampler), schedule, steps, scaled_linear_table())
    # SGM Uniform's timesteps are shares of a whole one above the trailing ones
    torch.testing.assert_close(levels, trailing.sigmas.to(levels), atol=0, rtol=5e-3)
