"""The rows of a call in which the net is weakened, so that a picture can be guided away from what it says then.

Perturbed attention (Ahn et al. 2024, eq. 14): softmax(Q K) becomes the identity, so that a place sees itself alone.
Left-out layers (Stability AI's skip layer guidance for Stable Diffusion 3.5): a block passes on what it is given.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any, cast

from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from disegno.core.errors import RequestError
from disegno.diffusion.call import Row, Weakness

Hook = Callable[..., Any]


def check_unet(weakness: Weakness, name: str) -> None:
    """Raise RequestError where a UNet cannot be weakened so."""
    if weakness.without:
        raise RequestError(
            f"slg leaves out blocks of Stable Diffusion 3's transformer, and {name} has a UNet. Leave it out, or say"
            " pag."
        )


@contextmanager
def weakened_unet(net: Any, rows: Sequence[Row]) -> Generator[None]:
    """Within, a UNet's middle self-attentions see each place alone, in the rows that say so."""
    alone = [i for i, row in enumerate(rows) if row.weakness is not None and row.weakness.attention]
    blocks = [each for each in net.mid_block.modules() if isinstance(each, BasicTransformerBlock)] if alone else []
    with _hooked([(block.attn1, _seeing_itself(alone)) for block in blocks if not block.only_cross_attention]):
        yield


def check_transformer(net: Any, weakness: Weakness, name: str) -> None:
    """Raise RequestError where a transformer of joint tokens cannot be weakened so."""
    if weakness.attention:
        raise RequestError(f"pag is for models with a UNet, and {name} has none. Leave it out, or say slg.")
    num = len(net.transformer_blocks)
    if wrong := [block for block in sorted(weakness.without) if block >= num]:
        raise RequestError(
            f"slg_layers: {name} has {num} blocks, 0 to {num - 1}, and no {', '.join(map(str, wrong))}. Say others."
        )


@contextmanager
def weakened_transformer(net: Any, rows: Sequence[Row]) -> Generator[None]:
    """Within, blocks of a transformer of joint tokens are left out, in the rows that say so."""
    without: dict[int, list[int]] = {}
    for i, row in enumerate(rows):
        for block in row.weakness.without if row.weakness is not None else ():
            without.setdefault(block, []).append(i)
    with _hooked([(net.transformer_blocks[block], _passing_on(own)) for block, own in without.items()]):
        yield


def _seeing_itself(rows: list[int]) -> Hook:
    """Return the hook of a self-attention that gives every place of some rows its own value alone."""

    def hook(module: nn.Module, args: tuple[Tensor, ...], _: dict[str, Any], out: Tensor) -> Tensor:
        attention, mixed = cast(Attention, module), out.clone()  # b n d
        assert attention.to_v is not None and attention.to_out is not None, "a self-attention's own"
        values = attention.to_v(args[0][rows])  # r n d
        mixed[rows] = attention.to_out[1](attention.to_out[0](values)) / attention.rescale_output_factor
        return mixed

    return hook


def _passing_on(rows: list[int]) -> Hook:
    """Return the hook of a block that gives some rows back as they came; its tokens: those of the text, the image."""

    def hook(
        _: nn.Module, args: tuple[Tensor, ...], given: dict[str, Any], out: tuple[Tensor | None, Tensor]
    ) -> tuple[Tensor | None, Tensor]:
        hidden = args[0] if args else given["hidden_states"]
        text = args[1] if len(args) > 1 else given["encoder_hidden_states"]
        return None if out[0] is None else _put(out[0], text, rows), _put(out[1], hidden, rows)

    return hook


def _put(new: Tensor, old: Tensor, rows: list[int]) -> Tensor:
    mixed = new.clone()
    mixed[rows] = old[rows]
    return mixed


@contextmanager
def _hooked(hooks: Sequence[tuple[nn.Module, Hook]]) -> Generator[None]:
    """Within, each module's output is replaced by its hook's; afterwards none is left. One thread at a time."""
    handles = [at.register_forward_hook(hook, with_kwargs=True) for at, hook in hooks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
