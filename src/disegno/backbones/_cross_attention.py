"""What a UNet's cross-attentions read apart from a row's text, while it is evaluated (Ye et al. 2023, eq. 5).

Z = Attention(Q, K, V) + sum over the row's image prompts of scale * Attention(Q, K', V').
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.nn import functional as F

from disegno.backbones._levels import level_of
from disegno.diffusion.call import ImagePrompt

Prompts = Sequence[Sequence[ImagePrompt]]


@dataclass(frozen=True)
class _Part:
    """What an attention reads for one row. `keys`, `values`: (m w); `region`: (1 1 h w) or None."""

    row: int
    keys: Tensor
    values: Tensor
    scale: float
    region: Tensor | None


@contextmanager
def reading(net: nn.Module, prompts: Prompts, x: Tensor) -> Generator[None]:
    """Within, the net's cross-attentions read each row's image prompts. x: (b c h w). One thread at a time.

    The attentions' own processors are put back; where no row has an image prompt nothing is done.
    """
    wanted: dict[str, list[_Part]] = {}
    for row, own in enumerate(prompts):
        for prompt in own:
            scales = prompt.scales or (1.0,) * len(prompt.read)
            for (name, (keys, values)), scale in zip(prompt.read.items(), scales, strict=True):
                if scale:
                    part = _Part(row, keys.to(x), values.to(x), scale, prompt.region)
                    wanted.setdefault(name, []).append(part)
    seats = [(cast(Attention, net.get_submodule(name)), parts) for name, parts in wanted.items()]
    before = [attention.processor for attention, _ in seats]
    try:
        for attention, parts in seats:
            attention.processor = cast(Any, _Reading(parts, (x.shape[2], x.shape[3])))
        yield
    finally:
        for (attention, _), processor in zip(seats, before, strict=True):
            attention.processor = processor


@dataclass(frozen=True)
class _Reading:
    """Attention to the text, then, for each row by itself, to what else it reads: no row depends on the others."""

    parts: Sequence[_Part]
    size: tuple[int, int]  # of the latents

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """Return the mixed states, (b n d). The text's part is computed as diffusers' AttnProcessor2_0 does."""
        assert attn.to_k is not None and attn.to_v is not None and attn.to_out is not None, "a cross-attention's own"
        query = _heads(attn, attn.to_q(hidden_states))  # b n d -> b heads n d/heads
        key, value = (_heads(attn, layer(encoder_hidden_states)) for layer in (attn.to_k, attn.to_v))
        out = _joined(F.scaled_dot_product_attention(query, key, value))
        for part in self.parts:
            key, value = _heads(attn, part.keys[None]), _heads(attn, part.values[None])
            own = _joined(F.scaled_dot_product_attention(query[part.row : part.row + 1], key, value))[0]  # n d
            if part.region is not None:
                own = own * self._shares(part.region, len(own)).to(own)
            out[part.row] += part.scale * own
        return attn.to_out[1](attn.to_out[0](out)) / attn.rescale_output_factor

    def _shares(self, region: Tensor, num: int) -> Tensor:
        """Return the region's mean over each of the attention's places, (n 1)."""
        return F.adaptive_avg_pool2d(region, level_of(self.size, num)).reshape(num, 1)


def _heads(attn: Attention, x: Tensor) -> Tensor:
    return x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)  # b n d -> b heads n d/heads


def _joined(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)  # b heads n e -> b n d
