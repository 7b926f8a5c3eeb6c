"""Canvases of about one area, and which of them a picture belongs to."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disegno.core.errors import RequestError
from disegno.training.data.buckets import make_buckets, nearest_bucket

pytestmark = pytest.mark.unit


def test_the_buckets_of_512() -> None:
    wide = ((768, 320), (640, 384), (576, 448))
    tall = tuple((h, w) for w, h in reversed(wide))
    assert make_buckets(512, 512) == (*wide, (512, 512), *tall)
    assert (1024, 256) in make_buckets(512, 512, max_aspect=4)
    assert make_buckets(128, 128, step=32) == ((160, 96), (128, 128), (96, 160))


@given(st.integers(4, 16), st.integers(4, 16), st.sampled_from([8, 32, 64]))
def test_every_bucket_keeps_area_step_and_aspect(across: int, down: int, step: int) -> None:
    width, height = across * step, down * step
    buckets = make_buckets(width, height, step)
    assert (width, height) in buckets and len(set(buckets)) == len(buckets)
    for w, h in buckets:
        assert w % step == h % step == 0 and w * h <= width * height
        assert (w, h) == (width, height) or max(w, h) <= 2.5 * min(w, h)
        assert w * h > width * height - step * max(w, h)  # the long side is as long as the area allows


def test_a_picture_goes_to_the_nearest_shape() -> None:
    buckets = make_buckets(512, 512)
    assert nearest_bucket((4000, 4000), buckets) == (512, 512)
    assert nearest_bucket((1920, 1080), buckets) == (640, 384)
    assert nearest_bucket((1080, 1920), buckets) == (384, 640)
    assert nearest_bucket((4000, 40), buckets) is None
    assert nearest_bucket((3000, 1000), buckets) == (768, 320)


def test_sides_that_are_no_multiples_are_refused() -> None:
    for size in ((500, 512), (512, 300), (16, 512), (512, 0)):
        with pytest.raises(RequestError, match="must be multiples of"):
            make_buckets(*size)
