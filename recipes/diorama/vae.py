"""Stage 2: train the VAE.

python -m recipes.diorama.vae --run RUN --minutes 25
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor

from .compose import Store
from .training import Masters, Session, images_to_tensor, picture, save, speed_up_norms
from .world.maps import class_colours

CONFIG = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": [16, 32, 64, 128],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "sample_size": 128,
    "mid_block_add_attention": True,
}
CROPS, WHOLES = (24, 64), (8, 128)  # batch and side in pixels: first windows on what matters, then whole scenes
CROP_SHARE = 0.75  # of the time
MAP_SHARE = 0.17  # of a batch: condition maps in [0, 1], as a control gives them to the encoder
KL_WEIGHT, EDGE_WEIGHT, COARSE_WEIGHT = 3e-4, 0.5, 1.0
FIRST_LOG_VARIANCE = -6.0  # from 0 the noise drowns the picture and the latents collapse
PEAK_LR, WARMUP_STEPS, FLAT_SHARE = 1.2e-3, 50, 0.3


class Batches:
    """Random training batches: scenes in [-1, 1], and a share of canny and class maps in [0, 1]."""

    def __init__(self, store: Store, seed: int) -> None:
        self.images, self.edges, self.classes = (store.open(f) for f in ("images", "edges", "classes"))
        self.rng, self.colours = np.random.default_rng(seed), class_colours()

    def window(self, row: int, side: int) -> tuple[slice, slice]:
        """Return a window around a random edge of the scene: a plain sky teaches nothing."""
        edges, size = self.edges[row], self.edges.shape[1]
        ys, xs = np.nonzero(edges)
        k = int(self.rng.integers(len(ys))) if len(ys) else 0
        y, x = (int(ys[k]), int(xs[k])) if len(ys) else (size // 2, size // 2)
        corner = [
            int(np.clip(v - side // 2 + self.rng.integers(-side // 4, side // 4 + 1), 0, size - side)) for v in (y, x)
        ]
        return slice(corner[0], corner[0] + side), slice(corner[1], corner[1] + side)

    def draw(self, batch: int, side: int) -> Tensor:
        """Return one batch (b 3 side side)."""
        rows = self.rng.integers(0, len(self.images), batch)
        maps = round(batch * MAP_SHARE)
        parts: list[NDArray[np.uint8]] = []
        for k, row in enumerate(rows):
            at = self.window(row, side)
            if k >= maps:
                parts.append(self.images[row][at])
            elif k % 2:
                parts.append(self.colours[self.classes[row][at]])
            else:
                parts.append(np.repeat(self.edges[row][at][..., None], 3, axis=2))
        x = images_to_tensor(np.stack(parts))
        x[:maps] = (x[:maps] + 1) / 2
        return x.bfloat16().contiguous(memory_format=torch.channels_last)


def slopes(x: Tensor) -> Tensor:
    """Return horizontal and vertical Sobel slopes, (b 6 h w)."""
    sobel = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]], dtype=x.dtype) / 4
    kernel = torch.stack([sobel, sobel.T])[:, None].repeat(3, 1, 1, 1)
    return F.conv2d(x, kernel, groups=3)


def reconstruction_loss(x: Tensor, y: Tensor) -> Tensor:
    """Return L1 at three sizes plus L1 of the slopes."""
    loss = F.l1_loss(y, x) + EDGE_WEIGHT * F.l1_loss(slopes(y), slopes(x))
    for factor in (4, 8):
        loss = loss + COARSE_WEIGHT * F.l1_loss(F.avg_pool2d(y, factor), F.avg_pool2d(x, factor))
    return loss


def psnr(vae: AutoencoderKL, images: NDArray[np.uint8]) -> tuple[float, Tensor]:
    """Return the mean PSNR in dB over the pictures, and the reconstructions."""
    x = images_to_tensor(images)
    with torch.no_grad():
        y = vae.decode(vae.encode(x.to(vae.dtype)).latent_dist.mode()).sample.float().clamp(-1, 1)
    errors = ((x - y) / 2).pow(2).mean(dim=(1, 2, 3))
    return float((-10 * errors.log10()).mean()), y


def build() -> AutoencoderKL:
    """Return a fresh VAE in bf16 that starts with little latent noise."""
    vae = AutoencoderKL(**CONFIG).to(torch.bfloat16, memory_format=torch.channels_last)
    with torch.no_grad():
        vae.quant_conv.bias[4:] = FIRST_LOG_VARIANCE
    speed_up_norms(vae)
    return vae


def loss_of(vae: AutoencoderKL, x: Tensor) -> Tensor:
    """Return the loss of a batch of pictures (b 3 h w)."""
    posterior = vae.encode(x).latent_dist
    y = vae.decode(posterior.mean + posterior.std * torch.randn_like(posterior.mean)).sample.float()
    return reconstruction_loss(x.float(), y) + KL_WEIGHT * posterior.kl().mean() / x[0].numel()


def train(run: Path, minutes: float) -> None:
    """Train for `minutes` of wall time, resuming from the last checkpoint."""
    torch.manual_seed(0)
    vae = build()
    masters = Masters(vae.parameters(), PEAK_LR)
    session = Session(masters, run / "vae.pt", minutes, WARMUP_STEPS, FLAT_SHARE)
    batches, held_out = (
        Batches(Store(run / "data", "train"), session.steps),
        Store(run / "data", "held_out").open("images"),
    )
    while not session.over:
        batch, side = CROPS if session.done < CROP_SHARE else WHOLES
        session.step(loss_of(vae, batches.draw(batch, side)))
        if session.due("save"):
            session.save()
            value, y = psnr(vae, held_out[:64])
            picture([images_to_tensor(held_out[:12]), y[:12]], run / "vae_samples.png")
            print(f"held-out psnr {value:.2f} dB", flush=True)
    finish(vae.float(), masters, run)


def normalise_latents(vae: AutoencoderKL, latents: Tensor) -> None:
    """Fold the channels' means and spreads into the two 1x1 convolutions: latents then have mean 0 and deviation 1."""
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    into, out = vae.quant_conv, vae.post_quant_conv
    with torch.no_grad():
        out.bias += out.weight[:, :, 0, 0] @ mean
        out.weight *= std[None, :, None, None]
        into.bias[:4] = (into.bias[:4] - mean) / std
        into.weight[:4] /= std[:, None, None, None]
        into.bias[4:] -= 2 * std.log()


def finish(vae: AutoencoderKL, masters: Masters, run: Path) -> None:
    """Freeze the VAE: take the fp32 masters, give the latents unit spread, measure, write weights and config."""
    with torch.no_grad():
        torch._foreach_copy_(list(vae.parameters()), masters.masters)
    images = Store(run / "data", "train").open("images")[:256]
    with torch.no_grad():
        latents = torch.cat(
            [vae.encode(images_to_tensor(images[k : k + 32])).latent_dist.mode() for k in range(0, len(images), 32)]
        )
    normalise_latents(vae, latents)
    value, _ = psnr(vae, Store(run / "data", "held_out").open("images")[:96])
    config = {**CONFIG, "scaling_factor": 1.0}
    save(run / "vae_final.pt", {"model": vae.state_dict(), "config": config, "psnr": value})
    (run / "vae_final.json").write_text(json.dumps({"psnr": value, "steps": masters.step_count}))
    print(f"finished: held-out psnr {value:.2f} dB on 96 scenes", flush=True)


def main() -> None:
    """Train the VAE from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=25)
    args = parser.parse_args()
    train(args.run, args.minutes)


if __name__ == "__main__":
    main()
