"""CLIP's text encoder, as Stable Diffusion 1.x and 2.x use it: the byte pair tokenizer and the transformer's states.

Cleaning and splitting are those of the first CLIP tokenizer (ftfy, one space for any white space, lower case), which
the models were trained and are prompted with; Radford et al. 2021, section 2.4.
"""

import re
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from disegno.core.errors import RequestError
from disegno.memory import Memory
from disegno.prompts.emphasis import parse_pieces
from disegno.text.chunks import Chunk, Learnt, Name, Ruler, chunks_of
from disegno.text.clip_tokens import COMMA_ID, LENGTH, clean, encoding_of, token_ids
from disegno.text.learnt import LearntVectors, TextOptions
from disegno.text.weighting import WEIGH, weights_of
from disegno.weights.packed_tensor import plain
from disegno.weights.shapes import clip_sizes, sides

START_ID, END_ID = 49406, 49407
OPENCLIP_PAD = 0
_PROJECTION = "text_projection"
_WHAT = "The text encoder"
_IN_LAYER = re.compile(r"encoder\.layers\.(\d+)\.")


def chunk(ids: Sequence[int], pad: int = END_ID) -> list[int]:
    """Return one chunk of 77 ids: start, these (75 at most), an end, and padding: more ends, or OpenCLIP's 0."""
    assert len(ids) <= LENGTH - 2, f"{len(ids)} ids for a chunk of {LENGTH}"
    return [START_ID, *ids, END_ID] + [pad] * (LENGTH - 2 - len(ids))


def chunk_rows(prompts: Iterable[str], pad: int = END_ID) -> tuple[list[list[int]], list[str]]:
    """Return each prompt's first chunk, 77 ids, and a warning for each prompt of which the end was cut off."""
    rows, warnings = list[list[int]](), list[str]()
    for prompt in prompts:
        encoding = encoding_of(prompt)
        rows.append(chunk(encoding.ids[: LENGTH - 2], pad))
        if len(encoding.ids) > LENGTH - 2:
            lost = clean(prompt)[encoding.offsets[LENGTH - 2][0] :]
            warnings.append(
                f"The prompt has {len(encoding.ids)} tokens, CLIP reads {LENGTH - 2}: {lost!r} was cut off."
            )
    return rows, warnings


class ClipRead(NamedTuple):
    """What an encoder says of texts: their states (b n d), and of each as a whole its pooled state (b p)."""

    states: Tensor
    pooled: Tensor
    warnings: list[str]


