"""What each row attends to at each call: parts, schedules, lengths; and how the rows come together again."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from disegno.backbones.base import TextStates
from disegno.diffusion.call import Row
from disegno.diffusion.denoiser import Guidance, denoised, split_rows
from disegno.diffusion.prediction import PREDICTIONS
from disegno.engine.texts import ImageTexts, Texts, Timeline, by_length
from disegno.prompts.schedule import Span

pytestmark = pytest.mark.unit

FOLDER = Path(__file__).parents[1] / "golden" / "vectors"
COMPOSITIONS = json.loads((FOLDER / "and_composition.json").read_text("utf-8"))["cases"]


def _states(name: str, length: int = 2) -> TextStates:
    tokens = torch.arange(length, dtype=torch.float32).reshape(1, length, 1) + 10 * ord(name[0])
    return TextStates(tokens, None, (name,))


def _timeline(*spans: tuple[int, str], weight: float = 1.0) -> Timeline:
    return Timeline(tuple(Span(*span) for span in spans), tuple(_states(text) for _, text in spans), weight)


# ---- how rows come together


@pytest.mark.parametrize("case", COMPOSITIONS, ids=lambda case: str(case["weights"]))
def test_parts_are_composed_as_in_the_original(case: dict[str, Any]) -> None:
    num = len(case["weights"])
    rows = [Row(0, True, str(i), 0.0, weight=weight) for i, weight in enumerate(case["weights"])]
    rows.append(Row(0, False, "", 0.0))
    out = torch.tensor([*case["cond_outputs"], case["uncond_output"]]).reshape(num + 1, 1, 1, 4)
    x0 = PREDICTIONS["epsilon"]  # out is taken for x0: an epsilon of -x0 at x = 0, sigma = 1
    made = denoised(torch.zeros(1, 1, 1, 4), torch.tensor(1.0), -out, rows, x0, Guidance(case["cfg_scale"]))
    assert torch.allclose(made.flatten(), torch.tensor(case["denoised"]), atol=1e-4)


def test_rows_of_several_images_find_their_own() -> None:
    rows = [
        Row(1, False, "", 0.0),
        Row(0, True, "a", 0.0),
        Row(1, True, "b", 0.0, weight=2.0),
        Row(0, False, "", 0.0),
        Row(1, True, "c", 0.0, weight=-1.0),
    ]
    out = torch.tensor([10.0, 1.0, 12.0, 4.0, 13.0]).reshape(5, 1, 1, 1)
    positive, negative = split_rows(out, rows, 2)
    assert negative.flatten().tolist() == [4.0, 10.0]
    assert positive.flatten().tolist() == [1.0, 10 + 2 * 2 - 3]


def test_one_part_of_weight_one_is_itself_bit_for_bit() -> None:
    out = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    rows = [Row(0, True, "a", 0.0), Row(0, False, "", 0.0)]
    assert torch.equal(split_rows(out, rows, 1)[0], out[:1])


# ---- which rows there are


def test_a_text_is_looked_up_at_each_call() -> None:
    line = _timeline((2, "a"), (5, "b"))
    assert [line.at(call).keys[0] for call in range(7)] == ["a", "a", "a", "b", "b", "b", "a"]


def test_rows_are_of_every_image_then_the_negative_ones() -> None:
    first = ImageTexts((_timeline((9, "a")),), _timeline((3, "n"), (9, "m")))
    second = ImageTexts((_timeline((9, "b")), _timeline((9, "c"), weight=0.5)), _timeline((9, "o")))
    texts = Texts((first, second))
    assert not first.composes() and second.composes() and texts.composes()
    rows = texts.rows(4, 0.25, with_negative=True)
    seen = [(row.row.image, row.row.positive, row.row.text, row.row.weight) for row in rows]
    assert seen == [
        (0, True, "a", 1.0), (1, True, "b", 1.0), (1, True, "c", 0.5), (0, False, "m", 1.0), (1, False, "o", 1.0),
    ]  # fmt: skip
    assert {row.row.progress for row in rows} == {0.25}
    assert [row.row.text for row in texts.rows(0, 0.0, with_negative=False)] == ["a", "b", "c"]
    blind = texts.rows(0, 0.0, with_negative=True, with_blind=True)[-2:]
    assert [(row.row.positive, row.row.is_shown) for row in blind] == [(False, False)] * 2


def test_a_weight_alone_asks_for_the_negative_prompt() -> None:
    assert ImageTexts((_timeline((1, "a"), weight=0.7),), _timeline((1, "n"))).composes()


def test_parts_of_one_prompt_repeat_their_last_token() -> None:
    parts = Timeline.always(_states("a", 2)), Timeline.always(_states("b", 5))
    short, long = ImageTexts(parts, Timeline.always(_states("n", 2))).positive_at(0)
    assert short.tokens.flatten().tolist() == [970, 971, 971, 971, 971]
    assert short.keys != ("a",) and long.keys == ("b",)


def test_the_shorter_of_prompt_and_negative_is_filled_with_empty_chunks_where_asked() -> None:
    prompt, negative = (Timeline.always(_states(name, length)) for name, length in (("a", 6), ("n", 2)))
    plain, padded = (ImageTexts((prompt,), negative, empty) for empty in (None, _states("e", 2)))
    assert plain.negative_at(0).tokens.shape[1] == 2
    assert padded.negative_at(0).tokens.flatten().tolist() == [1100, 1101, 1010, 1011, 1010, 1011]
    assert padded.positive_at(0)[0].keys == ("a",)
    turned = ImageTexts((negative,), prompt, _states("e", 2))
    assert turned.positive_at(0)[0].tokens.shape[1] == 6 and turned.negative_at(0).keys == ("a",)


def test_rows_of_one_length_go_together() -> None:
    images = tuple(
        ImageTexts((Timeline.always(_states(name, length)),), Timeline.always(_states("n", 2)))
        for name, length in (("a", 2), ("b", 4), ("c", 2))
    )
    groups = by_length(Texts(images).rows(0, 0.0, with_negative=True))
    assert [[row.row.text for row in group] for group in groups] == [["a", "c", "n", "n", "n"], ["b"]]
    assert [row.row.text for row in Texts(images).of([2, 0]).rows(0, 0.0, with_negative=False)] == ["c", "a"]


def test_a_text_that_is_filled_to_another_length_has_another_key() -> None:
    """What was evaluated for one is not given to the other, whose filling ends elsewhere."""
    text = Timeline.always(_states("a", 4))
    long = [ImageTexts((text,), Timeline.always(_states("n", n)), _states("e", 4)) for n in (6, 7)]
    first, second = (one.positive_at(0)[0] for one in long)
    assert (first.tokens.shape[1], second.tokens.shape[1]) == (6, 7)
    assert first.keys != second.keys
    other = ImageTexts((text,), Timeline.always(_states("n", 6)), _states("f", 4)).positive_at(0)[0]
    assert not torch.equal(other.tokens, first.tokens) and other.keys != first.keys  # filled with something else
