"""GGUF files: what is read from one, what it costs to open one, and what files of nets and text encoders are."""

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import T5Config, T5EncoderModel

from disegno.backbones.miniature_sdxl import sdxl_unet
from disegno.core.errors import CorruptFile
from disegno.text.t5 import open_tokenizer, tokenizer_in
from disegno.weights.finite import not_finite
from disegno.weights.ggml_blocks import PACKED
from disegno.weights.gguf_file import numbers_of, texts_of
from disegno.weights.identify import identify
from disegno.weights.keys import ldm, t5
from disegno.weights.load import load_file, open_file
from disegno.weights.tensor_file import TensorFile
from kit import gguf
from kit.vocabulary import SENTENCES, gguf_words, pieces, write_spiece

pytestmark = pytest.mark.unit


def _numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_tensors_words_and_shapes_are_read(tmp_path: Path) -> None:
    a, b = _numbers(3, 5), _numbers(2, 3, 64, seed=1)
    tensors = {
        "a": gguf.plain(a),
        "half": gguf.plain(a, gguf.F16),
        "brain": gguf.plain(a, gguf.BF16),
        "packed": gguf.packed(b, gguf.Q8_0),
        "scalar": gguf.plain(torch.tensor(2.5)),
        "none": gguf.plain(torch.zeros(0, 4)),
    }
    words: dict[str, gguf.Word] = {
        "general.architecture": "sd3",
        "general.file_type": 7,
        "π": "ü",
        "x.is": True,
        "x.tokens": ["a", "", "ü" * 99],
        "x.scores": [1, 2, 3],
    }
    path = gguf.write(tmp_path / "a.gguf", tensors, words)
    with open_file(path) as file:
        assert file.keys() == list(tensors)
        assert file.metadata == {"general.architecture": "sd3", "general.file_type": "7", "π": "ü", "x.is": "True"}
        assert file.ignored == ("x.tokens: a table of 3", "x.scores: a table of 3")
        assert texts_of(file, "x.tokens") == ["a", "", "ü" * 99] and numbers_of(file, "x.scores") == (1, 2, 3)
        assert texts_of(file, "x.scores") == texts_of(file, "y") == [] and numbers_of(file, "x.tokens") == ()
        assert [file.shape(key) for key in tensors] == [(3, 5), (3, 5), (3, 5), (2, 3, 64), (), (0, 4)]
        assert torch.equal(file.tensor("a"), a) and torch.equal(file.tensor("half"), a.half())
        assert torch.equal(file.tensor("brain"), a.bfloat16()) and file.tensor("scalar").item() == 2.5
        assert (file.dtype("packed"), file.tensor("packed").dtype) == (torch.float16, torch.float16)
        assert torch.allclose(file.tensor("packed").float(), b, atol=float(b.abs().max()) / 127)
        assert file.tensor("none").shape == (0, 4)
        assert file.sha256() == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("alignment", [8, 64, 4096])
def test_another_alignment_is_followed(tmp_path: Path, alignment: int) -> None:
    tensors = {name: gguf.plain(_numbers(3, seed=ord(name))) for name in "abc"}
    (tmp_path / "a.gguf").write_bytes(gguf.file(tensors, alignment=alignment))
    found = load_file(tmp_path / "a.gguf")
    assert all(torch.equal(found[name], _numbers(3, seed=ord(name))) for name in "abc")


def test_a_file_without_padding_at_its_end_and_of_version_2_is_read(tmp_path: Path) -> None:
    whole = gguf.file({"a": gguf.plain(torch.ones(3))})
    assert len(whole) % 32 == 0
    (tmp_path / "a.gguf").write_bytes(whole[:4] + b"\x02" + whole[5:-20])
    assert load_file(tmp_path / "a.gguf")["a"].tolist() == [1, 1, 1]


def test_a_reshaped_tensor_gets_its_own_shape_back(tmp_path: Path) -> None:
    """ComfyUI-GGUF makes rows of 256 of what has none, and tells the shape."""
    stored = gguf.drawn(12, (45, 256), seed=3)
    words = {"comfy.gguf.orig_shape.conv.weight": [320, 4, 3, 3]}
    found = load_file(gguf.write(tmp_path / "a.gguf", {"conv.weight": stored}, words))["conv.weight"]
    assert found.shape == (320, 4, 3, 3)
    raw = torch.frombuffer(bytearray(stored.data), dtype=torch.uint8)
    assert torch.equal(found.flatten(), PACKED[12].unpacked(raw))


def test_it_is_known_by_its_first_bytes_where_it_has_as_many_tensors_as_safetensors_has_a_mark(tmp_path: Path) -> None:
    """123 tensors: the count's first byte is the brace by which safetensors is known."""
    tensors = {f"w{k}": gguf.plain(torch.full((1,), float(k))) for k in range(123)}
    path = gguf.write(tmp_path / "a.safetensors", tensors)
    assert path.read_bytes()[8:9] == b"{"
    assert load_file(path)["w122"].item() == 122


