"""What a person asks for: frozen, JSON, no torch. Every default of a generation lives here, once.

Command-line flags, HTTP schemas, PNG text and forms derive from the fields below: their names, types, bounds and help.
A field that is None is left to the model: `engine.generate` fills it in, and the `Result` carries the concrete request.
"""

from dataclasses import field
from typing import Annotated, Any, Literal, cast

from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from pydantic_core import ErrorDetails

from disegno.core.curve import check_points, parse_curve, write_curve
from disegno.core.errors import RequestError
from disegno.core.freeu import FreeU
from disegno.core.guide import Guide

ControlMode = Literal["balanced", "prompt", "control"]
ControlPass = Literal["both", "first", "hires"]
ResizeMode = Literal["stretch", "crop", "fill"]
Share = Literal["noise", "steps"]
InitResizeMode = Literal["stretch", "crop", "fill", "latent"]
MaskMode = Literal["binary", "soft", "differential"]
InpaintFill = Literal["original", "fill", "noise", "nothing"]
NoiseSource = Literal["cpu", "nv"]
PredictionName = Literal["epsilon", "v", "flow"]
Emphasis = Literal["original", "no-norm", "ignore", "none"]
Scalar = bool | int | float | str

# with a bound, pydantic reads what a text holds: half a surrogate pair (a command line in another encoding) is refused
_CONFIG = ConfigDict(extra="forbid", use_attribute_docstrings=True, str_min_length=0, allow_inf_nan=False)
_SIDE = Field(ge=64, le=8192)

OWN_VAE = "own"  # what Request.vae calls the model's own
REFERENCES = {
    "reference-only": "reference_only",
    "reference-adain": "reference_adain",
    "reference-adain-attn": "reference_adain+attn",
}
"""The controls that need no file, each with A1111's module: they are there for every model with a UNet."""
REFERENCE, FIDELITY = "reference", 0.5  # their mechanism; their parameter, as A1111's slider has it
COLOUR_FIX, VARIATION, SHARPNESS = "tile-colorfix", 8, 0.0
"""What keeps a picture's colours, without a file too: its name and mechanism; its parameters (A1111's +sharp has 1)."""
FILELESS = {**dict.fromkeys(REFERENCES, REFERENCE), COLOUR_FIX: COLOUR_FIX}
"""The controls that are there without a file, each with its mechanism."""
NUM_SEEDS = 4294967294  # A1111 parity: a random seed is drawn from [0, this)
SEEDS = 2**64  # a seed is one of [0, this); after the last comes 0


def _curve(given: object) -> object:
    """Return a curve's text, written in one way; a list of [share, value] is one too."""
    if isinstance(given, str):
        return write_curve(parse_curve(given))
    try:
        points = tuple((float(share), float(value)) for share, value in cast("list[Any]", given))
    except (TypeError, ValueError, OverflowError):
        raise ValueError("a curve is a text such as 0.2@0.1,0.5@0.3, or a list of [share, value]") from None
    return write_curve(check_points(points))


Curve = Annotated[str, BeforeValidator(_curve)]


