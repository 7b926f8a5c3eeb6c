"""The second pass's size, as A1111 works it out (golden vectors)."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from disegno.core.hires import target_size
from disegno.core.request import Hires
from disegno.engine.second_pass import middle

pytestmark = pytest.mark.unit

VECTORS = Path(__file__).parent.parent / "golden" / "vectors" / "hires_resolution.json"
# A1111's option to take width and height for the final size, as before 1.0, is not offered
CASES = [case for case in json.loads(VECTORS.read_text("utf-8"))["cases"] if not case["use_old_hires_fix_width_height"]]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['width']}x{case['height']}-{case['extra']}")
def test_sizes_as_a1111(case: dict[str, Any]) -> None:
    given = {"scale": case["hr_scale"]} if case.get("hr_scale") else {}
    sides = {"width": case.get("hr_resize_x") or None, "height": case.get("hr_resize_y") or None}
    target = target_size(Hires(**given, **sides), case["width"], case["height"])
    assert [target.width, target.height] == case["upscale_to"]
    assert [target.cut_x, target.cut_y] == case["truncate_latent"]
    assert list(target.latent_size(8)[::-1]) == case["final_latent_wh"]
    latents = torch.zeros(1, 4, target.height // 8, target.width // 8)
    assert list(middle(latents, target).shape[:1:-1]) == case["final_latent_wh"]
