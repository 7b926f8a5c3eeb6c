"""Captions as prompts: whatever they hold, a model is told their words."""

import pytest

from disegno.prompts.emphasis import parse_emphasis
from disegno.prompts.files import PromptFiles
from disegno.prompts.plain import as_prompt
from disegno.prompts.reading import Steps, read, write_out

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a cat",
        "a poster, 16:9",
        "a clock at 10:30",
        "a man (left) and [a dog | a cat:0.5] at home",
        "fate \\(series\\), c:\\",
        "((unbalanced [brackets",
        "a <lora:ink:2> and <b> tag",
        "__animal__ and _one_",
        "ratio 3 : 4 :-2",
    ],
)
def test_a_model_is_told_the_words(text: str) -> None:
    written = write_out(as_prompt(text), "", (), 0, PromptFiles())
    wording = read(written, Steps(20))
    assert written.warnings == wording.warnings == () and wording.loras == ()
    (line,) = wording.parts
    (span,) = line.spans
    assert line.weight == 1.0
    assert "".join(piece.text for piece in parse_emphasis(span.text)) == text
    assert all(piece.weight == 1.0 for piece in parse_emphasis(span.text))


def test_words_that_a_prompt_has_no_other_form_of() -> None:
    assert as_prompt("BLACK AND WHITE, a BREAK, BRAND") == "BLACK and WHITE, a break, BRAND"
    assert as_prompt("a beach #sunset #sea") == "a beach sunset sea"
