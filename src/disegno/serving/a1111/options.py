"""A1111's settings: which of them decide something here, which are known and do nothing, which no request may set.

A person's settings are their own: they are the defaults of that person's requests, never a state of the server.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.resources import files

from disegno.core.infotext import HIRES_REFINER
from disegno.serving.a1111.coerce import Json, Kind, coerced, shortened
from disegno.serving.a1111.errors import Fault, Path, WireError
from disegno.serving.a1111.fields import bounds_of

Settings = Mapping[str, Json]

IMAGE_FORMATS = ("png", "jpg", "jpeg", "webp")
NOISE_SOURCES: Mapping[str, str] = {"GPU": "nv", "NV": "nv", "CPU": "cpu"}
EMPHASIS: Mapping[str, str] = {"Original": "original", "No norm": "no-norm", "Ignore": "ignore", "None": "none"}
MAX_TEXT = 2000


@dataclass(frozen=True)
class Option:
    """A setting that decides something: its type, default, what it may be, and the Request's field that it sets."""

    kind: Kind
    default: Json
    to: str = ""
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()

    @property
    def bounds(self) -> tuple[float | None, float | None]:
        """Return the lowest and the highest value."""
        return bounds_of(self.to) if self.to else (self.low, self.high)


OPTIONS: Mapping[str, Option] = {
    "sd_model_checkpoint": Option("str", None),
    "sd_checkpoint_hash": Option("str", ""),
    "emphasis": Option("str", "Original", choices=tuple(EMPHASIS)),
    "comma_padding_backtrack": Option("int", 20, "comma_backtrack"),
    "pad_cond_uncond": Option("bool", False, "pad_texts"),
    "use_old_scheduling": Option("bool", False, "old_timelines"),
    "sd_vae": Option("str", "Automatic"),
    "CLIP_stop_at_last_layers": Option("int", 1, "clip_skip"),
    "eta_noise_seed_delta": Option("int", 0, "seed_delta"),
    "randn_source": Option("str", "NV", choices=tuple(NOISE_SOURCES)),
    "eta_ancestral": Option("float", 1.0, low=0.0, high=10.0),
    "eta_ddim": Option("float", 0.0, low=0.0, high=10.0),
    "tiling": Option("bool", False, "seamless"),
    "s_min_uncond": Option("float", 0.0, "negative_min"),
    "s_min_uncond_all": Option("bool", False, "negative_min_all"),
    "skip_early_cond": Option("float", 0.0, "cfg_start"),
    "s_churn": Option("float", 0.0, "churn"),
    "s_tmin": Option("float", 0.0, "churn_min"),
    "s_tmax": Option("float", 0.0, "churn_max"),
    "s_noise": Option("float", 1.0, "churn_noise"),
    "initial_noise_multiplier": Option("float", 1.0, "init.noise"),
    "img2img_extra_noise": Option("float", 0.0, "init.extra_noise"),
    "img2img_fix_steps": Option("bool", False, "init.exact_steps"),
    "img2img_color_correction": Option("bool", False, "init.colour_correction"),
    "inpainting_mask_weight": Option("float", 1.0, "init.mask_weight"),
    "sdxl_crop_top": Option("int", 0, "crop_top"),
    "sdxl_crop_left": Option("int", 0, "crop_left"),
    "sdxl_refiner_high_aesthetic_score": Option("float", 6.0, "beauty"),
    "sdxl_refiner_low_aesthetic_score": Option("float", 2.5, "plainness"),
    "refiner_switch_by_sample_steps": Option("bool", False),
    "hires_fix_refiner_pass": Option("str", "second pass", choices=tuple(HIRES_REFINER.values())),
    "samples_format": Option("str", "png", choices=IMAGE_FORMATS),
    "jpeg_quality": Option("int", 80, low=1, high=100),
    "webp_lossless": Option("bool", False),
    "enable_pnginfo": Option("bool", True),
    "return_grid": Option("bool", True),
    "n_rows": Option("int", -1, low=-1, high=64),
    "live_previews_enable": Option("bool", True),
    "control_net_no_detectmap": Option("bool", False),
}
CONSTANT: Mapping[str, Json] = {"control_net_unit_count": 10}
"""What is reported, and cannot be changed."""

# Of extensions that A1111's clients count on (ControlNet, Lora ...), and of Forge: nothing of them is kept
_OF_OTHERS = (
    *("control_net_", "controlnet_", "forge_", "lora_", "sd_lora", "hypertile_", "canvas_"),
    *("SWIN_", "SCUNET_", "ldsr_", "extra_options_"),
)
_REFUSED_ENDS = ("_pattern", "_dir", "_file", "_path")
_REFUSED_STARTS = ("outdir_", "api_", "disable", "profiling_")
_REFUSED = frozenset({"font", "temp_dir", "restore_config_state_file", "quicksettings_list"})


