"""Pictures to words: BLIP (Li et al. 2022, arXiv 2201.12086), which A1111 describes pictures by.

A folder as transformers lays it out (Salesforce/blip-image-captioning-base): config.json, the weights, and BERT's
vocabulary as tokenizer.json or vocab.txt. The weights are read as data.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from torch import Tensor
from transformers import BlipConfig, BlipForConditionalGeneration, BlipTextConfig, BlipVisionConfig

from disegno.core.errors import CorruptFile, RequestError
from disegno.memory import Memory
from disegno.text.clip_vision import MEAN, STD
from disegno.text.described import described
from disegno.text.vocabulary import read_tokenizer
from disegno.weights.json_table import read_json
from disegno.weights.parts import folder_tensors

CLASS = "BlipForConditionalGeneration"
MAX_TOKENS, BEAMS = 48, 3
MAX_BEGINNING = 24  # tokens
_UNKNOWN = "[UNK]"
_SPECIAL = ("[PAD]", _UNKNOWN, "[CLS]", "[SEP]", "[MASK]")  # of BERT: no words
_VOCABULARIES = ("tokenizer.json", "vocab.txt")
# One tensor by two names, of which a file may have either.
_TIED = {
    "text_decoder.cls.predictions.decoder.weight": "text_decoder.bert.embeddings.word_embeddings.weight",
    "text_decoder.cls.predictions.decoder.bias": "text_decoder.cls.predictions.bias",
}


@dataclass(frozen=True)
class Captioner:
    """An open captioner. `words`: BERT's tokens, lower case."""

    name: str
    net: BlipForConditionalGeneration
    words: Tokenizer

    @torch.inference_mode()
    def caption(self, picture: NDArray[np.uint8], beginning: str = "", beams: int = BEAMS) -> str:
        """Return what a picture (h w 3, RGB) shows, in a few words that go on from `beginning`, and begin with it.

        `beams`: how many wordings are followed at a time; the likeliest is taken. Raises RequestError.
        """
        weight = next(self.net.parameters())
        shown = self._shown(picture).to(weight)
        ids = self._begun(beginning)
        out = self.net.generate(
            cast(torch.FloatTensor, shown),
            None if ids is None else cast(torch.LongTensor, ids.to(weight.device)),
            max_new_tokens=MAX_TOKENS,
            num_beams=beams,
            do_sample=False,
        )
        return self.words.decode(cast(list[int], out[0, 1:].tolist()), skip_special_tokens=True).strip()

    def _shown(self, picture: NDArray[np.uint8]) -> Tensor:
        """Return what the net is shown, (1 3 s s): the whole picture in a square, as it was in training."""
        side = cast(int, cast(BlipVisionConfig, self.net.config.vision_config).image_size)
        small = Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC)
        x = torch.from_numpy(np.asarray(small, dtype=np.float32) / 255).permute(2, 0, 1)[None]
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
        return (x - mean) / std

    def _begun(self, beginning: str) -> Tensor | None:
        """Return the ids of a beginning, (1 n), a start and an end around them. Raises RequestError."""
        ids = self.words.encode(beginning, add_special_tokens=False).ids
        if len(ids) > MAX_BEGINNING:
            raise RequestError(
                f"A caption's beginning of {len(ids)} tokens leaves no room for what the picture shows: give at most"
                f" {MAX_BEGINNING}."
            )
        text = cast(BlipTextConfig, self.net.config.text_config)
        return torch.tensor([[text.bos_token_id, *ids, text.sep_token_id]]) if ids else None


def open_captioner(path: Path, memory: Memory) -> Captioner:
    """Return the captioner in a folder. Raises KeyMismatch, CorruptFile."""
    tensors = {name: t for name, t in folder_tensors(path, "").items() if not name.endswith("position_ids")}
    for one, other in (*_TIED.items(), *((b, a) for a, b in _TIED.items())):
        if one not in tensors and other in tensors:
            tensors[one] = tensors[other]
    config = described(BlipConfig, read_json(path / "config.json"), str(path / "config.json"))
    net = memory.build(lambda: BlipForConditionalGeneration(config), tensors, path.name)
    return Captioner(path.name, net, _vocabulary(path))


def _vocabulary(path: Path) -> Tokenizer:
    """Return BERT's tokens. Raises CorruptFile where no file has them, or one cannot be read."""
    found = next((path / name for name in _VOCABULARIES if (path / name).is_file()), None)
    if found is None:
        raise CorruptFile(
            f"{path} has no vocabulary: {' or '.join(_VOCABULARIES)} was expected beside the weights. Fetch it, too."
        )
    return read_tokenizer(found) if found.suffix == ".json" else _word_pieces(found)


def _word_pieces(vocabulary: Path) -> Tokenizer:
    """Return BERT's tokenizer, lower case, of a list of its pieces. Raises CorruptFile."""
    try:
        words = Tokenizer(models.WordPiece.from_file(str(vocabulary), unk_token=_UNKNOWN))
    except Exception as error:  # tokenizers raises nothing more particular
        raise CorruptFile(f"{vocabulary} is no vocabulary ({str(error)[:80]}). Fetch it again.") from error
    words.normalizer = normalizers.BertNormalizer(lowercase=True)
    words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    words.decoder = decoders.WordPiece()
    words.add_special_tokens(list(_SPECIAL))
    return words
