"""LoRAs against peft, diffusers and LyCORIS: the same file, the same output of the same net.

Tolerance: 2e-5 on outputs of size 1. Ours are merged into float32 weights; the others run beside them or merge too, in
another order of summation.
"""

from pathlib import Path
from typing import Any

import lycoris.functional.locon as locon
import lycoris.functional.loha as loha
import lycoris.functional.lokr as lokr
import peft
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from lycoris.functional.general import apply_dora_scale
from lycoris.modules.boft import ButterflyOFTModule
from lycoris.modules.diag_oft import DiagOFTModule
from lycoris.modules.glora import GLoRAModule
from lycoris.modules.ia3 import IA3Module
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from disegno.backbones import miniature
from disegno.backbones._latent_diffusion import LatentDiffusion
from disegno.core.request import LoraUse
from disegno.loras.apply import Worn, put_on
from disegno.loras.dialects import address_of
from disegno.loras.files import read_lora
from disegno.loras.matrices import Scale, difference
from disegno.weights.identify import identify
from disegno.weights.save import save_safetensors

pytestmark = pytest.mark.parity

ATOL = 2e-5
LINEAR = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"]
CONVOLUTIONS = ["conv1", "conv2", "conv_shortcut", "proj_in", "proj_out", "downsamplers.0.conv"]


@pytest.fixture(scope="module")
def model() -> LatentDiffusion:
    return miniature.open_miniature()


def _inputs(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, tokens = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 77, 32, generator=generator)
    return x, torch.tensor([10.0, 700.0]), tokens


@torch.no_grad()
def _output(net: nn.Module) -> Tensor:
    return net(*_inputs(), return_dict=False)[0]


def _ours(model: LatentDiffusion, path: Path, **use: Any) -> Tensor:
    lora = put_on(model.lora_nets, [Worn(read_lora(identify(path)), LoraUse(name="x", **use))])
    assert lora.warnings == ()
    with lora.on("unet"):
        return _output(model.net)


