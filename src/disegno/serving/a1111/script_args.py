"""The arguments of A1111's scripts, and of Forge's, in their order, with their labels, defaults and bounds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from disegno.serving.a1111.coerce import Json, Kind, coerced, shortened
from disegno.serving.a1111.errors import Fault, Path, WireError


@dataclass(frozen=True)
class Arg:
    """One argument. `choices`: the words that it may be; where it is a number too, that is a choice's place."""

    name: str
    label: str
    kind: Kind
    default: Json
    low: float | None = None
    high: float | None = None
    step: float | None = None
    choices: tuple[str, ...] = ()

    def read(self, value: Json, number: int, at: Path) -> Json:
        """Return a value of it, the default for null. Raises WireError naming the argument's place and name."""
        path = (*at, number, self.name)
        if value is None:
            return self.default
        if not self.choices or self.kind == "list":
            return coerced(value, self.kind, path, self.low, self.high)
        words = {choice.lower(): choice for choice in self.choices}
        if isinstance(value, str) and value.strip().lower() in words:
            return words[value.strip().lower()]
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(self.choices):
            return self.choices[value]
        raise WireError.of_fields(Fault(path, f"permitted: {', '.join(self.choices)} (given: {shortened(value)})"))


FILLED = ("fill", "original", "latent noise", "latent nothing")
SIDES = ("left", "right", "up", "down")
REDRAWN = ("Linear", "Chess", "None")
SEAMS = ("None", "Band pass", "Half tile offset pass", "Half tile offset pass + intersections")
TARGETS = ("From img2img2 settings", "Custom size", "Scale from image size")

FREEU = "freeu integrated (sd 1.x, sd 2.x, sdxl)"
PAG = "perturbedattentionguidance integrated"
REFORGE_PAG = "perturbedattentionguidance integrated (sd1.x, sd2.x, sdxl)"
EXTENSION_PAG = "perturbed-attention guidance"
MULTIDIFFUSION = "multidiffusion integrated"
NEVER_OOM = "never oom integrated"

_ENABLED = Arg("enabled", "Enabled", "bool", False)
_BLOCK = (
    Arg("block", "U-Net Block", "str", "middle", choices=("input", "middle", "output")),
    Arg("block_id", "U-Net Block Id", "int", 0, 0, None, 1),
)
_OVERRIDE = (
    Arg("hr_override", "Override for Hires. fix", "bool", False),
    Arg("hr_cfg", "CFG Scale", "float", 7.0, 1, 30, 0.5),
    Arg("hr_scale", "PAG Scale", "float", 3.0, 0, 30, 0.01),
)
_ADAPTIVE = Arg("adaptive_scale", "Adaptive Scale", "float", 0.0, 0, 1, 0.001)
_HR_ADAPTIVE = Arg("hr_adaptive_scale", "Adaptive Scale", "float", 0.0, 0, 1, 0.001)
_RESCALES = ("full", "partial", "snf")


def _pag(start: float, end: float) -> tuple[Arg, ...]:
    return (
        _ENABLED,
        Arg("scale", "Scale", "float", 3.0, 0, 100, 0.1),
        Arg("attenuation", "Attenuation (linear, % of scale)", "float", 0.0, 0, 100, 0.1),
        Arg("start", "Start step", "float", start, 0, 1, 0.01),
        Arg("end", "End step", "float", end, 0, 1, 0.01),
    )


