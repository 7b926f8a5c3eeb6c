"""One evaluation of a backbone, as a frozen value: a control takes a Call and returns a new one."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Row:
    """What one row of the batch is.

    `text`: the row's text states, by content. `progress`: step / num_steps, in [0, 1). `is_shown`: an editing model is
    shown the picture in it; such a model has a third row for each image that is not. `weight`: how much the row's part
    of a prompt counts (AND).
    """

    image: int
    positive: bool
    text: str
    progress: float
    is_shown: bool = True
    weight: float = 1.0


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


@dataclass(frozen=True)
class Call:
    """One evaluation of a backbone. b rows; every row has its own noise level, text and meaning (`rows`)."""

    x: Tensor  # b c h w, already scaled by `Prediction.scale`
    t: Tensor  # b, the timestep that the net expects, float32
    tokens: Tensor  # b n d
    rows: tuple[Row, ...]
    net: "Callable[[Call], Tensor]"
    pooled: Tensor | None = None  # b p
    extra: Tensor | None = None  # b e h w: what inpainting and editing models are shown beside x
    residuals: Residuals | None = None

    def __post_init__(self) -> None:
        assert self.x.shape[0] == self.t.shape[0] == self.tokens.shape[0] == len(self.rows)

    def take(self, index: Tensor) -> "Call":
        """Return the rows at `index` (r,) as a call of their own, with no residuals yet."""

        def some(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.index_select(0, index.to(x.device))

        x, t, tokens = (part.index_select(0, index.to(part.device)) for part in (self.x, self.t, self.tokens))
        rows = tuple(self.rows[i] for i in index.tolist())
        return Call(x, t, tokens, rows, self.net, some(self.pooled), some(self.extra))

    def run(self) -> Tensor:
        """Return the net's output, (b c h w)."""
        return self.net(self)
