"""Stage 3: train the text-to-image UNet on stored latents and text states.

python -m recipes.diorama.backbone --run RUN --text TEXT --minutes 52
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from numpy.typing import NDArray
from torch import Tensor

from disegno.text.minilm import TextEncoder

from .compose import Store
from .sampling import PROMPTS, alphas_cumprod, sample
from .training import Masters, Session, images_to_tensor, picture, save, speed_up_norms

CONFIG = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "block_out_channels": [64, 128, 256],
    "layers_per_block": 1,
    "attention_head_dim": 4,  # as in SD 1.5: the number of heads
    "cross_attention_dim": 384,
    "norm_num_groups": 32,
    "use_linear_projection": False,
}
TEXT_TOKENS, STORED_TOKENS = 48, 28  # no caption of the world is longer than 28 tokens; the rest is zero
DROP_TEXT = 0.1
PEAK_LR, WARMUP_STEPS, FLAT_SHARE, AVERAGE = 6e-4, 150, 0.2, 0.999
SAMPLE_SECONDS = 600


def stored_vae(run: Path) -> dict[str, object]:
    """Return the newest VAE's weights, config and PSNR."""
    polished = run / "vae_polished.pt"
    return torch.load(polished if polished.exists() else run / "vae_final.pt")


def open_vae(run: Path) -> AutoencoderKL:
    """Return the trained VAE, frozen; with the polished decoder where there is one."""
    stored = stored_vae(run)
    vae = AutoencoderKL(**stored["config"])
    vae.load_state_dict(stored["model"])
    return vae.eval().requires_grad_(False)


def encode_images(vae: AutoencoderKL, images: NDArray[np.uint8], in_unit_range: bool = False) -> Tensor:
    """Return scaled latents (b 4 h w) of uint8 pictures; conditions go in as [0, 1], scenes as [-1, 1]."""
    x = images_to_tensor(images)
    x = (x + 1) / 2 if in_unit_range else x
    with torch.no_grad():
        moments = vae.encode(x.to(vae.dtype).contiguous(memory_format=torch.channels_last)).latent_dist
    return moments.mode().float() * vae.config.scaling_factor


def store_latents(run: Path, count: int, chunk: int = 50) -> None:
    """Write the latents of the first `count` training scenes."""
    vae, images = (
        open_vae(run).to(torch.bfloat16, memory_format=torch.channels_last),
        Store(run / "data", "train").open("images"),
    )
    latents = [encode_images(vae, images[k : min(k + chunk, count)]).half().numpy() for k in range(0, count, chunk)]
    np.save(run / "data" / "train_latents.npy", np.concatenate(latents))


def store_texts(run: Path, text: Path, count: int, chunk: int = 200) -> None:
    """Write the token states of the different captions of the first `count` scenes; row 0 is the empty caption."""
    captions = Store(run / "data", "train").captions()[:count]
    different = ["", *sorted(set(captions))]
    encoder, row = TextEncoder.open(text), {caption: k for k, caption in enumerate(different)}
    order = sorted(range(len(different)), key=lambda k: len(different[k]))
    encoder.tokenizer.enable_padding()  # to the longest of a chunk: two to three times faster than 48
    states = np.zeros((len(different), STORED_TOKENS, CONFIG["cross_attention_dim"]), np.float16)
    for k in range(0, len(order), chunk):
        rows = order[k : k + chunk]
        part = encoder.encode([different[r] for r in rows]).half().numpy()
        states[rows, : part.shape[1]] = part
    np.save(run / "data" / "train_texts.npy", states)
    np.save(run / "data" / "train_rows.npy", np.array([row[caption] for caption in captions], np.int32))


class Batches:
    """Endless shuffled batches of latents and text states."""

    def __init__(self, data: Path, batch: int, seed: int, drop_text: float = DROP_TEXT) -> None:
        self.latents = torch.from_numpy(np.load(data / "train_latents.npy"))
        self.texts = np.load(data / "train_texts.npy", mmap_mode="r")
        self.rows = np.load(data / "train_rows.npy")
        self.batch, self.rng, self.drop_text = batch, np.random.default_rng(seed), drop_text

    def draw(self) -> tuple[NDArray[np.int64], Tensor, Tensor]:
        """Return the scenes' numbers, latents (b 4 h w) and text states (b 48 d)."""
        picks = self.rng.integers(0, len(self.latents), self.batch)
        rows = np.where(self.rng.random(self.batch) < self.drop_text, 0, self.rows[picks])
        text = torch.zeros(self.batch, TEXT_TOKENS, CONFIG["cross_attention_dim"], dtype=torch.bfloat16)
        text[:, :STORED_TOKENS] = torch.from_numpy(np.ascontiguousarray(self.texts[rows]))
        return picks, self.latents[picks].float(), text


