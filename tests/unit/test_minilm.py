"""The text encoder against the published network, and its contract."""

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel

from disegno.text import minilm
from disegno.text.minilm import MiniLM, TextEncoder

pytestmark = pytest.mark.unit


def word_tokenizer() -> Tokenizer:
    """Return a tokenizer of eight words with BERT's frame."""
    words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "a", "red", "car", "castle"]
    tokenizer = Tokenizer(models.WordLevel({word: k for k, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.add_special_tokens(words[:3])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer.enable_truncation(minilm.NUM_TOKENS)
    tokenizer.enable_padding(length=minilm.NUM_TOKENS)
    return tokenizer


@pytest.fixture(scope="module")
def reference() -> BertModel:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=minilm.VOCABULARY,
        hidden_size=minilm.WIDTH,
        num_hidden_layers=minilm.LAYERS,
        num_attention_heads=minilm.HEADS,
        intermediate_size=minilm.HIDDEN,
    )
    return BertModel(config, add_pooling_layer=False).eval()


@pytest.fixture(scope="module")
def encoder(reference: BertModel) -> TextEncoder:
    network = MiniLM()
    network.load_state_dict(
        {key: tensor for key, tensor in reference.state_dict().items() if not key.endswith("position_ids")}
    )
    return TextEncoder(network.eval(), word_tokenizer())


def test_states_equal_the_reference_and_pads_are_zero(encoder: TextEncoder, reference: BertModel) -> None:
    states = encoder.encode(["a red car", ""])
    assert states.shape == (2, 48, 384)
    ids = torch.tensor([[1, 4, 5, 6, 2]])
    with torch.no_grad():
        expected = reference(ids).last_hidden_state
    assert torch.allclose(states[:1, :5], expected, atol=1e-5)  # float32, two orders of summation
    assert not states[0, 5:].any()
    assert not states[1, 2:].any()


def test_the_rest_of_the_batch_changes_nothing(encoder: TextEncoder) -> None:
    alone = encoder.encode(["a castle"])
    together = encoder.encode(["a red car", "a castle"])[1:]
    assert torch.allclose(alone, together, atol=1e-5)  # float32, two batch sizes


def test_what_does_not_fit_is_named(encoder: TextEncoder) -> None:
    assert encoder.truncated("a red car") == ""
    assert encoder.truncated("red " * 46 + "castle") == "castle"


def test_open_reads_the_stored_form(tmp_path: Path, encoder: TextEncoder) -> None:
    from safetensors.torch import save_file

    from disegno.weights.quantised import quantise_rows

    save_file(quantise_rows(encoder.network.state_dict()), tmp_path / "text.safetensors")
    encoder.tokenizer.save(str(tmp_path / "tokenizer.json"))
    opened = TextEncoder.open(tmp_path).encode(["a red car"])
    cosine = torch.cosine_similarity(opened[0, :5], encoder.encode(["a red car"])[0, :5], dim=-1)
    assert cosine.min() > 0.999  # int8 rows
