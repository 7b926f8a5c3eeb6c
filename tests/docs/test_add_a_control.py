"""The how-to is followed as it is written: its module, in a package of its own, found by its entry point and used."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.docs

HOWTO = Path(__file__).parent.parent.parent / "docs" / "howto" / "add-a-control.md"

# what the reader already has: a file of the new kind, and an open model
SETTING = """
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from disegno.controls import CONTROLS
from disegno.memory import FULL_PRECISION, Memory
from disegno.weights.identify import FileCard
from disegno.weights.save import save_safetensors


@dataclass(frozen=True)
class Tiny:
    net: nn.Module
    family: str = "sd1"
    name: str = "tiny"
    fingerprint: str = "tiny"

    conditions = {}
    base_control = None

    def encode_image(self, images):
        raise AssertionError("a tint encodes nothing")

    def evaluate(self, call):
        r = call.residuals
        added = {} if r is None else dict(down_block_additional_residuals=r.down, mid_block_additional_residual=r.mid)
        return self.net(call.x, call.t, call.tokens, **added).sample


net = UNet2DConditionModel(
    block_out_channels=(32, 64),
    layers_per_block=1,
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    cross_attention_dim=32,
    attention_head_dim=4,
)
backbone = Tiny(net.eval().requires_grad_(False))
memory, path = Memory(FULL_PRECISION), Path("blue.safetensors")
save_safetensors(path, {"scales": torch.full((5,), 0.5)}, {"disegno.mechanism": "tint"})
assert "tint" in CONTROLS.names() and "ctrlora" in CONTROLS.names()
assert CONTROLS.load("tint").recognises(FileCard(path, "control", metadata={"disegno.mechanism": "tint"}))
"""

# and what the page promises: the engine finds the file by its header, and draws with it
ENGINE = """
from disegno import ControlUnit, Settings, Studio
studio = Studio(Settings(model_dirs=(Path("."),), cache_dir=Path("cache"), dtype="fp32"))
unit = ControlUnit(name="blue", image="unused.png")
assert type(studio.controller(unit, backbone)).__name__ == "TintController"
"""


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", HOWTO.read_text("utf-8"), re.DOTALL)


def _install(folder: Path, module: str, entry_point: str) -> None:
    """Lay out a package as an installer would: the module, and a dist-info folder with its entry points."""
    group = re.search(r'entry-points\."([^"]+)"', entry_point)
    line = re.search(r'^(\S+) = "(\S+)"$', entry_point, re.MULTILINE)
    assert group and line
    (folder / "tint").mkdir()
    (folder / "tint" / "__init__.py").write_text("")
    (folder / "tint" / "control.py").write_text(module)
    info = folder / "tint-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tint\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group[1]}]\n{line[1]} = {line[2]}\n")


def test_the_how_to_works(tmp_path: Path) -> None:
    module, use = _blocks("python")
    (entry_point,) = _blocks("toml")
    _install(tmp_path, module, entry_point)
    (tmp_path / "follow.py").write_text(SETTING + use + ENGINE)
    done = subprocess.run([sys.executable, "follow.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
