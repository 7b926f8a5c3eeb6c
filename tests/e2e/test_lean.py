"""A process that only draws opens little, and draws the same."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

pytestmark = pytest.mark.e2e

DRAWN = """
import sys
from disegno.cli.main import program
sys.argv = ["disegno", "generate", "a red car", "--few", "--seed", "1", "-q", "-o", sys.argv[1]]
try:
    program()
except SystemExit as end:
    assert not end.code
    print(" ".join(sys.modules))
"""
FULL = "import diffusers, diffusers.models.unets.unet_2d_condition\n" + DRAWN
AFTER = """
from disegno.lean import open_nets
open_nets()
import torch, transformers, scipy.stats, peft, accelerate
from transformers import CLIPTextModel
from diffusers import AutoencoderKL, ControlNetModel, SD3ControlNetModel, SD3Transformer2DModel, UNet2DConditionModel
net = torch.compile(torch.nn.Linear(2, 2), backend="eager")
assert net(torch.ones(1, 2)).shape == (1, 2)
assert torch.compiler.disable.__module__ == "torch.compiler"
"""
ELSEWHERE = """
from pathlib import Path
from disegno import lean
lean.Path = lambda path: Path("nowhere")
lean.open_nets()
import sys
assert "diffusers.models.unets.unet_2d_condition" in sys.modules and "transformers" not in sys.modules
"""
OTHERS = """
import sys
import click
from disegno.cli import lean
with click.Context(click.Command("x")):
    lean.open_nets()
assert "diffusers" not in sys.modules
"""


def _run(code: str, *words: str) -> str:
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_picture_is_the_same_without_what_diffusers_opens_beside_its_nets(tmp_path: Path) -> None:
    lean, full = tmp_path / "lean.png", tmp_path / "full.png"
    opened, all_opened = set(_run(DRAWN, str(lean)).split()), set(_run(FULL, str(full)).split())
    heavy = {"transformers", "peft", "torch._dynamo", "scipy.stats", "sympy"}
    assert not opened & heavy, opened & heavy
    assert heavy <= all_opened
    with Image.open(lean) as one, Image.open(full) as other:
        assert one.size == (128, 128) and one.tobytes() == other.tobytes()


@pytest.mark.slow
def test_what_was_left_out_can_be_opened_afterwards() -> None:
    _run(AFTER)


@pytest.mark.slow
def test_a_diffusers_that_keeps_its_modules_elsewhere_is_opened_whole() -> None:
    _run(ELSEWHERE)


def test_in_somebody_elses_process_nothing_is_left_out() -> None:
    _run(OTHERS)
