"""The pages about figures name every measure, every condition and every verdict that the program has."""

from pathlib import Path

import pytest

from disegno.annotators import ANNOTATORS
from disegno.training.convergence import OF_DATA, OF_NUMBERS, OF_PATIENCE
from disegno.training.measures import MEASURE_OF, MEASURES
from disegno.training.watcher import NUM_ROWS, NUM_SEEDS, SLOW_ROWS, SLOW_SEEDS

pytestmark = pytest.mark.docs

DOCS = Path(__file__).parents[2] / "docs"


def test_every_measure_is_explained() -> None:
    text = (DOCS / "explanation/figures.md").read_text("utf-8")
    for measure in MEASURES.values():
        if measure.name != "psnr":  # of restoring controls only, and known to all
            arrow = "↑" if measure.better == "higher" else "↓"
            assert f"| {measure.title.replace(' (CIEDE2000)', '')} {arrow} |" in text, measure.title


def test_every_reason_for_not_learning_is_in_the_how_to() -> None:
    text = (DOCS / "howto/is-it-learning.md").read_text("utf-8")
    for _, why in (*OF_DATA, *OF_NUMBERS, *OF_PATIENCE):
        words = why.partition(":")[0].partition(",")[0]
        shown = "It cannot be measured" if "cannot be measured" in why else words.removesuffix(" yet").rstrip(".")
        assert shown in text, why


def test_what_a_look_draws_is_what_the_how_to_says() -> None:
    text = (DOCS / "howto/is-it-learning.md").read_text("utf-8").replace("\n", " ")
    assert f"draws {NUM_ROWS} held-out pairs with {NUM_SEEDS} seeds each; {SLOW_ROWS} with {SLOW_SEEDS} for" in text


def test_no_annotator_is_without_a_measure() -> None:
    assert set(ANNOTATORS) <= set(MEASURE_OF)
