"""Any text at all: the prompt language never fails, and takes linear time."""

from time import perf_counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from disegno.prompts.composition import split_parts
from disegno.prompts.emphasis import parse_emphasis
from disegno.prompts.files import PromptFiles
from disegno.prompts.networks import cut_tags
from disegno.prompts.reading import write_out
from disegno.prompts.schedule import schedule, span_at

pytestmark = pytest.mark.unit

WORDS = [
    "(",
    ")",
    "[",
    "]",
    ":",
    "|",
    "\\",
    "<",
    ">",
    "a",
    " b",
    "AND",
    " BREAK ",
    "0.5",
    "3",
    "1e9",
    "#",
    "\n",
    "__",
    "é",
]
PROMPTS = st.lists(st.sampled_from(WORDS) | st.characters(), max_size=30).map("".join)


@settings(max_examples=300, deadline=None)
@given(PROMPTS, st.integers(1, 12), st.none() | st.integers(1, 12), st.booleans())
def test_nothing_fails(prompt: str, steps: int, hires: int | None, old: bool) -> None:
    text, _ = cut_tags(prompt)
    for part in split_parts(text):
        spans = schedule(part.text, steps, hires, old)
        ends = [span.until for span in spans]
        assert ends == sorted(set(ends)) and ends[-1] == (hires if hires and not old else steps)
        assert 0 <= span_at(spans, steps) < len(spans)
        for span in spans:
            pieces = parse_emphasis(span.text)
            assert pieces and all(isinstance(piece.text, str) for piece in pieces)
    again = write_out(prompt, prompt, (), 0, PromptFiles())
    assert write_out(again.prompt, again.negative, (), 1, PromptFiles()).prompt == again.prompt


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.characters(exclude_characters="\\()[]:#|<>_"), max_size=40))
def test_plain_words_are_what_they_are(text: str) -> None:
    assert schedule(text, 5)[0].text == text
    if "BREAK" not in text:
        assert [piece.text for piece in parse_emphasis(text)] == [text]


def _seconds(text: str) -> float:
    begin = perf_counter()
    cut_tags(text)
    for part in split_parts(text):
        for span in schedule(part.text, 4):
            parse_emphasis(span.text)
    write_out(text, "", (), 0, PromptFiles())
    return perf_counter() - begin


@pytest.mark.parametrize("first", WORDS)
def test_time_is_linear(first: str) -> None:
    # 5,000 characters take 1 to 25 ms (measured), read quadratically minutes. The bound allows for a busy machine.
    for unit in (first + second for second in WORDS):
        assert _seconds(unit * (5_000 // len(unit))) < 3, unit


@pytest.mark.parametrize(
    "text",
    [
        "<a:" * 30_000,
        " " * 100_000 + "x",
        "(" * 50_000 + "::|" * 10_000,
        "[a:b:" * 20_000,
        "[" * 20_000 + "a" + "]" * 20_000,
        "[" * 20_000 + "a" + ":1]" * 20_000,
        "(a" * 15_000,
    ],
    ids=lambda text: text[:6],
)
def test_long_runs_that_lead_nowhere(text: str) -> None:
    assert _seconds(text) < 5  # measured: 0.02 to 0.4 s
