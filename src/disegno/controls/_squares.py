"""Pictures that are looked at in squares of pixels, each of which becomes one place."""

from torch import Tensor
from torch.nn import functional as F


def whole(image: Tensor, side: int) -> Tensor:
    """Return the image (b c h w) with sides of whole squares: what is missing is as its last row or column."""
    height, width = image.shape[-2:]
    more = -height % side, -width % side
    return F.pad(image, (0, more[1], 0, more[0]), mode="replicate") if any(more) else image
