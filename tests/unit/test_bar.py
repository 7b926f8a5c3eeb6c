"""What a person is told of long work where no bar can be drawn."""

import pytest

from disegno.cli import bar

pytestmark = pytest.mark.unit


def test_the_time_left_counts_from_where_the_stage_began(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A training that goes on at step 500, ten steps in ten seconds: 1,490 are left, not four a second."""
    now = [0.0]
    monkeypatch.setattr(bar.time, "monotonic", lambda: now[0])
    with bar.Bar("opening") as told:
        told.tell("teaching", 500, 2000)
        now[0] = 10.0
        told.tell("teaching", 510, 2000, "loss 0.1")
        told.tell("looking", 0, 4)
        now[0] = 20.0
        told.tell("looking", 1, 4)
    assert capsys.readouterr().err.splitlines() == [
        "teaching: 510 of 2000, about 1490 s left, loss 0.1",
        "looking: 1 of 4, about 30 s left",
    ]
