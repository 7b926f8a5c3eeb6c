"""The kinds of jobs, as a table: what each is asked with, what it may cost, who carries it out, what it can share.

A new kind is one row here, one function of a worker (`runners.py`) and one class of the native door (`native.py`).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass

from disegno.core.errors import UnknownName
from disegno.core.evaluate import EvaluateRequest
from disegno.core.request import Request, ResizeMode, Scalar
from disegno.core.teach import TeachRequest
from disegno.serving.bounds import check_generate, check_names, check_texts, require_pair, require_within
from disegno.serving.faults import refusal_of_fields
from disegno.serving.lessons import (
    CheckRequest,
    DatasetRequest,
    EstimateRequest,
    UnpackRequest,
    check_check,
    check_dataset,
    check_estimate,
    check_evaluate,
    check_teach,
    check_unpack,
)
from disegno.serving.settings import Limits
from disegno.serving.sheets import SheetRequest, check_sheet
from disegno.serving.shelf import (
    DownloadRequest,
    ExportRequest,
    VerifyRequest,
    check_download,
    check_export,
    check_verify,
)

_CONFIG = ConfigDict(extra="forbid", use_attribute_docstrings=True)

Lane = Literal["draw", "school", "files", "downloads"]
"""Pictures come within seconds, trainings take hours, files are read in between, and fetched while all that goes on:
none waits for another."""


@checked_dataclass(frozen=True, kw_only=True, config=_CONFIG)
class AnnotateRequest:
    """One drawing made from one picture."""

    name: str
    """The annotator."""
    image: str
    """The picture, a data URI."""
    params: dict[str, Scalar] = field(default_factory=dict[str, Scalar])
    """The annotator's parameters, by name."""
    resolution: Annotated[int | None, Field(ge=64, le=4096)] = None
    """The short side of what the annotator sees, in pixels; unset: what meets the canvas's pixels one to one, as for a
    control's own drawing; without a canvas, the picture's own."""
    width: Annotated[int | None, Field(ge=64, le=4096)] = None
    """With `height`: fit the drawing to a canvas of this size."""
    height: Annotated[int | None, Field(ge=64, le=4096)] = None
    """With `width`: fit the drawing to a canvas of this size."""
    resize: ResizeMode = "crop"
    """How it is fitted."""
    back: bool = True
    """Bring the drawing back to the picture's size, where there is no canvas; else it is left at its resolution."""


@checked_dataclass(frozen=True, kw_only=True, config=_CONFIG)
class UpscaleRequest:
    """One picture made larger."""

    image: str
    """The picture, a data URI."""
    width: Annotated[int, Field(ge=1, le=8192)]
    """To this width in pixels."""
    height: Annotated[int, Field(ge=1, le=8192)]
    """To this height in pixels."""
    upscaler: str = "Lanczos"
    """Lanczos, Nearest, or an upscaler of the library."""
    second: str | None = None
    """Another one, whose result is blended in."""
    weight: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    """How much of the second one's result."""
    cut_width: Annotated[int | None, Field(ge=1, le=8192)] = None
    """With `cut_height`: keep only the middle, this wide."""
    cut_height: Annotated[int | None, Field(ge=1, le=8192)] = None
    """With `cut_width`: keep only the middle, this high."""


@checked_dataclass(frozen=True, kw_only=True, config=_CONFIG)
class CaptionRequest:
    """What one picture shows, in words."""

    image: str
    """The picture, a data URI."""
    captioner: str | None = None
    """A captioner of the library; unset: the first one."""
    beginning: Annotated[str, Field(max_length=200)] = ""
    """What the caption begins with, as "a photo of"."""


