"""The report of a training: what it shows, that it needs nothing else, that interruptions leave no mark on it."""

import math
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from disegno.core.errors import ResourceError
from disegno.core.settings import Settings
from disegno.core.teach import TeachRequest
from disegno.training.base import Estimate, Look, TeachEvent, TeachProgress, TeachResult
from disegno.training.convergence import CEILING, CONTROLLABILITY, ERROR, FLOOR
from disegno.training.curves import Curve, Level, chart, smoothed, thinned, ticks
from disegno.training.history import read_history
from disegno.training.report import open_report

pytestmark = pytest.mark.unit

REQUEST = TeachRequest(name="mine & own", data=("<b>pairs",), annotator="palette", params={"cell": 16}, steps=400)
SETTINGS = Settings(device="cpu", dtype="fp32")


def _sheet(folder: Path, step: int) -> Path:
    path = folder / "looks" / f"step-{step}.png"
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", (40, 20), (step % 256, 0, 0)).save(path)
    return path


def _events(folder: Path, start: int, stop: int) -> list[TeachEvent]:
    events: list[TeachEvent] = []
    for step in range(start, stop + 1):
        events.append(TeachProgress(step, 400, "teaching", 0.3 - step / 4000, 1e-4, seconds_left=61.0))
        if step % 100 == 0:
            share = step / 500
            figures = {"delta-e": 20 - 15 * share, "delta-e" + FLOOR: 20.0, "delta-e" + CEILING: 5.0}
            metrics = figures | {CONTROLLABILITY: share, ERROR: 0.05}
            events.append(Look(step, 0.3 - step / 4000, metrics, _sheet(folder, step)))
    return events


def _parsed(text: str) -> str:
    parser = HTMLParser()
    parser.feed(text)
    parser.close()
    return text


def test_it_shows_verdict_curves_pictures_request_machine_and_cost(tmp_path: Path) -> None:
    report = open_report(tmp_path, REQUEST, SETTINGS)
    for event in _events(tmp_path, 1, 300):
        report.hear(event)
    text = _parsed((tmp_path / "report.html").read_text("utf-8"))
    assert "It is learning: at step 300" in text and "60 % of the way" in text
    assert "mine &amp; own" in text and "&lt;b&gt;pairs" in text and "<b>pairs" not in text
    assert "cell=16" in text and "torch" in text and "about 61 s left" in text
    assert text.count("data:image/jpeg;base64,") == 2  # the last look's, and the first's
    assert 'http-equiv="refresh"' in text
    charts = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    titles = [ET.fromstring(svg).attrib["aria-label"] for svg in charts]
    assert titles == ["Colour difference (CIEDE2000), less is better", "Controllability, %", "Loss"]
    assert "without the control 20" in charts[0] and "real pictures 5" in charts[0]


def test_steps_are_the_trainings_and_not_those_of_what_goes_before(tmp_path: Path) -> None:
    report = open_report(tmp_path, REQUEST, SETTINGS)
    report.hear(TeachProgress(0, 400, "estimated", estimate=Estimate(1, 1, 1, 1, 1, seconds=2.0)))
    report.hear(TeachProgress(30, 7_000, "caching"))  # of so many pairs
    report.hear(TeachResult(tmp_path, 0, "stopped"))
    text = (tmp_path / "report.html").read_text("utf-8")
    assert "Step 0 of 400. It was stopped." in text and "for 400 steps" in text and "7000" not in text


