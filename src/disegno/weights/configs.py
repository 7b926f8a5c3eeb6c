"""The configuration files of a diffusers folder, from the shapes of its tensors.

What leaves no trace in a shape (heads, activations, the noise schedule) is Stable Diffusion 1.5's own, or the family's.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor

from disegno.core.errors import KeyMismatch, UnknownKind
from disegno.weights.keys.control import sizes_of
from disegno.weights.keys.ldm import diffusers_layout_of
from disegno.weights.shapes import clip_sizes, sides

# By the latents' channels: Esser et al. 2024's autoencoder, as in every SD 3 configuration.
_LATENTS = {16: {"scaling_factor": 1.5305, "shift_factor": 0.0609, "sample_size": 1024}}
SCALING_FACTOR = 0.18215  # of the latents; Rombach et al. 2022, as in every SD 1.x configuration
SDXL_SCALING_FACTOR = 0.13025  # Podell et al. 2023's autoencoder
SHIFT = 3.0  # of the noise levels; Esser et al. 2024, as in every SD 3 configuration
_TOLD = "add_embedding.linear_1.weight"  # of SDXL's nets alone
SDXL_SCHEDULER = {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading"}
_PREDICTIONS = {"epsilon": "epsilon", "v": "v_prediction"}
_TEXT = "The text encoder"


def unet_config(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return UNet2DConditionModel's configuration.

    Raises KeyMismatch where a tensor that tells a size is missing, UnknownKind for SDXL's smaller relatives.
    """
    try:
        sizes = asdict(sizes_of({name: tuple(tensor.shape) for name, tensor in tensors.items()}))
        out_channels = sides("The UNet", tensors, "conv_out.weight", 4)[0]
    except KeyError as error:
        raise KeyMismatch(f"The UNet has no tensor {error}: the file is incomplete. Fetch it again.") from error
    if not any(name.startswith("mid_block.attentions.") for name in tensors):
        if _TOLD not in tensors:
            raise KeyMismatch("The UNet has no attention in its middle: the file is incomplete. Fetch it again.")
        raise UnknownKind(
            "The UNet has no attention in its middle: it is a smaller Stable Diffusion XL (SSD-1B, Vega, KOALA), "
            "of other blocks than one file tells. Give its diffusers folder, or a model of the full size."
        )
    kinds: tuple[str, ...] = sizes["down_block_types"]
    own = {name: value for name, value in sizes.items() if not name.startswith("conditioning_")}
    config = own | {
        "out_channels": out_channels,
        "up_block_types": tuple(kind.replace("Down", "Up") for kind in reversed(kinds)),
        "attention_head_dim": 8,  # diffusers' name for the number of heads of these models
        "sample_size": 64,
    }
    told = told_config(tensors)
    heads = {"attention_head_dim": heads_of_64(config)["attention_head_dim"], "sample_size": 128} if told else {}
    return config | told | heads


