"""Where the text encoders of Stable Diffusion 3 lie: in the model's file, beside it, or in a diffusers folder."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from tokenizers import Tokenizer
from torch import Tensor

from disegno.backbones._beside import ENCODERS, clip_of, encoders_beside, find_encoder, places
from disegno.backbones._latent_diffusion import Config, Tensors
from disegno.text.t5 import find_tokenizer, tokenizer_in
from disegno.weights.json_table import read_json
from disegno.weights.keys import t5
from disegno.weights.load import open_file
from disegno.weights.parts import folder_tensors
from disegno.weights.scaled import unscaled
from disegno.weights.tensor_file import TensorFile

_PREFIX = "text_encoders."
_IN_FILE = {name: f"{_PREFIX}{key}.transformer." for name, key in
            {"clip_l": "clip_l", "clip_g": "clip_g", "t5": "t5xxl"}.items()}  # fmt: skip
_IN_FOLDER = {"clip_l": "text_encoder", "clip_g": "text_encoder_2", "t5": "text_encoder_3"}
_TOKENIZERS = ("tokenizer_3", "t5_tokenizer", "")


@dataclass(frozen=True)
class TextParts:
    """The encoders' tensors, by the names of their classes; empty where there is none. Configurations: of a folder."""

    clip_l: Tensors = field(default_factory=dict[str, Tensor])
    clip_g: Tensors = field(default_factory=dict[str, Tensor])
    t5: Tensors = field(default_factory=dict[str, Tensor])
    clip_l_config: Config | None = None
    clip_g_config: Config | None = None
    tokenizer: Tokenizer | None = None


def _t5(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return T5's encoder's tensors: what lies beside it (a decoder, `logit_scale`) is left out."""
    if t5.is_llamas(tensors):
        return {new: tensors[name] for name, new in t5.from_llama(tensors).items()}
    return {name: t for name, t in tensors.items() if name.startswith(("shared.", "encoder.")) and "EncDec" not in name}


def _parts(read: Mapping[str, Mapping[str, Tensor]]) -> TextParts:
    """Return the encoders of files. Stability AI parity: CLIP-L's pooled state is taken as it is, not projected."""
    return TextParts(
        clip_l=clip_of(read.get("clip_l", {}), projects=False),
        clip_g=clip_of(read.get("clip_g", {}), projects=True),
        t5=_t5(read.get("t5", {})),
    )


def in_file(file: TensorFile) -> TextParts:
    """Return the encoders that are in a model's file."""
    found = {
        name: {key.removeprefix(prefix): file.tensor(key) for key in file.contents.entries if key.startswith(prefix)}
        for name, prefix in _IN_FILE.items()
    }
    return _parts({name: unscaled(tensors) for name, tensors in found.items()})


def beside(path: Path, own: TextParts) -> TextParts:
    """Return a file's encoders, with those that lie beside it in the place of missing ones, and T5's vocabulary."""
    read = encoders_beside(path, [name for name in ENCODERS if not getattr(own, name)])
    found = _parts(read)
    more = {name: getattr(found, name) for name in read}
    tokenizer = find_tokenizer([folder / name for folder in places(path) for name in _TOKENIZERS])
    if tokenizer is None and (own_file := find_encoder(path, "t5")) is not None:
        tokenizer = tokenizer_in(open_file(own_file))
    return replace(own, **more, tokenizer=tokenizer)


def in_folder(path: Path) -> TextParts:
    """Return the encoders of a diffusers folder. Raises CorruptFile."""
    there = {name for name, part in _IN_FOLDER.items() if (path / part / "config.json").is_file()}
    tensors = {name: folder_tensors(path, _IN_FOLDER[name]) for name in there}
    configs = {name: read_json(path / _IN_FOLDER[name] / "config.json") for name in there - {"t5"}}
    return TextParts(
        clip_l=clip_of(tensors.get("clip_l", {}), projects=True),
        clip_g=clip_of(tensors.get("clip_g", {}), projects=True),
        t5=_t5(tensors.get("t5", {})),
        clip_l_config=configs.get("clip_l"),
        clip_g_config=configs.get("clip_g"),
        tokenizer=find_tokenizer([path / "tokenizer_3"]),
    )
