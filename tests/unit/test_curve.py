"""A strength over the steps: its text, its values, and what it makes of a control's residuals."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from disegno.controls.strength import Use, Used
from disegno.core.curve import MAX_POINTS, parse_curve, value_at, write_curve
from disegno.core.errors import RequestError
from disegno.core.request import ControlUnit, from_json, make_request, to_json
from disegno.diffusion.call import Call, Residuals, Row

pytestmark = pytest.mark.unit

SHARES = st.integers(0, 100).map(lambda n: n / 100)
POINTS = st.lists(st.tuples(SHARES, st.integers(0, 400).map(lambda n: n / 100)), max_size=8).map(
    lambda points: tuple(sorted(points, key=lambda point: point[0]))
)


def test_values_between_before_and_after_the_points() -> None:
    points = parse_curve("0.2@0.1, 0.5@0.3")
    assert [value_at(points, share) for share in (0, 0.1, 0.3, 1)] == [0.2, 0.2, 0.5, 0.5]
    assert value_at(points, 0.2) == pytest.approx(0.35)
    jump = parse_curve("1@0.5,0@0.5")
    assert [value_at(jump, share) for share in (0, 0.49, 0.5, 0.9)] == [1, 1, 0, 0]
    assert value_at((), 0.3) == 1.0


@given(POINTS)
def test_a_curve_is_its_text(points: tuple[tuple[float, float], ...]) -> None:
    assert parse_curve(write_curve(points)) == points


@given(POINTS.filter(bool), SHARES)
def test_a_value_lies_between_the_points(points: tuple[tuple[float, float], ...], share: float) -> None:
    values = [value for _, value in points]
    assert min(values) <= value_at(points, share) <= max(values)


@pytest.mark.parametrize(
    "bad", ["x", "0.2", "0.2@", "0.2@2", "5@0.1", "1@0.5,1@0.4", "nan@0", "1e9@0", ",", "1@0," * 3, "1@0," * MAX_POINTS]
)
def test_what_is_no_curve_is_refused(bad: str) -> None:
    with pytest.raises(RequestError, match="curve"):
        make_request({"controls": [{"name": "canny", "image": "a.png", "curve": bad}]})


def test_a_list_of_points_is_written_as_the_text() -> None:
    request = make_request({"controls": [{"name": "canny", "image": "a.png", "curve": [[0.1, 0.2], [0.3, 0.5]]}]})
    assert request.controls[0].curve == "0.2@0.1,0.5@0.3"


@pytest.mark.parametrize("curve", ["0.00001@0.5", [[1e-7, 1e-9], [0.3, -0.0]]])
def test_what_is_next_to_nothing_is_read_again(curve: object) -> None:
    request = make_request({"controls": [{"name": "canny", "image": "a.png", "curve": curve}]})
    assert from_json(to_json(request)) == request


@pytest.mark.parametrize("bad", [[[0.1, None]], [[0.1, 10**400]], [0.1], [[0.1, 0.2, 0.3]], None, 3])
def test_what_is_no_list_of_points_is_refused(bad: object) -> None:
    with pytest.raises(RequestError, match="curve"):
        make_request({"controls": [{"name": "canny", "image": "a.png", "curve": bad}]})


class Ones:
    """A control that adds ones."""

    sees_x, key, positive_only = True, "ones", False

    def __call__(self, call: Call) -> Call:
        down = (torch.ones(len(call.rows), 1, 2, 2), torch.ones(len(call.rows), 1, 1, 1))
        return replace(call, residuals=Residuals(down, torch.ones(len(call.rows), 1, 1, 1)))


def _call(*shares: float) -> Call:
    rows = tuple(Row(i, True, "a", share) for i, share in enumerate(shares))
    num = len(rows)
    return Call(torch.zeros(num, 1, 2, 2), torch.zeros(num), torch.zeros(num, 1, 1), rows, lambda call: call.x)


def _used(**fields: object) -> Used:
    return Used(Ones(), Use.of(ControlUnit(name="c", image="i", **fields)))


def test_a_curve_weighs_the_residuals_step_by_step_and_row_by_row() -> None:
    used = _used(strength=0.5, curve="0@0,1@1")
    together = used(_call(0.0, 0.25, 0.5)).residuals
    assert together is not None
    assert together.mid.flatten().tolist() == [0, 0.125, 0.25]
    for i, share in enumerate((0.25, 0.5), start=1):
        alone = used(_call(share)).residuals
        assert alone is not None and torch.equal(alone.down[0][0], together.down[0][i])
    assert used(_call(0.0)).residuals is None  # a value of 0 costs no evaluation


def test_layer_weights_replace_strength_and_mode() -> None:
    residuals = _used(strength=0.3, mode="prompt", layers=(0.5, 1.0, 2.0))(_call(0.5)).residuals
    assert residuals is not None
    assert [float(r.flatten()[0]) for r in (*residuals.down, residuals.mid)] == [0.5, 1.0, 2.0]
    with pytest.raises(RequestError, match="Give 3, shallow to deep"):
        _used(layers=(1.0,))(_call(0.5))