def told_config(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return how SDXL's nets, and the control nets for them, are told sizes and the pooled text; {}: they are not.

    The width of all that is 1280 + 6 * 256, of the refiner 1280 + 5 * 256.
    """
    if _TOLD not in tensors:
        return {}
    _, width = sides("The net", tensors, _TOLD, 2)
    return {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": width,
    }


def vae_config(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return AutoencoderKL's configuration (its attention may still be 1x1 convolutions). Raises KeyMismatch."""
    levels = diffusers_layout_of(name.removeprefix("encoder.") for name in tensors).res_blocks
    last = [f"encoder.down_blocks.{i}.resnets.{num - 1}.conv2.weight" for i, num in enumerate(levels)]
    try:
        widths = tuple(sides("The VAE", tensors, name, 4)[0] for name in last)
        latent_channels = sides("The VAE", tensors, "decoder.conv_in.weight", 4)[1]
    except KeyError as error:
        raise KeyMismatch(f"The VAE has no tensor {error}: the file is incomplete. Fetch it again.") from error
    return {
        "block_out_channels": widths,
        "layers_per_block": levels[0],
        "latent_channels": latent_channels,
        "down_block_types": ("DownEncoderBlock2D",) * len(widths),
        "up_block_types": ("UpDecoderBlock2D",) * len(widths),
        "use_quant_conv": "quant_conv.weight" in tensors,
        "use_post_quant_conv": "post_quant_conv.weight" in tensors,
        "sample_size": 512,
    } | _LATENTS.get(latent_channels, {"scaling_factor": SCALING_FACTOR})


def sdxl_vae_config(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the configuration of SDXL's VAE, whose shapes are Stable Diffusion 1's. Raises KeyMismatch."""
    own = {"scaling_factor": SDXL_SCALING_FACTOR, "sample_size": 1024, "force_upcast": True}
    return vae_config(tensors) | own


def text_config(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return CLIPTextModel's configuration. Raises KeyMismatch where a tensor that tells a size is missing."""
    names = {name.removeprefix("text_model."): tensor for name, tensor in tensors.items()}
    words, places, width, wide = clip_sizes(_TEXT, names)
    layers = {name.split(".")[2] for name in names if name.startswith("encoder.layers.")}
    return {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "vocab_size": words,
        "hidden_size": width,
        "projection_dim": width,
        "intermediate_size": wide,
        "num_hidden_layers": len(layers),
        "num_attention_heads": max(width // 64, 1),  # CLIP's heads are 64 wide
        "max_position_embeddings": places,
        "hidden_act": "quick_gelu",
    }


def projected_config(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the configuration of a CLIPTextModelWithProjection. Raises KeyMismatch as `text_config`."""
    if "text_projection.weight" not in tensors:
        raise KeyMismatch(f"{_TEXT} has no projection: the file is incomplete. Fetch it again.")
    width, _ = sides(_TEXT, tensors, "text_projection.weight", 2)
    return text_config(tensors) | {"architectures": ["CLIPTextModelWithProjection"], "projection_dim": width}


def t5_config(tensors: Mapping[str, Tensor]) -> dict[str, object]:
    """Return the configuration of a T5EncoderModel, of T5 1.1's kind. Raises KeyMismatch where a size is missing."""
    first = "encoder.block.0.layer.0.SelfAttention"
    try:
        vocabulary, width = sides("T5", tensors, "shared.weight", 2)
        buckets, heads = sides("T5", tensors, f"{first}.relative_attention_bias.weight", 2)
        inner, _ = sides("T5", tensors, f"{first}.q.weight", 2)
        _, wide = sides("T5", tensors, "encoder.block.0.layer.1.DenseReluDense.wo.weight", 2)
    except KeyError as error:
        raise KeyMismatch(f"T5 has no tensor {error}: the file is incomplete. Fetch it again.") from error
    return {
        "architectures": ["T5EncoderModel"],
        "model_type": "t5",
        "vocab_size": vocabulary,
        "d_model": width,
        "d_kv": inner // heads,
        "d_ff": wide,
        "num_layers": 1 + max(int(name.split(".")[2]) for name in tensors if name.startswith("encoder.block.")),
        "num_heads": heads,
        "relative_attention_num_buckets": buckets,
        "relative_attention_max_distance": 128,
        "feed_forward_proj": "gated-gelu",
        "layer_norm_epsilon": 1e-6,
        "is_encoder_decoder": False,
        "tie_word_embeddings": False,
        "use_cache": False,
        "pad_token_id": 0,
        "eos_token_id": 1,
    }


def heads_of_64(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what Stable Diffusion 2's UNet adds to its sizes: heads of 64 channels."""
    heads = tuple(max(1, int(width) // 64) for width in config["block_out_channels"])
    return {"attention_head_dim": heads, "upcast_attention": True}  # diffusers' name for the number of heads


def scheduler_config(prediction: str | None) -> dict[str, Any]:
    """Return the noise schedule's configuration; without its prediction where nothing tells."""
    told = {} if prediction is None else {"prediction_type": _PREDICTIONS[prediction]}
    return told | {
        "_class_name": "PNDMScheduler",
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "num_train_timesteps": 1000,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "set_alpha_to_one": False,
        "clip_sample": False,
    }


def flow_scheduler_config(shift: float) -> dict[str, Any]:
    """Return the noise schedule's configuration of a flow model."""
    return {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": shift}
