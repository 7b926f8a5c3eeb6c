"""What is kept while there is room: by number, and by size."""

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch

from disegno import Settings, Studio
from disegno.backbones.base import Backbone, TextStates
from disegno.engine.kept import Kept
from disegno.text.learnt import TextOptions


def test_the_least_recently_used_goes_first() -> None:
    gone: list[int] = []
    kept = Kept[int](2, gone.append)
    assert [kept.get(key, lambda key=key: key) for key in (1, 2, 1, 3)] == [1, 2, 1, 3]
    assert gone == [2] and [value for _, value in kept.items()] == [1, 3]


def test_what_is_large_makes_room_before_another_is_made() -> None:
    there: list[list[int]] = []
    kept = Kept[int](3, num_bytes=lambda value: value, most_bytes=10)

    def make(value: int) -> int:
        there.append([each for _, each in kept.items()])
        return value

    for value in (2, 3, 4, 20, 1):
        assert kept.get(value, lambda value=value: make(value)) == value
    assert there == [
        [],
        [2],
        [2, 3],
        [4],
        [],
    ]  # beside 2 + 3 another 3 fits, beside 3 + 4 no other 4; 20 is too large, and stays alone
    assert [each for _, each in kept.items()] == [1]


def test_the_oldest_goes_before_another_is_made_and_one_that_fails_costs_one_at_most() -> None:
    kept, there = Kept[int](2), list[list[int]]()

    def make(value: int) -> int:
        there.append([each for _, each in kept.items()])
        if value > 3:
            raise ValueError(value)
        return value

    for value in (1, 2, 3):
        kept.get(value, lambda value=value: make(value))
    for _ in range(2):
        with pytest.raises(ValueError):
            kept.get(4, lambda: make(4))
    assert there == [[], [1], [2], [3], [3]]


def test_texts_are_kept_by_their_size(tmp_path: Path) -> None:
    """A prompt may have 256 chunks: 256 such texts would be 40 GiB of SDXL's states."""
    read: list[str] = []

    def states(text: str, options: TextOptions) -> TextStates:
        read.append(text)
        many = torch.zeros(1).expand(1, 25, len(text) << 20)  # 100 MiB for each letter, of which none is there
        return TextStates(many, many[0], (text,))

    model = cast(Backbone, SimpleNamespace(fingerprint="small", read_prompt=states))
    studio = Studio(Settings(model_dirs=(tmp_path,), cache_dir=tmp_path, device="cpu", dtype="fp32"))
    for text in ("a", "a", "b", "a", "b"):
        studio.prompt_states(model, text, TextOptions())
    assert read == ["a", "b", "a", "b"]  # 200 MiB each, with its pooled state
