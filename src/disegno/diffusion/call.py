"""One evaluation of a backbone, as a frozen value: a control takes a Call and returns a new one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from disegno.diffusion.told import USUAL, Told


@dataclass(frozen=True, eq=False)
class Where:
    """Where a text holds: how much it counts at each latent cell beside the others of its image.

    `share`: (h w), 0 or more, of the whole canvas; on the CPU, where it is also looked at.
    """

    share: Tensor

    @property
    def holds(self) -> bool:
        """Whether it counts anywhere."""
        return bool((self.share > 0).any())


@dataclass(frozen=True)
class Weakness:
    """How the net is weakened, to be guided away from: `attention`: its middle self-attentions see each place alone.

    `without`: the transformer blocks that are left out, counted from 0.
    """

    attention: bool = False
    without: tuple[int, ...] = ()


@dataclass(frozen=True)
class Joins:
    """How a UNet's decoder weighs what it joins at its deepest level and the next (FreeU).

    `own`: what half of its features is multiplied by; `adapts`: where they are strong; `skips`: what the low
    frequencies of its skip connections are.
    """

    own: tuple[float, float]
    skips: tuple[float, float]
    adapts: bool = True


@dataclass(frozen=True)
class Row:
    """What one row of the batch is.

    `text`: the row's text states, by content. `progress`: step / num_steps, in [0, 1). `is_shown`: an editing model is
    shown the picture in it; such a model has a third row for each image that is not. `weight`: how much the row's part
    of a prompt counts (AND). `seed`: the image's. `told`: what SDXL is told of it beside its size. `weakness`: the net
    is weakened in it, and the row shows what to keep away from. `where`: where its text holds; None: everywhere.
    `loras`: those on the net for it, by content, where they are not its run's. `joins`: how the net's decoder weighs
    what it joins; None: as it was taught.
    """

    image: int
    positive: bool
    text: str
    progress: float
    is_shown: bool = True
    weight: float = 1.0
    seed: int = 0
    told: Told = USUAL
    weakness: Weakness | None = None
    where: Where | None = None
    loras: str = ""
    joins: Joins | None = None


@dataclass(frozen=True)
class Residuals:
    """What a control adds to a UNet: to each skip connection, shallow to deep, and to the middle block's output."""

    down: tuple[Tensor, ...]  # each b c h w
    mid: Tensor  # b c h w

    def scaled(self, scales: "tuple[float, ...]") -> "Residuals":
        """Return each residual times its scale; one scale for each `down` and the last for `mid`."""
        assert len(scales) == len(self.down) + 1, f"{len(scales)} scales for {len(self.down) + 1} residuals"
        down = tuple(d * s for d, s in zip(self.down, scales, strict=False))
        return Residuals(down, self.mid * scales[-1])

    def __add__(self, other: "Residuals") -> "Residuals":
        return Residuals(tuple(a + b for a, b in zip(self.down, other.down, strict=True)), self.mid + other.mid)

    def rows(self, index: Tensor) -> "Residuals":
        """Return the rows of this batch at `index` (r,), repeated and reordered as it says."""
        return Residuals(tuple(d.index_select(0, index) for d in self.down), self.mid.index_select(0, index))

    def num_bytes(self) -> int:
        """Return how much memory the tensors take."""
        return sum(t.numel() * t.element_size() for t in (*self.down, self.mid))


@dataclass(frozen=True, eq=False)
class Suffix:
    """Tokens that a control puts behind a row's text, (m d). `source`: whose they are, by content."""

    tokens: Tensor
    source: str

    def scaled(self, factor: float) -> "Suffix":
        """Return the tokens times a factor."""
        return replace(self, tokens=self.tokens * factor)


@dataclass(frozen=True, eq=False)
class ImagePrompt:
    """What a row's cross-attentions read apart from its text, whose output is added to the text's (IP-Adapter).

    `read`: name of an attention in the net -> keys and values, each (m w): the encoder's, the decoder's, the middle's.
    `depths`: the residual that each counts as, of `num_residuals`. `scales`: what each output is multiplied by; none:
    all are 1. `region`: where it is added, (1 1 h w) in [0, 1]; None: everywhere.
    """

    read: Mapping[str, tuple[Tensor, Tensor]]
    depths: tuple[int, ...]
    num_residuals: int
    scales: tuple[float, ...] = ()
    region: Tensor | None = None

    @property
    def num_tokens(self) -> int:
        """How many tokens are read."""
        return len(next(iter(self.read.values()))[0])


class Steps(Protocol):
    """A net beside the model's own during one evaluation, block by block. h: what the block gives, (r c h w).

    `embedded`: what the model's own blocks are given for its embedding of t, (r e); None: that.
    `encoded` and `middle` return what is added to the model's block, `decoding` what is added before the skip
    connection is taken up, None: nothing; `corrected` sees what the model's block has become, before the next one.
    """

    @property
    def embedded(self) -> Tensor | None: ...
    def encoded(self, k: int, h: Tensor) -> Tensor | None: ...
    def corrected(self, k: int, h: Tensor) -> None: ...
    def middle(self, h: Tensor) -> Tensor | None: ...
    def decoding(self, k: int) -> Tensor | None: ...


