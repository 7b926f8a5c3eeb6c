"""A tiny BLIP with random weights, and a vocabulary of a few words."""

import json
from pathlib import Path

import torch
from transformers import BlipConfig, BlipForConditionalGeneration

from disegno.backbones.miniature import draw
from disegno.weights.save import save_safetensors

SIDE = 32
WORDS = (
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "photo", "of", "red", "car", "on", "the", "street", "##s"),
    *("city", "blue", "house", "dog", "with", "two", "tree", "in", "front", "and", ",", "##ing", "##ed"),
)
START = len(WORDS)
CONFIG = {
    "architectures": ["BlipForConditionalGeneration"],
    "text_config": {
        "hidden_size": 32,
        "encoder_hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "vocab_size": START + 1,
        "bos_token_id": START,
        "eos_token_id": 2,
        "sep_token_id": 3,
        "pad_token_id": 0,
        "projection_dim": 32,
        "max_position_embeddings": 128,
    },
    "vision_config": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": SIDE,
        "patch_size": 16,
    },
}
TIED = "text_decoder.cls.predictions.decoder."


def write_captioner(folder: Path, seed: int = 0, tied: bool = True) -> Path:
    """Return `folder`, now a captioner's. `tied`: what has two names is written by one of them."""
    folder.mkdir(parents=True, exist_ok=True)
    net = BlipForConditionalGeneration(BlipConfig.from_dict(CONFIG))
    tensors = {name: 2 * tensor for name, tensor in draw(net, seed).items()}  # so that pictures differ in words
    tensors[f"{TIED}weight"] = tensors["text_decoder.bert.embeddings.word_embeddings.weight"].clone()
    tensors[f"{TIED}bias"] = tensors["text_decoder.cls.predictions.bias"].clone()
    tensors |= {"text_decoder.bert.embeddings.position_ids": torch.arange(128)[None]}
    kept = {name: tensor for name, tensor in tensors.items() if not (tied and name.startswith(TIED))}
    save_safetensors(folder / "model.safetensors", kept, {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG), "utf-8")
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n", "utf-8")
    return folder
