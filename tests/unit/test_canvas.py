"""What a masked picture is encoded as, and whose colours the result is given."""

import numpy as np
import pytest
from PIL import Image

from disegno.core.request import InitImage, InpaintFill
from disegno.engine.canvas import Canvas, coloured_as
from disegno.engine.masks import filled

pytestmark = pytest.mark.unit

PICTURE = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
MASK = np.zeros((32, 32), np.uint8)
MASK[8:24, 8:24] = 255


@pytest.mark.parametrize("fill", ["fill", "noise", "nothing"])
def test_what_is_drawn_anew_is_filled_before_it_is_encoded(fill: InpaintFill) -> None:
    """A1111's `if self.inpainting_fill != 1`: also where noise, or nothing, takes its place in the latents."""
    canvas = Canvas(PICTURE, PICTURE, MASK)
    assert np.array_equal(canvas.start(InitImage(image="x", fill=fill)), filled(PICTURE, MASK))
    assert np.array_equal(canvas.start(InitImage(image="x", fill="original")), PICTURE)
    assert np.array_equal(Canvas(PICTURE, PICTURE).start(InitImage(image="x", fill=fill)), PICTURE)


def test_the_colours_are_those_of_what_was_encoded() -> None:
    drawn, init = PICTURE[::-1].copy(), InitImage(image="x", fill="fill", colour_correction=True)
    found = np.array(Canvas(PICTURE, PICTURE, MASK).finish(Image.fromarray(drawn), init))
    assert np.array_equal(found, coloured_as(drawn, filled(PICTURE, MASK)))
    assert not np.array_equal(found, coloured_as(drawn, PICTURE))