@dataclass(frozen=True)
class JobKind:
    """One kind. `runner`: "module:function", imported in the worker; `share`: what jobs that are stepped together have
    in common, None for a kind that runs alone; `lane`: which workers take it; `resumes`: what it keeps outlives its
    end, unless it is done; `adds_files`: the library has more afterwards; `brief`: of one step, so that a worker does
    it between two steps of whatever else it does.
    """

    name: str
    request: type[Any]
    runner: str
    check: Callable[[Any, Limits], None]
    share: Callable[[Any], str | None] = lambda request: None
    lane: Lane = "draw"
    resumes: bool = False
    adds_files: bool = False
    brief: bool = False

    @cached_property
    def adapter(self) -> TypeAdapter[Any]:
        """What reads and writes the request."""
        return TypeAdapter(self.request)

    def read(self, fields: object) -> Any:
        """Return the request of these fields. Raises Refused, naming the field that is wrong."""
        try:
            return self.adapter.validate_python(fields)
        except ValidationError as error:
            raise refusal_of_fields(error) from error

    def dump(self, request: Any) -> bytes:
        """Return the request as JSON."""
        return self.adapter.dump_json(request)

    def require_allowed(self, request: Any, limits: Limits) -> None:
        """Refuse what costs more than the server gives, or names what is not the client's to name. Raises Refused."""
        self.check(request, limits)
        check_texts(self.fields(request), limits)

    def fields(self, request: Any) -> Any:
        """Return the request as JSON values."""
        return self.adapter.dump_python(request, mode="json")

    def load(self, body: str | bytes) -> Any:
        """Return the request that `dump` wrote."""
        return self.adapter.validate_json(body)


def _check_annotate(request: AnnotateRequest, limits: Limits) -> None:
    require_pair("width", request.width, "height", request.height)
    sides = max(request.width or 0, request.height or 0, request.resolution or 0)
    require_within((("width, height or resolution", sides, limits.side_px, "pixels"),))
    check_names((("name", request.name),))


def _check_upscale(request: UpscaleRequest, limits: Limits) -> None:
    require_pair("cut_width", request.cut_width, "cut_height", request.cut_height)
    require_within(
        (
            ("width x height", request.width * request.height, limits.picture_pixels, "pixels"),
            ("cut_width", request.cut_width or 0, request.width, "pixels of this width"),
            ("cut_height", request.cut_height or 0, request.height, "pixels of this height"),
        )
    )
    check_names((("upscaler", request.upscaler), ("second", request.second)))


def _check_caption(request: CaptionRequest, limits: Limits) -> None:
    check_names((("captioner", request.captioner),))


KINDS: dict[str, JobKind] = {
    kind.name: kind
    for kind in (
        JobKind("generate", Request, "disegno.serving.runners:generate", check_generate, lambda asked: asked.model),
        JobKind("sheet", SheetRequest, "disegno.serving.runners:sheet", check_sheet),
        JobKind("annotate", AnnotateRequest, "disegno.serving.runners:annotate", _check_annotate, brief=True),
        JobKind("upscale", UpscaleRequest, "disegno.serving.runners:upscale", _check_upscale),
        JobKind("caption", CaptionRequest, "disegno.serving.runners:caption", _check_caption),
        JobKind(
            "teach",
            TeachRequest,
            "disegno.serving.schooling:teach",
            check_teach,
            lane="school",
            resumes=True,
            adds_files=True,
        ),
        JobKind("evaluate", EvaluateRequest, "disegno.serving.schooling:evaluate", check_evaluate, lane="school"),
        JobKind("dataset", DatasetRequest, "disegno.serving.schooling:dataset", check_dataset, lane="school"),
        JobKind("unpack", UnpackRequest, "disegno.serving.examining:unpack", check_unpack, lane="files"),
        JobKind("check", CheckRequest, "disegno.serving.examining:check", check_check, lane="files"),
        JobKind("estimate", EstimateRequest, "disegno.serving.examining:estimate", check_estimate, lane="files"),
        JobKind("verify", VerifyRequest, "disegno.serving.shelving:verify", check_verify, lane="files"),
        JobKind("export", ExportRequest, "disegno.serving.shelving:export", check_export, lane="files"),
        JobKind(
            "download",
            DownloadRequest,
            "disegno.serving.downloading:download",
            check_download,
            lane="downloads",
            resumes=True,
            adds_files=True,
        ),
    )
}


def kinds_of(lane: Lane) -> tuple[str, ...]:
    """Return the names of the kinds that a lane's workers take."""
    return tuple(kind.name for kind in KINDS.values() if kind.lane == lane)


def kind_of(name: str) -> JobKind:
    """Return the kind of this name. Raises UnknownName."""
    if name not in KINDS:
        raise UnknownName.of("kind of job", name, KINDS)
    return KINDS[name]