def test_it_needs_nothing_from_outside(tmp_path: Path) -> None:
    report = open_report(tmp_path, REQUEST, SETTINGS)
    for event in _events(tmp_path, 1, 100):
        report.hear(event)
    text = report.text()
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!data:image/jpeg;base64,)""", text)
    assert not re.findall(r"https?://|url\(|@import|<script", text)
    assert "prefers-color-scheme:dark" in text and "width=device-width" in text


def test_an_interrupted_training_leaves_no_gap_and_nothing_twice(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        folder.mkdir()
    report = open_report(whole, REQUEST, SETTINGS)
    for event in _events(whole, 1, 400):
        report.hear(event)
    for start, stop in ((1, 230), (151, 400)):  # killed at 230, and resumed from the checkpoint of 150
        report = open_report(broken, REQUEST, SETTINGS)
        for event in _events(broken, start, stop):
            report.hear(event)
    one, other = (read_history(folder / "history.jsonl") for folder in (whole, broken))
    assert one.losses == other.losses
    assert [replace(look, sheet=None) for look in one.looks] == [replace(look, sheet=None) for look in other.looks]
    assert [look.step for look in other.looks] == [100, 200, 300, 400]
    assert all(look.sheet and look.sheet.is_file() for look in other.looks)


def test_a_line_that_was_cut_off_is_passed_over(tmp_path: Path) -> None:
    report = open_report(tmp_path, REQUEST, SETTINGS)
    for event in _events(tmp_path, 1, 100):
        report.hear(event)
    file = tmp_path / "history.jsonl"
    whole = read_history(file)
    for spoiled in (
        '{"step": 101, "of": 4',
        "null",
        "[1]",
        '{"step": "x", "of": 1, "loss": 1, "rate": 1, "seconds": 1}',
    ):
        file.write_text(file.read_text("utf-8") + spoiled + "\n", "utf-8")
    assert read_history(file).losses == whole.losses


def test_the_end_is_said_and_the_page_stops_refreshing(tmp_path: Path) -> None:
    report = open_report(tmp_path, REQUEST, SETTINGS)
    report.hear(TeachResult(tmp_path / "x", 240, "converged"))
    text = (tmp_path / "report.html").read_text("utf-8")
    assert "It stopped by itself." in text and 'http-equiv="refresh"' not in text


def test_a_failing_disk_is_said_and_nothing_is_lost(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.write_text("a file where the folder should be")
    report = open_report(folder, REQUEST, SETTINGS)
    with pytest.raises((OSError, ResourceError)):
        report.hear(TeachProgress(1, 400, "teaching", 0.5, 1e-4))
    folder.unlink()
    report.hear(TeachProgress(2, 400, "teaching", 0.4, 1e-4))
    report.write()
    assert read_history(folder / "history.jsonl").losses == [(1, 0.5), (2, 0.4)]


def test_a_picture_that_is_gone_is_left_out(tmp_path: Path) -> None:
    report = open_report(tmp_path, REQUEST, SETTINGS)
    report.hear(Look(100, 0.2, {}, tmp_path / "gone.png"))
    assert "data:image" not in report.text() and "It has learned" not in report.text()


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50), st.booleans())
def test_every_chart_is_sound_and_stays_in_its_frame(values: list[float], marks: bool) -> None:
    curve = Curve("a<b", [(float(n), y) for n, y in enumerate([*values, math.nan, math.inf])], marks=marks)
    svg = ET.fromstring(chart("t&t", [curve], [Level("l", values[0])]))
    for path in svg.iter("path"):
        for number in re.findall(r"-?[\d.]+", path.attrib["d"]):
            assert 0 <= float(number) <= 420


def test_a_chart_without_points_is_none() -> None:
    assert chart("t", [Curve("c", [])]) == "" and chart("t", [Curve("c", [(0, math.nan)])]) == ""


def test_ticks_are_round_and_thinning_keeps_means() -> None:
    assert ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1]
    assert ticks(97, 1003) == [200, 400, 600, 800, 1000]
    points = [(float(n), float(n % 7)) for n in range(1001)]
    few = thinned(points, 100)
    assert len(few) <= 100 and abs(sum(y for _, y in few) / len(few) - 3) < 0.1
    smooth = smoothed([(0, 2.0), (1, math.nan), (2, 2.0)], 10)
    assert [x for x, _ in smooth] == [0, 2] and [y for _, y in smooth] == pytest.approx([2.0, 2.0])
