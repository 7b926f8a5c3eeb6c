"""A registry lists without importing, and finds nothing silently."""

import sys

import pytest

from disegno.annotators import ANNOTATORS
from disegno.backbones import BACKBONES
from disegno.controls import CONTROLS
from disegno.core.errors import UnknownName

pytestmark = pytest.mark.unit


def test_the_files_are_the_members() -> None:
    assert {"sd1", "diorama"} <= set(BACKBONES) and "base" not in BACKBONES
    assert {"controlnet", "ctrlora"} <= set(CONTROLS)
    assert {"canny", "line-art", "palette"} <= set(ANNOTATORS)


def test_a_member_is_imported_when_it_is_asked_for() -> None:
    module = ANNOTATORS.load("Line_Art")
    assert sys.modules["disegno.annotators.line_art"] is module


def test_what_is_not_there_is_said() -> None:
    with pytest.raises(UnknownName, match="canny"):
        ANNOTATORS.load("cany")
