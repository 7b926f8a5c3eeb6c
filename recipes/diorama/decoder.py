"""A sharper decoder for latents that stay as they are: what was taught on them, nets and conditions, keeps its worth.

The recipe `vae` with its encoder left alone: absolute difference, LPIPS and a critic of patches (Esser et al. 2021).
Stable Diffusion's own decoders were finetuned so after its net had learned ("sd-vae-ft-mse", Stability AI 2022).
The decoder may become wider than it was. LPIPS and critic look at a part of the pictures that begins somewhere else in
every step: both have strides, and what they say of one grid of pixels alone is nothing for a decoder to learn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from diffusers import AutoencoderKL
from torch import Generator, Tensor

from disegno.backbones._autoencoder import DECODER_WIDTHS, build_autoencoder
from disegno.memory import Memory
from disegno.training.base import Batch, Facts, Turn
from disegno.training.critic import Critic
from disegno.training.denoising import placed
from disegno.training.encoder import masters_of
from disegno.training.layers import install
from disegno.training.perceptual import open_lpips
from disegno.training.recipes.vae import AUTOENCODER, CRITIC, Autoencoding
from disegno.weights.save import save_safetensors

from .widen import widened, widths_of

CRITIC_FROM = 300  # steps
PART_FROM = 9  # places at which a part may begin, in each direction
UNSURE = 0.05  # deviation of what is added to latents: those of a net are not exact


class Redecoding(Autoencoding):
    """`Autoencoding`, whose latents are given and noised a little, each from its row's seed."""

    _corner = 0, 0  # where this step's parts of the pictures begin

    def forward(self, batch: Batch, turn: str = AUTOENCODER) -> Tensor:
        """Return each row's loss, (b,), float32, of the turn."""
        drawn = torch.randint(PART_FROM, (2,), generator=Generator().manual_seed(batch.step))
        self._corner = int(drawn[0]), int(drawn[1])
        return super().forward(batch, turn)

    def _drawn(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the pictures (b 3 h w) in [-1, 1], and the latents (b 4 h/8 w/8)."""
        target = batch.rows["target"].to(self.policy.device).float() / 127.5 - 1
        latent = batch.rows["latent"].to(self.policy.device).float()
        noise = [torch.randn(latent.shape[1:], generator=Generator().manual_seed(seed)) for seed in batch.seeds]
        return target, latent + UNSURE * torch.stack(noise).to(latent)

    def _reconstructed(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return the decoder's pictures, (b 3 h w), float32, and no KL. `noise`: the latents."""
        z = cast(torch.FloatTensor, placed(noise, self.policy))
        return self.vae.decode(z, return_dict=False)[0].float(), x.new_zeros(len(x))

    def _difference(self, x: Tensor, made: Tensor) -> Tensor:
        perceived = self._lpips[0](*(placed(self._part(p), self.policy) for p in (made, x))).float()
        return (x - made).abs().flatten(1).mean(dim=1) + perceived

    def _marks(self, pictures: Tensor) -> Tensor:
        return super()._marks(self._part(pictures))

    def _part(self, pictures: Tensor) -> Tensor:
        """Return the pictures without PART_FROM - 1 of their lines and columns, those of this step's corner."""
        top, left = self._corner
        height, width = (side - PART_FROM + 1 for side in pictures.shape[-2:])
        return pictures[..., top : top + height, left : left + width]


@dataclass(frozen=True)
class DecoderLearner:
    """A decoder and its critic, in training."""

    module: Redecoding
    turns: tuple[Turn, ...]

    def save(self, path: Path, facts: Facts, weights: Mapping[str, Tensor] | None = None) -> None:
        """Write the decoder's tensors by the autoencoder's names; the critic is not kept."""
        tensors = weights or self.turns[0].parameters
        save_safetensors(path, {name: tensors[name].detach() for name in self.turns[0].parameters}, {"format": "pt"})


def open_decoder(
    vae: AutoencoderKL, scaling_factor: float, memory: Memory, rate: float, seed: int, widths: Sequence[int] = ()
) -> DecoderLearner:
    """Return a copy of an autoencoder whose decoder learns, and a new critic.

    `widths`: the decoder's, where they shall be a multiple of what they are. Raises NotInstalled where LPIPS's weights
    are not there.
    """
    assert scaling_factor == 1.0, "latents are decoded as they are"
    masters = masters_of(memory)
    own = masters.place(_widened(deepcopy(vae).float(), widths, seed)).requires_grad_(False)
    critic = masters.place(Critic(Generator().manual_seed(seed)))
    lpips = memory.place(open_lpips("alex"))  # VGG16, the recipe's own, is twenty times as much work
    for net in (own, critic, lpips):
        install(net)
    learns = {name: p for name, p in own.named_parameters() if name.startswith(("decoder.", "post_quant_conv."))}
    for parameter in learns.values():
        parameter.requires_grad_(True)
    module = Redecoding(own, critic, lpips, memory.policy, CRITIC_FROM)
    turns = (
        Turn(AUTOENCODER, learns, rate),
        Turn(CRITIC, {f"critic.{name}": p for name, p in critic.named_parameters()}, rate),
    )
    return DecoderLearner(module.train(), turns)


def _widened(vae: AutoencoderKL, widths: Sequence[int], seed: int) -> AutoencoderKL:
    """Return the autoencoder, its decoder as wide as that, and its pictures the same."""
    config = dict(vae.config)
    now = widths_of(config)
    if not widths or list(widths) == list(now):
        return vae
    times = widths[0] // now[0]
    if list(widths) != [width * times for width in now]:
        raise ValueError(f"A decoder of the widths {list(now)} becomes a multiple of it, not {list(widths)}.")
    weights = vae.state_dict()
    decoder = {name: tensor for name, tensor in weights.items() if name.startswith("decoder.")}
    wide = build_autoencoder({**config, DECODER_WIDTHS: list(widths)})
    wide.load_state_dict(weights | widened(decoder, times, Generator().manual_seed(seed)))
    return wide