def _randomised(net: nn.Module, seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if any(mark in name for mark in ("lora_", "hada_", "lokr_")) and "magnitude" not in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
            elif "magnitude" in name:
                parameter.mul_(1 + 0.2 * torch.rand(parameter.shape, generator=generator))


def _net(model: LatentDiffusion) -> UNet2DConditionModel:
    net = UNet2DConditionModel(**miniature.SD1.unet_config)
    net.load_state_dict(model.net.state_dict())
    return net.eval()


PEFT = {
    "lora": peft.LoraConfig(r=4, lora_alpha=3, target_modules=LINEAR + CONVOLUTIONS),
    "rslora": peft.LoraConfig(r=4, lora_alpha=3, use_rslora=True, target_modules=LINEAR),
    "patterns": peft.LoraConfig(
        r=4, lora_alpha=3, target_modules=LINEAR, alpha_pattern={"attn1.to_q": 9, "ff.net.2": 1}
    ),
    "dora": peft.LoraConfig(r=4, lora_alpha=3, use_dora=True, target_modules=LINEAR + CONVOLUTIONS),
    "loha": peft.LoHaConfig(r=4, alpha=3, target_modules=LINEAR + CONVOLUTIONS),
    "loha core": peft.LoHaConfig(r=4, alpha=3, target_modules=LINEAR + CONVOLUTIONS, use_effective_conv2d=True),
    "lokr": peft.LoKrConfig(r=4, alpha=3, target_modules=LINEAR + CONVOLUTIONS),
    "lokr core": peft.LoKrConfig(
        r=4, alpha=3, target_modules=LINEAR + CONVOLUTIONS, use_effective_conv2d=True, decompose_both=True
    ),
}


@pytest.mark.parametrize("kind", PEFT)
def test_pefts_files_do_what_peft_does(kind: str, model: LatentDiffusion, tmp_path: Path) -> None:
    theirs = peft.get_peft_model(_net(model), PEFT[kind])
    _randomised(theirs)
    theirs.save_pretrained(str(tmp_path))
    expected = _output(theirs.eval())
    assert (expected - _output(model.net)).abs().max() > 0.01
    assert torch.allclose(_ours(model, tmp_path / "adapter_model.safetensors"), expected, atol=ATOL)


# ---- kohya's and diffusers' files, through diffusers


def _matrices(model: LatentDiffusion, rank: int = 4, kernels: bool = True) -> dict[tuple[str, str], dict[str, Tensor]]:
    """Return LoRA matrices for the model's layers, by part and module."""
    generator = torch.Generator().manual_seed(3)
    made: dict[tuple[str, str], dict[str, Tensor]] = {}
    for part, net in model.lora_nets.items():
        for name, module in net.named_modules():
            if isinstance(module, nn.Linear) and any(name.endswith(end) for end in (*LINEAR, "proj", "fc1", "fc2")):
                shapes = (rank, module.in_features), (module.out_features, rank)
            elif isinstance(module, nn.Conv2d) and kernels and any(name.endswith(end) for end in CONVOLUTIONS):
                shapes = (rank, module.in_channels, *module.kernel_size), (module.out_channels, rank, 1, 1)
            else:
                continue
            down, up = (torch.randn(shape, generator=generator) * 0.2 for shape in shapes)
            made[part, name] = {"down": down, "up": up}
    return made


def _kohya(model: LatentDiffusion) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for (part, name), matrices in _matrices(model).items():
        start = "lora_unet_" if part == "unet" else "lora_te_text_model_"
        stem = start + name.replace(".", "_")
        tensors |= {f"{stem}.lora_{half}.weight": matrix for half, matrix in matrices.items()}
        tensors[f"{stem}.alpha"] = torch.tensor(3.0)
    return tensors


def _old_diffusers(model: LatentDiffusion) -> dict[str, Tensor]:
    """Return the matrices of the attention under the names of diffusers before peft."""
    tensors: dict[str, Tensor] = {}
    for (part, name), matrices in _matrices(model, kernels=False).items():
        block, _, projection = name.removesuffix(".0").rpartition(".")
        if part == "unet" and projection in ("to_q", "to_k", "to_v", "to_out"):
            stem = f"unet.{block}.processor.{projection}_lora"
            tensors |= {f"{stem}.{half}.weight": matrix for half, matrix in matrices.items()}
    return tensors


def _new_diffusers(model: LatentDiffusion) -> dict[str, Tensor]:
    halves, tensors = {"down": "lora_A", "up": "lora_B"}, dict[str, Tensor]()
    for (part, name), matrices in _matrices(model).items():
        stem = f"unet.{name}" if part == "unet" else f"text_encoder.text_model.{name}"
        tensors |= {f"{stem}.{halves[half]}.weight": matrix for half, matrix in matrices.items()}
    return tensors


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> StableDiffusionPipeline:
    folder = miniature.write_sd1_folder(tmp_path_factory.mktemp("model") / "mini")
    words = {"<|startoftext|>": 0, "<|endoftext|>": 1}
    return StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(folder / "vae"),
        text_encoder=CLIPTextModel.from_pretrained(folder / "text_encoder"),
        tokenizer=CLIPTokenizer(words, []),
        unet=UNet2DConditionModel.from_pretrained(folder / "unet"),
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@pytest.mark.parametrize("write", [_kohya, _old_diffusers, _new_diffusers], ids=lambda write: write.__name__)
def test_files_do_what_diffusers_does(
    write: Any, model: LatentDiffusion, pipeline: StableDiffusionPipeline, tmp_path: Path
) -> None:
    save_safetensors(tmp_path / "x.safetensors", write(model), {})
    pipeline.load_lora_weights(str(tmp_path / "x.safetensors"), adapter_name="x")
    ids = torch.arange(77)[None]
    with torch.no_grad():
        expected, states = _output(pipeline.unet), pipeline.text_encoder(ids).last_hidden_state
    pipeline.unload_lora_weights()
    loras = put_on(model.lora_nets, [Worn(read_lora(identify(tmp_path / "x.safetensors")), LoraUse(name="x"))])
    assert loras.warnings == ()
    with loras.on("unet"), loras.on("te"), torch.no_grad():
        made, read = _output(model.net), model.text.states(ids)
    assert (expected - _output(model.net)).abs().max() > 0.05
    assert torch.allclose(made, expected, atol=ATOL)
    assert torch.allclose(read, states, atol=ATOL)
    with torch.no_grad():
        plain = model.text.states(ids)
    assert ((states - plain).abs().max() > 0.05) == (write is not _old_diffusers)  # those had none for the text


# ---- single matrices, against LyCORIS


def _randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


WEIGHTS = {"linear": _randn(12, 8), "conv 3x3": _randn(12, 8, 3, 3), "conv 1x1": _randn(12, 8, 1, 1)}


def _shaped(module: Any, core: bool, weight: Tensor) -> list[Tensor | None]:
    """Return matrices of the shapes that LyCORIS gives them; where they span a kernel without a core, `down` has it."""
    made = list(module.weight_gen(weight, 2, tucker=core))
    if weight.ndim == 4 and not core and module is not lokr:
        for n in (0, 2) if module is loha else (0,):
            made[n] = torch.empty(2, *weight.shape[1:])
        if module is locon:
            made[1] = torch.empty(12, 2, 1, 1)
    return made


@pytest.mark.parametrize("weight", WEIGHTS.values(), ids=WEIGHTS)
@pytest.mark.parametrize("core", [False, True])
@pytest.mark.parametrize("module", [locon, loha, lokr], ids=lambda module: module.__name__.rpartition(".")[2])
def test_differences_are_those_of_lycoris(module: Any, core: bool, weight: Tensor) -> None:
    names = {
        locon: ("lora_down", "lora_up", "lora_mid"),
        loha: ("hada_w1_b", "hada_w1_a", "hada_w2_b", "hada_w2_a", "hada_t1", "hada_t2"),
        lokr: ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
    }[module]
    made = [None if one is None else _randn(*one.shape, seed=n) for n, one in enumerate(_shaped(module, core, weight))]
    matrices = {name: one for name, one in zip(names, made, strict=True) if one is not None}
    expected = module.diff_weight(*made, gamma=1.5 / 2, backend="torch").reshape(weight.shape)
    found = difference(weight, {**matrices, "alpha": torch.tensor(1.5)}, Scale())
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("weight", WEIGHTS.values(), ids=WEIGHTS)
@pytest.mark.parametrize("strength", [1.0, 0.4])
def test_dora_by_columns_is_that_of_lycoris(strength: float, weight: Tensor) -> None:
    down, up = _randn(2, 8, *weight.shape[2:], seed=1), _randn(12, 2, *[1] * (weight.ndim - 2), seed=2)
    scale = _randn(1, 8, *[1] * (weight.ndim - 2)).abs()
    plain = difference(weight, {"lora_down": down, "lora_up": up}, Scale())
    found = weight + strength * difference(weight, {"lora_down": down, "lora_up": up, "dora_scale": scale}, Scale())
    assert torch.allclose(found, apply_dora_scale(weight, plain, scale, strength), atol=1e-5)


LAYERS = {"linear": nn.Linear(8, 16), "conv 3x3": nn.Conv2d(8, 16, 3), "square": nn.Linear(16, 16)}
MODULES: dict[str, tuple[Any, dict[str, Any]]] = {
    "glora": (GLoRAModule, {"lora_dim": 2, "alpha": 3}),
    "ia3": (IA3Module, {}),
    "ia3 of inputs": (IA3Module, {"train_on_input": True}),
    "oft": (DiagOFTModule, {"lora_dim": 4}),
    "oft, bounded and rescaled": (DiagOFTModule, {"lora_dim": 4, "constraint": 0.05, "rescaled": True}),
    "boft": (ButterflyOFTModule, {"lora_dim": 4}),
    "boft, bounded and rescaled": (ButterflyOFTModule, {"lora_dim": 4, "constraint": 0.05, "rescaled": True}),
}


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("kind", MODULES)
@torch.no_grad()
def test_what_turns_or_scales_a_weight_does_what_lycoris_does(kind: str, layer: Any) -> None:
    make, options = MODULES[kind]
    module = make("lora_unet_x", layer, **options)
    for n, parameter in enumerate(module.parameters()):
        parameter.copy_(0.3 * _randn(*parameter.shape, seed=n) + parameter)
    module.apply_to()
    named = {address_of(f"lora_unet_x.{name}"): one for name, one in module.state_dict().items() if "org_" not in name}
    matrices = {address.matrix: one for address, one in named.items() if address is not None}
    expected = module.get_diff_weight()[0]
    assert expected.abs().max() > 0.05
    assert torch.allclose(difference(layer.weight, matrices, Scale()), expected, atol=1e-5)
