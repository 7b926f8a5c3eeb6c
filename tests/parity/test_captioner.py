"""BLIP against transformers' own model, picture processor and tokenizer."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertTokenizer, BlipForConditionalGeneration, BlipImageProcessor

from disegno.core.errors import CorruptFile, KeyMismatch, RequestError
from disegno.memory import FULL_PRECISION, Memory
from disegno.text.captioner import MAX_TOKENS, open_captioner
from disegno.weights.identify import identify
from disegno.weights.load import load_file
from disegno.weights.save import save_safetensors
from kit.captioner import SIDE, write_captioner

pytestmark = pytest.mark.parity

MEMORY = Memory(FULL_PRECISION)


def _pictures(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    return [np.kron(each, np.ones((12, 16, 1), np.uint8)) for each in small]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_captioner(tmp_path_factory.mktemp("models") / "blip")


@torch.no_grad()
@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("beginning", ["", "a photo of"])
def test_the_words_are_transformers(folder: Path, beams: int, beginning: str) -> None:
    ours = open_captioner(folder, MEMORY)
    theirs = BlipForConditionalGeneration.from_pretrained(folder).eval()
    shows = BlipImageProcessor(size={"height": SIDE, "width": SIDE})
    words = BertTokenizer(vocab=str(folder / "vocab.txt"), do_lower_case=True)
    ids = words(beginning, return_tensors="pt").input_ids if beginning else None
    said: list[str] = []
    for picture in _pictures(6):
        pixels = shows(picture, return_tensors="pt").pixel_values
        assert torch.allclose(ours._shown(picture), pixels, atol=1e-6)  # pyright: ignore[reportPrivateUsage]
        out = theirs.generate(pixels, ids, num_beams=beams, max_new_tokens=MAX_TOKENS, do_sample=False)
        said.append(ours.caption(picture, beginning, beams))
        assert said[-1] == words.decode(out[0, 1:], skip_special_tokens=True).strip()
        assert said[-1].startswith(beginning)
    assert len(set(said)) > 1


def test_what_has_two_names_may_have_either(folder: Path, tmp_path: Path) -> None:
    whole = write_captioner(tmp_path / "whole", tied=False)
    picture = _pictures(1)[0]
    assert open_captioner(whole, MEMORY).caption(picture) == open_captioner(folder, MEMORY).caption(picture)
    card = identify(whole)
    assert (card.kind, card.mechanism) == ("captioner", "blip")


def test_a_long_beginning_is_refused(folder: Path) -> None:
    with pytest.raises(RequestError, match="leaves no room"):
        open_captioner(folder, MEMORY).caption(_pictures(1)[0], "a car and " * 20)


def test_incomplete_folders_are_refused_in_words(folder: Path, tmp_path: Path) -> None:
    bare = shutil.copytree(folder, tmp_path / "bare")
    (bare / "vocab.txt").unlink()
    with pytest.raises(CorruptFile, match=r"no vocabulary: tokenizer\.json or vocab\.txt"):
        open_captioner(bare, MEMORY)
    (bare / "tokenizer.json").write_text("{}", "utf-8")
    with pytest.raises(CorruptFile, match="is no tokenizer"):
        open_captioner(bare, MEMORY)
    (bare / "config.json").write_text(json.dumps({"architectures": ["Blip"], "text_config": 3}), "utf-8")
    with pytest.raises(CorruptFile, match="no description of a blip"):
        open_captioner(bare, MEMORY)
    short = shutil.copytree(folder, tmp_path / "short")
    tensors = load_file(short / "model.safetensors")
    tensors.pop("vision_model.embeddings.class_embedding")
    save_safetensors(short / "model.safetensors", tensors, {})
    with pytest.raises(KeyMismatch, match="class_embedding"):
        open_captioner(short, MEMORY)
