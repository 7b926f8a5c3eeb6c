"""Where a taught control or LoRA goes, so that `generate` finds it by its name; nothing there is lost."""

from pathlib import Path

from disegno.core.errors import RequestError, ResourceError
from disegno.core.settings import Settings
from disegno.training.keeping import copy
from disegno.training.run import Run, digest
from disegno.weights.library import first_folder

_OWN = {"control": "controls", "lora": "loras"}
_WORDS = {"control": "control", "lora": "LoRA"}
_OTHERS = {"control": ("ControlNet", "controlnet"), "lora": ("Lora", "loras")}  # A1111's and ComfyUI's, in `models`


def home_of(run: Run, settings: Settings) -> Path:
    """Return where a run's result goes: into the first model folder, by that folder's layout. Raises RequestError."""
    root = first_folder(settings)
    if not run.suffix:
        return root / run.name
    folder = next((root / name for name in _OTHERS[run.makes] if (root / name).is_dir()), root / _OWN[run.makes])
    return folder / run.file.name


def require_free(run: Run, settings: Settings) -> None:
    """Raise RequestError where something else of this name is there already."""
    for own, home in _ways(run, settings):
        if home.exists() and not _is_same(own, home):
            kept = f" What was taught is {own}: it can be drawn with from there." if own.exists() else ""
            raise RequestError(
                f"There is a {_WORDS[run.makes]} of this name: {home}. Choose another name, or --replace to write over"
                f" it when this training has ended.{kept}"
            )


def publish(run: Run, settings: Settings) -> Path:
    """Return where the result lies now, ready to draw with; a base's conditions lie beside it.

    Raises RequestError, ResourceError.
    """
    home = home_of(run, settings)
    try:
        home.parent.mkdir(parents=True, exist_ok=True)
        for own, there in _ways(run, settings):
            if not _is_same(own, there):
                copy(own, there)
    except OSError as error:
        raise ResourceError(f"{home} cannot be written ({error.strerror}). The result is {run.file}.") from error
    return home


def _ways(run: Run, settings: Settings) -> list[tuple[Path, Path]]:
    """Return each file of the result, and where it goes."""
    return list(zip(run.files(run.file), run.files(home_of(run, settings)), strict=True))


def _is_same(own: Path, home: Path) -> bool:
    return own.exists() and home.exists() and digest(own) == digest(home)
