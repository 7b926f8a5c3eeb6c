"""ControlNet-XS's network (Zavadski et al. 2023, fig. 3, "Type B"): a small encoder in lock step with the model's own.

After each of the model's blocks: the small encoder's block runs, adds to the model's, then sees what that has become.
Where it has an embedding of t of its own, the model's blocks are given that, too, as they were when it was taught.
Every norm has as many groups as divide its channels, at most 32, and eps 1e-5 (a transformer's first: 1e-6).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from diffusers.models.controlnets.controlnet import ControlNetConditioningEmbedding
from diffusers.models.downsampling import Downsample2D
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from disegno.weights.shapes import sides

MAX_GROUPS, EPS = 32, 1e-5
Shapes = Mapping[str, tuple[int, ...]]


def groups_of(channels: int) -> int:
    """Return the largest divisor of the channels up to 32."""
    return next(n for n in range(min(MAX_GROUPS, channels), 0, -1) if channels % n == 0)


@dataclass(frozen=True)
class Heads:
    """How wide a transformer's heads are: `num` of them, or each the widest divisor up to `width`.

    `told`: how many there are of so many channels, by the control's own configuration.
    """

    num: int | None
    width: int = 64
    told: Mapping[int, int] = field(default_factory=dict[int, int])

    @classmethod
    def of(cls, config: Mapping[str, object], widths: Sequence[int]) -> "Heads":
        """Return the backbone's rule: Stable Diffusion 1.x has 8 heads at every level, 2.x and XL heads of 64 channels.

        config: of its net, where `attention_head_dim` is the number of heads. `widths`: of its levels.
        """
        heads = config.get("num_attention_heads") or config.get("attention_head_dim")
        nums = [int(num) for num in heads] if isinstance(heads, list | tuple) else [int(str(heads))]
        return cls(None, widths[-1] // nums[-1]) if len(set(nums)) > 1 else cls(nums[0])

    def at(self, channels: int) -> int:
        """Return the number of heads of a transformer of this many channels."""
        if (num := self.told.get(channels, self.num)) is not None:
            return num
        return channels // next(n for n in range(min(self.width, channels), 0, -1) if channels % n == 0)


_sides = partial(sides, "The ControlNet-XS")


def _resnet(shapes: Shapes, at: str) -> ResnetBlock2D:
    out, inputs = _sides(shapes, f"{at}.conv1.weight", 4)[:2]
    embedded = _sides(shapes, f"{at}.time_emb_proj.weight", 2)[1]
    return ResnetBlock2D(
        in_channels=inputs,
        out_channels=out,
        temb_channels=embedded,
        groups=groups_of(inputs),
        groups_out=groups_of(out),
        eps=EPS,
    )


def _attention(shapes: Shapes, at: str, heads: Heads) -> Transformer2DModel:
    proj, channels = shapes[f"{at}.proj_in.weight"], _sides(shapes, f"{at}.norm.weight", 1)[0]
    num, width = heads.at(channels), _sides(shapes, f"{at}.transformer_blocks.0.attn1.to_q.weight", 2)[0]
    return Transformer2DModel(
        num_attention_heads=num,
        attention_head_dim=width // num,
        in_channels=channels,
        num_layers=_count(shapes, rf"{re.escape(at)}\.transformer_blocks\.(\d+)\."),
        cross_attention_dim=_sides(shapes, f"{at}.transformer_blocks.0.attn2.to_k.weight", 2)[1],
        norm_num_groups=groups_of(channels),
        use_linear_projection=len(proj) == 2,
    )


def _count(names: Shapes, pattern: str) -> int:
    return 1 + max((int(match[1]) for name in names if (match := re.match(pattern, name))), default=-1)


class _Level(nn.Module):
    """Residual blocks, each with its attention, where the level has any, and what halves the size."""

    def __init__(self, shapes: Shapes, at: str, heads: Heads) -> None:
        super().__init__()
        num = _count(shapes, rf"{re.escape(at)}\.resnets\.(\d+)\.")
        attended = _count(shapes, rf"{re.escape(at)}\.attentions\.(\d+)\.")
        self.resnets = nn.ModuleList(_resnet(shapes, f"{at}.resnets.{j}") for j in range(num))
        self.attentions = nn.ModuleList(_attention(shapes, f"{at}.attentions.{j}", heads) for j in range(attended))
        self.downsamplers = nn.ModuleList()
        if (halving := f"{at}.downsamplers.0.conv.weight") in shapes:
            shape = _sides(shapes, halving, 4)
            self.downsamplers.append(Downsample2D(shape[1], use_conv=True, out_channels=shape[0], name="op"))

    def layer(self, j: int, h: Tensor, emb: Tensor, tokens: Tensor) -> Tensor:
        """Return the j-th step of the level: a residual block with its attention, or the halving."""
        if j == len(self.resnets):
            return self.downsamplers[0](h)
        return self.attended(j, self.resnets[j](h, emb), tokens)

    def attended(self, j: int, h: Tensor, tokens: Tensor) -> Tensor:
        """Return h (b c h w) after the j-th attention."""
        if j >= len(self.attentions):
            return h
        return self.attentions[j](h, encoder_hidden_states=tokens, return_dict=False)[0]


class XsNet(nn.Module):
    """The small encoder and its wires, of whatever sizes the shapes have (our names: weights/xs_files.py).

    `recomputes`: while it is taught, each block's inner tensors are worked out again in the backward pass. `share`: of
    its own embedding of t, where it has one; the rest is the model's.
    """

    recomputes = False
    share = 1.0

    def __init__(self, shapes: Shapes, heads: Heads) -> None:
        super().__init__()
        self.conv_in = _conv(shapes, "conv_in")
        self.channels = shapes["conv_in.weight"][1]  # of the latent; a packed convolution does not say it
        self.controlnet_cond_embedding = _hint(shapes)
        self.time_embedding = None
        if (embedding := "time_embedding.linear_1.weight") in shapes:
            shape = _sides(shapes, embedding, 2)
            self.time_embedding = TimestepEmbedding(shape[1], shape[0])
            self.time_proj = Timesteps(shape[1], flip_sin_to_cos=True, downscale_freq_shift=0)
        levels = _count(shapes, r"down_blocks\.(\d+)\.")
        self.down_blocks = nn.ModuleList(_Level(shapes, f"down_blocks.{i}", heads) for i in range(levels))
        self.mid_block = _Level(shapes, "mid_block", heads)
        self.to_base, self.to_control, self.to_decoder = (
            nn.ModuleList(_conv(shapes, f"{wire}.{k}") for k in range(_count(shapes, rf"{wire}\.(\d+)\.")))
            for wire in ("to_base", "to_control", "to_decoder")
        )
        self.controlnet_mid_block = _conv(shapes, "controlnet_mid_block")
        self.steps = [(i, j) for i, level in enumerate(self.down_blocks) for j in range(_num_steps(level))]

    @property
    def num_residuals(self) -> int:
        """How many of the model's blocks it adds to, the middle counted, those of the decoder not."""
        return len(self.to_base) + 1

    def features(self, image: Tensor) -> Tensor:
        """Return a condition's features, (b c h/8 w/8). image: (b 3 h w), RGB in [0, 1]."""
        return self._run(self.controlnet_cond_embedding, image)

    def begin(
        self, hint: Tensor, x: Tensor, emb: Tensor, t: Tensor, tokens: Tensor, told: Tensor | None = None
    ) -> "XsSteps":
        """Return one evaluation's steps. hint: (1 or b, c h w); x: (b 4 h w); emb: the model's own of t, (b e).

        `told`: what the model adds to that for what it is told besides; it is added to an embedding of one's own, too.
        """
        own = None
        if self.time_embedding is not None:
            own = self.time_embedding(self.time_proj(t).to(emb.dtype))
            emb = own = own if self.share == 1 else self.share * own + (1 - self.share) * emb
        emb = emb if told is None else emb + told
        return XsSteps(self, self.conv_in(x) + hint, emb, tokens, own)

    def step(self, k: int, h: Tensor, emb: Tensor, tokens: Tensor) -> Tensor:
        """Return the k-th block's output; the 0th is `conv_in`, which `begin` has run."""
        i, j = self.steps[k - 1]
        level = self.down_blocks[i]
        assert isinstance(level, _Level)
        return self._run(level.layer, j, h, emb, tokens)

    def middle(self, h: Tensor, emb: Tensor, tokens: Tensor) -> Tensor:
        """Return the middle's output."""
        return self._run(self._middle, h, emb, tokens)

    def _middle(self, h: Tensor, emb: Tensor, tokens: Tensor) -> Tensor:
        h = self.mid_block.attended(0, self.mid_block.resnets[0](h, emb), tokens)
        return self.mid_block.resnets[1](h, emb)

    def _run(self, part: Callable[..., Tensor], *given: Any) -> Tensor:
        if self.recomputes and torch.is_grad_enabled():
            return checkpoint(part, *given, use_reentrant=False, preserve_rng_state=False)  # pyright: ignore
        return part(*given)


