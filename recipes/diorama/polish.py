"""Stage 2b: train the decoder on, with the encoder frozen, so that stored latents and the UNet stay valid.

python -m recipes.diorama.polish --run RUN --minutes 8.5
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from .compose import Store
from .training import Masters, Session, images_to_tensor, picture, save, speed_up_norms
from .vae import psnr, reconstruction_loss

CROPS, WHOLES = (24, 64), (8, 128)  # batch and side in pixels
CROP_SHARE = 0.7  # of the time
LATENT_NOISE = 0.05  # of the latents' deviation: sampled latents are never exact
PEAK_LR, WARMUP_STEPS, FLAT_SHARE, AVERAGE = 1e-3, 20, 0.3, 0.99
SHRINK = 8


class Batches:
    """Latent windows with the pixels that they stand for."""

    def __init__(self, data: Path, seed: int) -> None:
        self.latents = np.load(data / "train_latents.npy", mmap_mode="r")
        store = Store(data, "train")
        self.images, self.edges = store.open("images"), store.open("edges")
        self.rng = np.random.default_rng(seed)

    def corner(self, row: int, side: int) -> list[int]:
        """Return the corner, in latent cells, of a window around a random edge."""
        ys, xs = np.nonzero(self.edges[row])
        k, room = int(self.rng.integers(max(len(ys), 1))), (self.edges.shape[1] - side) // SHRINK
        middle = (int(ys[k]), int(xs[k])) if len(ys) else (side // 2, side // 2)
        return [int(np.clip((v - side // 2) // SHRINK + self.rng.integers(-2, 3), 0, room)) for v in middle]

    def draw(self, batch: int, side: int) -> tuple[Tensor, Tensor]:
        """Return latents (b 4 side/8 side/8) and pixels (b 3 side side)."""
        latents, pixels = [], []
        for row in self.rng.integers(0, len(self.latents), batch):
            y, x = self.corner(row, side)
            cells = side // SHRINK
            latents.append(self.latents[row, :, y : y + cells, x : x + cells])
            pixels.append(self.images[row, y * SHRINK : y * SHRINK + side, x * SHRINK : x * SHRINK + side])
        return torch.from_numpy(np.stack(latents)).float(), images_to_tensor(np.stack(pixels))


def polish(run: Path, minutes: float) -> None:
    """Train the decoder for `minutes` of wall time, resuming from the last checkpoint, and rewrite the VAE."""
    stored = torch.load(run / "vae_final.pt")
    vae = AutoencoderKL(**stored["config"])
    vae.load_state_dict(stored["model"])
    vae.to(torch.bfloat16, memory_format=torch.channels_last)
    speed_up_norms(vae)
    masters = Masters([*vae.post_quant_conv.parameters(), *vae.decoder.parameters()], PEAK_LR, AVERAGE)
    session = Session(masters, run / "polish.pt", minutes, WARMUP_STEPS, FLAT_SHARE)
    batches = Batches(run / "data", session.steps)
    while not session.over:
        batch, side = CROPS if session.done < CROP_SHARE else WHOLES
        z, x = batches.draw(batch, side)
        z = (z + LATENT_NOISE * torch.randn_like(z)).bfloat16().contiguous(memory_format=torch.channels_last)
        session.step(reconstruction_loss(x, vae.decode(z).sample.float()))
        if session.due("save"):
            session.save()
            finish(run, stored, masters)


def finish(run: Path, stored: dict[str, object], masters: Masters) -> None:
    """Write the VAE with the averaged decoder, its PSNR and a picture."""
    vae = AutoencoderKL(**stored["config"])
    state = {**stored["model"], **decoder_state(vae, masters)}
    vae.load_state_dict(state)
    held_out = Store(run / "data", "held_out").open("images")
    value, y = psnr(vae.to(torch.bfloat16), held_out[:96])
    picture([images_to_tensor(held_out[:12]), y[:12]], run / "vae_samples.png")
    save(run / "vae_polished.pt", {"model": state, "config": stored["config"], "psnr": value})
    (run / "vae_polished.json").write_text(json.dumps({"psnr": value, "decoder_steps": masters.step_count}))
    print(f"held-out psnr {value:.2f} dB", flush=True)


def decoder_state(vae: AutoencoderKL, masters: Masters) -> dict[str, Tensor]:
    """Return the averaged decoder in float32, by name."""
    names = [f"post_quant_conv.{k}" for k, _ in vae.post_quant_conv.named_parameters()] + [
        f"decoder.{k}" for k, _ in vae.decoder.named_parameters()
    ]
    return dict(zip(names, masters.averages, strict=True))


def main() -> None:
    """Polish from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=8.5)
    args = parser.parse_args()
    polish(args.run, args.minutes)


if __name__ == "__main__":
    main()
