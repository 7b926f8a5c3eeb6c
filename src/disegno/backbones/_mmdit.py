"""A flow model over the latents of a VAE whose net is a transformer of joint text and image tokens (MMDiT).

Esser et al. 2024; diffusers' SD3Transformer2DModel.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel
from torch import Tensor, nn

from disegno.backbones._autoencoder import Autoencoder, without_overflow
from disegno.backbones._three_texts import ThreeTexts
from disegno.backbones._vae_file import beside_own, open_vae
from disegno.backbones._weakened import check_transformer, weakened_transformer
from disegno.backbones.base import Defaults, TextStates, text_key
from disegno.core.errors import RequestError
from disegno.diffusion.call import Call, Weakness
from disegno.diffusion.patches import block_residuals, whole_patches
from disegno.diffusion.prediction import Prediction
from disegno.diffusion.schedules import NoiseTable
from disegno.memory import Memory
from disegno.text.learnt import TextOptions
from disegno.weights.built_in import FewSteps

_TEXTS = {"clip_l": "te", "clip_g": "te2", "t5": "te3"}  # as LoRAs' files call them


def states_of(tokens: Tensor, pooled: Tensor, warnings: Sequence[str]) -> TextStates:
    """Return text states whose keys name both the tokens and the pooled state."""
    keys = (text_key(row) + text_key(whole) for row, whole in zip(tokens, pooled, strict=True))
    return TextStates(tokens, pooled, tuple(keys), tuple(warnings))


@dataclass(frozen=True)
class Mmdit:
    """An open model: a `Backbone`. `warnings` grows; everything else stays as it was opened."""

    family: str
    name: str
    prediction: Prediction
    table: NoiseTable
    defaults: Defaults
    net: SD3Transformer2DModel
    vae: AutoencoderKL
    text: ThreeTexts
    memory: Memory
    fingerprint: str
    conditions: Mapping[str, Path] = field(default_factory=dict[str, Path])
    base_control: Path | None = None
    few_steps: FewSteps | None = None
    preview: Path | None = None
    warnings: list[str] = field(default_factory=list[str])

    @property
    def latent_channels(self) -> int:
        return self._autoencoder.channels

    @property
    def in_channels(self) -> int:
        return int(self.net.config["in_channels"])

    @property
    def downscale(self) -> int:
        return self._autoencoder.downscale

    @property
    def _autoencoder(self) -> Autoencoder:
        return Autoencoder(self.vae, self.memory, self.name, self.warnings)

    @property
    def lora_nets(self) -> Mapping[str, nn.Module]:
        return {"unet": self.net, **{_TEXTS[name]: net for name, net in self.text.nets.items()}}

    def predicting(self, name: str) -> "Mmdit":
        """Return this model, whose output means a flow and nothing else. Raises RequestError."""
        if name != self.prediction.name:
            raise RequestError(f"{self.name} is a flow model: its output cannot mean {name}. Leave --prediction out.")
        return self

    @torch.no_grad()
    def encode_text(self, prompts: Sequence[str], clip_skip: int = 1) -> TextStates:
        return states_of(*self.text.read(prompts, clip_skip))

    @torch.no_grad()
    def read_prompt(self, text: str, options: TextOptions) -> TextStates:
        return states_of(*self.text.read_prompt(text, options))

    def with_vae(self, path: Path) -> "Mmdit":
        """Return this model with the VAE of a file or folder, the same nets beside it. Raises ModelFileError."""
        vae, content = open_vae(path, self.vae, self.memory)
        said = without_overflow(self.warnings)
        return replace(self, vae=vae, fingerprint=beside_own(self.fingerprint, content), warnings=said)

    def encode_image(self, images: Tensor) -> Tensor:
        return self._autoencoder.encode(images)

    def decode(self, latents: Tensor) -> Tensor:
        return self._autoencoder.decode(latents)

    def evaluate(self, call: Call) -> Tensor:
        """Return the net's raw output, (b c h w), float32. Raises RequestError when the net wants other channels."""
        shown = call.x if call.extra is None else torch.cat([call.x, call.extra.to(call.x)], dim=1)
        if shown.shape[1] != self.in_channels:
            raise RequestError(f"{self.name} is shown {shown.shape[1]} channels but wants {self.in_channels}.")
        assert call.pooled is not None, "Stable Diffusion 3 wants the pooled text"
        policy, (height, width) = self.memory.policy, shown.shape[-2:]
        x = whole_patches(shown.to(policy.device, policy.dtype), int(self.net.config["patch_size"]))
        with weakened_transformer(self.net, call.rows):
            out = self.net(
                hidden_states=x,
                encoder_hidden_states=call.tokens.to(x),
                pooled_projections=call.pooled.to(x),
                timestep=call.t.to(policy.device),
                block_controlnet_hidden_states=call.residuals and block_residuals(call.residuals, x),
                return_dict=False,
            )[0]
        return out[..., :height, :width].float()

    def check_weakness(self, weakness: Weakness) -> None:
        check_transformer(self.net, weakness, self.name)

    def check_size(self, width: int, height: int) -> None:
        """Raise RequestError when a side is no multiple of a latent cell, or beyond the positions that were learnt."""
        unit, patch = self.downscale, int(self.net.config["patch_size"])
        most = int(self.net.config["pos_embed_max_size"]) * patch * unit
        for side, pixels in (("width", width), ("height", height)):
            if pixels % unit or not unit * patch <= pixels <= most:
                near = min(max(round(pixels / unit) * unit, unit * patch), most)
                raise RequestError(
                    f"The {side} is {pixels}; {self.name} draws multiples of {unit} from {unit * patch} to {most}"
                    f" pixels. Try {near}."
                )
