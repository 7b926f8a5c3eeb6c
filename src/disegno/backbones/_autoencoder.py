"""Pictures to latents and back: diffusers' AutoencoderKL, one picture at a time.

So a picture does not depend on its batch, and memory does not grow with it; it costs no time on a CPU.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import Decoder, DiagonalGaussianDistribution
from torch import Tensor

from disegno.memory import Memory
from disegno.weights.keys import ldm

log = logging.getLogger(__name__)

DECODER_WIDTHS = "decoder_block_out_channels"  # of a configuration: as diffusers' AutoencoderKLFlux2 calls them
_OVERFLOWED = "The VAE overflowed"
_SHARED = ("up_block_types", "layers_per_block", "norm_num_groups", "act_fn", "mid_block_add_attention")


def fitted_vae(vae: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the VAE's tensors with the attention's 1x1 convolutions as linear layers."""
    return {
        name: ldm.fitted(tensor, tuple(tensor.shape[:2])) if ".attentions." in name and tensor.ndim == 4 else tensor
        for name, tensor in vae.items()
    }


def without_overflow(warnings: Sequence[str]) -> list[str]:
    """Return a model's warnings without those of its VAE."""
    return [warning for warning in warnings if not warning.startswith(_OVERFLOWED)]


def channels_of(config: Mapping[str, Any]) -> int:
    """Return the channels of an autoencoder's latents."""
    return int(config["latent_channels"])


def downscale_of(config: Mapping[str, Any]) -> int:
    """Return an autoencoder's pixels per latent cell, on one side."""
    return 2 ** (len(config["block_out_channels"]) - 1)


def build_autoencoder(config: Mapping[str, Any]) -> AutoencoderKL:
    """Return the autoencoder of a configuration, whose decoder may have other widths than its encoder."""
    widths = config.get(DECODER_WIDTHS)
    plain = {name: value for name, value in config.items() if name != DECODER_WIDTHS}
    vae = cast(AutoencoderKL, AutoencoderKL.from_config(plain))
    if widths is None:
        return vae
    shared = {name: vae.config[name] for name in _SHARED}
    latent, out = vae.config["latent_channels"], vae.config["out_channels"]
    vae.decoder = Decoder(in_channels=latent, out_channels=out, block_out_channels=tuple(widths), **shared)
    vae.register_to_config(**{DECODER_WIDTHS: list(widths)})
    return vae


@dataclass(frozen=True)
class Autoencoder:
    """An open VAE. `warnings`: where it says what happened."""

    vae: AutoencoderKL
    memory: Memory
    name: str
    warnings: list[str]

    @property
    def channels(self) -> int:
        return channels_of(self.vae.config)

    @property
    def downscale(self) -> int:
        return downscale_of(self.vae.config)

    @property
    def scale(self) -> float:
        """What latents are multiplied by, so that they have unit variance."""
        return float(self.vae.config["scaling_factor"])

    @property
    def shift(self) -> float:
        """What is taken from latents before, so that their mean is 0; 0 in Stable Diffusion 1 and 2."""
        return float(self.vae.config.get("shift_factor") or 0.0)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Return the latents' mode, shifted and scaled, (b c h/8 w/8), float32."""
        return (torch.cat([self._encode_one(image[None]) for image in images]) - self.shift) * self.scale

    def _encode_one(self, image: Tensor) -> Tensor:
        posterior = cast(DiagonalGaussianDistribution, self.vae.encode(self._shown(image), return_dict=False)[0])
        mode = posterior.mode().float()  # 1 c h/8 w/8
        return self._encode_one(image) if self._overflowed(mode) else mode

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Return pictures (b 3 h w), float32 in [0, 1]."""
        return torch.cat([self._decode_one(latent[None]) for latent in latents / self.scale + self.shift])

    def _decode_one(self, latent: Tensor) -> Tensor:
        shown = cast(torch.FloatTensor, self._shown(latent))
        picture = cast(Tensor, self.vae.decode(shown, return_dict=False)[0]).float()  # 1 3 h w
        return self._decode_one(latent) if self._overflowed(picture) else (picture / 2 + 0.5).clamp(0, 1)

    def _overflowed(self, made: Tensor) -> bool:
        """Return whether numbers of too few bits made this infinite; then the VAE works in float32 from now on."""
        if self.vae.dtype == torch.float32 or made.is_meta or bool(made.isfinite().all()):
            return False
        self._warn(f"{_OVERFLOWED} in {self.vae.dtype}: it works in float32 from now on, which is slower.")
        self.memory.place(self.vae, torch.float32)
        return True

    def _shown(self, x: Tensor) -> Tensor:
        return x.to(self.memory.policy.device, self.vae.dtype).contiguous(
            memory_format=self.memory.policy.memory_format
        )

    def _warn(self, message: str) -> None:
        log.warning("%s: %s", self.name, message)
        self.warnings.append(message)