@dataclass(frozen=True)
class ClipText:
    """An open CLIP text encoder. `pad`: the id that fills a chunk.

    `bare`: states are those before the last layer, without the final norm (Stable Diffusion 3, SDXL).
    """

    model: CLIPTextModel
    pad: int = END_ID
    bare: bool = False

    @property
    def net(self) -> nn.Module:
        return self.model

    @property
    def nets(self) -> Mapping[str, nn.Module]:
        return {"te": self.model}

    @property
    def width(self) -> int:
        return int(self.model.config.hidden_size)

    def tokenize(self, prompts: Sequence[str]) -> tuple[Tensor, list[str]]:
        """Return each prompt's token ids, (b 77), and warnings about what was cut off."""
        rows, warnings = chunk_rows(prompts, self.pad)
        return torch.tensor(rows, dtype=torch.long).reshape(-1, LENGTH), warnings

    def states(self, ids: Tensor, skip: int = 1) -> Tensor:
        """Return the states of layer -skip after the final layer norm, (b 77 d). A1111 parity: skip counts from 1."""
        return self.run(ids, skip)[0]

    def run(self, ids: Tensor, skip: int = 1) -> tuple[Tensor, Tensor]:
        """Return the states of layer -skip, (b 77 d), and the pooled ones of the last layer, (b p)."""
        num_layers = self.model.config.num_hidden_layers
        if not 1 <= skip <= num_layers:
            raise RequestError(
                f"clip_skip is {skip}; this text encoder has {num_layers} layers: give 1 to {num_layers}."
            )
        out = self.model(input_ids=ids.to(self.model.device), output_hidden_states=skip > 1 or self.bare)
        projection: nn.Module | None = getattr(self.model, _PROJECTION, None)
        pooled = out.pooler_output if projection is None else projection(out.pooler_output)
        if self.bare:
            return out.hidden_states[-1 - skip], pooled
        if skip == 1:
            return out.last_hidden_state, pooled
        return self.model.final_layer_norm(out.hidden_states[-skip]), pooled

    def read(self, prompts: Sequence[str], skip: int = 1) -> tuple[Tensor, list[str]]:
        """Return the prompts' states, (b 77 d), and warnings about what was cut off."""
        read = self.read_all(prompts, skip)
        return read.states, read.warnings

    def read_all(self, prompts: Sequence[str], skip: int = 1) -> ClipRead:
        """Return what `read` does, and the pooled states."""
        ids, warnings = self.tokenize(prompts)
        return ClipRead(*self.run(ids, skip), warnings)

    def read_prompt(self, text: str, options: TextOptions) -> tuple[Tensor, list[str]]:
        """Return the states of a prompt of any length, (1 77k d) of its k chunks, and warnings.

        Raises RequestError where a weight is no number, or learnt vectors fit into no chunk.
        """
        read = self.read_all_prompt(text, options)
        return read.states, read.warnings

    def read_all_prompt(self, text: str, options: TextOptions) -> ClipRead:
        """Return what `read_prompt` does, and the first chunk's pooled state."""
        learnt, warnings = self._fitting(options.learnt)
        names = {name: vectors for vectors in learnt for name in vectors.names}
        known = Learnt(tuple(Name(tuple(token_ids(name)), name, v.num) for name, v in names.items()))
        pieces = parse_pieces(text, options.emphasis)
        chunks = chunks_of(pieces, token_ids, Ruler(LENGTH - 2, COMMA_ID, options.backtrack), known)
        ids = torch.tensor([chunk(each.ids, self.pad) for each in chunks], dtype=torch.long)  # k 77
        with self._standing_in(chunks, {name: v.vectors for name, v in names.items()}):
            states, pooled = self.run(ids, options.clip_skip)  # k 77 d, k p
        states = WEIGH[options.emphasis](states, weights_of(chunks, LENGTH).to(states))
        return ClipRead(states.flatten(0, 1)[None], pooled[:1], warnings)  # k 77 d -> 1 77k d

    def _fitting(self, learnt: Sequence[LearntVectors]) -> tuple[list[LearntVectors], list[str]]:
        """Return the vectors that are as wide as this encoder, and what is said of the others."""
        width = self.model.config.hidden_size
        fitting = [each for each in learnt if each.vectors.shape[1] == width]
        others = [each for each in learnt if each.vectors.shape[1] != width]
        warnings = [
            f"The embedding {each.name!r} is of another model ({each.vectors.shape[1]} wide, not {width}): "
            "its name was taken as text."
            for each in others
        ]
        return fitting, warnings

    @contextmanager
    def _standing_in(self, chunks: Sequence[Chunk], vectors: Mapping[str, Tensor]) -> Generator[None]:
        """Let learnt vectors stand in the places of their tokens while the encoder runs. One thread at a time."""
        fixes = [(row, fix) for row, each in enumerate(chunks) for fix in each.fixes]

        def place(_module: nn.Module, _inputs: object, embedded: Tensor) -> Tensor:
            embedded = embedded.clone()  # k 77 d
            for row, fix in fixes:
                start, own = 1 + fix.offset, vectors[fix.name]  # after the chunk's start token
                embedded[row, start : start + len(own)] = own.to(embedded)
            return embedded

        if not fixes:
            yield
            return
        handle = self.model.embeddings.token_embedding.register_forward_hook(place)
        try:
            yield
        finally:
            handle.remove()


def config_of(
    shapes: Mapping[str, Sequence[int]], num_heads: int | None = None, act: str = "quick_gelu"
) -> CLIPTextConfig:
    """Return the configuration of the encoder with tensors of these shapes. `num_heads`: unset, of 64 channels each.

    `act`: of the original CLIP; OpenCLIP's is gelu. Raises KeyMismatch where a tensor that tells a size is missing.
    """
    known = {name: tuple(shape) for name, shape in shapes.items()}
    vocabulary, places, width, wide = clip_sizes(_WHAT, known)
    layers = (match for name in shapes if (match := _IN_LAYER.match(name)))
    return CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=wide,
        num_hidden_layers=1 + max(int(match[1]) for match in layers),
        num_attention_heads=num_heads or max(1, width // 64),
        max_position_embeddings=places,
        hidden_act=act,
        bos_token_id=START_ID,
        eos_token_id=END_ID,
        pad_token_id=END_ID,
    )


def open_clip(
    tensors: Mapping[str, Tensor], config: CLIPTextConfig, memory: Memory, what: str, pad: int = END_ID
) -> ClipText:
    """Return the encoder with these weights (CLIPTextModel's names), in float32: it runs once a prompt.

    Raises KeyMismatch about `what`.
    """
    return ClipText(memory.build(lambda: CLIPTextModel(config), tensors, what, dtype=torch.float32), pad)


def projected(clip: ClipText, projection: Tensor | None) -> ClipText:
    """Return the encoder as Stable Diffusion 3 and SDXL read it: bare, its pooled state projected, (p d).

    The projection becomes a layer of the model, so that LoRAs may change it as they change the others. Raises
    KeyMismatch where it is no matrix.
    """
    if projection is not None:
        sides(_WHAT, {_PROJECTION: projection}, _PROJECTION, 2)
        layer = nn.Linear(*reversed(projection.shape), bias=False, device="meta")
        own = plain(projection).to(clip.model.device, clip.model.dtype)
        layer.weight = nn.Parameter(own, requires_grad=False)
        clip.model.add_module(_PROJECTION, layer)
    return replace(clip, bare=True)
