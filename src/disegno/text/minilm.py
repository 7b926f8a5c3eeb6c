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

from disegno.weights.quantised import dequantise_rows

WIDTH, HEADS, LAYERS, HIDDEN = 384, 12, 6, 1536
VOCABULARY, POSITIONS, SEGMENTS = 30522, 512, 2
NORM_EPS = 1e-12  # BERT's
NUM_TOKENS = 48


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
        self.embeddings = nn.ModuleDict(
            {
                "word_embeddings": nn.Embedding(VOCABULARY, WIDTH),
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

    def truncated(self, sentence: str) -> str:
        """Return the end of the sentence that does not fit into 48 tokens, empty where all of it fits."""
        overflow = self.tokenizer.encode(sentence).overflowing
        return self.tokenizer.decode([token for part in overflow for token in part.ids]) if overflow else ""