def _num_steps(level: nn.Module) -> int:
    assert isinstance(level, _Level)
    return len(level.resnets) + len(level.downsamplers)


def _conv(shapes: Shapes, at: str) -> nn.Conv2d:
    out, inputs, kernel, _ = _sides(shapes, f"{at}.weight", 4)
    return nn.Conv2d(inputs, out, kernel, padding=kernel // 2)


def _hint(shapes: Shapes) -> ControlNetConditioningEmbedding:
    at = "controlnet_cond_embedding"
    first, last = (_sides(shapes, f"{at}.conv_{end}.weight", 4) for end in ("in", "out"))
    num = _count(shapes, rf"{at}\.blocks\.(\d+)\.")
    widths = (first[0], *(_sides(shapes, f"{at}.blocks.{k}.weight", 4)[0] for k in range(1, num, 2)))
    return ControlNetConditioningEmbedding(last[0], first[1], widths)


class XsSteps:
    """One evaluation (`Steps`): what the small encoder has come to. `embedded`: of t, where that is its own."""

    def __init__(self, net: XsNet, h: Tensor, emb: Tensor, tokens: Tensor, embedded: Tensor | None = None) -> None:
        self.net, self.h, self.emb, self.tokens, self.embedded = net, h, emb, tokens, embedded
        self.skips: list[Tensor] = []

    def encoded(self, k: int, h: Tensor) -> Tensor:
        """Return what is added to the model's k-th block."""
        if k:
            self.h = self.net.step(k, self.h, self.emb, self.tokens)
        self.skips.append(self.h)
        return self.net.to_base[k](self.h)

    def corrected(self, k: int, h: Tensor) -> None:
        """See what the model's k-th block has become."""
        self.h = torch.cat([self.h, self.net.to_control[k](h.to(self.h.dtype))], dim=1)

    def middle(self, h: Tensor) -> Tensor:
        """Return what is added to the model's middle."""
        return self.net.controlnet_mid_block(self.net.middle(self.h, self.emb, self.tokens))

    def decoding(self, k: int) -> Tensor:
        """Return what is added before the decoder's k-th block."""
        return self.net.to_decoder[k](self.skips.pop())