RESCALED_PAG = (
    _ENABLED,
    Arg("scale", "PAG Scale", "float", 3.0, 0, 30, 0.01),
    Arg("rescale", "Rescale PAG", "float", 0.0, 0, 1, 0.01),
    Arg("rescale_mode", "Rescale Mode", "str", "full", choices=_RESCALES),
    _ADAPTIVE,
    Arg("hr_mode", "Hires Fix Mode", "str", "Both", choices=("Both", "HRFix Off", "HRFix Only")),
    *_BLOCK,
    Arg("block_list", "U-Net Block List", "str", ""),
    *_OVERRIDE,
    Arg("hr_rescale", "Rescale PAG", "float", 0.0, 0, 1, 0.01),
    Arg("hr_rescale_mode", "Rescale Mode", "str", "full", choices=_RESCALES),
    _HR_ADAPTIVE,
    Arg("sigma_start", "Sigma Start", "float", -1.0),
    Arg("sigma_end", "Sigma End", "float", -1.0),
)
"""The arguments of the extension "Perturbed-Attention Guidance" in its later versions."""
ARGS: Mapping[str, tuple[Arg, ...]] = {
    "prompt matrix": (
        Arg("put_at_start", "Put variable parts at start of prompt", "bool", False),
        Arg("different_seeds", "Use different seed for each picture", "bool", False),
        Arg("prompt_type", "Select prompt", "str", "positive", choices=("positive", "negative")),
        Arg("variations_delimiter", "Select joining char", "str", "comma", choices=("comma", "space")),
        Arg("margin_size", "Grid margins (px)", "int", 0, 0, 500, 2),
    ),
    "prompts from file or textbox": (
        Arg("checkbox_iterate", "Iterate seed every line", "bool", False),
        Arg("checkbox_iterate_batch", "Use same random seed for all lines", "bool", False),
        Arg("prompt_position", "Insert prompts at the", "str", "start", choices=("start", "end")),
        Arg("prompt_txt", "List of prompt inputs", "str", ""),
    ),
    "loopback": (
        Arg("loops", "Loops", "int", 4, 1, 32, 1),
        Arg("final_denoising_strength", "Final denoising strength", "float", 0.5, 0, 1, 0.01),
        Arg("denoising_curve", "Denoising strength curve", "str", "Linear", choices=("Aggressive", "Linear", "Lazy")),
        Arg(
            "append_interrogation",
            "Append interrogated prompt at each iteration",
            "str",
            "None",
            choices=("None", "CLIP"),
        ),
    ),
    "sd upscale": (
        Arg("info", "Info", "any", ""),
        Arg("overlap", "Tile overlap", "int", 64, 0, 256, 16),
        Arg("upscaler_index", "Upscaler", "any", 0),
        Arg("scale_factor", "Scale Factor", "float", 2.0, 1.0, 4.0, 0.05),
    ),
    "ultimate sd upscale": (
        Arg("info", "Info", "any", ""),
        Arg("tile_width", "Tile width", "int", 512, 0, 2048, 64),
        Arg("tile_height", "Tile height", "int", 0, 0, 2048, 64),
        Arg("mask_blur", "Mask blur", "int", 8, 0, 64, 1),
        Arg("padding", "Padding", "int", 32, 0, 512, 1),
        Arg("seams_fix_width", "Width", "int", 64, 0, 128, 1),
        Arg("seams_fix_denoise", "Denoise", "float", 0.35, 0, 1, 0.01),
        Arg("seams_fix_padding", "Padding", "int", 16, 0, 128, 1),
        Arg("upscaler_index", "Upscaler", "any", 0),
        Arg("save_upscaled_image", "Upscaled", "bool", True),
        Arg("redraw_mode", "Type", "str", REDRAWN[0], choices=REDRAWN),
        Arg("save_seams_fix_image", "Seams fix", "bool", False),
        Arg("seams_fix_mask_blur", "Mask blur", "int", 4, 0, 64, 1),
        Arg("seams_fix_type", "Type", "str", SEAMS[0], choices=SEAMS),
        Arg("target_size_type", "Target size type", "str", TARGETS[0], choices=TARGETS),
        Arg("custom_width", "Custom width", "int", 2048, 64, 8192, 64),
        Arg("custom_height", "Custom height", "int", 2048, 64, 8192, 64),
        Arg("custom_scale", "Scale", "float", 2.0, 1, 16, 0.01),
    ),
    "poor man's outpainting": (
        Arg("pixels", "Pixels to expand", "int", 128, 8, 256, 8),
        Arg("mask_blur", "Mask blur", "int", 4, 0, 64, 1),
        Arg("inpainting_fill", "Masked content", "str", "fill", choices=FILLED),
        Arg("direction", "Outpainting direction", "list", list(SIDES), choices=SIDES),
    ),
    FREEU: (
        _ENABLED,
        Arg("b1", "B1", "float", 1.01, 0, 2, 0.01),
        Arg("b2", "B2", "float", 1.02, 0, 2, 0.01),
        Arg("s1", "S1", "float", 0.99, 0, 4, 0.01),
        Arg("s2", "S2", "float", 0.95, 0, 4, 0.01),
        Arg("start", "Start step", "float", 0.0, 0, 1, 0.01),
        Arg("end", "End step", "float", 1.0, 0, 1, 0.01),
    ),
    PAG: _pag(0.0, 1.0),
    REFORGE_PAG: _pag(0.15, 0.6),
    EXTENSION_PAG: (
        _ENABLED,
        Arg("scale", "Scale", "float", 3.0, 0, 30, 0.01),
        _ADAPTIVE,
        *_BLOCK,
        *_OVERRIDE,
        _HR_ADAPTIVE,
    ),
    MULTIDIFFUSION: (
        _ENABLED,
        Arg("method", "Method", "str", "MultiDiffusion", choices=("MultiDiffusion", "Mixture of Diffusers")),
        Arg("tile_width", "Tile Width", "int", 768, 16, 8192, 16),
        Arg("tile_height", "Tile Height", "int", 768, 16, 8192, 16),
        Arg("tile_overlap", "Tile Overlap", "int", 64, 0, 2048, 32),
        Arg("tile_batch_size", "Tile Batch Size", "int", 4, 1, 8192, 1),
    ),
    NEVER_OOM: (
        Arg("unet_enabled", "Enabled for UNet (always maximize offload)", "bool", False),
        Arg("vae_enabled", "Enabled for VAE (always tiled)", "bool", False),
    ),
}
"""By the scripts' titles in lower case."""


def read_args(title: str, args: Sequence[Json]) -> dict[str, Json]:
    """Return the arguments of a selectable script by their names, the defaults for missing ones. Raises WireError."""
    return read_table(ARGS[title], args, ("script_args",))


def read_table(table: Sequence[Arg], args: Sequence[Json], at: Path) -> dict[str, Json]:
    """Return the arguments by their names, the defaults for those that are missing. `at`: where they stand."""
    return {arg.name: arg.read(args[i] if i < len(args) else None, i, at) for i, arg in enumerate(table)}


def rows_of(title: str) -> list[dict[str, Json]]:
    """Return a script's arguments as GET /sdapi/v1/script-info tells them."""
    return [
        {
            "label": arg.label,
            "value": arg.default,
            "minimum": arg.low,
            "maximum": arg.high,
            "step": arg.step,
            "choices": list(arg.choices) or None,
        }
        for arg in ARGS.get(title, ())
    ]
