"""What Stable Diffusion 3 attends to: two CLIPs side by side, T5 after them; each may be missing, and is then zero.

    tokens      CLIP-L | OpenCLIP-G | 0     77 k tokens; the states before the last layer, without the final norm
                T5                          77 tokens, or as many as the prompt has
    pooled      CLIP-L | OpenCLIP-G         of the first chunk

Esser et al. 2024, section 4 and figure 2: each encoder was left out by chance in training, so zeros mean nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from disegno.text.clip import LENGTH, ClipRead, ClipText
from disegno.text.learnt import TextOptions
from disegno.text.t5 import T5Text


@dataclass(frozen=True)
class ThreeTexts:
    """The encoders, open. `width`: of the tokens, `pooled`: of the pooled state. `device`: where what is read lies."""

    clip_l: ClipText | None
    clip_g: ClipText | None
    t5: T5Text | None
    width: int
    pooled: int
    device: torch.device

    def read(self, prompts: Sequence[str], skip: int) -> tuple[Tensor, Tensor, list[str]]:
        """Return the tokens (b 154 d), the pooled states (b p), and what was cut off."""
        clips = [clip and clip.read_all(prompts, skip) for clip in (self.clip_l, self.clip_g)]
        t5 = None if self.t5 is None else self.t5.read(prompts)
        return self._joined(clips, t5, len(prompts))

    def read_prompt(self, text: str, options: TextOptions) -> tuple[Tensor, Tensor, list[str]]:
        """Return the tokens of a prompt of any length, (1 n d), its pooled state (1 p), and warnings."""
        said = [f"The embedding {each.name!r} is of one CLIP: its name was taken as text." for each in options.learnt]
        options = replace(options, learnt=())
        clips = [clip and clip.read_all_prompt(text, options) for clip in (self.clip_l, self.clip_g)]
        t5 = None if self.t5 is None else self.t5.read_prompt(text, options)
        tokens, pooled, warnings = self._joined(clips, t5, 1)
        return tokens, pooled, said + warnings

    def _joined(
        self, clips: Sequence[ClipRead | None], t5: tuple[Tensor, list[str]] | None, num: int
    ) -> tuple[Tensor, Tensor, list[str]]:
        left, right = clips
        num_tokens = max((read.states.shape[1] for read in clips if read is not None), default=LENGTH)
        split = self.pooled - right.pooled.shape[-1] if right is not None else None
        states = _side_by_side(left and left.states, right and right.states, (num, num_tokens), split)
        pooled = _side_by_side(left and left.pooled, right and right.pooled, (num,), split)
        last = self._none(num, LENGTH, self.width) if t5 is None else t5[0].to(self.device)
        tokens = torch.cat([self._widened(states, self.width), last], dim=1)
        warnings = [warning for read in clips if read is not None for warning in read.warnings] + (t5[1] if t5 else [])
        return tokens, self._widened(pooled, self.pooled), list(dict.fromkeys(warnings))

    def _none(self, *shape: int) -> Tensor:
        return torch.zeros(shape, device=self.device)

    def _widened(self, x: Tensor, width: int) -> Tensor:
        return F.pad(x.to(self.device), (0, width - x.shape[-1]))

    @property
    def nets(self) -> dict[str, nn.Module]:
        """The networks that are there."""
        three = {"clip_l": self.clip_l, "clip_g": self.clip_g, "t5": self.t5}
        return {name: text.net for name, text in three.items() if text is not None}


def _side_by_side(left: Tensor | None, right: Tensor | None, shape: tuple[int, ...], split: int | None) -> Tensor:
    """Return both, (... l+r), zeros for what is missing; `split`: where the right one begins."""
    if right is None:
        return torch.zeros(*shape, 0) if left is None else left
    return torch.cat([right.new_zeros(*shape, split or 0) if left is None else left, right], dim=-1)
