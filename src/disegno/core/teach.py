"""What a person asks a training for: frozen, JSON, no torch. Every default of a training lives here, once.

Command-line flags, HTTP schemas, run folders and forms derive from the fields below, as those of a generation derive
from `core.request.Request`. A field that is None is left to the recipe or to the machine.
"""

import re
from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from disegno.core.errors import RequestError
from disegno.core.request import Scalar, describe

OptimiserName = Literal["adamw", "adamw8bit", "muon"]
RateSchedule = Literal["constant", "cosine", "linear"]
TimeDraw = Literal["auto", "uniform", "logit-normal", "high-noise"]

# A file's name on every system, and a word of --control NAME=PICTURE,OPTION=VALUE.
_NAME = re.compile(r"[^\s./\\:*?\"<>|=,\x00-\x1f]([^/\\:*?\"<>|=,\x00-\x1f]{0,98}[^\s./\\:*?\"<>|=,\x00-\x1f])?")


def _file_name(name: str) -> str:
    """Return the name, where a file can have it. Raises ValueError."""
    if not _NAME.fullmatch(name):
        raise ValueError('a file is called so: 1 to 100 letters, none of / \\ : * ? " < > | = , and no dot at an end')
    return name


_CONFIG = ConfigDict(extra="forbid", use_attribute_docstrings=True)


@dataclass(frozen=True, kw_only=True, config=_CONFIG)
class TeachRequest:
    """One training: everything that decides the weights, and nothing else."""

    name: Annotated[str, AfterValidator(_file_name)]
    """What the new control is called; its file is NAME.safetensors."""
    data: tuple[str, ...]
    """Folders, tars or URL patterns of pairs; several only for recipes that learn several conditions, as TASK=DATA."""
    recipe: str = "ctrlora"
    """What is trained: ctrlora, base, controlnet, full, or another of the registry."""
    model: str = "diorama"
    """The model under which the control learns: the built-in one, a file or folder, or a name from the library."""
    base: str | None = None
    """The Base ControlNet to start from; unset: the model's own, or the library's only one."""
    start: str | None = None
    """A control file of the same kind to go on from."""
    annotator: str | None = None
    """What makes the condition from a picture, for the file's header and for measuring; unset: the data set's."""
    params: dict[str, Scalar] = field(default_factory=dict[str, Scalar])
    """The annotator's parameters, by name."""
    width: Annotated[int | None, Field(ge=64, le=4096, multiple_of=8)] = None
    """In pixels; unset: the model's own. With buckets: the area that they share."""
    height: Annotated[int | None, Field(ge=64, le=4096, multiple_of=8)] = None
    """In pixels; unset: the model's own."""
    buckets: bool = True
    """Train at several aspect ratios of about one area, each pair at its nearest; else all at width x height."""
    steps: Annotated[int, Field(ge=1)] = 1000
    """Optimiser steps."""
    batch: Annotated[int, Field(ge=1)] = 1
    """Examples in one forward pass, on each process."""
    accumulate: Annotated[int, Field(ge=1)] = 1
    """Forward passes in one optimiser step."""
    rank: Annotated[int, Field(ge=1, le=1024)] = 128
    """The rank of the LoRA matrices."""
    alpha: Annotated[float | None, Field(gt=0)] = None
    """The LoRA's alpha; unset: the rank, which is a scale of 1."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The share of a LoRA's inner activations that are dropped while it trains."""
    rate: Annotated[float | None, Field(gt=0)] = None
    """The peak learning rate; unset: the recipe's own."""
    rate_schedule: RateSchedule = "constant"
    """How the learning rate goes after its warm-up."""
    warmup: Annotated[int, Field(ge=0)] = 0
    """Steps in which the learning rate rises from 0."""
    optimiser: OptimiserName = "adamw"
    """AdamW; the same with its moments in 8 bits, a quarter of their memory and slower without a GPU; or Muon.

    Muon moves matrices by AdamW's rates in all directions alike: half of the memory of AdamW's moments, and often fewer
    steps for a whole net.
    """
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """How much of each weight a rate takes away, apart from the gradient (AdamW's and Muon's)."""
    clip: Annotated[float, Field(ge=0)] = 1.0
    """The largest norm of a gradient; 0 does not clip."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The decay of an average over the weights, which is what is saved; 0 is off."""
    caption_dropout: Annotated[float, Field(ge=0, le=1)] = 0.3
    """The share of examples whose caption is left out (CtrLoRA: 0.3)."""
    timesteps: TimeDraw = "auto"
    """How noise levels are drawn; auto: uniform, and logit-normal for flow models; high-noise: half of two draws."""
    min_snr: Annotated[float, Field(ge=0)] = 0.0
    """Min-SNR-gamma (Hang et al. 2023), usually 5; 0 is off."""
    offset_noise: Annotated[float, Field(ge=0, le=1)] = 0.0
    """The deviation of a noise that is one number a channel, added to the noise; 0 is off."""
    checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a quarter more time."""
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = 0
    """Decides the order of the data, the noise and the initial matrices."""
    holdout: Annotated[int, Field(ge=0)] = 16
    """Pairs that are kept back, for the held-out loss and the sample pictures; at most a tenth of the data."""
    validate_every: Annotated[int, Field(ge=0)] = 100
    """Steps between two looks at what was learned (held-out loss, pictures, controllability); 0 is never."""
    save_every: Annotated[int, Field(ge=1)] = 500
    """Steps between two checkpoints; ten minutes between them at most."""
    until_converged: bool = False
    """Stop before `steps` when controllability has not improved for a while; the best weights are kept."""
    licence: str = ""
    """The licence of the data or of the file, for its header."""


_TEACH: TypeAdapter[TeachRequest] = TypeAdapter(TeachRequest)


def make_teach_request(fields: dict[str, Any]) -> TeachRequest:
    """Return the request with these fields. Raises RequestError naming every field that is wrong."""
    try:
        return _TEACH.validate_python(fields)
    except ValidationError as error:
        raise RequestError(f"The training request is not valid. {describe(error)}") from error


def teach_to_json(request: TeachRequest) -> str:
    """Return the request as JSON text, all fields included."""
    return _TEACH.dump_json(request, indent=2).decode()


def teach_from_json(text: str | bytes) -> TeachRequest:
    """Return the request that `teach_to_json` wrote. Raises RequestError."""
    try:
        return _TEACH.validate_json(text)
    except ValidationError as error:
        raise RequestError(f"This is not a training request of this program. {describe(error)}") from error
