"""Embeddings of Stable Diffusion XL, vectors for both text encoders, against diffusers' loader; and through the engine.

Tolerance: 1e-5 on states of size 3, float32, as without an embedding (test_sdxl.py).
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from disegno import Request, Result, Settings, Studio, generate
from disegno.backbones import miniature, sdxl
from disegno.backbones import miniature_sdxl as mini
from disegno.backbones.miniature_sdxl import Sdxl
from disegno.core.errors import UnknownKind
from disegno.memory import FULL_PRECISION, Memory
from disegno.serving.catalogue import catalogue_of
from disegno.serving.counting import Text, count
from disegno.text.clip_tokens import LENGTH, tokenizer
from disegno.text.learnt import LearntVectors, TextOptions, read_learnt
from disegno.weights.identify import identify
from disegno.weights.save import save_safetensors

pytestmark = pytest.mark.parity

MEMORY = Memory(FULL_PRECISION)
L, G = mini.WIDTHS["clip_l"], mini.WIDTHS["clip_g"]


def _vectors(num: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(num, width, generator=torch.Generator().manual_seed(seed + width))


def _pair(num: int = 3, seed: int = 0) -> dict[str, Tensor]:
    return {"clip_l": _vectors(num, L, seed), "clip_g": _vectors(num, G, seed)}


def _safe(path: Path, tensors: dict[str, Tensor]) -> Path:
    save_safetensors(path, tensors, {})
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mini.write_folder(tmp_path_factory.mktemp("models") / "xl")


@pytest.fixture(scope="module")
def model(folder: Path) -> sdxl.Sdxl:
    return sdxl.open(folder, MEMORY)


def _tokenizer(pad: str) -> CLIPTokenizer:
    merges = json.loads(tokenizer().to_str())["model"]["merges"]
    words: Any = tokenizer().get_vocab()
    made: Any = CLIPTokenizer
    return made(vocab=words, merges=[tuple(m) for m in merges], model_max_length=LENGTH, pad_token=pad)


@torch.no_grad()
@pytest.mark.parametrize("num", [1, 3])
def test_both_encoders_read_what_diffusers_reads(num: int, folder: Path, model: sdxl.Sdxl, tmp_path: Path) -> None:
    pipeline: Any = StableDiffusionXLPipeline(
        vae=AutoencoderKL.from_pretrained(folder / "vae"),
        text_encoder=CLIPTextModel.from_pretrained(folder / "text_encoder"),
        text_encoder_2=CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder_2"),
        tokenizer=_tokenizer("<|endoftext|>"),
        tokenizer_2=_tokenizer("!"),
        unet=UNet2DConditionModel.from_pretrained(folder / "unet"),
        scheduler=EulerDiscreteScheduler(),
    )
    pair = _pair(num)
    encoders = {"clip_l": ("tokenizer", "text_encoder"), "clip_g": ("tokenizer_2", "text_encoder_2")}
    for key, (cut, encoder) in encoders.items():
        parts = {"tokenizer": getattr(pipeline, cut), "text_encoder": getattr(pipeline, encoder)}
        pipeline.load_textual_inversion({"<my-style>": pair[key]}, token="<my-style>", **parts)
    tokens, _, pooled, _ = pipeline.encode_prompt("a <my-style> cat", device=torch.device("cpu"))
    learnt = read_learnt(_safe(tmp_path / "my-style.safetensors", pair))
    ours = model.read_prompt("a my-style cat", TextOptions(learnt=(learnt,)))
    assert ours.warnings == () and ours.pooled is not None
    assert torch.allclose(ours.tokens, tokens, atol=1e-5) and torch.allclose(ours.pooled, pooled, atol=1e-5)
    plain = model.read_prompt("a my-style cat", TextOptions())
    assert plain.pooled is not None and not torch.allclose(plain.pooled, pooled, atol=0.01)
    for half in (slice(L), slice(L, None)):
        assert not torch.allclose(plain.tokens[..., half], tokens[..., half], atol=0.01)


# ---- files

WRITERS: dict[str, Callable[[Path, dict[str, Tensor]], object]] = {
    "x.safetensors": _safe,
    "x.pt": lambda path, pair: torch.save(pair, path),
    "y.safetensors": lambda path, pair: _safe(
        path, {"text_encoders_0": pair["clip_l"], "text_encoders_1": pair["clip_g"]}
    ),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_layout_is_read(name: str, tmp_path: Path) -> None:
    published = {"clip_l": _vectors(2, 768), "clip_g": _vectors(2, 1280)}
    WRITERS[name](tmp_path / name, published)
    read, card = read_learnt(tmp_path / name), identify(tmp_path / name)
    assert (card.kind, card.family) == ("embedding", "sdxl")
    assert torch.equal(read.vectors, published["clip_l"]) and read.beside is not None
    assert torch.equal(read.beside, published["clip_g"])
    assert (read.names, read.num, read.width) == ((name[0],), 2, 2048)


def test_one_with_t5s_vectors_is_of_stable_diffusion_3(tmp_path: Path) -> None:
    path = _safe(tmp_path / "x.safetensors", _pair() | {"t5xxl": _vectors(1, 4096)})
    assert identify(path).family == "sd3"
    with pytest.raises(UnknownKind, match="or of SDXL's two: it has clip_"):
        read_learnt(path)


# ---- the two texts stay side by side


@torch.no_grad()
@pytest.mark.parametrize("prompt", ["a my-style cat", "cat, " * 36 + "my-style, dog", "my-style " * 60])
def test_both_texts_are_equally_long(prompt: str, model: sdxl.Sdxl) -> None:
    """Where one encoder has fewer vectors: A1111 parity, the places are as many for both."""
    pair, short = _pair(), _vectors(1, L)
    even = LearntVectors(("my-style",), pair["clip_l"], "a", pair["clip_g"])
    uneven = LearntVectors(("my-style",), short, "b", pair["clip_g"])
    read = [model.read_prompt(prompt, TextOptions(learnt=(learnt,))) for learnt in (even, uneven)]
    assert read[0].tokens.shape == read[1].tokens.shape
    assert torch.equal(read[0].tokens[..., L:], read[1].tokens[..., L:])
    assert not torch.equal(read[0].tokens[..., :L], read[1].tokens[..., :L])
    assert read[0].pooled is not None and read[1].pooled is not None
    assert torch.equal(read[0].pooled, read[1].pooled)  # OpenCLIP-G's alone


@torch.no_grad()
def test_what_does_not_fit_both_is_taken_as_text_by_both(model: sdxl.Sdxl) -> None:
    plain = model.read_prompt("a my-style cat", TextOptions())
    strange = {
        "(32 wide, not 32 and 64)": LearntVectors(("my-style",), _vectors(1, L), "a"),
        "(64 wide, not 32 and 64)": LearntVectors(("my-style",), _vectors(1, G), "b"),
        "(32 and 48 wide, not 32 and 64)": LearntVectors(("my-style",), _vectors(1, L), "c", _vectors(1, 48)),
    }
    for words, learnt in strange.items():
        read = model.read_prompt("a my-style cat", TextOptions(learnt=(learnt,)))
        assert torch.equal(read.tokens, plain.tokens)
        (said,) = read.warnings
        assert words in said and said.endswith("): taken as text.")


@torch.no_grad()
def test_the_refiner_reads_openclips(tmp_path: Path) -> None:
    refiner, pair = sdxl.open(mini.write_folder(tmp_path / "refiner", Sdxl(refines=True)), MEMORY), _pair()
    both = LearntVectors(("my-style",), pair["clip_l"], "a", pair["clip_g"])
    alone = LearntVectors(("my-style",), pair["clip_g"], "b")
    plain, *read = (refiner.read_prompt("a my-style cat", TextOptions(learnt=some)) for some in ((), (both,), (alone,)))
    assert torch.equal(read[0].tokens, read[1].tokens) and not torch.equal(read[0].tokens, plain.tokens)
    assert read[0].warnings == read[1].warnings == ()


# ---- through the engine


@pytest.fixture(scope="module")
def studio(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Studio:
    miniature.write_sd1_checkpoint(folder.parent / "one.safetensors")
    _safe(folder.parent / "my-style.safetensors", _pair())
    _safe(folder.parent / "old-style.safetensors", {"emb_params": _vectors(2, 768)})
    cache = tmp_path_factory.mktemp("cache")
    return Studio(Settings(model_dirs=(folder.parent,), cache_dir=cache, dtype="fp32", device="cpu"))


def _drawn(studio: Studio, prompt: str, model: str = "xl", **fields: Any) -> Result:
    request = Request(prompt=prompt, model=model, seed=1, steps=2, width=64, height=64, **fields)
    last = list(generate(request, studio=studio))[-1]
    assert isinstance(last, Result)
    return last


def test_one_of_the_library_acts_by_its_name(studio: Studio) -> None:
    named, other = (_drawn(studio, prompt) for prompt in ("a cat, My-Style", "a cat, My Style"))
    assert named.warnings == () and named.images[0].tobytes() != other.images[0].tobytes()
    content = studio.library.find("my-style", "embedding").sha256()
    assert named.labels["TI hashes"] == f"my-style: {content[:12]}"
    assert "TI hashes" not in other.labels
    unwanted = _drawn(studio, "a cat", negative="my-style")
    assert unwanted.images[0].tobytes() != _drawn(studio, "a cat", negative="my style").images[0].tobytes()


def test_it_is_listed_as_wide_as_both(studio: Studio) -> None:
    """A1111 parity: `shape` of /sdapi/v1/embeddings; and a prompt is as long as it makes it."""
    catalogue = catalogue_of(studio)
    card = next(card for card in catalogue.files if card.name == "my-style")
    assert (card.family, card.vectors) == ("sdxl", (3, L + G))
    assert [count(Text("my-style old-style", model), catalogue).tokens for model in ("xl", "one")] == [6, 5]


def test_one_of_another_family_is_taken_as_text_and_said(studio: Studio) -> None:
    assert _drawn(studio, "old-style").warnings == (
        "The embedding 'old-style' is for sd1, the open model is sdxl: its name was taken as text.",
    )
    assert _drawn(studio, "my-style", model="one").warnings == (
        "The embedding 'my-style' is for sdxl, the open model is sd1: its name was taken as text.",
    )