@cache
def a1111_defaults() -> Settings:
    """Return the name and default of every setting of A1111 1.10."""
    text = files("disegno.serving.a1111").joinpath("a1111_defaults.json").read_text("utf-8")
    return json.loads(text)["options"]


@cache
def a1111_flags() -> Settings:
    """Return the name and default of every command-line flag of A1111 1.10. It holds no secret, and no path."""
    text = files("disegno.serving.a1111").joinpath("a1111_defaults.json").read_text("utf-8")
    return json.loads(text)["flags"]


def default_of(name: str) -> Json:
    """Return a setting's default here."""
    if name in CONSTANT:
        return CONSTANT[name]
    return OPTIONS[name].default if name in OPTIONS else a1111_defaults().get(name)


def _is_known(name: str) -> bool:
    return name in OPTIONS or name in CONSTANT or name in a1111_defaults()


def _refused(name: str) -> bool:
    return name in _REFUSED or name.startswith(_REFUSED_STARTS) or name.endswith(_REFUSED_ENDS)


def read_settings(given: Mapping[str, Json], at: Path = ()) -> tuple[dict[str, Json], tuple[str, ...]]:
    """Return the settings of a body or of override_settings, and what to say about those that do nothing here.

    Raises WireError for a name that nobody knows, a value that cannot be, and what a request may not set.
    """
    settings: dict[str, Json] = {}
    notes: list[str] = []
    for name, value in given.items():
        if name.startswith(_OF_OTHERS) and not _is_known(name):
            notes += (
                [f"The setting {shortened(name)[1:-1]} is another program's and has no effect here."] if value else []
            )
            continue
        settings[name] = _read_setting(name, value, (*at, name))
        if name not in OPTIONS and name not in CONSTANT and settings[name] != default_of(name):
            notes.append(f"The setting {name} has no effect here.")
    return settings, tuple(notes)


def _read_setting(name: str, value: Json, path: Path) -> Json:
    if name in OPTIONS:
        return _read_option(OPTIONS[name], value, path)
    if not _is_known(name):
        near = get_close_matches(name[:100], [*OPTIONS, *a1111_defaults()], n=3)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise WireError.of_fields(Fault(path, f"there is no such setting.{hint}"))
    if value == default_of(name) or str(value) == str(default_of(name)):
        return default_of(name)
    if name in CONSTANT or _refused(name):
        raise WireError.of_fields(Fault(path, "this setting cannot be changed by a request"))
    if isinstance(value, dict | list) or (isinstance(value, str) and len(value) > MAX_TEXT):
        raise WireError.of_fields(Fault(path, f"a number, true, false or a short text (given: {shortened(value)})"))
    return value


def _read_option(option: Option, value: Json, path: Path) -> Json:
    found = coerced(value, option.kind, path, *option.bounds)
    if found is None:
        return option.default
    if option.choices and found not in option.choices:
        known = ", ".join(repr(choice) for choice in option.choices)
        raise WireError.of_fields(Fault(path, f"permitted: {known} (given: {shortened(found)})"))
    return found


def all_settings(own: Settings, checkpoint: str, checkpoint_hash: str) -> dict[str, Json]:
    """Return the answer of GET options: a person's settings, and the default of every other."""
    names = [*a1111_defaults(), *(name for name in (*OPTIONS, *CONSTANT) if name not in a1111_defaults())]
    values = {name: _as_upstream(name, own.get(name, default_of(name))) for name in names}
    return values | {"sd_model_checkpoint": checkpoint, "sd_checkpoint_hash": checkpoint_hash}


def _as_upstream(name: str, value: Json) -> Json:
    # A1111 parity: an integer whose default is not 0 comes back as a float
    default = default_of(name)
    if isinstance(value, bool) or isinstance(default, bool) or not isinstance(value, int):
        return value
    return float(value) if isinstance(default, int) and default else value


def request_fields(settings: Settings, prefixes: Iterable[str]) -> dict[str, Json]:
    """Return the Request's fields that settings decide, of the top level and of the objects in `prefixes`."""
    wanted = ("", *prefixes)
    fields = {
        option.to: settings[name]
        for name, option in OPTIONS.items()
        if option.to and name in settings and option.to.rpartition(".")[0] in wanted
    }
    source, emphasis = (str(settings.get(name, default_of(name))) for name in ("randn_source", "emphasis"))
    return fields | {"noise_source": NOISE_SOURCES[source], "emphasis": EMPHASIS[emphasis]}
