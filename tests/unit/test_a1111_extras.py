"""A1111's extras: what size a picture is made."""

import base64
import io
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from disegno.serving.a1111.extras import translate_extras
from disegno.serving.a1111.routes_extras import _job_of  # pyright: ignore[reportPrivateUsage]
from disegno.serving.settings import ServerSettings

pytestmark = pytest.mark.unit

ORIENTATION = 0x0112


@pytest.mark.parametrize("turned, size", [(1, (64, 48)), (6, (48, 64))])
def test_a_photo_that_is_turned_by_its_exif_keeps_its_shape(turned: int, size: tuple[int, int]) -> None:
    exif, out = Image.Exif(), io.BytesIO()
    exif[ORIENTATION] = turned
    Image.new("RGB", (32, 24)).save(out, "JPEG", exif=exif)
    body = {"image": base64.b64encode(out.getvalue()).decode(), "upscaling_resize": 2}
    asked = translate_extras(body, many=False, upscalers=("None",))
    front: Any = SimpleNamespace(jobs=SimpleNamespace(settings=ServerSettings()))
    job = _job_of(front, asked, asked.images[0])
    assert (job.width, job.height) == size
