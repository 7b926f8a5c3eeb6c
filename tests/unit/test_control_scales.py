"""Strength, span, mode: what each residual is multiplied by, and which rows are reached."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from disegno.controls.base import add
from disegno.controls.strength import Use, Used, apply, layer_scales
from disegno.core.request import ControlMode, ControlUnit
from disegno.diffusion.call import Call, Residuals, Row

pytestmark = pytest.mark.unit

VECTORS = Path(__file__).parent.parent / "golden" / "vectors" / "controlnet_scales.json"
A1111_MODES: dict[str, ControlMode] = {
    "Balanced": "balanced",
    "My prompt is more important": "prompt",
    "ControlNet is more important": "control",
}


def _vectors() -> list[dict[str, Any]]:
    """Return A1111's cases for ControlNets. Its SDXL lists are cut from the 13 of SD 1.x: a quirk not taken over."""
    cases = json.loads(VECTORS.read_text("utf-8"))["cases"]
    return [case for case in cases if case["type"] == "ControlNet" and not case["sdxl"]]


@pytest.mark.parametrize("case", _vectors(), ids=lambda case: f"{case['control_mode']}-{case['weight']}")
def test_scales_are_a1111s(case: dict[str, Any]) -> None:
    mode = A1111_MODES[case["control_mode"]]
    scales = layer_scales(case["weight"], mode, len(case["scales"]))
    assert scales == pytest.approx(case["scales"], rel=1e-12)  # the same product, in another order
    negative = Row(0, positive=False, text="", progress=0.0)
    assert Use(case["weight"], mode=mode).reaches(negative) == case["applied_to_uncond"]


def test_there_is_a_case_of_every_mode() -> None:
    assert {case["control_mode"] for case in _vectors()} == A1111_MODES.keys()


@given(
    st.floats(0.0, 1.0), st.floats(0.0, 1.0), st.floats(0.0, 1.0, exclude_max=True), st.sampled_from([0.0, 0.5, 1.0])
)
def test_the_span_is_half_open_and_one_is_its_end(start: float, end: float, progress: float, strength: float) -> None:
    reached = Use(strength, start, end).reaches(Row(0, positive=True, text="", progress=progress))
    assert reached == (strength != 0 and start <= progress and (progress < end or end == 1.0))


def test_the_last_step_of_a_full_span_is_reached() -> None:
    assert Use(end=1.0).reaches(Row(0, positive=True, text="", progress=1.0))


def test_a_use_is_read_from_the_request() -> None:
    unit = ControlUnit(name="edges", image="a.png", strength=0.7, start=0.1, end=0.6, mode="prompt")
    assert Use.of(unit) == Use(0.7, 0.1, 0.6, "prompt")


@dataclass(frozen=True)
class Constant:
    """A control that adds its value everywhere, and remembers which rows it was shown."""

    value: float
    positive_only: bool = False
    sees_x: bool = True
    key: str = "constant"
    seen: list[tuple[int, ...]] = field(default_factory=list[tuple[int, ...]])

    def __call__(self, call: Call) -> Call:
        self.seen.append(tuple(row.image for row in call.rows))
        full = torch.full((len(call.rows), 2, 4, 4), self.value)
        return add(call, Residuals((full, full[:, :, :2, :2]), full[:, :, :1, :1]))


@dataclass(frozen=True)
class Nothing:
    """A control that adds nothing."""

    sees_x: bool = False
    key: str = "nothing"
    positive_only: bool = False

    def __call__(self, call: Call) -> Call:
        return call


def _call(*rows: tuple[bool, float]) -> Call:
    made = tuple(Row(i, positive, str(i), progress) for i, (positive, progress) in enumerate(rows))
    b = len(made)
    return Call(torch.zeros(b, 4, 4, 4), torch.zeros(b), torch.zeros(b, 3, 8), made, net=lambda call: call.x)


def _mids(call: Call) -> list[float]:
    assert call.residuals is not None
    return call.residuals.mid.flatten(1)[:, 0].tolist()


def test_only_the_reached_rows_are_evaluated() -> None:
    control = Constant(1.0)
    call = Used(control, Use(start=0.5))(_call((True, 0.0), (True, 0.5), (False, 0.75), (True, 0.25)))
    assert control.seen == [(1, 2)]
    assert _mids(call) == [0.0, 1.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("mode", "positive_only", "reached"),
    [("balanced", False, (0, 1)), ("prompt", False, (0, 1)), ("control", False, (0,)), ("balanced", True, (0,))],
)
def test_the_negative_prompt_is_reached_by_mode(mode: ControlMode, positive_only: bool, reached: tuple[int]) -> None:
    control = Constant(1.0, positive_only)
    used = Used(control, Use(mode=mode))
    used(_call((True, 0.0), (False, 0.0)))
    assert control.seen == [reached]
    assert used.positive_only == (reached == (0,))


def test_rows_that_are_not_reached_keep_their_bits() -> None:
    """A negative zero, an infinity and a number that a sum would round are all still there afterwards."""
    odd = torch.tensor([-0.0, torch.inf, 1 + 2**-23, 1.0]).reshape(4, 1, 1, 1).expand(4, 2, 4, 4)
    earlier = Residuals((odd, odd[:, :, :2, :2]), odd[:, :, :1, :1])
    rows = ((True, 0.0), (True, 0.0), (True, 0.0), (True, 0.9))
    after = Used(Constant(1e8), Use(start=0.5))(replace(_call(*rows), residuals=earlier)).residuals
    assert after is not None
    for a, b in zip((*after.down, after.mid), (*earlier.down, earlier.mid), strict=True):
        assert torch.equal(a[:3].contiguous().view(torch.int32), b[:3].contiguous().view(torch.int32))
        assert float(a[3].flatten()[0]) == 1e8


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 2, width=16), st.floats(-2, 2, width=16)), min_size=1, max_size=4))
def test_several_controls_are_summed(uses: list[tuple[float, float]]) -> None:
    call = _call((True, 0.0), (False, 0.5))
    after = apply([Used(Constant(value), Use(strength)) for strength, value in uses], call)
    expected = sum(strength * value for strength, value in uses)
    if all(strength == 0 for strength, _ in uses):
        assert after is call
    else:
        assert _mids(after) == pytest.approx([expected, expected], abs=1e-6)


def test_a_control_without_residuals_cannot_be_scaled() -> None:
    with pytest.raises(AssertionError, match="added nothing"):
        Used(Nothing(), Use())(_call((True, 0.0)))
