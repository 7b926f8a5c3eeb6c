"""A model before it has learned anything: the folder that the first stages start from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Mapping
from importlib.resources import files
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor

from disegno.weights.load import load_file
from disegno.weights.quantised import dequantise_rows
from disegno.weights.save import save_safetensors

from .scale import Scale
from .world.maps import BASE_CONDITIONS, class_colours
from .world.vocabulary import CLASSES, COLOURS, SETTINGS, nouns

SEED = 0
SCHEDULE = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
    "rescale_betas_zero_snr": True,
}
POSTERIOR_VARIANCE = 1e-3  # at first: at a variance of 1 the latents collapsed, as version 0 found


def built_in() -> Path:
    """Return the folder of the model that the program has: its text encoder is every version's."""
    return Path(str(files("disegno").joinpath("data/diorama")))


def write_newborn(folder: Path, scale: Scale, known: Collection[str] | None = None) -> Path:
    """Return `folder`, now a model of this scale: drawn weights, or those of the same file's name beside it, if any.

    `known`: the codes of the nouns that it will be shown; None for all.
    """
    if (folder / "model.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        unet, vae = UNet2DConditionModel(**scale.unet), AutoencoderKL(**scale.vae)
    with torch.no_grad():
        vae.quant_conv.bias[4:] = torch.log(torch.tensor(POSTERIOR_VARIANCE))
        vae.quant_conv.weight[4:] *= 0.01
    for name, net in (("unet.safetensors", unet), ("vae.safetensors", vae)):
        if (earlier := folder.with_name(name)).exists():
            tensors = dequantise_rows(load_file(earlier))
            net.load_state_dict({key: tensor.float() for key, tensor in tensors.items()})
        save_safetensors(folder / name, net.state_dict(), {"format": "pt"})
    for name in ("text.safetensors", "tokenizer.json"):
        shutil.copy(built_in() / name, folder / name)
    (folder / "model.json").write_text(json.dumps(describe(scale, known), indent=1) + "\n", "utf-8")
    return folder


def describe(scale: Scale, known: Collection[str] | None = None) -> dict[str, object]:
    """Return the content of model.json."""
    return {
        "family": "diorama",
        "version": 1,
        "unet": dict(scale.unet),
        "vae": dict(scale.vae),
        "prediction_type": "v_prediction",
        "schedule": SCHEDULE,
        "defaults": {"width": scale.size, "height": scale.size, "steps": 20, "cfg": 4.5, "sampler": "DDIM"},
        "conditions": {},
        "base_conditions": list(BASE_CONDITIONS),
        "segmentation_colours": dict(zip(CLASSES, class_colours().tolist(), strict=True)),
        "vocabulary": {
            "nouns": [name for noun in nouns() for name in noun.names if known is None or noun.code in known],
            "places": {place: list(setting.phrases) for place, setting in SETTINGS.items()},
            "colours": list(COLOURS),
        },
    }


@torch.no_grad()
def standardised(weights: Mapping[str, Tensor], mean: Tensor, deviation: Tensor) -> dict[str, Tensor]:
    """Return a VAE's weights whose latents have mean 0 and deviation 1, with the same pictures.

    `mean`, `deviation`: of the channels as they are. The two 1x1 convolutions around the latents take it up.
    """
    new = {name: tensor.float().clone() for name, tensor in weights.items()}
    weight, bias = new["quant_conv.weight"], new["quant_conv.bias"]
    weight[:4] /= deviation.view(4, 1, 1, 1)
    bias[:4] = (bias[:4] - mean) / deviation
    bias[4:] -= 2 * deviation.log()  # the posterior's logarithm of the variance
    back = new["post_quant_conv.weight"]
    new["post_quant_conv.bias"] += (back[:, :, 0, 0] * mean).sum(dim=1)
    new["post_quant_conv.weight"] = back * deviation.view(1, 4, 1, 1)
    return new
