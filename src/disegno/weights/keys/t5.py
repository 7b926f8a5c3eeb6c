"""The tensors of T5's encoder: llama.cpp's names, which GGUF files have, and transformers' T5EncoderModel's.

    llama.cpp                           here
    token_embd                          shared
    enc.output_norm                     encoder.final_layer_norm
    enc.blk.i.attn_norm                 encoder.block.i.layer.0.layer_norm
    enc.blk.i.attn_q, _k, _v, _o        encoder.block.i.layer.0.SelfAttention.q, .k, .v, .o
    enc.blk.i.attn_rel_b                encoder.block.i.layer.0.SelfAttention.relative_attention_bias
    enc.blk.i.ffn_norm                  encoder.block.i.layer.1.layer_norm
    enc.blk.i.ffn_gate, _up, _down      encoder.block.i.layer.1.DenseReluDense.wi_0, .wi_1, .wo

A decoder (`dec.`) and `output`, which some files have beside it, have no place. Facts of gguf-py's constants.py
(MODEL_TENSORS of T5 and T5ENCODER) and of ComfyUI-GGUF's loader.py.
"""

import re
from collections.abc import Iterable

_FIXED = {"token_embd": "shared", "enc.output_norm": "encoder.final_layer_norm"}
_ATTENTION, _FORWARD = "layer.0.SelfAttention", "layer.1.DenseReluDense"
_BLOCK = {
    "attn_norm": "layer.0.layer_norm",
    "attn_rel_b": f"{_ATTENTION}.relative_attention_bias",
    **{f"attn_{name}": f"{_ATTENTION}.{name}" for name in "qkvo"},
    "ffn_norm": "layer.1.layer_norm",
    "ffn_gate": f"{_FORWARD}.wi_0",
    "ffn_up": f"{_FORWARD}.wi_1",
    "ffn_down": f"{_FORWARD}.wo",
}
_NAME = re.compile(r"enc\.blk\.(\d+)\.(\w+)\.weight")


def from_llama(names: Iterable[str]) -> dict[str, str]:
    """Return llama.cpp's names -> T5EncoderModel's; those without a place are left out."""
    found: dict[str, str] = {}
    for name in names:
        match, module = _NAME.fullmatch(name), name.removesuffix(".weight")
        if match and match[2] in _BLOCK:
            found[name] = f"encoder.block.{match[1]}.{_BLOCK[match[2]]}.weight"
        elif module in _FIXED:
            found[name] = f"{_FIXED[module]}.weight"
    return found


def is_llamas(names: Iterable[str]) -> bool:
    """Return whether these are llama.cpp's names of an encoder."""
    return any(name.startswith("enc.blk.") for name in names)
