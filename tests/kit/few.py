"""A model that draws in few steps: the built-in one's folder, copied, with a LoRA of small random weights beside it."""

import json
import shutil
from pathlib import Path

import torch
from torch import Generator, Tensor

from disegno.weights.built_in import built_in_folder
from disegno.weights.load import open_file
from disegno.weights.save import save_safetensors

FEW = {"lora": "few.safetensors", "steps": 4, "cfg": 1.0, "sampler": "LCM", "schedule": "Turbo"}
_RANK, _SIZE = 4, 0.02
_EXAMPLES = shutil.ignore_patterns("examples", "few.safetensors")


def write_few(folder: Path) -> Path:
    """Return the folder, now a copy of the built-in model with zero terminal SNR that brings a LoRA for few steps."""
    shutil.copytree(built_in_folder(), folder, ignore=_EXAMPLES)
    about = json.loads((folder / "model.json").read_text("utf-8"))
    about["schedule"]["rescale_betas_zero_snr"] = True
    (folder / "model.json").write_text(json.dumps(about | {"few_steps": FEW}), "utf-8")
    save_safetensors(folder / "few.safetensors", _lora(folder), {"disegno.family": "diorama", "disegno.name": "few"})
    return folder


def write_plain(folder: Path) -> Path:
    """Return the folder, now a copy of the built-in model that has no few steps."""
    shutil.copytree(built_in_folder(), folder, ignore=_EXAMPLES)
    about = json.loads((folder / "model.json").read_text("utf-8"))
    (folder / "model.json").write_text(json.dumps({k: v for k, v in about.items() if k != "few_steps"}), "utf-8")
    return folder


def _lora(folder: Path) -> dict[str, Tensor]:
    """Return a LoRA on every linear layer and convolution of the UNet, in peft's names, as the recipe writes it."""
    generator, made = Generator().manual_seed(7), dict[str, Tensor]()
    with open_file(folder / "unet.safetensors") as file:
        shapes = {name: entry.shape for name, entry in file.contents.entries.items()}
    for name, (out, *inner) in ((n, s) for n, s in shapes.items() if n.endswith(".weight") and len(s) > 1):
        module = f"unet.{name.removesuffix('.weight')}"
        kernel = (1,) * len(inner[1:])
        made[f"{module}.lora_A.weight"] = _SIZE * torch.randn(_RANK, *inner, generator=generator)
        made[f"{module}.lora_B.weight"] = _SIZE * torch.randn(out, _RANK, *kernel, generator=generator)
    return made
