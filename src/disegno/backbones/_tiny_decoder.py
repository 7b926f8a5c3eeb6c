"""A tiny decoder for previews (TAESD, Bohan 2023): diffusers' DecoderTiny, from its folder or either kind of file."""

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers.models.autoencoders.vae import DecoderTiny
from torch import Tensor

from disegno.core.errors import UnknownKind, WrongFamily
from disegno.memory import Memory
from disegno.weights.load import open_file

_FOLDERS_OWN = "diffusion_pytorch_model.safetensors"
_NAMES = {"sdxl": "taesdxl_decoder", "sd3": "taesd3_decoder"}  # the author's, by family
_USUAL = "taesd_decoder"
_NUM_BLOCKS = (3, 3, 3, 1)  # TAESD's; what follows each of the first three enlarges twice
_PREFIX = "decoder.layers."


def _files_of(family: str) -> tuple[str, ...]:
    """Return what a folder's decoder for this family is called: what SDXL's latents mean is not what SD 1's do."""
    name = _NAMES.get(family, _USUAL)
    return f"{name}.safetensors", f"{name}.pth", _FOLDERS_OWN


def open_tiny_decoder(path: Path, latent_channels: int, memory: Memory, family: str = "") -> Callable[[Tensor], Tensor]:
    """Return a function from latents (b c h w) to pictures (b 3 8h 8w), in [0, 1].

    `family`: of the model; a folder may hold the decoders of several, by their authors' names. Raises UnknownKind for
    another file, WrongFamily for another number of latent channels, KeyMismatch.
    """
    if path.is_dir():
        names = _files_of(family)
        found = next((path / name for name in names if (path / name).is_file()), None)
        if found is None:
            of = f" of {family}" if family else ""
            raise UnknownKind(f"{path} holds no tiny decoder{of}. Expected one of: {', '.join(names)}.")
        path = found
    with open_file(path) as file:
        tensors = _named(file.tensors())
    first = tensors.get("layers.0.weight")
    if first is None or first.ndim != 4:
        raise UnknownKind(f"{path.name} is no tiny decoder (TAESD): it has no first convolution.")
    if first.shape[1] != latent_channels:
        raise WrongFamily(
            f"{path.name} decodes {first.shape[1]} latent channels, the open model has {latent_channels}."
            " Choose another decoder."
        )

    def make() -> DecoderTiny:
        widths = (first.shape[0],) * len(_NUM_BLOCKS)
        return DecoderTiny(latent_channels, 3, _NUM_BLOCKS, widths, 2, "relu", "nearest")

    net = memory.build(make, tensors, path.name, torch.float32)

    def decode(latents: Tensor) -> Tensor:
        return (net(latents.to(memory.policy.device, torch.float32)) / 2 + 0.5).clamp(0, 1)

    return decode


def _named(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the decoder's tensors by diffusers' names. The original counts the clamp before them as its layer 0."""
    if any(name.startswith(_PREFIX) for name in tensors):
        return {name.removeprefix("decoder."): t for name, t in tensors.items() if name.startswith(_PREFIX)}
    numbered = {name.partition("."): t for name, t in tensors.items() if name[:1].isdigit()}
    return {f"layers.{int(number) - 1}.{rest}": t for (number, _, rest), t in numbered.items()}
