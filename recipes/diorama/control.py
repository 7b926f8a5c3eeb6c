"""Stage 4: train the Base ControlNet with one LoRA per base condition (CtrLoRA, Xu et al. 2024, section 3).

python -m recipes.diorama.control --run RUN --text TEXT --minutes 15.5
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from diffusers import ControlNetModel, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from numpy.typing import NDArray
from torch import Tensor, nn

from disegno.text.minilm import TextEncoder

from .backbone import Batches, encode_images, noised, open_vae
from .compose import Store
from .sampling import Control, sample
from .training import Masters, Session, images_to_tensor, picture, save, speed_up_norms
from .world.maps import canny, class_colours

CONDITIONS = ("canny", "segmentation")
RANK = 32
DROP_TEXT = 0.3
PEAK_LR, WARMUP_STEPS, FLAT_SHARE, AVERAGE = 6e-4, 60, 0.4, 0.99
HIGH_NOISE = 0.5  # share of the batch whose timestep is the larger of two draws: layout is decided there
SHOW_SECONDS, SHOWN = 420, 6
EDGE_TOLERANCE_PX = 3


class LoraLinear(nn.Module):
    """y = Wx + b + up(down x), with one down and up per condition and one of them in use."""

    def __init__(self, base: nn.Linear, names: tuple[str, ...], rank: int) -> None:
        super().__init__()
        self.base, self.active = base, names[0]
        self.down = nn.ModuleDict({name: nn.Linear(base.in_features, rank, bias=False) for name in names})
        self.up = nn.ModuleDict({name: nn.Linear(rank, base.out_features, bias=False) for name in names})
        for name in names:
            nn.init.normal_(self.down[name].weight, std=1 / rank)
            nn.init.zeros_(self.up[name].weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return the base's output plus the active condition's."""
        return self.base(x) + self.up[self.active](self.down[self.active](x))


class NoHint(nn.Module):
    """The place of ControlNet's hint encoder: adds nothing."""

    def forward(self, _: Tensor) -> float:
        """Return 0."""
        return 0.0


