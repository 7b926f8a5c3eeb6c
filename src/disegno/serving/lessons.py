"""What a server is asked for: a training, an evaluation, a new data set; and what of it is not a client's to say.

The requests are those of the command line. Files are called by names here: data sets by `data_sets.py`, everything else
by the library.
"""

import re
from collections.abc import Iterator
from dataclasses import field
from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from disegno.core.evaluate import EvaluateRequest
from disegno.core.request import Scalar
from disegno.core.teach import TeachRequest
from disegno.serving.bounds import check_names, require_pair, require_within
from disegno.serving.data_sets import check_data_name
from disegno.serving.faults import Refused
from disegno.serving.settings import Limits

_CONFIG = ConfigDict(extra="forbid", use_attribute_docstrings=True)
_NEW_NAME = re.compile(r"[\w][\w.+-]{0,99}")


@dataclass(frozen=True, kw_only=True, config=_CONFIG)
class DatasetRequest:
    """Pairs made from pictures: a new data set. The same request again goes on where it was stopped."""

    name: str
    """What the new data set is called; its folder is made in the server's first data directory."""
    pictures: str
    """The data set whose pictures are taken, captions beside them as NAME.txt."""
    annotator: str
    """What draws the conditions."""
    params: dict[str, Scalar] = field(default_factory=dict[str, Scalar])
    """The annotator's parameters, by name."""
    resolution: Annotated[int | None, Field(ge=64, le=4096)] = None
    """The short side of what the annotator sees, in pixels; unset: the picture's own."""
    width: Annotated[int | None, Field(ge=64, le=4096)] = None
    """With `height`: fit pictures to this canvas, cropped in the middle; unset: as they are."""
    height: Annotated[int | None, Field(ge=64, le=4096)] = None
    """With `width`: fit pictures to this canvas."""
    buckets: bool = False
    """Fit them to canvases of this area, each by its shape."""
    captions: Literal["files", "names", "none"] = "files"
    """The pictures' own; their names as words; or none."""
    caption: str | None = None
    """The caption of pictures that have none."""


@dataclass(frozen=True, kw_only=True, config=_CONFIG)
class CheckRequest:
    """Everything that is wrong with a data set, before a training: the doctor's report."""

    data: str
    """The data set's name."""
    width: Annotated[int, Field(ge=64, le=4096)] = 512
    """The canvas of the training, in pixels."""
    height: Annotated[int, Field(ge=64, le=4096)] = 512
    """The canvas of the training, in pixels."""
    buckets: bool = True
    """Canvases of about this area, by shape; else this one alone."""
    caption: Annotated[str | None, Field(max_length=10_000)] = None
    """The caption of pictures that have none."""


@dataclass(frozen=True, kw_only=True, config=_CONFIG)
class EstimateRequest:
    """What a training will take, before it begins: memory, and time."""

    training: TeachRequest
    """The training; its data sets by their names."""
    timed: bool = True
    """Time a step too: the model is opened and the caches are filled, which the training finds then."""


@dataclass(frozen=True, kw_only=True, config=_CONFIG)
class UnpackRequest:
    """An uploaded zip becomes a data set."""

    upload: Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
    """The upload's id; it is gone once it has been unpacked."""
    name: str
    """What the new data set is called; its folder is made in the server's first data directory."""


def data_of(given: str) -> tuple[str, str]:
    """Return (task, name) of `TASK=NAME`; a task of "" where only a name was given."""
    task, equals, name = given.partition("=")
    return (task, name) if equals else ("", given)


def _names(*named: tuple[str, str | None]) -> Iterator[tuple[str, str | None]]:
    """Yield names, those of addresses refused. Raises Refused."""
    for at, name in named:
        if name is not None and "://" in name:
            raise Refused(422, "unknown_name", f"{at} is an address; it must be a name.", at, "See GET /v1/models.")
        yield at, name


def check_teach(request: TeachRequest, limits: Limits) -> None:
    """Refuse a training that costs more than the server gives, or that names files of the machine. Raises Refused."""
    if not _NEW_NAME.fullmatch(request.name):
        told = "name is what the new control's file is called: letters, digits and .+-_, at most 100."
        raise Refused(422, "invalid_request", told, "name")
    require_within(
        (
            ("data", len(request.data), limits.controls, "data sets"),
            ("steps", request.steps, limits.teach_steps, "steps"),
            ("width or height", max(request.width or 0, request.height or 0), limits.side_px, "pixels"),
            ("batch x accumulate", request.batch * request.accumulate, limits.teach_rows, "rows in one step"),
            ("holdout", request.holdout, limits.teach_rows, "pairs"),
        )
    )
    for i, given in enumerate(request.data):
        check_data_name(f"data.{i}", data_of(given)[1])
    check_names(_names(("model", request.model), ("base", request.base), ("start", request.start)))


def check_evaluate(request: EvaluateRequest, limits: Limits) -> None:
    """Refuse an evaluation that costs more than the server gives, or names files of the machine. Raises Refused."""
    for at, given in (("script", request.script), ("clip", request.clip)):
        if given is not None:
            told = f"{at} is a path of the machine; over HTTP there are none. Use the command line: disegno evaluate."
            raise Refused(422, "invalid_request", told, at)
    require_within(
        (
            ("num", request.num, limits.evaluate_pairs, "pairs"),
            ("steps", request.steps or 0, limits.steps, "steps"),
            ("width or height", max(request.width or 0, request.height or 0), limits.side_px, "pixels"),
        )
    )
    check_data_name("data", request.data)
    named = (("control", request.control), ("against", request.against), ("model", request.model))
    check_names(_names(*named, ("base", request.base)))


def check_dataset(request: DatasetRequest, limits: Limits) -> None:
    """Refuse what is no name of a data set, or a canvas that cannot be. Raises Refused."""
    for at, name in (("name", request.name), ("pictures", request.pictures)):
        check_data_name(at, name)
    require_pair("width", request.width, "height", request.height)
    sides = max(request.width or 0, request.height or 0, request.resolution or 0)
    require_within((("width, height or resolution", sides, limits.side_px, "pixels"),))
    check_names((("annotator", request.annotator),))


def check_check(request: CheckRequest, limits: Limits) -> None:
    """Refuse what is no name of a data set, or a canvas that cannot be. Raises Refused."""
    check_data_name("data", request.data)
    require_within((("width or height", max(request.width, request.height), limits.side_px, "pixels"),))


def check_estimate(request: EstimateRequest, limits: Limits) -> None:
    """Refuse what no training may ask for. Raises Refused."""
    check_teach(request.training, limits)


def check_unpack(request: UnpackRequest, limits: Limits) -> None:
    """Refuse what is no name of a new data set. Raises Refused."""
    check_data_name("name", request.name)
    if "/" in request.name:
        raise Refused(422, "unknown_name", "name is one folder's: leave out the slash.", "name")
