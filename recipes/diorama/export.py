"""Stage 5: write the model's files as the program opens them.

python -m recipes.diorama.export --run RUN --text TEXT --out src/disegno/data/diorama
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from disegno.weights.quantised import quantise_rows

from .backbone import TEXT_TOKENS, stored_vae
from .compose import SIZE, Store
from .control import CONDITIONS, RANK
from .sampling import BETA_END, BETA_START, PROMPTS, STEPS
from .world.assets import load_sprites, wardrobe
from .world.composer import Item, render
from .world.maps import canny, class_colours, outline, segmentation
from .world.vocabulary import CLASSES, COLOURS, NOUNS, PLACES

VERSION = 0
CARD = """# diorama, version 0

A small text-to-image model that comes with the program, so that everything can be tried without a download.
It draws {size} x {size} pictures of a toy world: {nouns} things in {places} places and {colours} colours, one or two
things at a time. It knows nothing else, and it is small: edges are soft, details are approximate, and two things in one
picture often mix.

- VAE, 8 times smaller, 4 channels: {vae:.1f} M parameters, {psnr:.1f} dB PSNR on 96 held-out scenes.
- UNet, v-prediction on MiniLM token states: {unet:.1f} M parameters, trained on {images:,} pictures drawn from 24,000
  scenes, {minutes:.0f} minutes on two shared CPU cores.
"""
CONTROL_CARD = """- Base ControlNet: {base:.1f} M parameters, with one LoRA of rank {rank} for canny and one for
  segmentation, trained on {pairs:,} pairs. Edge F1 on {scenes} held-out canny maps: {edge_f1:.2f} with the control,
  {edge_f1_without:.2f} without (3 px tolerance, the same captions and seed); the VAE's own blur sets a ceiling of
  {edge_f1_ceiling:.2f}.
"""
OWN_NORMS = (".norm.", ".norm1.", ".norm2.", ".norm3.")


@dataclass(frozen=True)
class Trained:
    """The stages' results. `control` is None before the last stage has ended."""

    vae: dict[str, object]
    unet: dict[str, object]
    control: dict[str, object] | None


def open_trained(run: Path) -> Trained:
    """Return what the stages have left in the run folder."""
    control = run / "control_final.pt"
    return Trained(
        stored_vae(run), torch.load(run / "unet_final.pt"), torch.load(control) if control.exists() else None
    )


