"""What a person asks for: frozen, JSON, no torch. Every default of a generation lives here, once.

Command-line flags, HTTP schemas, PNG text and forms derive from the fields below: their names, types, bounds and help.
A field that is None is left to the model: `engine.generate` fills it in, and the `Result` carries the concrete request.
"""

from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from disegno.core.errors import RequestError

ControlMode = Literal["balanced", "prompt", "control"]
ResizeMode = Literal["stretch", "crop", "fill"]
NoiseSource = Literal["cpu", "nv"]
Scalar = bool | int | float | str

_CONFIG = ConfigDict(extra="forbid", use_attribute_docstrings=True)


@dataclass(frozen=True, kw_only=True, config=_CONFIG)
class ControlUnit:
    """One control: which condition, from which image, how strong, and when."""

    name: str
    """A condition that the model ships, a condition file, or a ControlNet file or folder."""
    image: str
    """A path, or a data URI (data:image/png;base64,...)."""
    annotate: str | None = None
    """What turns the image into the condition; "none" takes the image as it is; unset: the control's own annotator."""
    params: dict[str, Scalar] = field(default_factory=dict[str, Scalar])
    """The annotator's parameters, by name."""
    strength: Annotated[float, Field(ge=0.0, le=4.0)] = 1.0
    """What the residuals are multiplied by."""
    start: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """The share of the steps after which the control begins."""
    end: Annotated[float, Field(ge=0.0, le=1.0)] = 1.0
    """The share of the steps after which the control stops."""
    mode: ControlMode = "balanced"
    """Balanced; the prompt counts more (0.825 less a layer); or the control counts more (on the positive half only)."""
    resize: ResizeMode = "crop"
    """How an image of another shape is fitted to the canvas."""
    base: str | None = None
    """The Base ControlNet of a CtrLoRA condition; unset: the one its header names, or the library's only one."""

    def __post_init__(self) -> None:
        if self.start > self.end:
            raise ValueError(f"the control {self.name!r} starts at {self.start} but ends at {self.end}: swap them")


@dataclass(frozen=True, kw_only=True, config=_CONFIG)
class Request:
    """One generation: everything that decides the picture, and nothing else."""

    prompt: str = ""
    """What to draw."""
    negative: str = ""
    """What to keep away from."""
    model: str = "diorama"
    """The built-in model, a file or folder, or a name from the library."""
    width: Annotated[int | None, Field(ge=64, le=4096, multiple_of=8)] = None
    """In pixels, a multiple of 8; unset: the model's own."""
    height: Annotated[int | None, Field(ge=64, le=4096, multiple_of=8)] = None
    """In pixels, a multiple of 8; unset: the model's own."""
    seed: Annotated[int, Field(ge=-1, le=2**64 - 1)] = -1
    """The first image's seed; the next images count up. -1 draws one."""
    batch: Annotated[int, Field(ge=1, le=64)] = 1
    """How many images."""
    steps: Annotated[int | None, Field(ge=1, le=1000)] = None
    """Sampling steps; unset: the model's own."""
    sampler: str | None = None
    """How the noise is removed; unset: the model's own."""
    schedule: str | None = None
    """How the noise levels are spaced; unset: the sampler's own."""
    cfg: Annotated[float | None, Field(ge=0.0, le=100.0)] = None
    """Classifier-free guidance: how far to go from the negative prompt to the prompt; 1 is off; unset: the model's."""
    cfg_rescale: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """How much of the guided estimate's contrast is put back to the unguided one's (Lin et al. 2023, eq. 15-16)."""
    clip_skip: Annotated[int, Field(ge=1, le=12)] = 1
    """Which layer of CLIP, counted from its end, gives the text states."""
    eta: Annotated[float | None, Field(ge=0.0, le=10.0)] = None
    """How much fresh noise a stochastic sampler adds; unset: 1 for ancestral and SDE samplers, 0 for DDIM."""
    churn: Annotated[float, Field(ge=0.0, le=100.0)] = 0.0
    """Karras et al. 2022's S_churn, for Euler, Heun and DPM2."""
    churn_min: Annotated[float, Field(ge=0.0)] = 0.0
    """S_tmin: the lowest sigma at which churn acts."""
    churn_max: Annotated[float, Field(ge=0.0)] = 0.0
    """S_tmax: the highest sigma at which churn acts; 0 is no limit."""
    churn_noise: Annotated[float, Field(ge=0.0, le=2.0)] = 1.0
    """S_noise: the scale of added noise."""
    subseed: Annotated[int, Field(ge=-1, le=2**64 - 1)] = -1
    """The variation's seed; -1 draws one."""
    subseed_strength: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """How far the noise goes from the seed's to the subseed's, on the sphere."""
    seed_width: Annotated[int, Field(ge=0, le=4096)] = 0
    """Draw the noise as for a picture of this width and fit it in; 0 is off."""
    seed_height: Annotated[int, Field(ge=0, le=4096)] = 0
    """Draw the noise as for a picture of this height and fit it in; 0 is off."""
    seed_delta: Annotated[int, Field(ge=0, le=2**32 - 1)] = 0
    """Added to the seed for the noise of the steps (A1111's ENSD)."""
    noise_source: NoiseSource = "cpu"
    """torch's CPU generator, or the numbers that an NVIDIA card would draw."""
    controls: tuple[ControlUnit, ...] = ()
    """The controls, all at once."""


_REQUEST: TypeAdapter[Request] = TypeAdapter(Request)


def describe(error: ValidationError) -> str:
    """Return a validation error as one readable line: each field, what is wrong with it, and what was given."""
    faults = [(".".join(str(part) for part in fault["loc"]), fault) for fault in error.errors()]
    return "; ".join(f"{where or 'request'}: {fault['msg']} (given: {fault['input']!r})" for where, fault in faults)


def make_request(fields: dict[str, Any]) -> Request:
    """Return the request with these fields. Raises RequestError naming every field that is wrong."""
    try:
        return _REQUEST.validate_python(fields)
    except ValidationError as error:
        raise RequestError(f"The request is not valid. {describe(error)}") from error


def to_json(request: Request) -> str:
    """Return the request as JSON text, all fields included."""
    return _REQUEST.dump_json(request).decode()


def from_json(text: str | bytes) -> Request:
    """Return the request that `to_json` wrote. Raises RequestError."""
    try:
        return _REQUEST.validate_json(text)
    except ValidationError as error:
        raise RequestError(f"This is not a request of this program. {describe(error)}") from error
