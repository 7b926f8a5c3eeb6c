"""The names and shapes of the real files, without their gigabytes: on meta tensors and in files that are holes.

The configurations are the published ones (diffusers' folders of SD 2.1, SDXL and its refiner, SD 3 medium, SD 3.5
medium and large).
"""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, ControlNetModel, SD3Transformer2DModel, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from corpus import headers
from disegno.backbones import miniature_sd3, sdxl
from disegno.backbones.miniature_sdxl import sdxl_unet
from disegno.core.teach import make_teach_request
from disegno.text import clip, t5
from disegno.training.encoder import copy_encoder
from disegno.training.estimating import GPU, on_meta
from disegno.training.memory_table import SDXL, counted
from disegno.weights import configs
from disegno.weights.identify import identify
from disegno.weights.keys import ldm, mmdit, openclip
from disegno.weights.keys.control import is_transformer_norm, is_zero_conv
from kit import xl

pytestmark = pytest.mark.parity

Shapes = dict[str, tuple[int, ...]]
MMDIT: dict[str, Any] = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "attention_head_dim": 64,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 2048,
}
SIZES: dict[str, dict[str, Any]] = {
    "sd3 medium": {
        "num_layers": 24,
        "num_attention_heads": 24,
        "caption_projection_dim": 1536,
        "pos_embed_max_size": 192,
    },
    "sd3.5 medium": {
        "num_layers": 24,
        "num_attention_heads": 24,
        "caption_projection_dim": 1536,
        "pos_embed_max_size": 384,
        "dual_attention_layers": tuple(range(13)),
        "qk_norm": "rms_norm",
    },
    "sd3.5 large": {
        "num_layers": 38,
        "num_attention_heads": 38,
        "caption_projection_dim": 2432,
        "pos_embed_max_size": 192,
        "qk_norm": "rms_norm",
    },
}
PUBLISHED: dict[str, Shapes] = {
    "sd3 medium": {
        "pos_embed": (1, 36864, 1536),
        "x_embedder.proj.weight": (1536, 16, 2, 2),
        "y_embedder.mlp.0.weight": (1536, 2048),
        "joint_blocks.23.context_block.attn.qkv.weight": (4608, 1536),
        "joint_blocks.23.context_block.adaLN_modulation.1.weight": (3072, 1536),
        "final_layer.linear.weight": (64, 1536),
    },
    "sd3.5 medium": {
        "pos_embed": (1, 147456, 1536),
        "joint_blocks.0.x_block.adaLN_modulation.1.weight": (13824, 1536),
        "joint_blocks.12.x_block.attn2.ln_q.weight": (64,),
        "joint_blocks.13.x_block.adaLN_modulation.1.weight": (9216, 1536),
    },
    "sd3.5 large": {
        "pos_embed": (1, 36864, 2432),
        "joint_blocks.37.x_block.attn.ln_k.weight": (64,),
        "joint_blocks.36.context_block.mlp.fc1.weight": (9728, 2432),
    },
}
NUM_TENSORS = {
    "sd3 medium": 491,
    "sd3.5 medium": 491 + 24 * 4 + 13 * 6,
    "sd3.5 large": 17 + 38 * 10 + 37 * 10 + 4 + 38 * 4,
}
SD21 = {
    "sample_size": 96,
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
}


def _meta(make: Any) -> dict[str, Tensor]:
    """Return a module's tensors, on the meta device."""
    with torch.device("meta"):
        module: nn.Module = make()
    return module.state_dict()


def _shapes(tensors: dict[str, Tensor]) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _vae(latent_channels: int, **more: Any) -> dict[str, Tensor]:
    widths = (128, 256, 512, 512)
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    config = {"block_out_channels": widths, "layers_per_block": 2, "latent_channels": latent_channels}
    return _meta(lambda: AutoencoderKL(**config, **kinds, **more))


def _ldm_vae(vae: dict[str, Tensor]) -> dict[str, Tensor]:
    originals = ldm.vae_originals(vae)
    assert originals.keys() == vae.keys()
    return {ldm.VAE_PREFIX + new: vae[name] for name, new in originals.items()}


