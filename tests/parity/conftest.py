"""What the parity tests of the controls share: the golden fixtures, and a backbone made of one."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor

from disegno.backbones._lockstep import evaluate as lockstep
from disegno.diffusion.call import Call, Residuals, Row
from disegno.memory import FULL_PRECISION, Memory
from disegno.weights.keys.ldm import UNET_PREFIX, VAE_PREFIX, fitted, unet_names, vae_names

GOLDEN = Path(__file__).parent.parent / "golden"
VAE_SCALE = 0.18215


def read_golden(name: str) -> dict[str, Tensor]:
    """Return a fixture's tensors. Weights are stored as int8 codes: value = shift + step * code, exactly."""
    with np.load(GOLDEN / f"{name}.npz") as file:
        arrays = {key: file[key] for key in file.files}
    return {key: torch.from_numpy(_decoded(arrays, key)) for key in arrays if "|" not in key}


def _decoded(arrays: Mapping[str, np.ndarray], key: str) -> np.ndarray:
    if f"{key}|step" not in arrays:
        return arrays[key]
    return (arrays[f"{key}|shift"] + arrays[f"{key}|step"] * arrays[key].astype(np.float32)).astype(np.float32)


@dataclass(frozen=True)
class GoldenHost:
    """A backbone made of a golden fixture: what a control asks for, and the evaluation that its residuals go into."""

    net: UNet2DConditionModel
    vae: AutoencoderKL | None
    family: str = "sd1"
    name: str = "golden"
    fingerprint: str = "golden"

    def encode_image(self, images: Tensor) -> Tensor:
        assert self.vae is not None
        return self.vae.encode(images).latent_dist.mode() * VAE_SCALE

    def decode(self, latents: Tensor) -> Tensor:
        assert self.vae is not None
        return self.vae.decode(latents / VAE_SCALE).sample

    def evaluate(self, call: Call) -> Tensor:
        r = call.residuals
        if call.streams:
            return lockstep(self.net, call.x, call.t, call.tokens, r, call.streams)
        added = {} if r is None else {"down_block_additional_residuals": r.down, "mid_block_additional_residual": r.mid}
        return self.net(call.x, call.t, call.tokens, **added).sample

    def call(self, x: Tensor, t: Tensor, tokens: Tensor) -> Call:
        rows = tuple(Row(i, positive=True, text=str(i), progress=0.0) for i in range(len(x)))
        return Call(x, t.float(), tokens, rows, net=self.evaluate)

    def eps(self, call: Call, residuals: Residuals | None) -> Tensor:
        return Call(call.x, call.t, call.tokens, call.rows, call.net, residuals=residuals).run()


def golden_host(method: str, weights: Mapping[str, Tensor]) -> GoldenHost:
    """Return the backbone of these LDM-named weights, in float32, with the fixture's config."""
    config = json.loads((GOLDEN / f"{method}.json").read_text("utf-8"))
    memory = Memory(FULL_PRECISION)
    own = {key.removeprefix(UNET_PREFIX): t for key, t in weights.items() if key.startswith(UNET_PREFIX)}
    names = unet_names(own)
    unet = {names[name]: tensor for name, tensor in own.items()}
    net = memory.build(lambda: UNet2DConditionModel(**config["diffusers_unet_config"]), unet, method)
    own = {key.removeprefix(VAE_PREFIX): t for key, t in weights.items() if key.startswith(VAE_PREFIX)}
    if not own:
        return GoldenHost(net, None)
    empty = AutoencoderKL(**config["diffusers_vae_config"]).state_dict()
    named = {target: own[name] for name, target in vae_names(own).items()}
    vae = {name: fitted(tensor, tuple(empty[name].shape)) for name, tensor in named.items()}
    return GoldenHost(net, memory.build(lambda: AutoencoderKL(**config["diffusers_vae_config"]), vae, method))


@pytest.fixture(scope="session")
def golden() -> Callable[[str], dict[str, Tensor]]:
    """Return the reader of golden fixtures."""
    return read_golden


@pytest.fixture(scope="session")
def controlnet_host() -> GoldenHost:
    return golden_host("controlnet", read_golden("controlnet__unet"))


@pytest.fixture(scope="session")
def ctrlora_host() -> GoldenHost:
    return golden_host("ctrlora", read_golden("ctrlora__sd"))


@pytest.fixture(scope="session")
def uni_host() -> GoldenHost:
    return golden_host("uni_controlnet", read_golden("uni_controlnet__unet"))


@pytest.fixture(scope="session")
def unicontrol_host() -> GoldenHost:
    return golden_host("unicontrol", read_golden("unicontrol__unet"))


@pytest.fixture(scope="session")
def xs_host() -> GoldenHost:
    return golden_host("controlnet_xs", read_golden("controlnet_xs__unet"))