@dataclass(frozen=True, eq=False)
class Stream:
    """A net that runs beside the model's, in lock step. `rows`: of the call, (r,), those that it acts on.

    `begin`: (x, the model's embedding of t (r e), t, tokens, and what the model adds to that embedding for what it is
    told besides, None: nothing) of those rows -> its steps. `num_residuals`: how many it adds: as many as the model's,
    or one at each of the `places`, the encoder's blocks and behind them the middle. `weigh`: (which of the model's
    residuals, what is added to it) -> that, weighed: shallow to deep, the middle last; the decoder's blocks count as
    their skip connections. `soft`: what a mode that puts the prompt first makes of each; none: as of a ControlNet's.
    """

    begin: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor | None], Steps]
    rows: Tensor
    num_residuals: int
    weigh: Callable[[int, Tensor], Tensor] = lambda _, x: x
    places: tuple[int, ...] = ()
    soft: tuple[float, ...] = ()


Size = tuple[int, int]  # height and width, in cells
Shifted = Callable[[Tensor, Size], Tensor]


@dataclass(frozen=True, eq=False)
class Shift:
    """What is added to what layers of the net are given, before they compute (ControlNet-LLLite).

    `added`: name of a layer -> (its input for some rows, tokens (r n d) or features (r c h w); the size of its level)
    -> what is added to it. `depths`: the residual that each layer counts as, of `num_residuals`. `rows`: of the call,
    (r,), those that it acts on. `scales`: for each layer, what each of them is multiplied by; none: all are 1.
    `region`: where it is added, (1 1 h w) in [0, 1]; None: everywhere.
    """

    added: Mapping[str, Shifted]
    depths: Mapping[str, int]
    num_residuals: int
    rows: Tensor
    scales: Mapping[str, tuple[float, ...]] = field(default_factory=dict[str, tuple[float, ...]])
    region: Tensor | None = None

    def among(self, index: Tensor) -> "Shift | None":
        """Return it as it is among the rows at `index`; None where it acts on none of them."""
        rows, own = _found(self.rows, index)
        if not own:
            return None
        scales = {name: tuple(each[i] for i in own) for name, each in self.scales.items()}
        return replace(self, rows=rows, scales=scales)


@dataclass(frozen=True, eq=False)
class Reference:
    """A picture that the net draws first, and whose insides it then takes up in its own drawing.

    `latents`: the picture's, (1 c h w); `x`: the same, noised to each row's t, (r c h w). `rows`: of the call, (r,),
    those that take it up. `shares`: for each of them, how much of the net does. `fidelity`: how much of the negative
    prompt's rows stays as it would be without. `attends`: its tokens are attended to beside the picture's own;
    `matches`: the features get its mean and variance.
    """

    latents: Tensor
    x: Tensor
    rows: Tensor
    shares: tuple[float, ...]
    fidelity: float
    attends: bool = True
    matches: bool = False

    def among(self, index: Tensor) -> "Reference | None":
        """Return it as it is among the rows at `index`; None where none of them takes it up."""
        rows, own = _found(self.rows, index)
        if not own:
            return None
        return replace(self, x=self.x[own], rows=rows, shares=tuple(self.shares[i] for i in own))


def _found(rows: Tensor, index: Tensor) -> tuple[Tensor, list[int]]:
    """Return where those of `rows` (r,) that are among the rows at `index` stand there, and which of them they are."""
    places = {row: place for place, row in enumerate(index.tolist())}
    given = rows.tolist()
    own = [i for i, row in enumerate(given) if row in places]
    return torch.tensor([places[given[i]] for i in own], dtype=torch.long, device=index.device), own


@dataclass(frozen=True, eq=False)
class Correction:
    """What a control makes of the net's output. `rows`: of the call, (r,), those that it acts on.

    `of`: (the call of those rows, their output (r c h w)) -> what should stand there instead. `shares`: for each row,
    how much of it does. `region`: where, (1 1 h w) in [0, 1]; None: everywhere.
    """

    of: "Callable[[Call, Tensor], Tensor]"
    rows: Tensor
    shares: tuple[float, ...]
    region: Tensor | None = None

    def on(self, call: "Call", out: Tensor) -> Tensor:
        """Return a call's output, corrected, (b c h w), float32; the bits of all other rows are kept."""
        index, out = self.rows.to(out.device), out.float()
        own = out.index_select(0, index)
        share = torch.tensor(self.shares, device=out.device).reshape(-1, 1, 1, 1)
        if self.region is not None:
            share = share * F.adaptive_avg_pool2d(self.region.to(out), (out.shape[-2], out.shape[-1]))
        return out.index_copy(0, index, torch.lerp(own, self.of(call.take(index), own), share))


