"""What the families with a UNet share (Stable Diffusion 1.x, 2.x, XL): over the latents of a VAE, attending to text.

Rombach et al. 2022. The families differ in their text encoder and their sizes; each builds this value.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn

from disegno.backbones._autoencoder import Autoencoder, build_autoencoder, without_overflow
from disegno.backbones._cross_attention import reading
from disegno.backbones._freeu import check_joins, joining
from disegno.backbones._layer_inputs import shifting
from disegno.backbones._lockstep import evaluate
from disegno.backbones._self_attention import taking_up
from disegno.backbones._vae_file import beside_own, open_vae
from disegno.backbones._weakened import check_unet, weakened_unet
from disegno.backbones.base import Defaults, DepthReader, TextStates, text_key
from disegno.core.errors import RequestError, UnknownKind
from disegno.diffusion.call import Call, Residuals, Weakness
from disegno.diffusion.prediction import PREDICTIONS, Prediction
from disegno.diffusion.schedules import NoiseTable, scaled_linear_table
from disegno.memory import Memory
from disegno.text.learnt import TextOptions
from disegno.weights.built_in import FewSteps

Config = dict[str, Any]  # a configuration of diffusers' or transformers' classes, as its JSON file has it
Tensors = Mapping[str, Tensor]

_PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v", "v": "v"}
_OTHER_LEVELS = ("EDM", "FlowMatch")  # what diffusers' schedulers of a UNet's folder may begin with
_BETAS = {"beta_start": "beta_start", "beta_end": "beta_end", "num_train_timesteps": "num_timesteps"}


class TextEncoder(Protocol):
    """Prompts to text states."""

    def read(self, prompts: Sequence[str], skip: int) -> tuple[Tensor, list[str]]:
        """Return the states of layer -skip, (b n d), and warnings about what was cut off."""
        ...

    def read_prompt(self, text: str, options: TextOptions) -> tuple[Tensor, list[str]]:
        """Return the states of a prompt of any length, (1 kn d), and warnings."""
        ...

    @property
    def nets(self) -> Mapping[str, nn.Module]:
        """The networks, by what LoRAs call them: "te", and "te2" where there are two."""
        ...


def noise_table_of(scheduler: Config, name: str) -> NoiseTable:
    """Return the noise levels of a scheduler's configuration (diffusers' names); Stable Diffusion's where it is silent.

    Raises UnknownKind for another beta schedule than scaled_linear, and for a flow's or EDM's levels.
    """
    kind = str(scheduler.get("_class_name", ""))
    if kind.startswith(_OTHER_LEVELS):
        raise UnknownKind(
            f"{name} was trained over other noise levels than Stable Diffusion's (its scheduler is a {kind}), which are"
            " not drawn here with such a net. Choose another model."
        )
    if (given := scheduler.get("beta_schedule", "scaled_linear")) != "scaled_linear":
        raise UnknownKind(f"{name} has the beta schedule {given!r}; known is scaled_linear. Choose another model.")
    table = scaled_linear_table(**{ours: scheduler[theirs] for theirs, ours in _BETAS.items() if theirs in scheduler})
    if scheduler.get("rescale_betas_zero_snr"):
        return NoiseTable.from_alphas_cumprod(_zero_snr(table.alphas_cumprod))
    return table


def _zero_snr(alphas_cumprod: Tensor) -> Tensor:
    """Return abar shifted so that the last step is noise alone. Lin et al. 2023, Algorithm 1.

    The last value is kept off 0, so that sigma is finite: ComfyUI parity, 4.8973451890853435e-08 (sigma 4518.76).
    """
    root = alphas_cumprod.double().sqrt()
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return (root**2).clamp_min(4.8973451890853435e-08).float()


def prediction_of(given: str, name: str) -> Prediction:
    """Return what a net's output means, by diffusers' word for it. Raises UnknownKind."""
    if given not in _PREDICTIONS:
        raise UnknownKind(f"{name} predicts {given!r}; known are {', '.join(_PREDICTIONS)}. Choose another model.")
    return PREDICTIONS[_PREDICTIONS[given]]


@dataclass(frozen=True)
class Nets:
    """A UNet and a VAE, read: the tensors under diffusers' names, and the two configurations."""

    unet: Tensors
    vae: Tensors
    unet_config: Config
    vae_config: Config


# What a UNet may ask for beside latents, a timestep and text; in diffusers' configuration, and what asks for it.
_ASKED = {
    "class_embed_type": "a picture's embedding (unCLIP) or a class",
    "num_class_embeds": "a level of noise (the x4 upscaler) or a class",
    "addition_embed_type": "a pooled text or a picture (SDXL, Kandinsky)",
    "encoder_hid_dim_type": "a text or a picture of another width (DeepFloyd, Kandinsky)",
    "time_cond_proj_dim": "the guidance (a latent consistency model: use its LoRA on the model that it was made from)",
}


def _check_asks(config: Config, name: str, told: Collection[str]) -> None:
    """Raise UnknownKind where a UNet wants to be told what this family does not tell it."""
    for asked, meaning in _ASKED.items():
        if config.get(asked) not in (None, *told):
            raise UnknownKind(
                f"The UNet of {name} wants to be told {meaning}, which it is not here. Choose another model."
            )


