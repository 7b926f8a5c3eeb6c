"""A whole model of which one part was taught: a folder that other programs open, too."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from disegno.diffusion.prediction import PREDICTIONS
from disegno.diffusion.schedules import scaled_linear_table
from disegno.training.base import Facts
from disegno.training.recipe import Model
from disegno.training.whole_model import write_model
from disegno.weights.save import save_safetensors

pytestmark = pytest.mark.unit

INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "unet": ["diffusers", "UNet2DConditionModel"],
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
    "requires_safety_checker": True,
}


def test_the_index_names_no_part_that_is_left_out(tmp_path: Path) -> None:
    """diffusers looks for every part that model_index.json names, and opens nothing where one is missing."""
    source = tmp_path / "source"
    for part in ("unet", "safety_checker"):
        (source / part).mkdir(parents=True)
        (source / part / "config.json").write_text("{}", "utf-8")
        save_safetensors(source / part / "diffusion_pytorch_model.fp16.safetensors", {"a": torch.zeros(1)}, {})
    (source / "model_index.json").write_text(json.dumps(INDEX), "utf-8")
    model = Model(source, "sd1", "m", "f", nn.Identity(), PREDICTIONS["epsilon"], scaled_linear_table(), 8, None)
    write_model(tmp_path / "out", model, "unet", {"a": torch.ones(1)}, Facts("out"))
    index = json.loads((tmp_path / "out" / "model_index.json").read_text("utf-8"))
    assert index == INDEX | {"safety_checker": [None, None], "requires_safety_checker": False}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"model_index.json", "unet", "taught.json"}
    assert [path.name for path in sorted((tmp_path / "out" / "unet").iterdir())] == [
        "config.json", "diffusion_pytorch_model.safetensors",
    ]  # fmt: skip