def halves(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors as contiguous float16."""
    return {key: tensor.to(torch.float16).contiguous() for key, tensor in tensors.items()}


def sha256(path: Path) -> str:
    """Return the digest of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def base_tensors(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the Base ControlNet under diffusers' names, without the LoRAs."""
    own = tuple(f".{side}.{name}.weight" for side in ("down", "up") for name in CONDITIONS)
    return {
        key.removeprefix("net.").replace(".base.", "."): tensor
        for key, tensor in state.items()
        if not key.endswith(own)
    }


def condition_tensors(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """Return one condition's file: its LoRA, the zero convolutions and the norms of the transformers."""
    tensors: dict[str, Tensor] = {}
    for key, tensor in state.items():
        key = key.removeprefix("net.")
        for side in ("down", "up"):
            if key.endswith(f".{side}.{name}.weight"):
                tensors[key.removesuffix(f".{side}.{name}.weight") + f".lora_layer.{side}.weight"] = tensor
        if key.startswith(("controlnet_down_blocks.", "controlnet_mid_block.")):
            tensors[key] = tensor
        if ".attentions." in key and any(part in key for part in OWN_NORMS):
            tensors[key] = tensor
    return tensors


def write_control(trained: Trained, out: Path) -> None:
    """Write the Base ControlNet and one file per condition."""
    if trained.control is None:
        return
    state, pairs = trained.control["model"], trained.control["pairs"]
    save_file(quantise_rows(base_tensors(state)), out / "basecn.safetensors")
    digest = sha256(out / "basecn.safetensors")
    for name in CONDITIONS:
        about = {
            "mechanism": "ctrlora",
            "family": "diorama",
            "name": name,
            "annotator": name,
            "rank": RANK,
            "base_sha256": digest,
            "training_pairs": pairs,
        }
        header = {f"disegno.{key}": str(value) for key, value in about.items()}
        save_file(halves(condition_tensors(state, name)), out / f"control_{name}.safetensors", header)


def describe(trained: Trained) -> dict[str, object]:
    """Return the content of model.json."""
    return {
        "family": "diorama",
        "version": VERSION,
        "unet": trained.unet["config"],
        "vae": trained.vae["config"],
        "prediction_type": "v_prediction",
        "schedule": {
            "beta_schedule": "scaled_linear",
            "beta_start": BETA_START,
            "beta_end": BETA_END,
            "num_train_timesteps": STEPS,
        },
        "text": {
            "encoder": "all-MiniLM-L6-v2",
            "tokens": TEXT_TOKENS,
            "width": 384,
            "padding": "zero states, not masked",
        },
        "defaults": {
            "width": SIZE,
            "height": SIZE,
            "steps": 20,
            "cfg": 4.5,
            "sampler": "DDIM",
            "schedule": "automatic",
        },
        "conditions": {name: f"control_{name}.safetensors" for name in CONDITIONS} if trained.control else {},
        "segmentation_colours": dict(zip(CLASSES, class_colours().tolist(), strict=True)),
        "vocabulary": {
            "nouns": list(dict.fromkeys(name for noun in NOUNS for name in noun.names)),
            "recolourable": [noun.names[0] for noun in NOUNS if noun.colour],
            "places": {place: list(phrases) for place, phrases in PLACES.items()},
            "colours": list(COLOURS),
        },
        "prompts": list(PROMPTS),
    }


def card(run: Path, trained: Trained) -> str:
    """Return CARD.md: what the model is and what was measured, read from the stages' own records."""
    text = CARD.format(
        size=SIZE,
        nouns=len(NOUNS),
        places=len(PLACES),
        colours=len(COLOURS),
        vae=count(trained.vae["model"]),
        psnr=trained.vae["psnr"],
        unet=count(trained.unet["model"]),
        images=trained.unet["images"],
        minutes=trained.unet["minutes"],
    )
    record = run / "control_final.json"
    if trained.control is not None and record.exists():
        text += CONTROL_CARD.format(
            base=count(base_tensors(trained.control["model"])), rank=RANK, **json.loads(record.read_text())
        )
    return text + "\nHow it was made: `recipes/diorama/`. Whose drawings: `NOTICE.md`.\n"


def count(tensors: dict[str, Tensor]) -> float:
    """Return the number of parameters in millions."""
    return sum(tensor.numel() for tensor in tensors.values()) / 1e6


def write_examples(run: Path, sprites: Path, out: Path) -> None:
    """Write a held-out car on a street with its maps, and the same kind of scene at 512 px."""
    out.mkdir(parents=True, exist_ok=True)
    store = Store(run / "data", "held_out")
    wanted = next(k for k, caption in enumerate(store.captions()) if caption == "a red car on a city street")
    fields = {field: np.array(store.open(field)[wanted]) for field, _ in Store.FIELDS}
    pictures = {
        "car": fields["images"],
        "car_canny": fields["edges"],
        "car_segmentation": segmentation(fields["classes"]),
        "car_outline": outline(fields["instances"]),
    }
    car = next(noun for noun in NOUNS if noun.names[0] == "car")
    item = Item(car, None, 0.5, 0.88, 0.62)
    large = render(
        wardrobe(load_sprites(sprites)), "street", (item,), "a red car on a city street", np.random.default_rng(3), 512
    )
    pictures |= {"car_512": large.image, "car_512_canny": canny(large.image)}
    for name, pixels in pictures.items():
        Image.fromarray(pixels).save(out / f"{name}.png", optimize=True)


def export(run: Path, text: Path, sprites: Path, out: Path) -> None:
    """Write every file of the model."""
    out.mkdir(parents=True, exist_ok=True)
    trained = open_trained(run)
    save_file(halves(trained.vae["model"]), out / "vae.safetensors")
    save_file(quantise_rows(trained.unet["model"]), out / "unet.safetensors")
    write_control(trained, out)
    for name in ("text.safetensors", "tokenizer.json"):
        shutil.copy(text / name, out / name)
    (out / "model.json").write_text(json.dumps(describe(trained), indent=1) + "\n")
    (out / "CARD.md").write_text(card(run, trained))
    write_examples(run, sprites, out / "examples")
    for path in sorted(out.rglob("*")):
        if path.is_file():
            print(f"{path.stat().st_size / 2**20:8.2f} MiB  {path.relative_to(out)}")


def main() -> None:
    """Export from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("run", "text", "sprites", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    args = parser.parse_args()
    export(args.run, args.text, args.sprites, args.out)


if __name__ == "__main__":
    main()
