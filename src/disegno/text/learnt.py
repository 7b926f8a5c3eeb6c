"""Learnt vectors (textual inversion, Gal et al. 2022): a name in a prompt that stands for vectors of its own.

Read from A1111's files (.pt with string_to_param, .safetensors with emb_params), ComfyUI's of one CLIP (clip_l) and
diffusers' (a tensor under the name itself); of SDXL from files with vectors for both text encoders (clip_l and clip_g).
A name is the file's stem; diffusers' token (<cat-toy>) is another one.
"""

import re
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor

from disegno.core.errors import UnknownKind
from disegno.core.request import Emphasis
from disegno.weights.load import open_file
from disegno.weights.tensor_file import TensorFile

_KNOWN_KEYS = ("emb_params", "string_to_param.*")
_ALONE = ("clip_l", "clip_g")  # of Stable Diffusion 1.x, of SDXL's refiner
_PAIRS = (("clip_l", "clip_g"), ("text_encoders_0", "text_encoders_1"))  # of SDXL; the second: diffusers' trainers


@dataclass(frozen=True, eq=False)
class LearntVectors:
    """The vectors of one file. `names`: what a prompt may call them, each by itself.

    `beside`: those of the model's other text encoder, of its width: where `vectors` are CLIP-L's, OpenCLIP-G's (SDXL).
    """

    names: tuple[str, ...]
    vectors: Tensor  # n d, float32
    sha256: str
    beside: Tensor | None = None  # m e, float32

    @property
    def name(self) -> str:
        """Return the file's own name."""
        return self.names[0]

    @property
    def num(self) -> int:
        """Return how many places they take in a prompt: as many for each encoder."""
        return len(self.vectors) if self.beside is None else max(len(self.vectors), len(self.beside))

    @property
    def width(self) -> int:
        """Return how wide they are, those of two encoders together. A1111 parity: its `shape`."""
        return self.vectors.shape[1] + (0 if self.beside is None else self.beside.shape[1])

    def of_other(self) -> "LearntVectors":
        """Return the same, as the model's other text encoder has them."""
        assert self.beside is not None, "they are of one encoder"
        return replace(self, vectors=self.beside, beside=self.vectors)


@dataclass(frozen=True)
class TextOptions:
    """How a prompt is read: the fields of a Request that decide it, and the learnt vectors that it may name.

    `silent`: the text is an empty negative prompt, which some models are shown as nothing at all (SDXL: zeros).
    """

    clip_skip: int = 1
    emphasis: Emphasis = "original"
    backtrack: int = 20
    learnt: tuple[LearntVectors, ...] = field(default=())
    silent: bool = False

    def key(self) -> tuple[object, ...]:
        """Return what tells these options from others."""
        return self.clip_skip, self.emphasis, self.backtrack, self.silent, tuple(each.sha256 for each in self.learnt)


def read_learnt(path: Path) -> LearntVectors:
    """Return the vectors in a file. Raises UnknownKind where there are none, and as `open_file`."""
    with open_file(path) as file:
        keys = _keys_of(file)
        vectors = [_vectors(file, key) for key in keys]
        sha256 = file.sha256()
    known = len(keys) > 1 or set(keys) <= {*_KNOWN_KEYS, *_ALONE}
    tokens: tuple[str, ...] = () if known else keys
    return LearntVectors((path.stem, *tokens), vectors[0], sha256, *vectors[1:])


def _vectors(file: TensorFile, key: str) -> Tensor:
    vectors = file.tensor(key).float().clone()
    if vectors.ndim == 1:
        vectors = vectors[None]  # d -> 1 d
    if vectors.ndim != 2 or not len(vectors):
        raise UnknownKind(f"{file.path.name} holds no vectors of a text: {key!r} has the shape {tuple(vectors.shape)}.")
    return vectors


def _keys_of(file: TensorFile) -> tuple[str, ...]:
    """Return the name of the vectors; two where they are for two text encoders, CLIP-L's first."""
    keys = file.keys()
    if (known := next((key for key in _KNOWN_KEYS if key in keys), None)) is not None:
        return (known,)
    if (pair := next((pair for pair in _PAIRS if set(pair) == set(keys)), None)) is not None:
        return pair
    if len(keys) != 1 or keys[0] == "t5xxl":
        raise UnknownKind(
            f"{file.path.name} is no embedding of one text encoder, or of SDXL's two: it has {', '.join(keys[:4])}. "
            f"Expected {', '.join(_KNOWN_KEYS)}, {_ALONE[0]}, {' and '.join(_ALONE)}, or one tensor under its name."
        )
    return (keys[0],)


def squeezed(text: str) -> str:
    """Return a text without white space and capitals: a prompt that names something holds its name in this form."""
    return re.sub(r"\s+", "", text).lower()
