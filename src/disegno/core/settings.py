"""Where things are and how the machine is used: from the environment and a toml file; passed in, never global."""

import os
import tomllib
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_args

from platformdirs import user_cache_path, user_config_path, user_data_path

from disegno.core.errors import RequestError

DType = Literal["auto", "fp32", "bf16", "fp16"]
T5Use = Literal["on", "off", "cpu", "int8"]
PackedUse = Literal["auto", "packed", "unpacked"]


@dataclass(frozen=True)
class Settings:
    """How this process uses its machine. `DISEGNO_<FIELD>` in the environment wins over the toml file."""

    model_dirs: tuple[Path, ...] = field(default_factory=lambda: (user_data_path("disegno") / "models",))
    """Folders with weights: ours, A1111's or ComfyUI's layout. In the environment: separated as PATH is."""
    prompt_dirs: tuple[Path, ...] = field(default_factory=lambda: (user_data_path("disegno"),))
    """Folders with styles.csv and wildcards/, such as A1111's own. In the environment: separated as PATH is."""
    cache_dir: Path = field(default_factory=lambda: user_cache_path("disegno"))
    """Where derived things may be kept; may be deleted at any time."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    dtype: DType = "auto"
    """auto is decided from what the processor does fast; see `memory.py`."""
    t5: T5Use = "on"
    """The large text encoder of Stable Diffusion 3: on; off (it then says nothing); on the cpu; in 8 bits (int8)."""
    gguf: PackedUse = "auto"
    """Quantised weights of GGUF files in memory: packed, and unpacked at every step; unpacked, once, which is faster;
    auto: unpacked where that takes no more than half of the memory that is free."""
    threads: int = 0
    """CPU threads of a process that draws or teaches; 0 leaves it to torch."""
    residual_cache_mib: int = 512
    """How much memory control residuals that do not depend on the noisy image may keep. 0 turns the cache off."""
    preview_decoder: Path | None = None
    """A tiny decoder (TAESD: a file, or diffusers' folder) for live previews; unset: a linear map, fitted here."""
    clip: Path | None = None
    """A folder with a CLIP that looks at pictures: openai/clip-vit-large-patch14 for the content of Uni-ControlNet; an
    IP-Adapter's, where it lies at none of the usual places."""


_LISTS = {"model_dirs", "prompt_dirs"}
_PATHS = {"cache_dir", "preview_decoder", "clip"}
_INTS = {"threads", "residual_cache_mib"}
_PREFIX = "DISEGNO_"
_ALIKE = 0.7  # of difflib: DISEGNO_MODEL_DIR is a slip of the pen, DISEGNO_AUTH is something else


def _parse(name: str, value: Any) -> Any:
    if name in _LISTS:
        parts = value.split(os.pathsep) if isinstance(value, str) else value
        return tuple(Path(p).expanduser() for p in parts if str(p))
    if name in _PATHS:
        return Path(value).expanduser()
    if name in _INTS:
        return int(value)
    return value


def _refuse_slips(variables: set[str], known: set[str]) -> None:
    """Raise RequestError where a variable of the environment is called nearly as one that would be read."""
    for variable in sorted(variables):
        if near := get_close_matches(variable.removeprefix(_PREFIX).lower(), sorted(known), n=1, cutoff=_ALIKE):
            meant = f"{_PREFIX}{near[0].upper()}"
            raise RequestError(f"{variable} in the environment is no setting; {meant} is. Rename or unset it.")


def load_settings(toml: Path | None = None, **overrides: Any) -> Settings:
    """Return the settings: defaults, then the toml file, then DISEGNO_* of the environment, then `overrides`.

    An override that is None leaves the setting alone. Raises RequestError for a name or value that cannot be.
    """
    path = toml or user_config_path("disegno") / "disegno.toml"
    known = {f.name for f in fields(Settings)}
    try:
        given: dict[str, Any] = tomllib.loads(path.read_text("utf-8")) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise RequestError(f"{path} cannot be read as TOML ({error}). Repair it, or remove it.") from error
    if unknown := sorted(given.keys() - known):
        names = ", ".join(unknown)
        raise RequestError(f"{path} has settings that do not exist: {names}. Known: {', '.join(sorted(known))}.")
    variables = {name: f"{_PREFIX}{name.upper()}" for name in known}
    _refuse_slips({variable for variable in os.environ if variable.startswith(_PREFIX)} - {*variables.values()}, known)
    given |= {name: os.environ[variable] for name, variable in variables.items() if variable in os.environ}
    given |= {name: value for name, value in overrides.items() if value is not None}
    try:
        settings = replace(Settings(), **{name: _parse(name, value) for name, value in given.items()})
    except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError: ~ of nobody
        raise RequestError(f"A setting could not be read: {error}.") from error
    for name, words in (("dtype", get_args(DType)), ("t5", get_args(T5Use)), ("gguf", get_args(PackedUse))):
        if (given_word := getattr(settings, name)) not in words:
            raise RequestError(f"{name} is {given_word!r}; it can be {', '.join(words[:-1])} or {words[-1]}.")
    for name in _INTS:
        if (number := getattr(settings, name)) < 0:
            raise RequestError(f"{name} is {number}; it can be 0 or more.")
    return settings
