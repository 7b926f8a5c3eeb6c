"""A control is shown what it was taught with: its file's parameters, under those that are given."""

from dataclasses import replace
from pathlib import Path

import pytest

from disegno import ControlUnit
from disegno.engine.taught import as_taught, taught_params
from disegno.engine.units import annotator_of, idle_params
from disegno.weights.card import FileCard

pytestmark = pytest.mark.unit


def card(params: str | None, annotator: str = "palette") -> FileCard:
    words = {} if params is None else {"disegno.params": params}
    return FileCard(Path("mosaic.safetensors"), "control", "mosaic", metadata=words, annotator=annotator)


def unit(**params: int) -> ControlUnit:
    return ControlUnit(name="mosaic", image="photo.jpg", params=dict(params))


def test_what_was_taught_is_what_is_shown() -> None:
    assert as_taught(unit(), "palette", card('{"cell": 16}')).params == {"cell": 16}


@pytest.mark.parametrize(
    ("said", "read"), [(None, "soft-edge"), ("Soft_Edge", "soft-edge"), ("Inpaint", "inpaint"), ("NONE", None)]
)
def test_an_annotator_is_known_however_its_name_is_written(said: str | None, read: str | None) -> None:
    assert annotator_of(replace(unit(), annotate=said), "soft-edge") == read


def test_what_is_given_counts_more() -> None:
    assert as_taught(unit(cell=32), "palette", card('{"cell": 16}')).params == {"cell": 32}


@pytest.mark.parametrize(
    "said", [None, "", "[1]", "[" * 99999, "{", '{"cell": -1}', '{"sell": 4}', '{"cell": [16]}', '{"cell": null}']
)
def test_what_a_file_cannot_mean_counts_for_nothing(said: str | None) -> None:
    assert as_taught(unit(), "palette", card(said)).params == {}


def test_another_annotators_parameters_count_for_nothing() -> None:
    assert as_taught(unit(), "canny", card('{"low": 10}')).params == {}


@pytest.mark.parametrize("annotator", [None, "", "a net of somebody else's"])
def test_of_an_annotator_that_is_not_here_nothing_is_known(annotator: str | None) -> None:
    known = FileCard(Path("a.safetensors"), "control", "a", metadata={"disegno.params": "{}"}, annotator=annotator)
    assert taught_params(known) == {}


def test_parameters_that_no_annotator_reads_are_said() -> None:
    drawing = ControlUnit(name="canny", image="a.png", annotate="none", params={"stren": 0.5})
    assert idle_params(drawing, None) == (
        "The control canny is shown its picture as it is: stren does nothing. Did you mean strength?",
    )
    assert idle_params(replace(drawing, params={"xyz": 1, "low": 1}), None)[0].endswith("xyz, low do nothing.")
    assert not idle_params(drawing, "canny") and not idle_params(replace(drawing, params={}), None)
