"""CLIP's tokenizer: the ids that the first tokenizer gives, and what is said about a prompt that is too long."""

import json
from pathlib import Path

import pytest

from disegno.text.clip import END_ID, START_ID, chunk, chunk_rows
from disegno.text.clip_tokens import LENGTH, clean, token_ids, tokenizer

pytestmark = pytest.mark.unit

VECTORS = json.loads((Path(__file__).parents[1] / "golden" / "vectors" / "clip_tokens.json").read_text("utf-8"))


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda case: case["text"][:20])
def test_ids_are_those_of_the_original(case: dict[str, object]) -> None:
    assert token_ids(str(case["text"])) == case["ids"]


def test_the_vocabulary_is_whole() -> None:
    assert tokenizer().get_vocab_size() == 49408
    assert (tokenizer().token_to_id("<|startoftext|>"), tokenizer().token_to_id("<|endoftext|>")) == (START_ID, END_ID)


@pytest.mark.parametrize(
    ("given", "cleaned"),
    [("  A \n\t cat ", "a cat"), ("ＦＵＬＬ", "full"), ("âœ” ok", "✔ ok"), ("ÉCOLE", "école")],
)
def test_text_is_mended_and_lowered(given: str, cleaned: str) -> None:
    assert clean(given) == cleaned


def test_case_and_spaces_change_nothing() -> None:
    assert token_ids("A  Photo\nof a CAT") == token_ids("a photo of a cat")


def test_a_chunk_has_start_text_and_ends() -> None:
    assert chunk([320, 2368]) == [START_ID, 320, 2368] + [END_ID] * (LENGTH - 3)
    assert len(chunk(list(range(75)))) == LENGTH


def test_what_does_not_fit_is_named() -> None:
    rows, warnings = chunk_rows(["a cat", "cat " * 75, "cat " * 75 + "in a red hat"])
    assert [len(row) for row in rows] == [LENGTH] * 3
    assert rows[1] == rows[2]
    assert len(warnings) == 1
    assert "79 tokens" in warnings[0] and "'in a red hat'" in warnings[0]
