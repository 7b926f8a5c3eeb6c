"""The page of what fits on which GPU says what the code counts now; some of its rows are counted here."""

import re

import pytest

from disegno.training.memory_table import PAGE, SD15, SDXL, counted, page, requests

pytestmark = pytest.mark.docs

COUNTED = {
    "sd1": (SD15, (("ctrlora", "4", "", ""), ("controlnet", "1", "yes", "yes"))),
    "sdxl": (SDXL, (("ctrlora", "1", "yes", ""),)),
}
AGAIN = "write it again: python -m disegno.training.memory_table"


def _rows(text: str) -> list[str]:
    return re.findall(r"^\| (?:ctrlora|controlnet) .*$", text, re.MULTILINE)


def _others(text: str) -> list[str]:
    return [line for line in text.splitlines() if line not in _rows(text)]


def _tables(text: str) -> dict[str, list[str]]:
    """Return the rows of each family's table."""
    parts = text.split("\n## ")
    return {family: _rows(parts[i]) for i, family in enumerate(COUNTED, start=1)}


@pytest.mark.parametrize("family", COUNTED)
def test_the_rows_are_what_is_counted(family: str) -> None:
    real, rows = COUNTED[family]
    found = {cells: counted(requests(real)[cells], real) for cells in rows}
    said = page(*(found if of is real else {} for of in (SD15, SDXL)))
    written = _tables(PAGE.read_text("utf-8"))[family]
    assert len(_rows(said)) == len(rows) and set(_rows(said)) <= set(written), AGAIN
    assert len(written) == len(requests(real))


def test_the_words_are_up_to_date() -> None:
    written = PAGE.read_text("utf-8")
    assert _others(written) == _others(page({}, {})), AGAIN
    assert "computed, not measured" in written