class BaseControl(nn.Module):
    """The Base ControlNet: the condition's latent in, residuals out. It never sees the noisy picture."""

    def __init__(self, unet: UNet2DConditionModel, names: tuple[str, ...] = CONDITIONS, rank: int = RANK) -> None:
        super().__init__()
        self.net = ControlNetModel.from_unet(unet, load_weights_from_unet=True)
        self.net.controlnet_cond_embedding = NoHint()
        self.net.set_attn_processor(AttnProcessor())
        for path, module in list(self.net.named_modules()):
            if isinstance(module, nn.Linear):
                parent, _, child = path.rpartition(".")
                setattr(self.net.get_submodule(parent), child, LoraLinear(module, names, rank))

    def switch(self, name: str) -> None:
        """Put the LoRAs of one condition in use."""
        for module in self.modules():
            if isinstance(module, LoraLinear):
                module.active = name

    def forward(self, hint: Tensor, t: Tensor, text: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the residuals for the skip connections and the middle."""
        down, mid = self.net(hint, t, text, controlnet_cond=hint, return_dict=False)
        return down, mid


def condition_images(name: str, store: Store, rows: slice | NDArray[np.int64]) -> NDArray[np.uint8]:
    """Return the condition pictures of some scenes, (n h w 3)."""
    if name == "canny":
        return np.repeat(store.open("edges")[rows][..., None], 3, axis=3)
    return class_colours()[store.open("classes")[rows]]


def store_hints(run: Path, count: int, chunk: int = 100) -> None:
    """Write the scaled latents of the first `count` training scenes' conditions, seen by the VAE in [0, 1]."""
    vae, store = open_vae(run).to(torch.bfloat16, memory_format=torch.channels_last), Store(run / "data", "train")
    for name in CONDITIONS:
        parts = [
            encode_images(vae, condition_images(name, store, slice(k, k + chunk)), True).half().numpy()
            for k in range(0, count, chunk)
        ]
        np.save(run / "data" / f"train_hints_{name}.npy", np.concatenate(parts))


def draw_times(batch: int) -> Tensor:
    """Return timesteps (b) with the high-noise end favoured."""
    first, second = torch.randint(0, 1000, (2, batch))
    return torch.where(torch.rand(batch) < HIGH_NOISE, torch.maximum(first, second), first)


def f1_of_edges(made: NDArray[np.uint8], wanted: NDArray[np.uint8]) -> float:
    """Return the F1 of two edge maps, an edge counting as met within the tolerance."""
    size = 2 * EDGE_TOLERANCE_PX + 1
    near = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
    precision = (cv2.dilate(wanted, near)[made > 0] > 0).mean() if made.any() else 0.0
    recall = (cv2.dilate(made, near)[wanted > 0] > 0).mean() if wanted.any() else 1.0
    return float(2 * precision * recall / max(precision + recall, 1e-6))


def to_pixels(images: Tensor) -> NDArray[np.uint8]:
    """Return (b h w 3) uint8 of pictures in [-1, 1]."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).contiguous().numpy()


class HeldOut:
    """Held-out scenes to sample with and without a control."""

    def __init__(self, run: Path, unet: UNet2DConditionModel, text: Path) -> None:
        self.unet, self.vae, self.encoder = unet, open_vae(run), TextEncoder.open(text)
        self.store, self.run = Store(run / "data", "held_out"), run
        self.captions = self.store.captions()

    def draw(self, control: BaseControl | None, name: str, rows: NDArray[np.int64], seed: int) -> Tensor:
        """Return sampled pictures (n 3 h w) for the held-out scenes' captions."""
        hints = encode_images(self.vae, condition_images(name, self.store, rows), True)
        text = self.encoder.encode([self.captions[r] for r in rows])
        call: Control | None = None
        if control is not None:
            control.switch(name)

            def call(t: Tensor, states: Tensor) -> tuple[list[Tensor], Tensor]:
                with torch.no_grad():
                    return control(torch.cat([hints, hints]), t, states)

        latents = sample(self.unet, text, self.encoder.encode([""]), seed, control=call)
        return self.vae.decode(latents / self.vae.config.scaling_factor).sample.clamp(-1, 1)

    def score(self, control: BaseControl | None, count: int, seed: int = 5) -> float:
        """Return the mean edge F1 of sampled pictures over `count` held-out canny maps."""
        rows = np.arange(count)
        return self.edge_f1(self.draw(control, "canny", rows, seed), rows)

    def ceiling(self, count: int) -> float:
        """Return the mean edge F1 of the VAE's own reconstructions: what its sharpness allows."""
        rows = np.arange(count)
        latents = encode_images(self.vae, self.store.open("images")[rows])
        return self.edge_f1(self.vae.decode(latents / self.vae.config.scaling_factor).sample, rows)

    def edge_f1(self, images: Tensor, rows: NDArray[np.int64]) -> float:
        """Return the mean F1 of the pictures' edges against those of held-out scenes."""
        wanted, made = self.store.open("edges"), to_pixels(images)
        return float(np.mean([f1_of_edges(canny(image), wanted[r]) for image, r in zip(made, rows, strict=True)]))

    def show(self, control: BaseControl, path: Path, count: int) -> None:
        """Save, for each condition, columns of scenes: condition, three seeds with it, one without."""
        rows = np.arange(100, 100 + count)
        grid = []
        for name in CONDITIONS:
            grid.append(images_to_tensor(condition_images(name, self.store, rows)))
            grid += [self.draw(control, name, rows, seed) for seed in (1, 2, 3)]
            grid.append(self.draw(None, name, rows, 1))
        picture(grid, path)


def averaged(control: BaseControl, unet: UNet2DConditionModel, masters: Masters) -> BaseControl:
    """Return a float32 copy with the averaged weights."""
    copy = BaseControl(unet)
    with torch.no_grad():
        torch._foreach_copy_(list(copy.parameters()), masters.averages)
    return copy.eval().requires_grad_(False)


def open_unet(run: Path) -> UNet2DConditionModel:
    """Return the trained UNet, frozen, in float32."""
    stored = torch.load(run / "unet_final.pt")
    unet = UNet2DConditionModel(**stored["config"])
    unet.load_state_dict(stored["model"])
    return unet.eval().requires_grad_(False)


def fast(network: nn.Module) -> nn.Module:
    """Return the network in bf16, channels last, with the faster norms."""
    network.to(torch.bfloat16, memory_format=torch.channels_last)
    speed_up_norms(network)
    return network


def train(run: Path, text: Path, minutes: float, batch: int) -> None:
    """Train for `minutes` of wall time under the frozen UNet, resuming from the last checkpoint."""
    torch.manual_seed(0)
    unet, frozen = open_unet(run), open_unet(run)
    frozen.set_attn_processor(AttnProcessor())
    scenes, control = HeldOut(run, unet, text), fast(BaseControl(unet))
    fast(frozen)
    masters = Masters(control.parameters(), PEAK_LR, AVERAGE, weight_decay=0.0)
    session = Session(masters, run / "control.pt", minutes, WARMUP_STEPS, FLAT_SHARE)
    hints = {name: torch.from_numpy(np.load(run / "data" / f"train_hints_{name}.npy")) for name in CONDITIONS}
    batches = Batches(run / "data", batch, 7 + session.steps, DROP_TEXT)
    batches.latents = batches.latents[: len(hints[CONDITIONS[0]])]
    while not session.over:
        name = CONDITIONS[session.steps % len(CONDITIONS)]  # one condition a batch, in turn
        control.switch(name)
        picks, x0, states = batches.draw()
        t = draw_times(batch)
        x_t, target = noised(x0, t)
        x_t, hint = (v.bfloat16().contiguous(memory_format=torch.channels_last) for v in (x_t, hints[name][picks]))
        down, mid = control(hint, t, states)
        v = frozen(
            x_t, t, states, down_block_additional_residuals=down, mid_block_additional_residual=mid, return_dict=False
        )[0]
        session.step(F.mse_loss(v.float(), target))
        if session.due("save"):
            session.save()
        if not session.over and session.due("pictures", SHOW_SECONDS):
            scenes.show(averaged(control, unet, masters), run / "latest_control.png", SHOWN)
    pairs = session.steps * batch
    save(run / "control_final.pt", {"model": averaged(control, unet, masters).state_dict(), "pairs": pairs})


def judge(run: Path, text: Path, count: int = 48) -> None:
    """Measure the trained control on held-out scenes and save a picture of it."""
    stored, unet = torch.load(run / "control_final.pt"), open_unet(run)
    control = BaseControl(unet)
    control.load_state_dict(stored["model"])
    control.eval().requires_grad_(False)
    scenes = HeldOut(run, unet, text)
    figures = {
        "edge_f1": scenes.score(control, count),
        "edge_f1_without": scenes.score(None, count),
        "edge_f1_ceiling": scenes.ceiling(count),
        "scenes": count,
        "pairs": stored["pairs"],
    }
    (run / "control_final.json").write_text(json.dumps(figures))
    print(json.dumps(figures), flush=True)
    scenes.show(control, run / "latest_control.png", SHOWN)


def main() -> None:
    """Prepare what is missing, then train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True, help="folder with text.safetensors and tokenizer.json")
    parser.add_argument("--minutes", type=float, default=15.5)
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--pairs", type=int, default=10_000)
    parser.add_argument("--judge", action="store_true", help="only measure what was trained")
    args = parser.parse_args()
    if args.judge:
        judge(args.run, args.text)
        return
    if not (args.run / "data" / f"train_hints_{CONDITIONS[-1]}.npy").exists():
        store_hints(args.run, args.pairs)
    train(args.run, args.text, args.minutes, args.batch)


if __name__ == "__main__":
    main()