def test_opening_reads_no_tensor(tmp_path: Path) -> None:
    """A sparse file of 64 GiB of numbers opens at once: only its header is touched."""
    stored = gguf.Stored((1 << 21, 32 << 10), 2, b"")
    path = gguf.write(tmp_path / "a.gguf", {"w": stored})
    os.truncate(path, path.stat().st_size + (64 << 30) // 32 * 18)
    begin = time.process_time()
    with open_file(path) as file:
        assert file.shape("w") == stored.shape
    assert time.process_time() - begin < 0.1


def _t5_shapes() -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of the published encoder of T5 1.1 XXL: 219 tensors."""
    found: dict[str, tuple[int, ...]] = {"token_embd.weight": (32128, 4096), "enc.output_norm.weight": (4096,)}
    found["enc.blk.0.attn_rel_b.weight"] = (32, 64)
    for i in range(24):
        found |= {f"enc.blk.{i}.attn_{name}.weight": (4096, 4096) for name in "qkvo"}
        found |= {f"enc.blk.{i}.{name}_norm.weight": (4096,) for name in ("attn", "ffn")}
        found |= {f"enc.blk.{i}.ffn_{name}.weight": (10240, 4096) for name in ("gate", "up")}
        found[f"enc.blk.{i}.ffn_down.weight"] = (4096, 10240)
    return found


def _sdxl_shapes() -> dict[str, tuple[int, ...]]:
    unet = sdxl_unet().state_dict()
    return {original: tuple(unet[name].shape) for name, original in ldm.unet_originals(unet).items()}


@pytest.mark.parametrize(
    ("shapes", "architecture", "card"),
    [
        (_sdxl_shapes, "sdxl", ("model", "sdxl", "ldm", "epsilon", 4, "Q4_K")),
        (_t5_shapes, "t5encoder", ("text", "", "", None, None, "Q4_K")),
    ],
)
def test_files_of_real_shapes_are_known_at_once(
    shapes: Callable[[], dict[str, tuple[int, ...]]], architecture: str, card: tuple[object, ...], tmp_path: Path
) -> None:
    wanted = shapes()
    path = gguf.write_header(tmp_path / "x.gguf", wanted, 12, architecture)
    begin = time.process_time()
    found = identify(path)
    assert time.process_time() - begin < 0.3
    assert (found.kind, found.family, found.layout, found.prediction, found.in_channels, found.dtype) == card
    with open_file(path) as file:
        assert {name: file.shape(name) for name in file.keys()} == wanted  # noqa: SIM118


def test_t5s_tensors_have_the_names_of_its_class() -> None:
    with torch.device("meta"):
        sizes = {"d_model": 8, "d_kv": 2, "d_ff": 4, "num_heads": 2, "num_layers": 24, "vocab_size": 9}
        gated = T5Config(**sizes, feed_forward_proj="gated-gelu", is_encoder_decoder=False, use_cache=False)
        whole = T5EncoderModel(gated)
    names = t5.from_llama([*_t5_shapes(), "dec.blk.0.attn_q.weight", "output.weight"])
    assert set(names.values()) == whole.state_dict().keys() - {"encoder.embed_tokens.weight"} and len(names) == 219


def test_a_scale_that_is_no_number_is_found(tmp_path: Path) -> None:
    sound = gguf.packed(_numbers(4, 32), gguf.Q8_0)
    nan = gguf.Stored(sound.shape, sound.kind, b"\x00\x7e" + sound.data[2:])
    path = gguf.write(tmp_path / "a.gguf", {"sound": sound, "nan": nan})
    assert not_finite(load_file(path)) == ["nan"]


@pytest.fixture
def vocabulary(tmp_path: Path) -> Callable[..., TensorFile]:
    """Return what opens a file with T5's vocabulary, some of its words other than they are."""

    def made(**others: gguf.Word) -> TensorFile:
        words = gguf_words() | {f"tokenizer.ggml.{name}": value for name, value in others.items()}
        return open_file(gguf.write(tmp_path / "t5.gguf", {"w": gguf.plain(torch.ones(1))}, words))

    return made


def test_t5s_vocabulary_is_that_of_its_sentencepiece_file(
    vocabulary: Callable[..., TensorFile], tmp_path: Path
) -> None:
    found, spiece = tokenizer_in(vocabulary()), open_tokenizer(write_spiece(tmp_path / "spiece.model"))
    assert found is not None and found.get_vocab() == spiece.get_vocab()
    for text in (*SENTENCES, "Ünknown ☃ letters", "[PAD1] <extra_id_0>", ""):
        assert found.encode(text).ids == spiece.encode(text).ids
    assert tokenizer_in(vocabulary(model="llama")) is None and tokenizer_in(vocabulary(tokens=[])) is None


@pytest.mark.parametrize(
    ("others", "words"),
    [
        ({"scores": [0.0]}, "its vocabulary is damaged"),
        ({"scores": [float("nan")] * len(pieces()) + [0.0] * 3}, "a score that is no number"),
        ({"token_type": [1] * (len(pieces()) + 3)}, "its vocabulary is damaged"),
        ({"token_type": [5] * (len(pieces()) + 3)}, "its vocabulary is damaged"),
        ({"precompiled_charsmap": [1, 2, 3]}, "Cannot parse"),
        ({"tokens": ["x"] * (len(pieces()) + 3)}, "has no </s>: it is not T5's vocabulary"),
    ],
)
def test_a_damaged_vocabulary_is_refused(
    vocabulary: Callable[..., TensorFile], others: dict[str, gguf.Word], words: str
) -> None:
    with pytest.raises(CorruptFile, match=words):
        tokenizer_in(vocabulary(**others))


def test_one_of_several_parts_is_called_so(tmp_path: Path) -> None:
    path = gguf.write(tmp_path / "a.gguf", {"w": gguf.plain(torch.ones(1))}, {"split.count": 3, "split.no": 0})
    with pytest.raises(CorruptFile, match=r"one of 3 parts of a model\. Join them"):
        open_file(path)


def test_a_type_that_is_not_read_is_called_by_its_name(tmp_path: Path) -> None:
    path = gguf.write(tmp_path / "a.gguf", {"x.weight": gguf.Stored((1, 256), 16, bytes(66))})
    with pytest.raises(CorruptFile, match=r"a\.gguf: The tensor 'x\.weight' is of type IQ2_XXS; .*Q4_K.*IQ4_XS\."):
        open_file(path)
