"""T5's encoder, as Stable Diffusion 3 uses it: SentencePiece's tokens, an end, and padding that is not hidden.

The vocabulary comes with the model: `tokenizer.json` or `spiece.model`, or in the encoder's GGUF file. Raffel et al.
2020; Esser et al. 2024, sec. 4.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import T5Config, T5EncoderModel

from disegno.core.errors import CorruptFile
from disegno.eight_bit import in_eight_bits, stored_in_eight_bits
from disegno.memory import Memory, build_empty, check_keys
from disegno.prompts.emphasis import parse_pieces
from disegno.text.chunks import Chunk
from disegno.text.learnt import TextOptions
from disegno.text.sentencepiece import read_unigram, unigram_in
from disegno.text.vocabulary import read_tokenizer
from disegno.text.weighting import WEIGH, weigh_keeping_size, weights_of
from disegno.weights.quantised import MIN_ELEMENTS
from disegno.weights.tensor_file import TensorFile

LENGTH = 77  # tokens at least, the end included: what Stable Diffusion 3 was trained with
MAX_LENGTH = 512  # what T5 itself was trained with
END = "</s>"
PAD_ID = 0
_WEIGH = WEIGH | {"original": weigh_keeping_size}  # T5's states have a mean near 0
_EMBEDDING, _TIED = "shared.weight", "encoder.embed_tokens.weight"
_FIRST = "encoder.block.0.layer.0.SelfAttention"


@dataclass(frozen=True)
class T5Text:
    """An open T5 encoder."""

    model: T5EncoderModel
    tokenizer: Tokenizer

    @property
    def net(self) -> nn.Module:
        return self.model

    @property
    def width(self) -> int:
        return int(self.model.config.d_model)

    def read(self, prompts: Sequence[str]) -> tuple[Tensor, list[str]]:
        """Return each prompt's states, (b 77 d), float32, and warnings about what was cut off."""
        rows = [self._ids(prompt) for prompt in prompts]
        warnings = [warning for row in rows for warning in self._cut_off(row, LENGTH)]
        ids = [self._padded(row[: LENGTH - 1], LENGTH) for row in rows]
        return self.states(torch.tensor(ids, dtype=torch.long).reshape(-1, LENGTH)), warnings

    def read_prompt(self, text: str, options: TextOptions) -> tuple[Tensor, list[str]]:
        """Return the states of a prompt, (1 n d), float32, 77 tokens or as many as it has, and warnings.

        Raises RequestError where a weight is no number.
        """
        ids, weights = list[int](), list[float]()
        for piece in parse_pieces(text, options.emphasis):
            some = [] if piece.is_break else self._ids(piece.text)
            ids += some
            weights += [piece.weight] * len(some)
        warnings = self._cut_off(ids, MAX_LENGTH)
        ids, weights = ids[: MAX_LENGTH - 1], weights[: MAX_LENGTH - 1]
        length = max(LENGTH, len(ids) + 1)
        states = self.states(torch.tensor([self._padded(ids, length)], dtype=torch.long))
        chunk = Chunk(tuple(ids), tuple(weights))
        return _WEIGH[options.emphasis](states, weights_of([chunk], length, 0).to(states)), warnings

    def states(self, ids: Tensor) -> Tensor:
        """Return the states of token ids (b n), (b n d), float32."""
        device = self.model.get_input_embeddings().weight.device
        return self.model(input_ids=ids.to(device)).last_hidden_state.float()

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def _padded(self, ids: Sequence[int], length: int) -> list[int]:
        end = self.tokenizer.token_to_id(END)
        assert end is not None, "open_tokenizer sees to it"
        return [*ids, end] + [PAD_ID] * (length - 1 - len(ids))

    def _cut_off(self, ids: Sequence[int], length: int) -> list[str]:
        if len(ids) < length:
            return []
        lost = self.tokenizer.decode(list(ids[length - 1 :]))
        return [f"The prompt has {len(ids)} tokens for T5, which reads {length - 1}: {lost!r} was cut off."]


def config_of(shapes: Mapping[str, Sequence[int]]) -> T5Config:
    """Return the configuration of the encoder with tensors of these shapes. Raises KeyError where one is missing."""
    vocabulary, width = shapes[_EMBEDDING]
    buckets, heads = shapes[f"{_FIRST}.relative_attention_bias.weight"]
    return T5Config(
        vocab_size=vocabulary,
        d_model=width,
        d_kv=shapes[f"{_FIRST}.q.weight"][0] // heads,
        d_ff=shapes["encoder.block.0.layer.1.DenseReluDense.wo.weight"][1],
        num_layers=1 + max(int(name.split(".")[2]) for name in shapes if name.startswith("encoder.block.")),
        num_heads=heads,
        relative_attention_num_buckets=buckets,
        feed_forward_proj="gated-gelu",
        is_encoder_decoder=False,
        use_cache=False,
    )


def open_t5(tensors: Mapping[str, Tensor], tokenizer: Tokenizer, memory: Memory, what: str) -> T5Text:
    """Return the encoder with these weights (T5EncoderModel's names), as the policy wants it.

    Raises KeyMismatch about `what`.
    """
    tensors = dict(tensors)
    if _EMBEDDING not in tensors and _TIED in tensors:
        tensors[_EMBEDDING] = tensors[_TIED]
    tensors[_TIED] = tensors.get(_EMBEDDING, torch.empty(0))
    memory = memory.without_fp16()  # its activations are beyond float16
    try:
        config = config_of({name: tuple(tensor.shape) for name, tensor in tensors.items()})
    except (KeyError, ValueError) as error:
        raise CorruptFile(f"{what} has no tensor {error}: it is no T5 encoder. Fetch it again.") from error
    if memory.policy.t5 == "int8":
        plain = build_empty(lambda: T5EncoderModel(config))
        check_keys(plain, tensors, what)
        tensors = stored_in_eight_bits(plain, tensors, MIN_ELEMENTS)

    def make() -> T5EncoderModel:
        model = T5EncoderModel(config)
        if memory.policy.t5 == "int8":
            in_eight_bits(model, MIN_ELEMENTS)
        return model

    return T5Text(memory.build(make, tensors, what), tokenizer)


_TOKENIZERS = ("tokenizer.json", "spiece.model")


def find_tokenizer(folders: Sequence[Path]) -> Tokenizer | None:
    """Return T5's tokenizer from the first of these folders that has one; None. Raises CorruptFile."""
    found = next((path for folder in folders for name in _TOKENIZERS if (path := folder / name).is_file()), None)
    return None if found is None else open_tokenizer(found)


def open_tokenizer(path: Path) -> Tokenizer:
    """Return the tokenizer in a tokenizer.json or spiece.model. Raises CorruptFile."""
    return _of_t5(read_tokenizer(path) if path.suffix == ".json" else read_unigram(path), str(path))


def tokenizer_in(file: TensorFile) -> Tokenizer | None:
    """Return the tokenizer that an encoder's own file brings, as GGUF files do; None. Raises CorruptFile."""
    found = unigram_in(file)
    return None if found is None else _of_t5(found, file.path.name)


def _of_t5(tokenizer: Tokenizer, what: str) -> Tokenizer:
    if tokenizer.token_to_id(END) is None:
        raise CorruptFile(f"{what} has no {END}: it is not T5's vocabulary. Fetch T5's own.")
    return tokenizer
