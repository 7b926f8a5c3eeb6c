"""The reference page of the annotators is what the registry says now."""

from pathlib import Path

import pytest

from disegno.annotators import ANNOTATORS
from disegno.cli.annotate import reference_page

pytestmark = pytest.mark.docs

PAGE = Path(__file__).parent.parent.parent / "docs" / "reference" / "annotators.md"


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text("utf-8") == reference_page(), "write it again: python -m disegno.cli.annotate --docs"


def test_every_annotator_has_its_part() -> None:
    parts = [line[3:] for line in PAGE.read_text("utf-8").splitlines() if line.startswith("## ")]
    assert parts == ANNOTATORS.names()
