"""The page of what fits on which GPU says what the code counts now; some of its rows are counted here."""

import re

import pytest

from disegno.training.memory_table import PAGE, at_sd15, page, requests

pytestmark = pytest.mark.docs

COUNTED = (("ctrlora", "4", "", ""), ("controlnet", "1", "yes", "yes"))
AGAIN = "write it again: python -m disegno.training.memory_table"


def _rows(text: str) -> list[str]:
    return re.findall(r"^\| (?:ctrlora|controlnet) .*$", text, re.MULTILINE)


def _others(text: str) -> list[str]:
    return [line for line in text.splitlines() if line not in _rows(text)]


def test_the_rows_are_what_is_counted() -> None:
    found = {cells: at_sd15(requests()[cells]) for cells in COUNTED}
    written = PAGE.read_text("utf-8")
    counted = _rows(page(found))
    assert len(counted) == len(COUNTED) and set(counted) <= set(_rows(written)), AGAIN
    assert len(_rows(written)) == len(requests())


def test_the_words_are_up_to_date() -> None:
    written = PAGE.read_text("utf-8")
    assert _others(written) == _others(page({})), AGAIN
    assert "computed, not measured" in written
