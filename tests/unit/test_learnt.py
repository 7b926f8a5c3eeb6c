"""Learnt vectors: every layout of file is read, nothing else is, and they stand where their name stands."""

from pathlib import Path

import pytest
import torch
from torch import nn

from disegno.backbones.miniature import open_miniature
from disegno.core.errors import ModelFileError, UnknownKind
from disegno.text.clip import ClipText, chunk
from disegno.text.clip_tokens import token_ids
from disegno.text.learnt import LearntVectors, TextOptions, read_learnt, squeezed
from disegno.weights.identify import identify
from disegno.weights.save import save_safetensors

pytestmark = pytest.mark.unit

WIDTH = 32


def _vectors(num: int, width: int = WIDTH, seed: int = 0) -> torch.Tensor:
    return torch.randn(num, width, generator=torch.Generator().manual_seed(seed))


def _a1111(path: Path, vectors: torch.Tensor) -> None:
    words = {"string_to_token": {"*": 265}, "name": "x", "step": 100, "sd_checkpoint": None, "sd_checkpoint_name": None}
    torch.save({**words, "string_to_param": {"*": vectors}}, path)


def _first(path: Path, vectors: torch.Tensor) -> None:
    torch.save({"string_to_param": nn.ParameterDict({"*": nn.Parameter(vectors)})}, path)


WRITERS = {
    "a1111.pt": _a1111,
    "first.pt": _first,
    "safe.safetensors": lambda path, vectors: save_safetensors(path, {"emb_params": vectors}, {}),
    "comfy.safetensors": lambda path, vectors: save_safetensors(path, {"clip_l": vectors}, {}),
    "diffusers.bin": lambda path, vectors: torch.save({"<cat-toy>": vectors}, path),
    "diffusers.safetensors": lambda path, vectors: save_safetensors(path, {"<cat-toy>": vectors}, {}),
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("width", [WIDTH, 768])
def test_every_layout_is_read(name: str, width: int, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / name, _vectors(3, width))
    read = read_learnt(tmp_path / name)
    assert torch.equal(read.vectors, _vectors(3, width))
    stem = name.partition(".")[0]
    assert read.names == ((stem, "<cat-toy>") if stem == "diffusers" else (stem,))
    if width == 768:
        card = identify(tmp_path / name)
        assert (card.kind, card.family) == ("embedding", "sd1")


def test_one_vector_may_lie_flat_and_in_half_precision(tmp_path: Path) -> None:
    save_safetensors(tmp_path / "one.safetensors", {"<x>": _vectors(1)[0].half()}, {})
    read = read_learnt(tmp_path / "one.safetensors")
    assert read.vectors.shape == (1, WIDTH) and read.vectors.dtype == torch.float32


@pytest.mark.parametrize(
    "tensors",
    [
        {"clip_l": _vectors(2, 768), "clip_g": _vectors(2, 1280), "t5xxl": _vectors(2, 4096)},
        {"a": _vectors(1), "b": _vectors(1)},
        {"emb_params": torch.ones(2, 3, 4)},
    ],
    ids=["sd3", "two", "no vectors"],
)
def test_other_files_are_refused(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    save_safetensors(tmp_path / "x.safetensors", tensors, {})
    with pytest.raises(UnknownKind, match=r"x\.safetensors"):
        read_learnt(tmp_path / "x.safetensors")


def test_a_file_that_asks_to_run_code_runs_none(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return print, ("ran",)

    torch.save({"string_to_param": {"*": _vectors(1)}, "name": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(ModelFileError, match="evil"):
        read_learnt(tmp_path / "evil.pt")


# ---- in an encoder


@pytest.fixture(scope="module")
def encoder() -> ClipText:
    text = open_miniature().text
    assert isinstance(text, ClipText)
    return text


def _learnt(name: str, num: int, width: int = WIDTH) -> LearntVectors:
    return LearntVectors((name,), _vectors(num, width, seed=num), f"{name}{num}")


def _states(encoder: ClipText, embedded: torch.Tensor) -> torch.Tensor:
    """Return the states of a chunk whose token embeddings are these, by another way: as rows of the table itself."""
    table = encoder.model.embeddings.token_embedding.weight
    kept = table[: len(embedded)].clone()
    with torch.no_grad():
        table[: len(embedded)] = embedded
        states = encoder.states(torch.arange(len(embedded))[None])
        table[: len(embedded)] = kept
    return states


@torch.no_grad()
def test_vectors_stand_where_their_name_stands(encoder: ClipText) -> None:
    vectors = _learnt("my-style", 3)
    made, warnings = encoder.read_prompt("a My-Style cat", TextOptions(learnt=(vectors,)))
    ids = torch.tensor(chunk([*token_ids("a"), 0, 0, 0, *token_ids("cat")]))
    embedded = encoder.model.embeddings.token_embedding(ids).clone()
    embedded[2:5] = vectors.vectors
    assert torch.allclose(made, _states(encoder, embedded), atol=1e-5)  # float32, two batch shapes
    assert warnings == []


@torch.no_grad()
def test_nothing_is_left_of_them(encoder: ClipText) -> None:
    plain, _ = encoder.read_prompt("a my-style cat", TextOptions())
    encoder.read_prompt("a my-style cat", TextOptions(learnt=(_learnt("my-style", 2),)))
    again, _ = encoder.read_prompt("a my-style cat", TextOptions())
    assert torch.equal(plain, again)


@torch.no_grad()
def test_vectors_of_another_width_are_passed_over_and_said(encoder: ClipText) -> None:
    plain, _ = encoder.read_prompt("a my-style cat", TextOptions())
    made, warnings = encoder.read_prompt("a my-style cat", TextOptions(learnt=(_learnt("my-style", 2, 48),)))
    assert torch.equal(made, plain)
    assert warnings == ["The embedding 'my-style' is of another model (48 wide, not 32): its name was taken as text."]


def test_options_are_told_apart_by_the_vectors_bytes() -> None:
    a, b = (TextOptions(learnt=(_learnt("x", num),)) for num in (1, 2))
    assert a.key() != b.key() and a.key() == TextOptions(learnt=(_learnt("x", 1),)).key()
    assert squeezed("My - Style\n") == "my-style"
