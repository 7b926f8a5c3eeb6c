"""A tiny decoder for live previews (TAESD, Bohan 2023): what the VAE's decoder paints, in a tenth of the time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from diffusers.models.autoencoders.vae import DecoderTiny
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from torch.nn import init

from disegno.memory import Memory
from disegno.training.base import Batch, Facts, Turn
from disegno.training.encoder import masters_of
from disegno.weights.save import save_safetensors

WIDTH = 32  # half of TAESD's
PROGRAMS_BLOCKS = (3, 3, 3, 1)  # the program opens decoders of this depth, of any width
COARSE = 4  # the loss also compares pictures that are so many times smaller


class Decoding(nn.Module):
    """Its call gives each row's loss, (b,): absolute differences to the true picture, fine and coarse."""

    def __init__(self, net: DecoderTiny, memory: Memory) -> None:
        super().__init__()
        self.net, self.policy = net, memory.policy

    def forward(self, batch: Batch, turn: str = "") -> Tensor:
        """Return each row's loss, (b,), float32."""
        target = batch.rows["target"].to(self.policy.device).float() / 127.5 - 1
        made = self.net(batch.rows["latent"].float())
        fine = (made - target).abs().flatten(1).mean(dim=1)
        coarse = (F.avg_pool2d(made, COARSE) - F.avg_pool2d(target, COARSE)).abs().flatten(1).mean(dim=1)
        return fine + coarse


@dataclass(frozen=True)
class TinyLearner:
    """A tiny decoder in training."""

    module: Decoding
    turns: tuple[Turn, ...]

    def save(self, path: Path, facts: Facts, weights: Mapping[str, Tensor] | None = None) -> None:
        """Write the decoder's file, by diffusers' names, which `preview_decoder` opens."""
        tensors = weights or self.turns[0].parameters
        save_safetensors(path, {f"decoder.{name}": t.detach() for name, t in tensors.items()}, {"format": "pt"})


def open_tiny(memory: Memory, rate: float, seed: int) -> TinyLearner:
    """Return a new decoder."""
    net = DecoderTiny(4, 3, PROGRAMS_BLOCKS, (WIDTH,) * 4, 2, "relu", "nearest")
    generator = Generator().manual_seed(seed)
    for parameter in net.parameters():
        if parameter.ndim > 1:
            init.kaiming_uniform_(parameter, a=5**0.5, generator=generator)  # PyTorch's own draw
        else:
            init.zeros_(parameter)
    masters_of(memory).place(net).requires_grad_(True).train()
    return TinyLearner(Decoding(net, memory), (Turn("decoder", dict(net.named_parameters()), rate),))