@dataclass(frozen=True, kw_only=True, config=_CONFIG)
class ControlUnit:
    """One control: which condition, from which image, how strong, and when."""

    name: str
    """A condition that the model ships, a condition file, a ControlNet file or folder, or one that needs no file:
    reference-only, reference-adain, reference-adain-attn, tile-colorfix."""
    image: str | None = None
    """A path, or a data URI (data:image/png;base64,...); unset: the picture that is changed (`init`)."""
    annotate: str | None = None
    """What turns the image into the condition; "none" takes the image as it is; unset: the control's own annotator."""
    params: dict[str, Scalar] = field(default_factory=dict[str, Scalar])
    """The annotator's parameters, by name; of a reference its fidelity: 0 to 1, unset 0.5; of tile-colorfix its
    variation, unset 8, and its sharpness, unset 0."""
    resolution: Annotated[int | None, Field(ge=64, le=4096)] = None
    """The short side of what the annotator sees, in pixels; unset: its pixels meet the canvas's one to one."""
    strength: Annotated[float, Field(ge=0.0, le=4.0)] = 1.0
    """What the residuals are multiplied by; of a reference, how much of the net takes it up; of tile-colorfix, how
    much of the colours, 1 at most."""
    curve: Curve = ""
    """The strength over the steps, times `strength`: value@share,..., as in 0.2@0.1,0.5@0.3; straight in between."""
    layers: tuple[Annotated[float, Field(ge=0.0, le=4.0)], ...] = ()
    """A weight for each residual, shallow to deep, the middle last, instead of strength and mode's own; of an
    IP-Adapter for each cross-attention: the encoder's, the decoder's, the middle's last; of SDXL for each of its 11
    stacks of them; of a ControlNet-LLLite for each block that it adds to."""
    start: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """The share of the steps after which the control begins."""
    end: Annotated[float, Field(ge=0.0, le=1.0)] = 1.0
    """The share of the steps after which the control stops."""
    mode: ControlMode = "balanced"
    """Balanced; the prompt counts more (0.825 less a layer); or the control counts more (on the positive half only)."""
    resize: ResizeMode = "crop"
    """How an image of another shape is fitted to the canvas."""
    region: str | None = None
    """A mask, path or data URI: the control acts where it is white, in part where it is grey; unset: everywhere."""
    mask: str | None = None
    """What of the image is to be filled, white on black: for controls that inpaint; unset: the image's own."""
    passes: ControlPass = "both"
    """With a hires pass: whether the control acts in both, the first, or the hires pass only."""
    crop: bool = True
    """Where only the masked part is drawn: cut the image as the picture is cut."""
    task: str | None = None
    """Which condition the image is, of a control that knows several (UniControl, Uni-ControlNet): canny, depth, ...
    Unset: the one that the annotator makes."""
    base: str | None = None
    """The Base ControlNet of a CtrLoRA condition; unset: the one its header names, or the library's only one."""
    mix: bool = False
    """With other units of its file that say so and are used alike (UniControl, IP-Adapter): one control of the mean of
    what they show, each weighed by its strength, as strong as the strongest; else what each one adds is summed."""

    def __post_init__(self) -> None:
        if self.start > self.end:
            raise ValueError(f"the control {self.name!r} starts at {self.start} but ends at {self.end}: swap them")


@dataclass(frozen=True, kw_only=True, config=_CONFIG)
class Region:
    """Words for a part of the canvas: a box, or what is white in a mask. With neither, all of it."""

    prompt: Annotated[str, Field(min_length=1)]
    """What to draw there, in the language of the prompt; a LoRA that it names acts there alone."""
    prompts: tuple[str, ...] = ()
    """The words for each image of the batch, in full, instead of `prompt`."""
    mask: str | None = None
    """A path, or a data URI: the words hold where it is white, in part where it is grey; instead of a box."""
    x: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """The box's left edge, as a share of the width."""
    y: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Its upper edge, as a share of the height."""
    w: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """Its width, as a share; unset: up to the right edge."""
    h: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """Its height, as a share; unset: down to the lower edge."""
    weight: Annotated[float, Field(gt=0.0, le=100.0)] = 1.0
    """How much the words count there, beside other regions and the prompt's own `base_weight`."""

    def __post_init__(self) -> None:
        if self.mask is not None and (self.x, self.y, self.w, self.h) != (0, 0, None, None):
            raise ValueError("a region is a box or a mask: leave out mask, or x, y, w and h")
        for name, start, length in (("x + w", self.x, self.w), ("y + h", self.y, self.h)):
            if length is not None and start + length > 1 + 1e-6:
                raise ValueError(f"{name} is {start + length:g}, beyond the canvas: they are shares of it, 1 at most")


@dataclass(frozen=True, kw_only=True, config=_CONFIG)
class Outpaint:
    """How far the picture grows, in pixels. The request's width and height are those of the whole canvas."""

    left: Annotated[int, Field(ge=0, le=4096, multiple_of=8)] = 0
    """How far to the left, a multiple of 8."""
    right: Annotated[int, Field(ge=0, le=4096, multiple_of=8)] = 0
    """How far to the right, a multiple of 8."""
    top: Annotated[int, Field(ge=0, le=4096, multiple_of=8)] = 0
    """How far up, a multiple of 8."""
    bottom: Annotated[int, Field(ge=0, le=4096, multiple_of=8)] = 0
    """How far down, a multiple of 8."""

    def __post_init__(self) -> None:
        if not (self.left or self.right or self.top or self.bottom):
            raise ValueError("outpainting wants at least one side: left, right, top or bottom, in pixels")