@pytest.mark.parametrize("name", SIZES)
def test_sd3s_transformers(name: str, tmp_path: Any) -> None:
    real = _meta(lambda: SD3Transformer2DModel(**MMDIT, **SIZES[name]))
    original = mmdit.to_original(real)
    assert len(original) == NUM_TENSORS[name] and not mmdit.unknown_names(original)
    for key, shape in PUBLISHED[name].items():
        assert tuple(original[key].shape) == shape, key
    assert _shapes(mmdit.from_original(original)) == _shapes(real)
    told = mmdit.config_of(_shapes(real))
    expected = MMDIT | {"dual_attention_layers": (), "qk_norm": None} | SIZES[name]
    assert told == expected
    vae = _vae(16, use_quant_conv=False, use_post_quant_conv=False)
    assert configs.vae_config(vae)["scaling_factor"] == 1.5305 and configs.vae_config(vae)["shift_factor"] == 0.0609
    file = {mmdit.PREFIX + key: tensor for key, tensor in original.items()} | _ldm_vae(vae)
    card = identify(headers.write_header(tmp_path / "model.safetensors", _shapes(file)))
    assert (card.kind, card.family, card.layout, card.prediction, card.in_channels) == (
        "model",
        "sd3",
        "ldm",
        "flow",
        16,
    )


def test_sd21(tmp_path: Any) -> None:
    unet, vae = _meta(lambda: UNet2DConditionModel(**SD21)), _vae(4)
    assert len(unet) == 686 and len(vae) == 248
    sizes = configs.unet_config(unet)
    told = sizes | configs.heads_of_64(sizes)
    assert told["attention_head_dim"] == (5, 10, 20, 20) and told["cross_attention_dim"] == 1024
    assert _shapes(_meta(lambda: UNet2DConditionModel(**told))) == _shapes(unet)
    originals = ldm.unet_originals(unet)
    file = {ldm.UNET_PREFIX + originals[key]: tensor for key, tensor in unet.items()} | _ldm_vae(vae)
    assert tuple(file["model.diffusion_model.input_blocks.1.1.proj_in.weight"].shape) == (320, 320)
    config = CLIPTextConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=23, num_attention_heads=16, hidden_act="gelu"
    )
    text = openclip.to_openclip(_meta(lambda: CLIPTextModel(config)))
    assert openclip.num_layers(text) == 24
    assert tuple(text["transformer.resblocks.23.attn.in_proj_weight"].shape) == (3072, 1024)
    assert tuple(text["positional_embedding"].shape) == (77, 1024)
    used = clip.config_of(_shapes(openclip.used(text)), act="gelu")
    same = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act")
    assert all(getattr(used, field) == getattr(config, field) for field in same)
    file |= {openclip.PREFIX + key: tensor for key, tensor in text.items()}
    card = identify(headers.write_header(tmp_path / "v2-1.safetensors", _shapes(file)))
    assert (card.kind, card.family, card.layout, card.prediction, card.in_channels) == ("model", "sd2", "ldm", None, 4)


XL = {"base": xl.BASE, "refiner": xl.REFINER, "inpainting": xl.INPAINTING}
# Parameters of the UNet; tensors of the file, and its GB in half precision
XL_NUMBERS = {
    "base": (2_567_463_684, 2515, 6.94),
    "refiner": (2_259_526_660, 1858, 6.08),
    "inpainting": (2_567_478_084, 2515, 6.94),
}


