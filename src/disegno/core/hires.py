"""How large a hires pass is."""

from dataclasses import dataclass

from disegno.core.request import Hires


@dataclass(frozen=True)
class Target:
    """`width`, `height`: what a picture is enlarged to, in pixels; `cut_x`, `cut_y`: latent cells cut off then."""

    width: int
    height: int
    cut_x: int = 0
    cut_y: int = 0

    def latent_size(self, downscale: int) -> tuple[int, int]:
        """Return (height, width) of the latents that are drawn, in cells."""
        return self.height // downscale - self.cut_y, self.width // downscale - self.cut_x


def target_size(hires: Hires, width: int, height: int, downscale: int = 8) -> Target:
    """Return how large the second pass of a picture of width x height pixels is. A1111's calculate_target_resolution.

    With both sides given, the picture covers them, and what is too much is cut off.
    """
    wide, high = hires.width, hires.height
    if not wide and not high:
        return Target(int(width * hires.scale), int(height * hires.scale))
    by_width = (wide or 0, (wide or 0) * height // width)
    by_height = ((high or 0) * width // height, high or 0)
    if not high:
        return Target(*by_width)
    if not wide:
        return Target(*by_height)
    covered = by_width if width / height < wide / high else by_height
    return Target(*covered, (covered[0] - wide) // downscale, (covered[1] - high) // downscale)
