"""MiniLM-L6 as a text encoder: token states for cross-attention, frozen.

Wang et al. 2020, "MiniLM", as published in all-MiniLM-L6-v2: a BERT of 6 layers, width 384.
The module names are BERT's, so the published keys load as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from disegno.core.request import Emphasis
from disegno.prompts.emphasis import parse_pieces
from disegno.text.chunks import Ruler, chunks_of
from disegno.text.learnt import TextOptions
from disegno.text.weighting import WEIGH, Weigh, weigh_keeping_size, weights_of
from disegno.weights.quantised import dequantise_rows

WIDTH, HEADS, LAYERS, HIDDEN = 384, 12, 6, 1536
VOCABULARY, POSITIONS, SEGMENTS = 30522, 512, 2
NORM_EPS = 1e-12  # BERT's
NUM_TOKENS = 48

# The mean of the states is near 0 (measured: 1e-6, their deviation 0.2): nothing to keep; their size is kept instead.
_WEIGH: dict[Emphasis, Weigh] = {**WEIGH, "original": weigh_keeping_size}


def _block(**parts: nn.Module) -> nn.Module:
    """Return a bare module with the given children: BERT's nesting without classes of its own."""
    module = nn.Module()
    for name, part in parts.items():
        module.add_module(name, part)
    return module


class Layer(nn.Module):
    """One post-norm transformer layer with BERT's key names."""

    def __init__(self) -> None:
        super().__init__()
        heads = _block(query=nn.Linear(WIDTH, WIDTH), key=nn.Linear(WIDTH, WIDTH), value=nn.Linear(WIDTH, WIDTH))
        after = _block(dense=nn.Linear(WIDTH, WIDTH), LayerNorm=nn.LayerNorm(WIDTH, NORM_EPS))
        self.attention = nn.ModuleDict({"self": heads, "output": after})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(WIDTH, HIDDEN)})
        self.output = nn.ModuleDict({"dense": nn.Linear(HIDDEN, WIDTH), "LayerNorm": nn.LayerNorm(WIDTH, NORM_EPS)})

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return the states after this layer, (b n d). `mask`: (b 1 1 n), true on real tokens."""
        heads, after = self.attention["self"], self.attention["output"]
        q, k, v = (
            heads.get_submodule(name)(x).unflatten(-1, (HEADS, -1)).transpose(1, 2)  # b h n d/h
            for name in ("query", "key", "value")
        )
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)  # b n d
        x = after.get_submodule("LayerNorm")(x + after.get_submodule("dense")(mixed))
        hidden = F.gelu(self.intermediate["dense"](x))  # b n 4d
        return self.output["LayerNorm"](x + self.output["dense"](hidden))


class MiniLM(nn.Module):
    """The encoder network."""

    def __init__(self) -> None:
        super().__init__()
        words = torch.empty(VOCABULARY, WIDTH)  # drawn, as nn.Embedding would, they take 0.1 s
        self.embeddings = nn.ModuleDict(
            {
                "word_embeddings": nn.Embedding(VOCABULARY, WIDTH, _weight=words),
                "position_embeddings": nn.Embedding(POSITIONS, WIDTH),
                "token_type_embeddings": nn.Embedding(SEGMENTS, WIDTH),
                "LayerNorm": nn.LayerNorm(WIDTH, NORM_EPS),
            }
        )
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(Layer() for _ in range(LAYERS))})

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return the last states, (b n 384), zero where `mask` (b n) is false."""
        places = torch.arange(ids.shape[1], device=ids.device)
        parts = self.embeddings
        x = parts["word_embeddings"](ids) + parts["position_embeddings"](places)  # b n d
        x = parts["LayerNorm"](x + parts["token_type_embeddings"](torch.zeros_like(ids)))
        for layer in self.encoder["layer"].children():
            x = layer(x, mask[:, None, None, :])
        return x * mask[..., None]


class TextEncoder:
    """A tokenizer and its network: sentences to token states.

    Padding is hidden from the network and its states are zero, so an attention over all 48 states needs no mask.
    """

    def __init__(self, network: MiniLM, tokenizer: Tokenizer) -> None:
        self.network, self.tokenizer = network, tokenizer
        self._words = Tokenizer.from_str(tokenizer.to_str())  # the same without cutting and padding
        self._words.no_truncation()
        self._words.no_padding()
        self._frame = tuple(self._words.encode("").ids)  # what stands around the words: start and end

    @classmethod
    def open(cls, folder: Path) -> TextEncoder:
        """Return the encoder from `text.safetensors` (row-wise int8 or plain) and `tokenizer.json` in `folder`."""
        weights = dequantise_rows(load_file(folder / "text.safetensors"))
        kept = {
            key: tensor
            for key, tensor in weights.items()
            if not key.startswith("pooler.") and key != "embeddings.position_ids"
        }
        network = MiniLM()
        network.load_state_dict(kept)
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.enable_truncation(NUM_TOKENS)
        tokenizer.enable_padding(length=NUM_TOKENS)
        return cls(network.eval().requires_grad_(False), tokenizer)

    def encode(self, sentences: Sequence[str]) -> Tensor:
        """Return the token states, (b 48 384), on the network's device."""
        encodings = self.tokenizer.encode_batch(list(sentences))
        weight = self.network.get_parameter("embeddings.word_embeddings.weight")
        ids = torch.tensor([encoding.ids for encoding in encodings], device=weight.device)
        mask = torch.tensor([encoding.attention_mask for encoding in encodings], device=weight.device, dtype=torch.bool)
        with torch.no_grad():
            return self.network(ids, mask)

    def encode_prompt(self, text: str, options: TextOptions) -> Tensor:
        """Return the token states of a prompt of any length, (1 48k 384), of its k chunks.

        Raises RequestError where a weight is no number.
        """
        comma = self._words.token_to_id(",")
        ruler = Ruler(NUM_TOKENS - len(self._frame), -1 if comma is None else comma, options.backtrack)
        chunks = chunks_of(parse_pieces(text, options.emphasis), self._token_ids, ruler)
        start, end = self._frame[:1], self._frame[1:]
        rows = [[*start, *chunk.ids, *end] for chunk in chunks]
        device = self.network.get_parameter("embeddings.word_embeddings.weight").device
        ids = torch.tensor([row + [0] * (NUM_TOKENS - len(row)) for row in rows], device=device)  # k 48
        lengths = torch.tensor([len(row) for row in rows], device=device)
        with torch.no_grad():
            states = self.network(ids, torch.arange(NUM_TOKENS, device=device) < lengths[:, None])  # k 48 384
        states = _WEIGH[options.emphasis](states, weights_of(chunks, NUM_TOKENS, len(start)).to(states))
        return states.flatten(0, 1)[None]  # k 48 d -> 1 48k d

    def _token_ids(self, text: str) -> list[int]:
        return self._words.encode(text, add_special_tokens=False).ids

    def truncated(self, sentence: str) -> str:
        """Return the end of the sentence that does not fit into 48 tokens, empty where all of it fits."""
        overflow = self.tokenizer.encode(sentence).overflowing
        return self.tokenizer.decode([token for part in overflow for token in part.ids]) if overflow else ""
