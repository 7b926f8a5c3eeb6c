"""The autoencoder of a model, finetuned: absolute difference, LPIPS, a little KL, and a critic of patches.

Esser et al. 2021 (sections 3.1, 3.2), Rombach et al. 2022 (appendix G). Two turns a step: the autoencoder, the critic.
The critic's word counts from a quarter of the steps on, weighed so that at the decoder's last layer its gradient is
half as long as that of the reconstruction. Differences from the originals: every row has its own weight, so that a row
does not depend on its batch; and a sixth of the rows show the condition in [0, 1], as CtrLoRA shows it to the encoder.
"""

from collections.abc import Generator as Iterated
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from diffusers import AutoencoderKL
from torch import Generator, Tensor, nn
from torch.nn.grad import conv2d_weight

from disegno.core.errors import RequestError, WrongFamily
from disegno.memory import Policy
from disegno.training.base import Batch, Facts, Turn
from disegno.training.critic import Critic, hinge
from disegno.training.denoising import placed
from disegno.training.encoder import masters_of
from disegno.training.layers import install
from disegno.training.perceptual import Lpips, open_lpips
from disegno.training.recipe import OF_LORA, OF_NOISE, About, Model, Opening
from disegno.training.whole_model import check_writable, write_model

ABOUT = About(
    summary="the model's autoencoder, from pictures and conditions",
    wants=("target", "condition"),
    part="vae",
    exact=True,
    saves="folder",
    unlike=("sd2", "sd3"),
    unused=(*OF_LORA, *OF_NOISE, "base"),
)
RATE = 5e-5
AUTOENCODER, CRITIC = "autoencoder", "critic"

CONDITION_SHARE = 1 / 6
KL_WEIGHT = 1e-6  # LDM's, for the posterior's sum over a picture's values
CRITIC_WEIGHT = 0.5
CRITIC_FROM = 0.25  # of the steps
_LARGEST_WEIGHT, _TINY = 1e4, 1e-4