@dataclass(frozen=True, kw_only=True, config=_CONFIG)
class InitImage:
    """A picture to change, and how: all of it, what a mask says, or what lies around it."""

    image: str
    """A path, or a data URI (data:image/png;base64,...)."""
    denoise: Annotated[float, Field(ge=0.0, le=1.0)] = 0.75
    """How much is drawn anew: 0 leaves the picture as it is, 1 keeps nothing but what the fill leaves."""
    exact_steps: bool = False
    """Do all of the steps (A1111's img2img_fix_steps); otherwise the share of them that `denoise` says."""
    resize: InitResizeMode = "crop"
    """How a picture of another shape is fitted to the canvas; latent: stretched, and in the latent space."""
    noise: Annotated[float, Field(ge=0.0, le=2.0)] = 1.0
    """What the starting noise is multiplied by; below 1 the picture becomes smoother."""
    extra_noise: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """How much more of the noise is added than the steps take away (A1111's img2img_extra_noise): more detail."""
    colour_correction: bool = False
    """Give the result the colours of the picture."""
    mask: str | None = None
    """A mask, path or data URI: what is white is drawn anew. Unset: all, or what is outpainted."""
    invert: bool = False
    """Draw anew what is black in the mask instead."""
    mask_mode: MaskMode = "binary"
    """Binary: a cell is changed or not; soft: in part; differential: grey says from which step on it may change."""
    mask_blur: Annotated[int, Field(ge=0, le=128)] = 4
    """How far the mask's edge is softened, in pixels (sigma of a Gaussian)."""
    mask_blur_y: Annotated[int | None, Field(ge=0, le=128)] = None
    """The same up and down; unset: as `mask_blur`."""
    fill: InpaintFill | None = None
    """What the masked part starts from: original, fill (colours around it), noise, nothing. Unset: original, and fill
    where the picture is outpainted."""
    only_masked: bool = False
    """Draw the masked part alone, at the canvas's size, and put it back into the picture, which keeps its own size."""
    padding: Annotated[int, Field(ge=0, le=1024)] = 32
    """How many pixels around the masked part are shown with it, where it is drawn alone."""
    mask_weight: Annotated[float, Field(ge=0.0, le=1.0)] = 1.0
    """How much of the masked part is hidden from an inpainting model."""
    outpaint: Outpaint | None = None
    """Draw what lies around the picture."""

    def __post_init__(self) -> None:
        if self.mask is None and (self.invert or self.only_masked):
            raise ValueError("invert and only_masked are said of a mask, and there is none: give one")
        if self.only_masked and self.outpaint:
            raise ValueError("what lies around a picture is no masked part of it: leave out only_masked or outpaint")


@dataclass(frozen=True, kw_only=True, config=_CONFIG)
class Hires:
    """A second pass: the drawn picture is enlarged, and drawn over at the new size."""

    scale: Annotated[float, Field(ge=1.0, le=8.0)] = 2.0
    """How much larger."""
    width: Annotated[int | None, _SIDE] = None
    """The width in pixels, instead of `scale`: whole latent cells of it. With both sides the picture is cut to fit."""
    height: Annotated[int | None, _SIDE] = None
    """The height in pixels, instead of `scale`."""
    upscaler: str = "Latent"
    """What enlarges: a way of the latent space (Latent, Latent (bicubic), ...), Lanczos, Nearest, or a file."""
    denoise: Annotated[float, Field(ge=0.0, le=1.0)] = 0.7
    """How much is drawn anew."""
    steps: Annotated[int | None, Field(ge=1, le=1000)] = None
    """The second pass's steps, all of them done; unset: as many as the first pass."""
    sampler: str | None = None
    """The second pass's sampler; unset: the first's."""
    schedule: str | None = None
    """The second pass's schedule; unset: the first's, and where that is Automatic the sampler's own."""
    cfg: Annotated[float | None, Field(ge=0.0, le=100.0)] = None
    """The second pass's guidance; unset: the first's."""
    prompt: str | None = None
    """What the second pass draws; unset: the same."""
    negative: str | None = None
    """What the second pass keeps away from; unset: the same."""
    prompts: tuple[str, ...] = ()
    """What the second pass draws, for each image, in full: instead of `prompt` with the styles and its wildcards."""
    negatives: tuple[str, ...] = ()
    """What the second pass keeps away from, for each image, in full."""
    model: str | None = None
    """The second pass's model; unset: the same."""


@dataclass(frozen=True, kw_only=True, config=_CONFIG)
class Refiner:
    """Another model of the same latents, which takes over on the way: the same sampler goes on with its answers."""

    model: Annotated[str, Field(min_length=1)]
    """The model that finishes the picture: a file or folder, or a name from the library."""
    at: Annotated[float, Field(ge=0.0, le=1.0)] = 0.8
    """How much of the way is done when it takes over: at 0 it draws all, at 1 nothing."""
    share: Share = "noise"
    """What of the way that is a share: of the model's noise levels, or of the steps."""
    passes: ControlPass = "both"
    """With a hires pass: whether it finishes both, the first, or the hires pass only."""


