"""Whether pictures show what their captions say: CLIP's own agreement (Hessel et al. 2021), by a CLIP of one's own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel

from disegno.core.errors import CorruptFile, ModelFileError
from disegno.memory import FULL_PRECISION, Memory
from disegno.text.clip import chunk_rows
from disegno.training.base import Picture
from disegno.weights.load import load_file

BATCH = 16
VOCABULARY = 49408
FILES = ("model.safetensors", "pytorch_model.bin")  # the first that is there; both are read as data
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # Radford et al. 2021's code


@dataclass(frozen=True)
class ClipScore:
    """An open CLIP."""

    name: str
    model: CLIPModel
    size: int

    def scores(self, pictures: Sequence[Picture], captions: Sequence[str]) -> list[float]:
        """Return 100 times the cosine of each picture and its caption: about 30 where they agree, 15 where not.

        (So with OpenAI's; a CLIP of the world's own has other levels, see recipes/diorama/clip.py.)
        """
        seen, read = self.features(pictures, captions)
        return (100 * (seen * read).sum(dim=1)).tolist()

    @torch.inference_mode()
    def features(self, pictures: Sequence[Picture], captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return what is seen in as many pictures as there are captions, and what is read, (n d) each, of length 1."""
        seen, read = list[Tensor](), list[Tensor]()
        for start in range(0, len(pictures), BATCH):
            ids = torch.tensor(chunk_rows(captions[start : start + BATCH])[0])  # b 77
            pixels = torch.stack([self.pixels(picture) for picture in pictures[start : start + BATCH]])
            out = self.model(input_ids=ids, pixel_values=pixels)
            seen.append(out.image_embeds)
            read.append(out.text_embeds)
        return torch.cat(seen), torch.cat(read)

    @torch.inference_mode()
    def read(self, captions: Sequence[str]) -> Tensor:
        """Return what is read in captions alone, (n d), of length 1."""
        parts: list[Tensor] = []
        for start in range(0, len(captions), BATCH):
            ids = torch.tensor(chunk_rows(captions[start : start + BATCH])[0])  # b 77
            parts.append(self.model.text_projection(self.model.text_model(input_ids=ids).pooler_output))
        return F.normalize(torch.cat(parts), dim=1)

    def pixels(self, picture: Picture) -> Tensor:
        """Return what CLIP is shown, (3 h w): the short side at its size, the middle, its own normalisation."""
        size, image = self.size, Image.fromarray(picture)
        scale = size / min(image.size)
        wide, high = (max(size, round(side * scale)) for side in image.size)
        left, top = (wide - size) // 2, (high - size) // 2
        cut = image.resize((wide, high), Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))
        values = (np.asarray(cut, np.float32) / 255 - np.array(_MEAN, np.float32)) / np.array(_STD, np.float32)
        return torch.from_numpy(values).permute(2, 0, 1)


def open_clip_score(folder: Path) -> ClipScore:
    """Return the CLIP in a folder as transformers and the hub lay it out (config.json, model.safetensors).

    Raises ModelFileError where it is none.
    """
    file = next((folder / name for name in FILES if (folder / name).is_file()), None)
    if file is None or not (folder / "config.json").is_file():
        raise ModelFileError(
            f"{folder} holds no CLIP: config.json and {' or '.join(FILES)} were expected, as in the folder of"
            " openai/clip-vit-large-patch14."
        )
    try:
        config = CLIPConfig.from_json_file(str(folder / "config.json"))
    except (OSError, ValueError, TypeError) as error:
        raise CorruptFile(f"{folder / 'config.json'} is no description of a CLIP ({error}).") from error
    vocabulary, size = (getattr(part, name, None) for part, name in _parts(config))
    if config.model_type != "clip" or vocabulary != VOCABULARY or not isinstance(size, int):
        raise ModelFileError(f"{folder} is not a CLIP of OpenAI's vocabulary ({VOCABULARY} tokens).")
    tensors = {name: tensor for name, tensor in load_file(file).items() if not name.endswith(".position_ids")}
    model = Memory(FULL_PRECISION).build(lambda: CLIPModel(config), _floats(tensors), folder.name)
    return ClipScore(folder.name, model, size)


def _parts(config: CLIPConfig) -> tuple[tuple[object, str], ...]:
    return (config.text_config, "vocab_size"), (config.vision_config, "image_size")


def _floats(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
