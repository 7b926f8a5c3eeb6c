"""Where the text encoders of Stable Diffusion 3 lie: in the model's file, beside it, or in a diffusers folder."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from tokenizers import Tokenizer
from torch import Tensor

from disegno.backbones._latent_diffusion import Config, Tensors
from disegno.text.t5 import find_tokenizer
from disegno.weights.json_table import read_json
from disegno.weights.keys import ldm
from disegno.weights.load import open_file
from disegno.weights.parts import folder_tensors
from disegno.weights.scaled import unscaled
from disegno.weights.tensor_file import TensorFile

_PREFIX = "text_encoders."
_IN_FILE = {name: f"{_PREFIX}{key}.transformer." for name, key in
            {"clip_l": "clip_l", "clip_g": "clip_g", "t5": "t5xxl"}.items()}  # fmt: skip
_IN_FOLDER = {"clip_l": "text_encoder", "clip_g": "text_encoder_2", "t5": "text_encoder_3"}
_STEMS = {"clip_l": "clip_l", "clip_g": "clip_g", "t5": "t5xxl"}  # how their own files' names begin
_NEIGHBOURS = ("text_encoders", "text_encoder", "clip", "CLIP")  # ComfyUI's, Forge's, A1111's folders
_TOKENIZERS = ("tokenizer_3", "t5_tokenizer", "")
_SUFFIXES = (".safetensors", ".bin", ".pth")
_PROJECTION = "text_projection.weight"


@dataclass(frozen=True)
class TextParts:
    """The encoders' tensors, by the names of their classes; empty where there is none. Configurations: of a folder."""

    clip_l: Tensors = field(default_factory=dict[str, Tensor])
    clip_g: Tensors = field(default_factory=dict[str, Tensor])
    t5: Tensors = field(default_factory=dict[str, Tensor])
    clip_l_config: Config | None = None
    clip_g_config: Config | None = None
    tokenizer: Tokenizer | None = None


def _clip(tensors: Mapping[str, Tensor], projects: bool) -> dict[str, Tensor]:
    """Return a CLIP's tensors by CLIPTextModel's names, and its projection where it is used."""
    found = {new: tensors[name] for name, new in ldm.text_names(tensors).items()}
    return found | ({_PROJECTION: tensors[_PROJECTION]} if projects and found and _PROJECTION in tensors else {})


def _t5(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return T5's encoder's tensors: what lies beside it (a decoder, `logit_scale`) is left out."""
    return {name: t for name, t in tensors.items() if name.startswith(("shared.", "encoder.")) and "EncDec" not in name}


def _parts(read: Mapping[str, Mapping[str, Tensor]]) -> TextParts:
    """Return the encoders of files. Stability AI parity: CLIP-L's pooled state is taken as it is, not projected."""
    found = {name: unscaled(tensors) for name, tensors in read.items()}
    return TextParts(
        clip_l=_clip(found.get("clip_l", {}), projects=False),
        clip_g=_clip(found.get("clip_g", {}), projects=True),
        t5=_t5(found.get("t5", {})),
    )


def in_file(file: TensorFile) -> TextParts:
    """Return the encoders that are in a model's file."""
    found = {
        name: {key.removeprefix(prefix): file.tensor(key) for key in file.contents.entries if key.startswith(prefix)}
        for name, prefix in _IN_FILE.items()
    }
    return _parts(found)


def beside(path: Path, own: TextParts) -> TextParts:
    """Return a file's encoders, with those that lie beside it in the place of missing ones, and T5's vocabulary."""
    missing = [name for name in _STEMS if not getattr(own, name)]
    files = {name: file for name in missing if (file := _find(path, _STEMS[name])) is not None}
    found = _parts({name: open_file(file).tensors() for name, file in files.items()})
    more = {name: getattr(found, name) for name in files}
    tokenizer = find_tokenizer([folder / name for folder in _places(path) for name in _TOKENIZERS])
    return replace(own, **more, tokenizer=tokenizer)


def _places(path: Path) -> Iterator[Path]:
    """Yield the folders where a file's text encoders may lie: its own, those in it and beside it."""
    for folder in (path.parent, path.parent.parent):
        yield folder
        yield from (folder / name for name in _NEIGHBOURS if (folder / name).is_dir())


def _find(path: Path, stem: str) -> Path | None:
    files = (file for folder in _places(path) for file in sorted(folder.iterdir()) if file.suffix in _SUFFIXES)
    return next((file for file in files if file.stem.lower().startswith(stem) and file != path), None)


def in_folder(path: Path) -> TextParts:
    """Return the encoders of a diffusers folder. Raises CorruptFile."""
    there = {name for name, part in _IN_FOLDER.items() if (path / part / "config.json").is_file()}
    tensors = {name: folder_tensors(path, _IN_FOLDER[name]) for name in there}
    configs = {name: read_json(path / _IN_FOLDER[name] / "config.json") for name in there - {"t5"}}
    return TextParts(
        clip_l=_clip(tensors.get("clip_l", {}), projects=True),
        clip_g=_clip(tensors.get("clip_g", {}), projects=True),
        t5=_t5(tensors.get("t5", {})),
        clip_l_config=configs.get("clip_l"),
        clip_g_config=configs.get("clip_g"),
        tokenizer=find_tokenizer([path / "tokenizer_3"]),
    )
