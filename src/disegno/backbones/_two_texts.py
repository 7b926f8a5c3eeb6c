"""What SDXL attends to: CLIP-L and OpenCLIP-G side by side; its refiner OpenCLIP-G alone.

    tokens      CLIP-L | OpenCLIP-G     77 k tokens; the states before the last layer, without the final norm
    pooled      OpenCLIP-G              of the first chunk, projected

Podell et al. 2023, 2.1. What says nothing is zeros, tokens and pooled state: a caption that was dropped in training,
and so in A1111 and diffusers an empty negative prompt. An empty prompt is read as any other. A1111 parity: clip skip
changes nothing here. Learnt vectors stand in the same places of both texts; the refiner reads OpenCLIP-G's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from disegno.text.clip import ClipRead, ClipText
from disegno.text.learnt import LearntVectors, TextOptions

_NO_SKIP = "clip_skip {} was passed over: Stable Diffusion XL is read at one layer."


@dataclass(frozen=True)
class TwoTexts:
    """The encoders, open. `clip_l`: None in the refiner."""

    clip_l: ClipText | None
    clip_g: ClipText

    @property
    def nets(self) -> Mapping[str, nn.Module]:
        left = {} if self.clip_l is None else {"te": self.clip_l.net}
        return left | {"te2": self.clip_g.net}

    @property
    def _clips(self) -> tuple[ClipText, ...]:
        return (self.clip_g,) if self.clip_l is None else (self.clip_l, self.clip_g)

    def read(self, prompts: Sequence[str], skip: int) -> tuple[Tensor, list[str]]:
        """Return the prompts' states, (b 77 d), and warnings about what was cut off."""
        read = self.read_all(prompts)
        return read.states, read.warnings

    def read_prompt(self, text: str, options: TextOptions) -> tuple[Tensor, list[str]]:
        """Return the states of a prompt of any length, (1 77k d), and warnings."""
        read = self.read_all_prompt(text, options)
        return read.states, read.warnings

    def read_all(self, prompts: Sequence[str]) -> ClipRead:
        """Return the prompts' states (b 77 d) and pooled states (b p), and what was cut off."""
        return _side_by_side([clip.read_all(prompts) for clip in self._clips])

    def read_all_prompt(self, text: str, options: TextOptions) -> ClipRead:
        """Return the states of a prompt of any length (1 77k d), its pooled state (1 p), and warnings.

        A1111 parity: zeros where the options say so (get_learned_conditioning's force_zero_negative_prompt).
        """
        parts = [self._parts_of(each) for each in options.learnt]
        strange = [self._said_of(each) for each, part in zip(options.learnt, parts, strict=True) if not part]
        strange += [_NO_SKIP.format(options.clip_skip)] if options.clip_skip != 1 else []
        own = [tuple(part[n] for part in parts if part) for n in range(len(self._clips))]
        reads = [
            clip.read_all_prompt(text, replace(options, clip_skip=1, learnt=learnt))
            for clip, learnt in zip(self._clips, own, strict=True)
        ]
        read, scale = _side_by_side(reads), 0 if options.silent else 1
        return ClipRead(read.states * scale, read.pooled * scale, strange + read.warnings)

    def _parts_of(self, learnt: LearntVectors) -> tuple[LearntVectors, ...]:
        """Return learnt vectors as each encoder has them: all take as many places; none where one has none of its."""
        last = learnt if learnt.beside is None else learnt.of_other()
        parts = (last,) if self.clip_l is None else (learnt, last)
        whole = self.clip_l is None or learnt.beside is not None
        fit = all(part.vectors.shape[1] == clip.width for part, clip in zip(parts, self._clips, strict=True))
        return parts if whole and fit else ()

    def _said_of(self, learnt: LearntVectors) -> str:
        given = [each.shape[1] for each in (learnt.vectors, learnt.beside) if each is not None]
        wide, wanted = (" and ".join(map(str, some)) for some in (given, [clip.width for clip in self._clips]))
        return f"The embedding {learnt.name!r} is of another model ({wide} wide, not {wanted}): taken as text."


def _side_by_side(reads: Sequence[ClipRead]) -> ClipRead:
    warnings = dict.fromkeys(warning for read in reads for warning in read.warnings)
    return ClipRead(torch.cat([read.states for read in reads], dim=-1), reads[-1].pooled, list(warnings))
