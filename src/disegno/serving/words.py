"""The words that the server, its workers and its doors share: why a job failed, what it gave back, what there is."""

from dataclasses import field

from pydantic import ConfigDict, JsonValue, TypeAdapter
from pydantic.dataclasses import dataclass

from disegno.core.request import Scalar

_CONFIG = ConfigDict(extra="forbid", use_attribute_docstrings=True)


@dataclass(frozen=True, config=_CONFIG)
class Failure:
    """Why a job ended without a result."""

    code: str
    """For programs: invalid_request, unknown_name, over_limit, bad_image, bad_model_file, out_of_resources, no_room,
    crashed, stalled, internal."""
    message: str
    """What was wrong and what to do, in words."""


@dataclass(frozen=True, config=_CONFIG)
class StoredFile:
    """One file of a job's result."""

    name: str
    """Unique within the job."""
    role: str
    """image, condition, sheet, weights, card, report, data."""
    media_type: str
    """As in HTTP's Content-Type."""
    num_bytes: int
    """How long the file is."""
    sha256: str
    """Of its content, hexadecimal."""


@dataclass(frozen=True, config=_CONFIG)
class Outcome:
    """What a job gave back."""

    files: tuple[StoredFile, ...] = ()
    """Its files, in order."""
    warnings: tuple[str, ...] = ()
    """What was ignored or changed, in plain words."""
    facts: dict[str, JsonValue] = field(default_factory=dict[str, JsonValue])
    """What else this kind of job tells: a generation its concrete request, its seeds, its environment, its timing."""


@dataclass(frozen=True, config=_CONFIG)
class LookView:
    """What a training had learned by a step."""

    step: int
    loss: float | None
    """Of the pairs that are held out."""
    metrics: dict[str, float]
    """Figures by name: the condition's own measure, its floor and ceiling, controllability."""
    verdict: str
    """early, learning, converged, not-learning."""
    words: str
    """The verdict in a sentence."""
    reasons: tuple[str, ...] = ()
    """Why it does not learn, each with what to do."""
    sheet: str | None = None
    """Pictures as a data URI: a line each for condition, pictures drawn, one without the control, the real one."""


# ---- what there is


@dataclass(frozen=True, config=_CONFIG)
class FewStepsCard:
    """How a model draws in few steps (a request's `few_steps`)."""

    lora: str | None
    """What prompts call the LoRA that it brings for them; null where it needs none."""
    steps: int
    cfg: float
    sampler: str
    schedule: str


@dataclass(frozen=True, config=_CONFIG)
class WeightsCard:
    """A file of the library, or something that is built in."""

    name: str
    """What a request calls it."""
    kind: str
    """model, control, lora, embedding, vae, upscaler ..., unknown, broken."""
    family: str | None = None
    """The model family: sd1, sd2, sdxl, sd3, diorama."""
    mechanism: str | None = None
    """Of a control: controlnet, ctrlora, ctrlora-base ..."""
    annotator: str | None = None
    """Of a control: what draws its condition from a picture."""
    file: str | None = None
    """The file's name, without its folder."""
    place: str | None = None
    """The file's name with its folders below the model folder, as sdxl/turbo.safetensors."""
    num_bytes: int = 0
    """How long the file is."""
    problem: str | None = None
    """What is wrong with a broken file."""
    sha256: str | None = None
    """Of the file's content, where it is known already: gigabytes are not read for a list."""
    tag: str | None = None
    """Of a control: what A1111's lists show of its content."""
    tasks: tuple[str, ...] = ()
    """Of a control that knows several conditions: their names (a unit's `task`)."""
    vectors: tuple[int, int] | None = None
    """Of an embedding: how many vectors it has, and how wide they are: SDXL's, of its two text encoders together."""
    defaults: dict[str, int | float | str] | None = None
    """Of a model: what it fills in where a request leaves it open: width, height, steps, cfg, sampler, schedule."""
    layout: str | None = None
    """Whose names its tensors have: ldm (the original programs'), diffusers ..."""
    preview: str | None = None
    """A small picture of what it does, as a data URI: NAME.preview.png beside the file, or its header's own."""
    shipped: bool = False
    """Whether it came with the built-in model."""
    few_steps: FewStepsCard | None = None
    """Of a model that was taught to draw in few steps: how."""
    sees_depth: bool = False
    """Of a model: whether it draws by a depth map (Stable Diffusion 2 depth)."""
    params: dict[str, Scalar] = field(default_factory=dict[str, Scalar])
    """Of a control: its annotator's parameters in the drawings that it was taught with, where they are not the
    annotator's own; of a reference, which has no file: its own."""
    metadata: dict[str, str] = field(default_factory=dict[str, str])
    """Of a LoRA: what its header says of it, and of its training (ss_..., modelspec...), without what is long."""


@dataclass(frozen=True, config=_CONFIG)
class ParamCard:
    """One parameter of an annotator. Bounds are inclusive."""

    name: str
    kind: str
    """int, float, bool, choice or text."""
    default: Scalar
    """What it is by itself."""
    help: str
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    """What it may be, of a choice."""


@dataclass(frozen=True, config=_CONFIG)
class AnnotatorCard:
    """An annotator and its parameters."""

    name: str
    title: str
    summary: str
    params: tuple[ParamCard, ...]
    a1111_names: tuple[str, ...]
    """What AUTOMATIC1111's ControlNet extension calls it."""


@dataclass(frozen=True, config=_CONFIG)
class SamplerCard:
    """A sampler."""

    name: str
    aliases: tuple[str, ...]
    """Other names that it answers to."""
    default_schedule: str | None
    """The spacing of noise levels that it has by itself."""
    evals_per_step: int
    """How often it asks the model in a step."""
    stochastic: bool
    """Whether it adds noise on its way."""


@dataclass(frozen=True, config=_CONFIG)
class ScheduleCard:
    """A spacing of the noise levels."""

    name: str
    label: str
    """Its name for people."""
    aliases: tuple[str, ...]


@dataclass(frozen=True, config=_CONFIG)
class StyleCard:
    """A named piece of prompts."""

    name: str
    prompt: str
    negative: str


@dataclass(frozen=True, config=_CONFIG)
class Catalogue:
    """The names that requests may use, as a worker knows them."""

    models: tuple[WeightsCard, ...] = ()
    controls: tuple[WeightsCard, ...] = ()
    files: tuple[WeightsCard, ...] = ()
    """Every other file of the library: LoRAs, embeddings, VAEs, upscalers, and what is broken or unknown."""
    annotators: tuple[AnnotatorCard, ...] = ()
    samplers: tuple[SamplerCard, ...] = ()
    schedules: tuple[ScheduleCard, ...] = ()
    styles: tuple[StyleCard, ...] = ()
    environment: dict[str, str] = field(default_factory=dict[str, str])
    """What decides the bits of a picture beside its request: versions, device, dtype."""


OUTCOME: TypeAdapter[Outcome] = TypeAdapter(Outcome)
FAILURE: TypeAdapter[Failure] = TypeAdapter(Failure)
