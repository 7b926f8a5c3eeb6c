"""Chunks and emphasis of text encoders, against A1111's own: tokens, weights, learnt vectors, restored means."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from disegno.core.errors import RequestError
from disegno.prompts.emphasis import parse_emphasis
from disegno.text.chunks import Chunk, Fix, Learnt, Name, Ruler, chunks_of
from disegno.text.clip import chunk
from disegno.text.clip_tokens import COMMA_ID, token_ids
from disegno.text.weighting import WEIGH, weigh_keeping_size

pytestmark = pytest.mark.unit

FOLDER = Path(__file__).parents[1] / "golden" / "vectors"
CHUNKS = json.loads((FOLDER / "clip_chunks.json").read_text("utf-8"))
EMPHASIS = json.loads((FOLDER / "emphasis_numeric.json").read_text("utf-8"))["cases"]
MODES = {"Original": "original", "No norm": "no-norm", "Ignore": "ignore", "None": "none"}
LEARNT = Learnt(tuple(Name(tuple(token_ids(name)), name, num) for name, num in CHUNKS["embeddings"].items()))


def _chunks(prompt: str, backtrack: int = 20) -> list[Chunk]:
    return chunks_of(parse_emphasis(prompt), token_ids, Ruler(75, COMMA_ID, backtrack), LEARNT)


@pytest.mark.parametrize("case", CHUNKS["cases"], ids=lambda case: case["prompt"][:30])
def test_chunks_are_those_of_the_original(case: dict[str, Any]) -> None:
    made = _chunks(case["prompt"], case["comma_padding_backtrack"])
    assert [chunk(part.ids) for part in made] == [part["tokens"] for part in case["chunks"]]
    for part, expected in zip(made, case["chunks"], strict=True):
        assert [1.0, *part.weights, *[1.0] * (76 - len(part.weights))] == expected["multipliers"]
        fixes = [{"offset": fix.offset, "embedding": fix.name, "vectors": fix.num_vectors} for fix in part.fixes]
        assert fixes == expected["fixes"]
    assert 75 * (len(made) - 1) + len(made[-1].ids) == case["token_count"]
    assert 75 * len(made) == case["target_token_count"]


def test_learnt_vectors_move_with_their_words() -> None:
    made = _chunks("dog " * 68 + ", a easynegative b c d")
    assert [fix for part in made for fix in part.fixes] == [Fix(1, "easynegative", 3)]
    assert made[1].ids == (*token_ids("a"), 0, 0, 0, *token_ids("b c d"))


def test_the_longest_name_wins() -> None:
    learnt = Learnt((Name((1,), "short", 1), Name((1, 2), "long", 2)))
    made = chunks_of(parse_emphasis("x"), lambda _: [1, 2, 1, 3], Ruler(8, 99), learnt)
    assert made[0].fixes == (Fix(0, "long", 2), Fix(2, "short", 1))


def test_vectors_that_fit_into_no_chunk_are_an_error() -> None:
    learnt = Learnt((Name((1,), "huge", 76),))
    with pytest.raises(RequestError, match="'huge' has 76 vectors; a chunk of the text has 75"):
        chunks_of(parse_emphasis("x"), lambda _: [1], Ruler(75, 99), learnt)


def _states(given: Any) -> torch.Tensor:
    return torch.tensor(given["z_flat"]).reshape(1, 77, -1) if isinstance(given, dict) else torch.tensor(given)[None]


@pytest.mark.parametrize("case", EMPHASIS, ids=lambda case: case["mode"])
def test_emphasis_is_that_of_the_original(case: dict[str, Any]) -> None:
    made = WEIGH[MODES[case["mode"]]](_states(case["z"]), torch.tensor(case["multipliers"])[None])
    expected = case["result"]
    if isinstance(expected, dict):  # of the larger ones: both ends, the sum and the sum of squares
        assert list(made.shape) == expected["shape"]
        given = torch.tensor([*expected["first16"], *expected["last16"], expected["sum"], expected["sumsq"]])
        made = torch.cat([made.flatten()[:16], made.flatten()[-16:], made.sum()[None], made.square().sum()[None]])
    else:
        given = torch.tensor(expected)
    assert torch.allclose(made.flatten(), given, atol=1e-4, rtol=1e-4)  # z is written with 6 decimals


def test_size_is_restored_and_silence_is_not_divided_by() -> None:
    z, weights = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0)), torch.rand(2, 5) + 0.5
    made = weigh_keeping_size(z, weights)
    assert torch.allclose(made.square().mean((1, 2)), z.square().mean((1, 2)))
    assert torch.equal(weigh_keeping_size(z, torch.zeros(2, 5)), torch.zeros_like(z))


def test_a_text_has_a_largest_number_of_chunks() -> None:
    text = parse_emphasis("x")
    assert len(chunks_of(text, lambda _: [1] * 75 * 256, Ruler(75, 99))) == 256
    with pytest.raises(RequestError, match="more than 256 chunks of 75 tokens"):
        chunks_of(text, lambda _: [1] * (75 * 256 + 1), Ruler(75, 99))