@dataclass(frozen=True)
class Call:
    """One evaluation of a backbone. b rows; every row has its own noise level, text and meaning (`rows`).

    `suffixes`: of each row, what the net reads behind its text; none: of no row. `image_prompts`: of each row, what it
    reads apart from it; none: of no row. `streams`: what runs beside the net. `references`: the pictures that it takes
    up. `corrections`: of its output, each of what the one before it made. `shifts`: of what its layers are given.
    """

    x: Tensor  # b c h w, already scaled by `Prediction.scale`
    t: Tensor  # b, the timestep that the net expects, float32
    tokens: Tensor  # b n d
    rows: tuple[Row, ...]
    net: "Callable[[Call], Tensor]"
    pooled: Tensor | None = None  # b p
    extra: Tensor | None = None  # b e h w: what inpainting and editing models are shown beside x
    residuals: Residuals | None = None
    suffixes: tuple[tuple[Suffix, ...], ...] = ()
    streams: tuple[Stream, ...] = ()
    image_prompts: tuple[tuple[ImagePrompt, ...], ...] = ()
    references: tuple[Reference, ...] = ()
    corrections: tuple[Correction, ...] = ()
    shifts: tuple[Shift, ...] = ()

    def __post_init__(self) -> None:
        assert self.x.shape[0] == self.t.shape[0] == self.tokens.shape[0] == len(self.rows)
        assert len(self.suffixes) in (0, len(self.rows)) and len(self.image_prompts) in (0, len(self.rows))

    @property
    def num_suffixed(self) -> tuple[int, ...]:
        """How many tokens each row has behind its text; () where none has any."""
        return tuple(sum(len(suffix.tokens) for suffix in own) for own in self.suffixes)

    @property
    def num_prompted(self) -> tuple[tuple[int, ...], ...]:
        """How many tokens each row reads apart from its text, of each image prompt; () where none has any."""
        return tuple(tuple(prompt.num_tokens for prompt in own) for own in self.image_prompts)

    def take(self, index: Tensor) -> "Call":
        """Return the rows at `index` (r,) as a call of their own, without what controls added to the net."""

        def some(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.index_select(0, index.to(x.device))

        x, t, tokens = (part.index_select(0, index.to(part.device)) for part in (self.x, self.t, self.tokens))
        rows = tuple(self.rows[i] for i in index.tolist())
        suffixes = tuple(self.suffixes[i] for i in index.tolist()) if self.suffixes else ()
        own = tuple(self.image_prompts[i] for i in index.tolist()) if self.image_prompts else ()
        extra = some(self.extra)
        return Call(x, t, tokens, rows, self.net, some(self.pooled), extra, suffixes=suffixes, image_prompts=own)

    def run(self) -> Tensor:
        """Return the net's output, (b c h w), corrected; rows of one number of tokens are evaluated together."""
        return reduce(lambda out, correction: correction.on(self, out), self.corrections, self._answered())

    def _answered(self) -> Tensor:
        lengths = self.num_suffixed
        if not any(lengths):
            return self.net(self)
        groups = {length: [i for i, own in enumerate(lengths) if own == length] for length in lengths}
        outs = [self._read(torch.tensor(group, device=self.x.device)) for group in groups.values()]
        order = torch.tensor([i for group in groups.values() for i in group], device=outs[0].device)
        return torch.cat(outs).index_select(0, order.argsort())

    def _read(self, index: Tensor) -> Tensor:
        """Return the net's output for some rows, with their suffixes behind their texts."""
        few = self.take(index)
        tokens = [
            torch.cat([own, *(s.tokens.to(own) for s in more)])
            for own, more in zip(few.tokens, few.suffixes, strict=True)
        ]
        streams = tuple(part for stream in self.streams if (part := _among(stream, index)) is not None)
        references = tuple(part for one in self.references if (part := one.among(index)) is not None)
        residuals = None if self.residuals is None else self.residuals.rows(index)
        told = replace(few, tokens=torch.stack(tokens), suffixes=(), residuals=residuals, streams=streams)
        shifts = tuple(part for one in self.shifts if (part := one.among(index)) is not None)
        return few.net(replace(told, references=references, shifts=shifts))


def _among(stream: Stream, index: Tensor) -> Stream | None:
    """Return a stream as it is among the rows at `index`; None where it acts on none of them."""
    rows, found = _found(stream.rows, index)
    if not found:
        return None
    num = len(stream.rows)
    if len(found) == num:
        return replace(stream, rows=rows)
    own = torch.tensor(found, device=index.device)

    def weigh(i: int, x: Tensor) -> Tensor:
        spread = x.new_zeros((num, *x.shape[1:])).index_copy_(0, own, x)
        return stream.weigh(i, spread).index_select(0, own)

    return replace(stream, rows=rows, weigh=weigh)
