"""What a person asks an evaluation for: frozen, JSON, no torch. Every default of an evaluation lives here, once."""

from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from disegno.core.errors import RequestError
from disegno.core.request import Scalar, describe

MeasureName = Literal["edge-f1", "miou", "boxes-iou", "rmse", "delta-e", "ssim", "psnr"]

_CONFIG = ConfigDict(extra="forbid", use_attribute_docstrings=True)


@dataclass(frozen=True, kw_only=True, config=_CONFIG)
class EvaluateRequest:
    """One evaluation of a control: everything that decides its figures."""

    control: str
    """A condition that the model ships, a control's file or folder, or a name from the library."""
    data: str
    """Pairs to measure on: a folder, tar or URL pattern; best pairs that the control was not taught with."""
    against: str | None = None
    """Another control, drawn and measured beside it."""
    num: Annotated[int, Field(ge=2)] = 32
    """How many pairs."""
    holdout: Annotated[int, Field(ge=0)] = 0
    """Only pairs that a training on this data, with the same holdout, kept back; 0: all."""
    model: str = "diorama"
    """The model to draw with: the built-in one, a file or folder, or a name from the library."""
    task: str | None = None
    """Which condition it is, of a control that knows several (UniControl, Uni-ControlNet)."""
    base: str | None = None
    """The Base ControlNet of CtrLoRA controls; unset: the one their headers name, or the library's only one."""
    annotator: str | None = None
    """What draws a condition again from a picture; unset: the data set's, or the control's own."""
    params: dict[str, Scalar] = field(default_factory=dict[str, Scalar])
    """The annotator's parameters; unset: the data set's."""
    script: str | None = None
    """A Python file whose condition(image) draws a condition again, in place of an annotator. It is run."""
    measure: MeasureName | None = None
    """What two drawings are compared by; unset: the annotator's own measure, SSIM for a script."""
    restore: bool = False
    """The condition is a damaged picture, which the control should mend: compare with the real one."""
    clip: str | None = None
    """The folder of a CLIP (config.json, model.safetensors), for the agreement of pictures and captions."""
    width: Annotated[int | None, Field(ge=64, le=4096, multiple_of=8)] = None
    """In pixels; unset: the model's own."""
    height: Annotated[int | None, Field(ge=64, le=4096, multiple_of=8)] = None
    """In pixels; unset: the model's own."""
    steps: Annotated[int | None, Field(ge=1, le=1000)] = None
    """Sampling steps; unset: the model's own."""
    cfg: Annotated[float | None, Field(ge=0.0, le=100.0)] = None
    """Classifier-free guidance; unset: the model's own."""
    strength: Annotated[float, Field(ge=0.0, le=4.0)] = 1.0
    """The control's strength."""
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = 0
    """With each pair's name decides the seed of its pictures: the same for every control, and without one."""


_EVALUATE: TypeAdapter[EvaluateRequest] = TypeAdapter(EvaluateRequest)


def make_evaluate_request(fields: dict[str, Any]) -> EvaluateRequest:
    """Return the request with these fields. Raises RequestError naming every field that is wrong."""
    try:
        return _EVALUATE.validate_python(fields)
    except ValidationError as error:
        raise RequestError(f"The evaluation's request is not valid. {describe(error)}") from error
