"""Sheets as a server is asked for them: many pictures of one request, over axes or over the choices of a prompt."""

from typing import Annotated

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from disegno.core.errors import RequestError
from disegno.core.plot import Plot, parse_axis, plan_matrix, plan_plot
from disegno.core.request import Request
from disegno.serving.bounds import check_generate, require_within, work_of
from disegno.serving.faults import Refused
from disegno.serving.fetch import PICTURE_KEYS
from disegno.serving.settings import Limits

_CONFIG = ConfigDict(extra="forbid", use_attribute_docstrings=True)
AxisText = Annotated[str, Field(max_length=20_000)]


@dataclass(frozen=True, kw_only=True, config=_CONFIG)
class SheetRequest:
    """Many pictures of one request on one labelled sheet: one to three axes, or a prompt matrix."""

    request: Request
    """What every picture is made of, but for what the axes change."""
    x: AxisText | None = None
    """FIELD=V1,V2,...: a column for each value, as in cfg=2,4,6; seed=1-4; controls.0.strength=0-1[3]; size=128x128."""
    y: AxisText | None = None
    """The same for the rows."""
    z: AxisText | None = None
    """The same for tables below each other."""
    matrix: bool = False
    """Instead of axes: every choice of the parts of the prompt, as in "a car|red|at night"."""
    parts_first: bool = False
    """Of a matrix: what is chosen stands before the first part."""


def plan_of(asked: SheetRequest) -> Plot:
    """Return the plan of a sheet. Raises RequestError."""
    axes = [text for text in (asked.x, asked.y, asked.z) if text is not None]
    if asked.matrix:
        if axes:
            raise RequestError("A sheet shows axes or a matrix: leave out matrix, or x, y and z.")
        return plan_matrix(asked.request, asked.parts_first)
    if not axes:
        raise RequestError("A sheet wants an axis, as x: cfg=2,4,6, or matrix and a prompt such as a car|red|at night.")
    return plan_plot(asked.request, [parse_axis(text) for text in axes])


def check_sheet(asked: SheetRequest, limits: Limits) -> None:
    """Refuse what no picture of the sheet may ask for, and too many of them. Raises Refused, RequestError."""
    for at, text in (("x", asked.x), ("y", asked.y), ("z", asked.z)):
        if text is not None and text.partition("=")[0].strip().rpartition(".")[2] in PICTURE_KEYS:
            raise Refused(422, "invalid_request", f"{at} names a picture; pictures are no values of an axis.", at)
    check_generate(asked.request, limits)
    cells = plan_of(asked).cells
    for cell in cells:
        check_generate(cell.request, limits)
    check_sheet_cost([cell.request for cell in cells], limits)


def check_sheet_cost(requests: list[Request], limits: Limits) -> None:
    """Refuse more pictures, larger ones, or more work in all of them, than one job may ask for. Raises Refused."""
    num, work = sum(request.batch for request in requests), sum(map(work_of, requests))
    pixels = sum((request.width or 64) * (request.height or 64) * request.batch for request in requests)
    require_within(
        (
            ("the sheet", num, limits.sheet_pictures, "pictures"),
            ("width x height x batch", pixels, limits.sheet_pixels, "pixels on the sheet"),
            ("width x height x batch x steps", work, limits.work, "pixels in all steps of the sheet"),
        )
    )
