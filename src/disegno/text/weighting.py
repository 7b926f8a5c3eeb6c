"""What emphasis does to token states: each is multiplied by its weight, and what that did to the whole is undone.

A1111 parity: `original` puts the mean of each chunk back. Here a chunk is one text's; upstream takes the mean over all
texts of a schedule together, so that one text's states there depend on the others'.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from disegno.core.errors import RequestError
from disegno.core.request import Emphasis
from disegno.text.chunks import Chunk

Weigh = Callable[[Tensor, Tensor], Tensor]  # states (b n d), weights (b n) -> states (b n d)


def weights_of(chunks: Sequence[Chunk], length: int, start: int = 1) -> Tensor:
    """Return the weights of whole chunks of this length, (k n), float32: 1 at their start, end and padding.

    `start`: how many tokens stand before the words.

    Raises RequestError where one is infinite or no number.
    """
    weights = torch.ones(len(chunks), length)
    for row, chunk in enumerate(chunks):
        weights[row, start : start + len(chunk.weights)] = torch.tensor(chunk.weights)
    if not weights.isfinite().all():
        raise RequestError("The emphasis of a word is beyond all numbers. Write a smaller weight, or fewer brackets.")
    return weights


def weigh(states: Tensor, weights: Tensor) -> Tensor:
    """Return each token's state times its weight, (b n d). weights: (b n)."""
    return states * weights[..., None]


def weigh_keeping_mean(states: Tensor, weights: Tensor) -> Tensor:
    """Return the weighed states, each chunk's mean put back, (b n d)."""
    return _restored(states, weigh(states, weights), lambda x: x.mean(dim=(1, 2), keepdim=True))


def weigh_keeping_size(states: Tensor, weights: Tensor) -> Tensor:
    """Return the weighed states, each chunk's root mean square put back, (b n d).

    For encoders whose states have a mean near 0, which is nothing to go by.
    """
    return _restored(states, weigh(states, weights), lambda x: x.square().mean(dim=(1, 2), keepdim=True).sqrt())


def _restored(before: Tensor, after: Tensor, size: Callable[[Tensor], Tensor]) -> Tensor:
    """Return `after` times what brings its size back; as it is where nothing could."""
    ratio = size(before) / size(after)
    return after * torch.where(ratio.isfinite(), ratio, torch.ones_like(ratio))


def unweighed(states: Tensor, weights: Tensor) -> Tensor:
    """Return the states as they are."""
    return states


WEIGH: dict[Emphasis, Weigh] = {
    "original": weigh_keeping_mean,
    "no-norm": weigh,
    "ignore": unweighed,
    "none": unweighed,
}
