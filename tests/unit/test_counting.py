"""How long a prompt is said to be: as long as the text encoder's chunks will be."""

import subprocess
import sys

import pytest

from disegno.serving.counting import Text, count
from disegno.serving.words import Catalogue, WeightsCard
from disegno.text import minilm

pytestmark = pytest.mark.unit

CATALOGUE = Catalogue(
    models=(
        WeightsCard("diorama", "model", "diorama"),
        WeightsCard("v1-5", "model", "sd1"),
        WeightsCard("v3", "model", "sd3"),
        WeightsCard("xl", "model", "sdxl"),
        WeightsCard("x", "model"),
    ),
    files=(
        WeightsCard("my-cat", "embedding", vectors=(4, 768)),
        WeightsCard("my-dog", "embedding", "sdxl", vectors=(5, 2048)),
    ),
)


@pytest.mark.parametrize(
    "text, model, tokens, room, chunks, networks",
    [
        ("", "diorama", 0, 46, 1, 0),
        ("a red car on a city street", "diorama", 7, 46, 1, 0),
        ("a red car on a city street", "v1-5", 7, 75, 1, 0),
        ("(a red:1.3) [car]", "v1-5", 3, 75, 1, 0),
        ("a [cat:very large dog:0.5]", "v1-5", 4, 75, 1, 0),
        ("a cat AND a very large dog :0.5", "v1-5", 4, 75, 1, 0),
        ("a cat BREAK a dog", "v1-5", 4, 150, 2, 0),
        ("a cat <lora:paint:0.8>", "v1-5", 2, 75, 1, 1),
        ("a my-cat", "v1-5", 5, 75, 1, 0),
        ("a my-dog", "xl", 6, 75, 1, 0),
        ("a my-dog", "v1-5", 4, 75, 1, 0),  # of another family: taken as text
        ("cat " * 80, "v1-5", 80, 150, 2, 0),
        ("cat " * 80, "v3", 80, 150, 2, 0),
        ("a my-cat", "v3", 4, 75, 1, 0),  # an embedding of one CLIP is taken as text
    ],
)
def test_a_prompt_is_counted(text: str, model: str, tokens: int, room: int, chunks: int, networks: int) -> None:
    found = count(Text(text, model), CATALOGUE)
    assert (found.tokens, found.room, found.chunks, found.networks) == (tokens, room, chunks, networks)


@pytest.mark.parametrize("model", ["x", "not there"])
def test_of_an_encoder_that_is_not_known_nothing_is_said(model: str) -> None:
    assert count(Text("a cat", model), CATALOGUE).tokens is None


def test_the_built_in_models_length_is_its_encoders() -> None:
    found = count(Text("", "diorama"), CATALOGUE)
    assert found.room == minilm.NUM_TOKENS - 2


def test_counting_loads_no_torch() -> None:
    code = "import sys, disegno.serving.counting; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
