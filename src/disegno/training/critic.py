"""A critic of patches: which parts of a picture look as if a decoder had made them (Isola et al. 2017, section 3.2.2).

As in Esser et al. 2021 (VQGAN), but with group norms in the place of batch norms: a row is judged by itself, whatever
else is in its batch.
"""

from collections.abc import Iterator

import torch
from torch import Generator, Tensor, nn

WIDTH, LAYERS, GROUPS = 64, 3, 8
_SLOPE, _KERNEL = 0.2, 4
_DEVIATION = 0.02  # of new weights


class Critic(nn.Module):
    """Pictures (b 3 h w) in [-1, 1] to marks of patches (b 1 h/8 w/8): high where they look real."""

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.net = nn.Sequential(*_layers())
        for name, parameter in self.net.named_parameters():
            with torch.no_grad():
                if name.endswith("weight") and parameter.ndim > 1:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * _DEVIATION)
                elif name.endswith("bias"):
                    parameter.zero_()

    def forward(self, pictures: Tensor) -> Tensor:
        """Return each picture's marks."""
        return self.net(pictures)


def _layers() -> Iterator[nn.Module]:
    yield nn.Conv2d(3, WIDTH, _KERNEL, 2, 1)
    yield nn.LeakyReLU(_SLOPE)
    for n in range(1, LAYERS + 1):
        before, after = (WIDTH * min(2**k, 8) for k in (n - 1, n))
        yield nn.Conv2d(before, after, _KERNEL, 2 if n < LAYERS else 1, 1, bias=False)
        yield nn.GroupNorm(GROUPS, after)
        yield nn.LeakyReLU(_SLOPE)
    yield nn.Conv2d(WIDTH * 2**LAYERS, 1, _KERNEL, 1, 1)


def hinge(real: Tensor, made: Tensor) -> Tensor:
    """Return the critic's loss of each row, (b,), from its marks of the true and of the made pictures (b 1 h w)."""
    losses = (torch.relu(1 - real) + torch.relu(1 + made)) / 2
    return losses.flatten(1).mean(dim=1)