def noised(x0: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Return x_t and the target v = alpha eps - sigma x0 (Salimans and Ho 2022, appendix D)."""
    alpha_bar = alphas_cumprod()[t].view(-1, 1, 1, 1)
    alpha, sigma, eps = alpha_bar.sqrt(), (1 - alpha_bar).sqrt(), torch.randn_like(x0)
    return alpha * x0 + sigma * eps, alpha * eps - sigma * x0


def build(config: dict[str, object] = CONFIG) -> UNet2DConditionModel:
    """Return a fresh UNet in bf16. Attention by plain products: its backward is faster than SDPA's on a CPU."""
    unet = UNet2DConditionModel(**config).to(torch.bfloat16, memory_format=torch.channels_last)
    unet.set_attn_processor(AttnProcessor())
    speed_up_norms(unet)
    return unet


def averaged(unet: UNet2DConditionModel, masters: Masters) -> UNet2DConditionModel:
    """Return a float32 copy of the UNet with the averaged weights."""
    copy = UNet2DConditionModel(**{k: v for k, v in unet.config.items() if not k.startswith("_")})
    with torch.no_grad():
        torch._foreach_copy_(list(copy.parameters()), masters.averages)
    return copy.eval().requires_grad_(False)


def show(run: Path, unet: UNet2DConditionModel, vae: AutoencoderKL, encoder: TextEncoder, name: str) -> None:
    """Save two seeds of every held-out prompt."""
    text = encoder.encode(PROMPTS)
    rows = []
    for seed in (1, 2):
        latents = sample(unet, text, encoder.encode([""]), seed=seed)
        images = vae.decode(latents / vae.config.scaling_factor).sample
        rows += [images[:6], images[6:]]
    picture(rows, run / f"{name}.png", zoom=2)
    picture(rows, run / "latest_samples.png", zoom=2)


def train(run: Path, text: Path, minutes: float, batch: int) -> None:
    """Train for `minutes` of wall time, resuming from the last checkpoint."""
    torch.manual_seed(0)
    unet, vae, encoder = build(), open_vae(run), TextEncoder.open(text)
    masters = Masters(unet.parameters(), PEAK_LR, AVERAGE)
    session = Session(masters, run / "unet.pt", minutes, WARMUP_STEPS, FLAT_SHARE)
    batches = Batches(run / "data", batch, session.steps)
    while not session.over:
        _, x0, states = batches.draw()
        t = torch.randint(0, 1000, (batch,))
        x_t, target = noised(x0, t)
        v = unet(x_t.bfloat16().contiguous(memory_format=torch.channels_last), t, states, return_dict=False)[0]
        session.step(F.mse_loss(v.float(), target))
        if session.due("save"):
            session.save(batch=batch, config=CONFIG)
        if session.due("samples", SAMPLE_SECONDS):
            show(run, averaged(unet, masters), vae, encoder, f"samples_{session.steps:05d}")
    snapshot(run)


def snapshot(run: Path) -> None:
    """Write the averaged weights of the newest checkpoint as `unet_final.pt`."""
    state = torch.load(run / "unet.pt")
    unet = UNet2DConditionModel(**state["config"])
    with torch.no_grad():
        torch._foreach_copy_(list(unet.parameters()), state["masters"]["averages"])
    images = state["masters"]["steps"] * state["batch"]
    save(
        run / "unet_final.pt",
        {"model": unet.state_dict(), "config": state["config"], "images": images, "minutes": state["spent"] / 60},
    )
    print(f"{images} pictures, {state['spent'] / 60:.1f} minutes")


def main() -> None:
    """Prepare what is missing, then train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True, help="folder with text.safetensors and tokenizer.json")
    parser.add_argument("--minutes", type=float, default=52)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--scenes", type=int, default=24_000)
    parser.add_argument("--snapshot", action="store_true", help="only write the weights of the newest checkpoint")
    args = parser.parse_args()
    if args.snapshot:
        snapshot(args.run)
        return
    if not (args.run / "data" / "train_texts.npy").exists():
        store_texts(args.run, args.text, args.scenes)
    if not (args.run / "data" / "train_latents.npy").exists():
        store_latents(args.run, args.scenes)
    train(args.run, args.text, args.minutes, args.batch)


if __name__ == "__main__":
    main()
