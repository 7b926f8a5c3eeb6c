"""docs/howto/add-a-sampler.md, followed to the letter in a new process."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.docs

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "add-a-sampler.md"
DRAW = """
import torch
from disegno.samplers.base import Plan
from disegno.samplers.catalogue import find_sampler
from disegno.diffusion.noise import ImageNoise
from disegno.diffusion.prediction import PREDICTIONS
from disegno.diffusion.schedules import plan_sigmas, scaled_linear_table

spec, table = find_sampler("half euler"), scaled_linear_table()
sigmas = plan_sigmas(spec, None, 4, table)
noise = ImageNoise((1, 2, 2), (1,), sigmas=sigmas)
sampling = spec.sample(noise.start_noise() * sigmas[0], Plan(sigmas, noise, PREDICTIONS["epsilon"].alpha, table))
num_questions, question = 1, next(sampling)
try:
    while True:
        question = sampling.send(torch.ones(1, 1, 2, 2))
        num_questions += 1
except StopIteration as stop:
    print(num_questions, bool(((stop.value - 1).abs() < 1e-4).all()))
"""


def blocks() -> list[str]:
    """Return the code of the page, block by block: the module, the entry point, the look."""
    return re.findall(r"```\w+\n(.*?)```", PAGE.read_text("utf-8"), flags=re.DOTALL)


def install(folder: Path, module: str, entry_points: str) -> None:
    """Write what an installer would: the package, and its metadata with the entry points of its pyproject.toml."""
    package, info = folder / "my_package", folder / "my_package-1.0.dist-info"
    package.mkdir()
    info.mkdir()
    (package / "__init__.py").write_text("")
    (package / "half_euler.py").write_text(module)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    header, entry = entry_points.strip().split("\n")
    group = re.fullmatch(r'\[project\.entry-points\."(.+)"\]', header)
    assert group
    (info / "entry_points.txt").write_text(f"[{group[1]}]\n{entry.replace(chr(34), '')}\n")


def run(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def test_the_page_works(tmp_path: Path) -> None:
    module, entry_points, look = blocks()
    install(tmp_path, module, entry_points)
    done = run(look + DRAW, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:3] == ["Half Euler", "Half Euler", "8 True"]


def test_an_entry_point_may_name_the_object_and_a_broken_one_is_said(tmp_path: Path) -> None:
    module, entry_points, look = blocks()
    install(tmp_path, module, entry_points.replace('half_euler"', 'half_euler:SAMPLER"'))
    assert run(look, tmp_path).stdout == "Half Euler\nHalf Euler\n"
    (tmp_path / "my_package" / "half_euler.py").write_text("SAMPLER = 'not one'\n")
    done = run(look, tmp_path)
    assert "must name a SamplerSpec" in done.stderr.replace("It must", "must").replace("\n", " ")