@dataclass(frozen=True, kw_only=True, config=_CONFIG)
class Tiles:
    """Draw a large canvas in overlapping parts that are averaged at every step; each sees the control's part of it."""

    size: Annotated[int | None, Field(ge=64, le=4096, multiple_of=8)] = None
    """The side of a part in pixels; unset: the model's own size."""
    overlap: Annotated[float, Field(ge=0.0, le=0.75)] = 0.25
    """How much of a part the next one shares, as a part of its side."""


@dataclass(frozen=True, kw_only=True, config=_CONFIG)
class LoraUse:
    """One style LoRA on the model: which, and how strong."""

    name: Annotated[str, Field(min_length=1)]
    """A LoRA file, or a name from the library."""
    strength: Annotated[float, Field(ge=-16.0, le=16.0)] = 1.0
    """What its change to the net is multiplied by."""
    text_strength: Annotated[float | None, Field(ge=-16.0, le=16.0)] = None
    """What its change to the text encoder is multiplied by; unset: as `strength`."""
    rank: Annotated[int | None, Field(ge=1, le=4096)] = None
    """Use only this many of its directions (A1111's dyn); unset: all."""


@dataclass(frozen=True, kw_only=True, config=_CONFIG)
class Request:
    """One generation: everything that decides the picture, and nothing else."""

    prompt: str = ""
    """What to draw."""
    negative: str = ""
    """What to keep away from."""
    prompts: tuple[str, ...] = ()
    """A prompt for each image of the batch, instead of `prompt`."""
    negatives: tuple[str, ...] = ()
    """A negative prompt for each image of the batch, instead of `negative`."""
    styles: tuple[str, ...] = ()
    """Named pieces of prompts, from styles.csv in your prompt folders; in this order."""
    model: str = "diorama"
    """The built-in model, a file or folder, or a name from the library."""
    prediction: PredictionName | None = None
    """What the model's output means, where its file does not say it or says it wrong; unset: as the file says."""
    vae: str | None = None
    """The VAE: a file or folder, or a name from the library; own: the model's. Unset: the one that lies beside the
    model's file under its name (NAME.vae.safetensors or .vae.pt), else the model's own."""
    width: Annotated[int | None, Field(ge=64, le=4096, multiple_of=8)] = None
    """In pixels, a multiple of 8; unset: the model's own."""
    height: Annotated[int | None, Field(ge=64, le=4096, multiple_of=8)] = None
    """In pixels, a multiple of 8; unset: the model's own."""
    seed: Annotated[int, Field(ge=-1, le=SEEDS - 1)] = -1
    """The first image's seed; the next images count up. -1 draws one."""
    batch: Annotated[int, Field(ge=1, le=64)] = 1
    """How many images."""
    steps: Annotated[int | None, Field(ge=1, le=1000)] = None
    """Sampling steps; unset: the model's own."""
    few_steps: bool = False
    """Draw in the few steps that the model was taught: its LoRA for them, and its steps, guidance, sampler and schedule
    where they are unset. A picture is changed in all of them (`exact_steps`)."""
    sampler: str | None = None
    """How the noise is removed; unset: the model's own."""
    schedule: str | None = None
    """How the noise levels are spaced; unset: the sampler's own."""
    cfg: Annotated[float | None, Field(ge=0.0, le=100.0)] = None
    """Classifier-free guidance: how far to go from the negative prompt to the prompt; 1 is off; unset: the model's."""
    cfg_rescale: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """How much of the guided estimate's contrast is put back to the unguided one's (Lin et al. 2023, eq. 15-16)."""
    cfg_start: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """The share of the steps, the first ones, that go without guidance (A1111's Skip Early CFG); 0: none does."""
    negative_min: Annotated[float, Field(ge=0.0)] = 0.0
    """Below this sigma every second step goes without the negative prompt and guidance, in half the time (A1111's
    NGMS); 0: none does."""
    negative_min_all: bool = False
    """Below `negative_min` all steps go without them (Kynkäänniemi et al. 2024), not every second."""
    guide: Guide | None = None
    """Guidance beside `cfg`: away from what a weakened net says, and gentler ways to weigh the prompt."""
    freeu: FreeU | None = None
    """A UNet's decoder that listens more to its own features and less to its skip connections (Si et al. 2023)."""
    clip_skip: Annotated[int, Field(ge=1, le=12)] = 1
    """Which layer of CLIP, counted from its end, gives the text states."""
    emphasis: Emphasis = "original"
    """What (word:1.2) does: original keeps each chunk's mean, no-norm does not; ignore: nothing; none: it is text."""
    comma_backtrack: Annotated[int, Field(ge=0, le=74)] = 20
    """How many tokens before the end of a chunk a comma may lie, for the words after it to go to the next chunk."""
    pad_texts: bool = False
    """Give the shorter of prompt and negative prompt empty chunks: one evaluation of the model, another picture."""
    old_timelines: bool = False
    """Read [from:to:when] as A1111 before 1.6: below 1 a share of the steps, from 1 on a step."""
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
    subseed: Annotated[int, Field(ge=-1, le=SEEDS - 1)] = -1
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
    loras: tuple[LoraUse, ...] = ()
    """Style LoRAs, beside those that the prompt names (<lora:name:0.8>). The one that the model brings for few steps
    is named, too."""
    controls: tuple[ControlUnit, ...] = ()
    """The controls, all at once."""
    regions: Annotated[tuple[Region, ...], Field(max_length=16)] = ()
    """Words for parts of the canvas, beside the prompt, which holds everywhere."""
    base_weight: Annotated[float, Field(ge=0.0, le=100.0)] = 0.2
    """How much the prompt counts where regions are, beside their weights. Where none is, it holds alone."""
    init: InitImage | None = None
    """The picture to change."""
    hires: Hires | None = None
    """A second pass at a larger size."""
    refiner: Refiner | None = None
    """Another model that takes over on the way."""
    tiles: Tiles | None = None
    """Draw in parts: for a canvas that is larger than the model's own."""
    seamless: bool = False
    """Draw a picture that can be laid beside itself without a seam, as a texture is (A1111's Tiling)."""
    image_cfg: Annotated[float, Field(ge=0.0, le=100.0)] = 1.5
    """How closely a model that edits by instruction keeps to the picture."""
    crop_top: Annotated[int, Field(ge=0, le=4096)] = 0
    """How many pixels of the picture Stable Diffusion XL is told to lie above the canvas, cut off; 0: none does."""
    crop_left: Annotated[int, Field(ge=0, le=4096)] = 0
    """The same to the left of the canvas."""
    beauty: Annotated[float, Field(ge=0.0, le=10.0)] = 6.0
    """How beautiful Stable Diffusion XL's refiner is told that the prompt's picture is, of 10."""
    plainness: Annotated[float, Field(ge=0.0, le=10.0)] = 2.5
    """How beautiful it is told that the negative prompt's is."""
    depth: str | None = None
    """A depth map, white is near, for models that are shown one (Stable Diffusion 2 depth): a path, or a data URI.
    Unset: that of the picture that is changed."""
    depth_annotate: str | None = None
    """What draws the depth map, from `depth` or from the picture that is changed; unset: `depth` is one already, and
    the picture's is estimated by the model."""
    vae_tile: Annotated[int | None, Field(ge=0, le=4096, multiple_of=64)] = None
    """Encode and decode in parts of this many pixels; 0: at once; unset: in parts where the picture is large."""

    def __post_init__(self) -> None:
        if self.init is None and (unit := next((unit for unit in self.controls if not unit.image), None)):
            raise ValueError(f"the control {unit.name!r} has no image, and there is no picture to change: give one")
        if self.hires is not None and self.init is not None and (self.init.mask or self.init.outpaint):
            raise ValueError("a hires pass draws the whole picture: leave it out, or the mask and the outpainting")
        if self.seamless and (self.tiles is not None or self.vae_tile):
            raise ValueError("no part of a canvas sees the opposite edge: leave out seamless, or tiles and vae_tile")
        if self.guide is not None and self.guide.apg and self.cfg_rescale:
            raise ValueError("guide.apg and cfg_rescale both take back contrast: choose one")
        hires = self.hires or Hires()
        for name, given in (
            *(("prompts", self.prompts), ("negatives", self.negatives)),
            *(("hires.prompts", hires.prompts), ("hires.negatives", hires.negatives)),
            *((f"regions.{n}.prompts", region.prompts) for n, region in enumerate(self.regions)),
        ):
            if given and len(given) != self.batch:
                raise ValueError(f"there are {len(given)} {name} for a batch of {self.batch}: give one for each image")


_REQUEST: TypeAdapter[Request] = TypeAdapter(Request)


def describe(error: ValidationError) -> str:
    """Return a validation error as one readable line: each field, what is wrong with it, and what was given."""
    return "; ".join(_fault(".".join(str(part) for part in fault["loc"]), fault) for fault in error.errors())


def _fault(where: str, fault: ErrorDetails) -> str:
    """Return what is wrong with one field; of a group of fields, that they do not go together."""
    text, given = fault["msg"].removeprefix("Value error, "), fault["input"]
    return f"{where or 'request'}: {text}" + ("" if isinstance(given, dict) else f" (given: {given!r})")


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
