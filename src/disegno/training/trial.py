"""A trial of a control: held-out conditions drawn through the engine, with and without it, from the same seeds."""

import base64
import logging
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from io import BytesIO
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from disegno.backbones.base import Backbone
from disegno.core.errors import BadData, BadImage
from disegno.core.request import ControlUnit, Request
from disegno.core.result import Result
from disegno.engine.generate import generate, to_pictures
from disegno.engine.studio import Studio
from disegno.prompts.plain import as_prompt
from disegno.training.base import Pairs, Picture
from disegno.training.data.align import align
from disegno.training.redraw import Criterion, Row

log = logging.getLogger(__name__)

NUM_SEEDS = 100_000  # short enough to be read under a picture
FEW = 3  # below, a standard error says nothing

Values = NDArray[np.float64]  # one a row
News = TypeVar("News")


@dataclass(frozen=True)
class Summary:
    """What the pictures of one way of drawing reach: the mean over the rows."""

    mean: float
    error: float


def rows_of(pairs: Pairs, num: int, canvas: tuple[int, int], seed: int) -> tuple[Row, ...]:
    """Return the first `num` pairs that can be read, on a canvas (width, height). Raises BadData if none can."""
    rows: list[Row] = []
    for index in range(len(pairs)):
        if len(rows) == num:
            break
        try:
            read = pairs.read(index)
            sample = align(read, canvas)
        except BadImage as error:
            log.warning("%s was left out: %s", pairs.key(index), error)
            continue
        key = pairs.key(index)
        side = min(read.target.shape[:2])
        rows.append(Row(key, sample.caption, sample.condition, sample.target, seed_of(seed, key), side))
    if not rows:
        raise BadData(f"No pair of {pairs.name} could be read. Check it with `disegno dataset check`.")
    return tuple(rows)


def seed_of(seed: int, key: str) -> int:
    """Return the seed of the pictures of the pair of this name."""
    return int.from_bytes(sha256(f"{seed} {key}".encode()).digest()[:8], "little") % NUM_SEEDS


def data_uri(picture: Picture) -> str:
    """Return the picture as a data URI (PNG)."""
    with BytesIO() as file:
        Image.fromarray(picture).save(file, "PNG", compress_level=1)
        return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def request_for(row: Row, template: Request, control: ControlUnit | None) -> Request:
    """Return what is drawn for a row: the template with its caption as it is taught, its seed, and its condition."""
    units = () if control is None else (replace(control, image=data_uri(row.condition), annotate="none", params={}),)
    return replace(template, prompt=as_prompt(row.caption), seed=row.seed, controls=units)


def drawing(
    row: Row, template: Request, control: ControlUnit | None, studio: Studio, news: News
) -> Generator[News, None, tuple[Picture, ...]]:
    """Return the pictures that the engine draws for a row, `template.batch` of them; yield `news` at every step.

    Raises DisegnoError.
    """
    for event in generate(request_for(row, template, control), studio=studio):
        if isinstance(event, Result):
            return tuple(np.asarray(image.convert("RGB")) for image in event.images)
        yield news
    raise AssertionError("the engine ended without a result")


@torch.inference_mode()
def through_vae(picture: Picture, backbone: Backbone) -> Picture:
    """Return the picture encoded and decoded by the model's VAE: the best that the model could draw of it."""
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 127.5 - 1  # 1 3 h w
    (image,) = to_pictures(backbone.decode(backbone.encode_image(pixels)))
    return np.asarray(image)


def values_of(criterion: Criterion, rows: Sequence[Row], drawn: Sequence[Sequence[Picture]]) -> Values:
    """Return each row's value: the mean over the pictures that were drawn for it."""
    each = ([criterion.value(row, picture) for picture in pictures] for row, pictures in zip(rows, drawn, strict=True))
    return np.array([np.mean(values) for values in each], np.float64)


def summary(values: Values) -> Summary:
    """Return the mean and its standard error; with few rows widened as Student's t says, so that 2 always mean 95 %."""
    if len(values) < FEW:
        return Summary(float(values.mean()), float("inf"))
    from scipy.stats import t

    widened = t.ppf(0.975, len(values) - 1) / 2
    return Summary(float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)) * widened))


def controllability(criterion: Criterion, values: Values, floor: Values, ceiling: Values) -> Summary | None:
    """Return how far the pictures come from the floor (0) to the ceiling (1); None where there is no way between.

    Rows are compared one by one: a row's value with the same row's without the control.
    """
    sign = 1.0 if criterion.measure.better == "higher" else -1.0
    room = sign * float((ceiling - floor).mean())
    if room <= 0:
        return None
    return summary(sign * (values - floor) / room)


def effect(drawn: Sequence[Sequence[Picture]], without: Sequence[Sequence[Picture]]) -> float:
    """Return how much the control changes the pictures: the mean absolute difference to those without it, 0 to 1."""
    differences = [
        np.abs(x.astype(np.float32) - y.astype(np.float32)).mean() / 255
        for row, other in zip(drawn, without, strict=True)
        for x, y in zip(row, other, strict=True)
    ]
    return float(np.mean(differences))