def open_nets(
    nets: Nets, name: str, memory: Memory, told: Collection[str] = ()
) -> tuple[UNet2DConditionModel, AutoencoderKL]:
    """Return the two nets, placed. Raises KeyMismatch where tensors are missing, unexpected or of another shape.

    Raises UnknownKind where the UNet wants more than latents, a timestep, text, and what the family tells it (`told`).
    """
    _check_asks(nets.unet_config, name, told)

    def unet() -> UNet2DConditionModel:
        return cast(UNet2DConditionModel, UNet2DConditionModel.from_config(nets.unet_config))

    def vae() -> AutoencoderKL:
        return build_autoencoder(nets.vae_config)

    return (
        memory.pack(memory.build(unet, nets.unet, f"The UNet of {name}")),
        memory.build(vae, nets.vae, f"The VAE of {name}", memory.policy.vae_dtype),
    )


@dataclass(frozen=True)
class LatentDiffusion:
    """An open model: a `Backbone`. `warnings` grows; everything else stays as it was opened."""

    family: str
    name: str
    prediction: Prediction
    table: NoiseTable
    defaults: Defaults
    net: UNet2DConditionModel
    vae: AutoencoderKL
    text: TextEncoder
    memory: Memory
    fingerprint: str
    conditions: Mapping[str, Path] = field(default_factory=dict[str, Path])
    base_control: Path | None = None
    few_steps: FewSteps | None = None
    preview: Path | None = None
    warnings: list[str] = field(default_factory=list[str])
    depth: DepthReader | None = None

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
    def scaling_factor(self) -> float:
        """Return what latents are multiplied by, so that they have unit variance."""
        return self._autoencoder.scale

    @torch.no_grad()
    def encode_text(self, prompts: Sequence[str], clip_skip: int = 1) -> TextStates:
        tokens, warnings = self.text.read(prompts, clip_skip)
        return TextStates(tokens, None, tuple(text_key(row) for row in tokens), tuple(warnings))

    @torch.no_grad()
    def read_prompt(self, text: str, options: TextOptions) -> TextStates:
        tokens, warnings = self.text.read_prompt(text, options)
        return TextStates(tokens, None, (text_key(tokens[0]),), tuple(warnings))

    @property
    def lora_nets(self) -> Mapping[str, nn.Module]:
        return {"unet": self.net, **self.text.nets}

    def predicting(self, name: str) -> "LatentDiffusion":
        """Return this model with another meaning of its output, the same nets. Raises RequestError for flow."""
        if name == "flow":
            raise RequestError(f"{self.name} is taught over the levels of epsilon and v. Choose one of these two.")
        return replace(self, prediction=PREDICTIONS[name], warnings=[])

    def with_vae(self, path: Path) -> "LatentDiffusion":
        """Return this model with the VAE of a file or folder, the same nets beside it. Raises ModelFileError."""
        vae, content = open_vae(path, self.vae, self.memory)
        said = without_overflow(self.warnings)
        return replace(self, vae=vae, fingerprint=beside_own(self.fingerprint, content), warnings=said)

    def encode_image(self, images: Tensor) -> Tensor:
        return self._autoencoder.encode(images)

    def decode(self, latents: Tensor) -> Tensor:
        return self._autoencoder.decode(latents)

    @property
    def _autoencoder(self) -> Autoencoder:
        return Autoencoder(self.vae, self.memory, self.name, self.warnings)

    def evaluate(self, call: Call) -> Tensor:
        """Return the net's raw output, (b c h w), float32. Raises RequestError when the net wants other channels."""
        if call.references:
            return taking_up(self.net, call, self.evaluate)
        shown = call.x if call.extra is None else torch.cat([call.x, call.extra.to(call.x)], dim=1)
        if shown.shape[1] != self.in_channels:
            raise RequestError(
                f"{self.name} is shown {shown.shape[1]} channels but wants {self.in_channels}: it was made for "
                "inpainting (9), for editing by instruction (8) or for depth (5). Give what it needs, or choose another"
                " model."
            )
        policy = self.memory.policy
        x = shown.to(policy.device, policy.dtype).contiguous(memory_format=policy.memory_format)
        t, tokens, residuals = call.t.to(policy.device), call.tokens.to(policy.device, policy.dtype), call.residuals
        if residuals is not None:
            down = tuple(r.to(x.device, x.dtype) for r in residuals.down)
            residuals = Residuals(down, residuals.mid.to(x.device, x.dtype))
        added = self._added(call, x)
        with (
            reading(self.net, call.image_prompts, x),
            shifting(self.net, call.shifts, x),
            weakened_unet(self.net, call.rows),
            joining(self.net, call.rows),
        ):
            if call.streams:
                return evaluate(self.net, x, t, tokens, residuals, call.streams, added).float()
            out = self.net(
                x,
                t,
                encoder_hidden_states=tokens,
                added_cond_kwargs=added,
                down_block_additional_residuals=residuals and residuals.down,
                mid_block_additional_residual=residuals and residuals.mid,
                return_dict=False,
            )[0]
            return out.float()

    def _added(self, call: Call, x: Tensor) -> dict[str, Tensor] | None:
        """Return what the net is told beside x, t and tokens, by diffusers' names; None: nothing."""
        return None

    def check_joins(self) -> None:
        check_joins(self.net, self.name)

    def check_weakness(self, weakness: Weakness) -> None:
        check_unet(weakness, self.name)

    def check_size(self, width: int, height: int) -> None:
        """Raise RequestError when a side is no multiple of a latent cell, or the deepest level would see nothing."""
        least = self.downscale * 2 ** (len(self.net.config["block_out_channels"]) - 1)
        for side, pixels in (("width", width), ("height", height)):
            if pixels % self.downscale or pixels < least:
                raise RequestError(
                    f"The {side} is {pixels}; {self.name} draws multiples of {self.downscale} from {least} pixels on. "
                    f"Try {max(least, round(pixels / self.downscale) * self.downscale)}."
                )