@pytest.mark.parametrize("name", XL)
def test_sdxl_and_its_refiner(name: str, tmp_path: Path) -> None:
    """What a file's names and shapes tell is diffusers' configuration, and the text encoders' of transformers."""
    refines = name == "refiner"
    file = _shapes(xl.file(XL[name], refines))
    path = headers.write_header(tmp_path / "xl.safetensors", file)
    parts = sdxl.read_file(path)
    num_parameters, num_tensors, gigabytes = XL_NUMBERS[name]
    assert len(file) == num_tensors
    assert 2e-9 * sum(math.prod(shape) for shape in file.values()) == pytest.approx(gigabytes, abs=0.005)
    ours, theirs = (_unet(config) for config in (parts.nets.unet_config, XL[name]))
    assert sum(tensor.numel() for tensor in ours.state_dict().values()) == num_parameters
    assert _shapes(dict(parts.nets.unet)) == _shapes(ours.state_dict())
    assert _told(ours) == _told(theirs)
    assert parts.nets.vae_config["scaling_factor"] == 0.13025
    assert _shapes(dict(parts.nets.vae)) == _shapes(_vae(4))
    assert (parts.clip_l is None) == refines
    for text, config in ((parts.clip_l, xl.CLIP_L), (parts.clip_g, xl.CLIP_G)):
        same = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act")
        assert text is None or all(getattr(text.config, field) == getattr(config, field) for field in same)
    sdxl.check_told(parts, path.name)
    card = identify(path)
    assert (card.kind, card.family, card.layout, card.prediction) == ("model", "sdxl", "ldm", "epsilon")
    assert card.in_channels == XL[name].get("in_channels", 4)


def _unet(config: dict[str, Any]) -> UNet2DConditionModel:
    with torch.device("meta"):
        return UNet2DConditionModel(**config)


def _told(net: UNet2DConditionModel) -> dict[str, Any]:
    """Return every field of a configuration but the depths, which can be written in two ways; those as built."""
    blocks = (*net.down_blocks, net.mid_block, *net.up_blocks)
    depths = [[len(each.transformer_blocks) for each in getattr(block, "attentions", ())] for block in blocks]
    heads = [module.heads for module in net.modules() if hasattr(module, "heads")]
    own = ("_use_default_values", "transformer_layers_per_block")
    return {key: value for key, value in net.config.items() if key not in own} | {"depths": depths, "heads": heads}


def test_t5_xxl() -> None:
    config = T5Config(
        vocab_size=32128, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64, feed_forward_proj="gated-gelu"
    )
    found = t5.config_of(_shapes(_meta(lambda: T5EncoderModel(config))))
    same = ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads", "feed_forward_proj")
    assert all(getattr(found, field) == getattr(config, field) for field in same)
    assert miniature_sd3.t5_config(300).feed_forward_proj == config.feed_forward_proj


def test_what_teaching_under_sdxl_takes_is_counted_by_its_real_shapes() -> None:
    """A CtrLoRA of rank 128 at 1024 pixels: the weights to the byte, and no matrix of scores is kept."""
    request = make_teach_request({"name": "x", "data": ["x"], "recipe": "ctrlora", "checkpointing": True})
    found = counted(request, SDXL)
    unet = sdxl_unet()
    control = {name: tuple(p.shape) for name, p in copied(unet).named_parameters()}
    own = sum(math.prod(shape) for name, shape in control.items() if is_zero_conv(name) or is_transformer_norm(name))
    linear = [s for name, s in control.items() if len(s) == 2 and not is_zero_conv(name)]
    matrices = sum(request.rank * sum(shape) for shape in linear)
    num_unet, num_control = (sum(p.numel() for p in net.parameters()) for net in (unet, copied(unet)))
    assert num_unet == 2_567_463_684  # of the published file
    half, single = 2, 4
    weights = half * (num_unet + num_control) + single * (own + matrices)
    assert found.weights == pytest.approx(weights, rel=1e-3)
    assert found.optimiser == pytest.approx(2 * single * (own + matrices), rel=1e-3)
    scores = 10 * 4096 * 4096 * half  # of one attention of the second level
    assert single * (own + matrices) < found.step < single * (own + matrices) + 4 * scores


def copied(unet: UNet2DConditionModel) -> ControlNetModel:
    """Return a Base ControlNet of the net's shapes, on meta tensors."""
    return copy_encoder(unet, on_meta(GPU), torch.Generator(), with_hint=False)