class Autoencoding(nn.Module):
    """Its call gives each row's loss, (b,), of the turn. `critic_from`: the step from which its word counts."""

    def __init__(self, vae: AutoencoderKL, critic: Critic, lpips: Lpips, policy: Policy, critic_from: int) -> None:
        super().__init__()
        self.vae, self.critic, self.policy, self.critic_from = vae, critic, policy, critic_from
        self._lpips = (lpips,)  # frozen: no part of what is wrapped or saved

    def forward(self, batch: Batch, turn: str = AUTOENCODER) -> Tensor:
        """Return each row's loss, (b,), float32."""
        x, noise = self._drawn(batch)
        if turn == CRITIC:
            with torch.no_grad():
                made = self._reconstructed(x, noise)[0]
            return hinge(*(self._marks(p) for p in (x, made)))
        with _inputs_of(self.vae.decoder.conv_out) as inputs:
            made, kl = self._reconstructed(x, noise)
        reconstruction = self._difference(x, made)
        if not (self.training and torch.is_grad_enabled() and batch.step >= self.critic_from):
            return reconstruction + KL_WEIGHT * kl
        return self._with_critic(made, reconstruction, inputs[0]) + KL_WEIGHT * kl

    def _drawn(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return what the encoder is shown, (b 3 h w), and each row's noise for its posterior, as wide as a picture."""
        target = batch.rows["target"].to(self.policy.device).float() / 127.5 - 1
        condition = batch.rows["condition"].to(self.policy.device).float() / 255
        generators = [Generator().manual_seed(seed) for seed in batch.seeds]
        shows = torch.stack([torch.rand((), generator=g) < CONDITION_SHARE for g in generators])
        channels, cell = int(self.vae.config["latent_channels"]), 2 ** (len(self.vae.config["block_out_channels"]) - 1)
        shape = channels, *(side // cell for side in target.shape[-2:])
        noise = torch.stack([torch.randn(shape, generator=g) for g in generators])
        shows = shows.to(target.device).view(-1, 1, 1, 1)
        return torch.where(shows, condition, target), noise.to(target.device)

    def _reconstructed(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return the decoder's pictures, (b 3 h w), float32, and each row's KL for one value of the picture, (b,)."""
        posterior = self.vae.encode(placed(x, self.policy), return_dict=False)[0]
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        z = mean + (logvar / 2).exp() * noise
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).flatten(1).sum(dim=1) / x[0].numel()
        return self.vae.decode(cast(torch.FloatTensor, placed(z, self.policy)), return_dict=False)[0].float(), kl

    def _marks(self, pictures: Tensor) -> Tensor:
        """Return the critic's marks of pictures (b 3 h w), (b 1 h/8 w/8), float32."""
        return self.critic(placed(pictures, self.policy)).float()

    def _difference(self, x: Tensor, made: Tensor) -> Tensor:
        perceived = self._lpips[0](*(placed(p, self.policy) for p in (made, x))).float()
        return (x - made).abs().flatten(1).mean(dim=1) + perceived

    def _with_critic(self, made: Tensor, reconstruction: Tensor, last_input: Tensor) -> Tensor:
        """Return the reconstruction's loss and the critic's, weighed by rows.

        The gradients at the made pictures are needed for the weights and then passed on: nothing is differentiated
        twice.
        """
        shown = made.detach().requires_grad_()
        against = -self._marks(shown).flatten(1).mean(dim=1)
        to_critic = torch.autograd.grad(against.sum(), shown)[0]
        to_pictures = torch.autograd.grad(reconstruction.sum(), made, retain_graph=True)[0]
        lengths = [self._last_gradients(last_input, gradient) for gradient in (to_pictures, to_critic)]
        weight = CRITIC_WEIGHT * (lengths[0] / (lengths[1] + _TINY)).clamp(max=_LARGEST_WEIGHT)
        slope = (made * (to_pictures + weight.view(-1, 1, 1, 1) * to_critic)).flatten(1).sum(dim=1)
        value = reconstruction.detach() + weight * against.detach()
        return value + slope - slope.detach()

    def _last_gradients(self, last_input: Tensor, gradient: Tensor) -> Tensor:
        """Return the length of each row's gradient of the decoder's last weights, (b,)."""
        shape = list(self.vae.decoder.conv_out.weight.shape)
        rows = zip(last_input.detach().float().split(1), gradient.split(1), strict=True)
        return torch.stack([conv2d_weight(h, shape, g, padding=1).norm() for h, g in rows])


@contextmanager
def _inputs_of(layer: nn.Module) -> Iterated[list[Tensor]]:
    """Collect what the layer is given meanwhile."""
    inputs: list[Tensor] = []

    def keep(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        inputs.append(given[0])

    handle = layer.register_forward_pre_hook(keep)
    try:
        yield inputs
    finally:
        handle.remove()


@dataclass(frozen=True)
class VaeLearner:
    """A model's autoencoder and its critic, in training."""

    module: Autoencoding
    turns: tuple[Turn, ...]
    model: Model

    def save(self, path: Path, facts: Facts, weights: Mapping[str, Tensor] | None = None) -> None:
        """Write the whole model, a folder, with this autoencoder; the critic is not kept."""
        tensors = weights or self.turns[0].parameters
        own = {name: tensors[name] for name in self.turns[0].parameters}
        write_model(path, self.model, "vae", own, facts)


def open(opening: Opening) -> VaeLearner:
    """Return the autoencoder and a new critic. Raises NotInstalled where LPIPS's weights are not there."""
    request, memory, vae = opening.request, opening.memory, opening.model.module
    if opening.start is not None:
        raise RequestError("This recipe goes on from a model: name it with model, not with start.")
    check_writable(opening.model)
    if not isinstance(vae, AutoencoderKL):
        raise WrongFamily(f"{opening.model.name} has a {type(vae).__name__}; this recipe teaches an AutoencoderKL.")
    masters = masters_of(memory)
    masters.place(vae).requires_grad_(True)
    critic = masters.place(Critic(Generator().manual_seed(request.seed)))
    lpips = memory.place(open_lpips("vgg"))
    for net in (vae, critic, lpips):
        install(net)
    if request.checkpointing:
        vae.enable_gradient_checkpointing()
    module = Autoencoding(vae, critic, lpips, memory.policy, int(CRITIC_FROM * request.steps))
    rate = request.rate or RATE
    turns = (
        Turn(AUTOENCODER, dict(vae.named_parameters()), rate),
        Turn(CRITIC, {f"critic.{name}": p for name, p in critic.named_parameters()}, rate),
    )
    return VaeLearner(module.train(), turns, opening.model)
