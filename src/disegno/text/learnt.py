"""Learnt vectors (textual inversion, Gal et al. 2022): a name in a prompt that stands for vectors of its own.

Read from A1111's files (.pt with string_to_param, .safetensors with emb_params), ComfyUI's of one CLIP (clip_l) and
diffusers' (a tensor under the name itself). A name is the file's stem; diffusers' token (<cat-toy>) is another one.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from disegno.core.errors import UnknownKind
from disegno.core.request import Emphasis
from disegno.weights.load import open_file
from disegno.weights.tensor_file import TensorFile

_KNOWN_KEYS = ("emb_params", "string_to_param.*")
_CLIP_KEY, _CLIP_KEYS = "clip_l", ("clip_l", "clip_g", "t5xxl")  # one is of Stable Diffusion 1.x; several are of others


@dataclass(frozen=True, eq=False)
class LearntVectors:
    """The vectors of one file. `names`: what a prompt may call them, each by itself."""

    names: tuple[str, ...]
    vectors: Tensor  # n d, float32
    sha256: str

    @property
    def name(self) -> str:
        """Return the file's own name."""
        return self.names[0]


@dataclass(frozen=True)
class TextOptions:
    """How a prompt is read: the fields of a Request that decide it, and the learnt vectors that it may name."""

    clip_skip: int = 1
    emphasis: Emphasis = "original"
    backtrack: int = 20
    learnt: tuple[LearntVectors, ...] = field(default=())

    def key(self) -> tuple[object, ...]:
        """Return what tells these options from others."""
        return self.clip_skip, self.emphasis, self.backtrack, tuple(each.sha256 for each in self.learnt)


def read_learnt(path: Path) -> LearntVectors:
    """Return the vectors in a file. Raises UnknownKind where there are none, and as `open_file`."""
    with open_file(path) as file:
        key = _key_of(file)
        vectors = file.tensor(key).float().clone()
        sha256 = file.sha256()
    if vectors.ndim == 1:
        vectors = vectors[None]  # d -> 1 d
    if vectors.ndim != 2 or not len(vectors):
        raise UnknownKind(f"{path.name} holds no vectors of a text: {key!r} has the shape {tuple(vectors.shape)}.")
    token = () if key in (*_KNOWN_KEYS, _CLIP_KEY) else (key,)
    return LearntVectors((path.stem, *token), vectors, sha256)


def _key_of(file: TensorFile) -> str:
    keys = file.keys()
    known = next((key for key in _KNOWN_KEYS if key in keys), None)
    if known is not None:
        return known
    if len(keys) != 1 or (keys[0] in _CLIP_KEYS and keys[0] != _CLIP_KEY):
        raise UnknownKind(
            f"{file.path.name} is no embedding of one text encoder: it has {', '.join(keys[:4])}. "
            f"Expected {', '.join(_KNOWN_KEYS)} or {_CLIP_KEY}, or one tensor under its name."
        )
    return keys[0]


def squeezed(text: str) -> str:
    """Return a text without white space and capitals: a prompt that names something holds its name in this form."""
    return re.sub(r"\s+", "", text).lower()
