"""Where the built-in model's files are, and which conditions a model's folder brings, without opening the model."""

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

from disegno.core.errors import CorruptFile
from disegno.weights.json_table import read_json


@dataclass(frozen=True)
class FewSteps:
    """How a model draws in few steps: with a LoRA, if it wants one, and what a request is then best left at."""

    lora: Path | None
    steps: int
    cfg: float
    sampler: str
    schedule: str

    @property
    def name(self) -> str | None:
        """Return what prompts call the LoRA."""
        return self.lora and self.lora.stem


def built_in_folder() -> Path:
    """Return the folder of the model that is built in."""
    return Path(str(files("disegno").joinpath("data/diorama")))


def conditions_of(folder: Path, about: Any = None) -> dict[str, Path]:
    """Return the conditions that a folder brings, by name. Raises CorruptFile.

    `about`: its model.json, where it was read already.
    """
    return {name: folder / str(file) for name, file in _table(folder, about, "conditions").items()}


def defaults_of(folder: Path, about: Any = None) -> dict[str, int | float | str]:
    """Return what a folder's model.json says a request's open fields become. `about`: as in `conditions_of`.

    Raises CorruptFile.
    """
    told = _table(folder, about, "defaults")
    if bad := [name for name, value in told.items() if not isinstance(value, int | float | str)]:
        raise CorruptFile(
            f"{folder.name}/model.json: its defaults' {bad[0]} is no number or word. Reinstall the model."
        )
    return told


def _table(folder: Path, about: Any, name: str) -> dict[str, Any]:
    told = (about or read_json(folder / "model.json")).get(name, {})
    if not isinstance(told, dict):
        raise CorruptFile(f"{folder.name}/model.json: its {name} are no table. Reinstall the model.")
    return cast(dict[str, Any], told)


def few_steps_of(folder: Path, about: Any = None) -> FewSteps | None:
    """Return how a folder's model draws in few steps; None where it was not taught to. `about`: as in `conditions_of`.

    Raises CorruptFile where its model.json says it in part.
    """
    told = (about or read_json(folder / "model.json")).get("few_steps")
    if told is None:
        return None
    try:
        file = folder / Path(str(told["lora"])).name if told["lora"] is not None else None
        return FewSteps(file, int(told["steps"]), float(told["cfg"]), str(told["sampler"]), str(told["schedule"]))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise CorruptFile(
            f"{folder.name}/model.json: its few_steps want lora (a file's name, or null), steps, cfg, sampler and"
            f" schedule ({error!r}). Reinstall the model."
        ) from error


def loras_of(folder: Path) -> dict[str, Path]:
    """Return the LoRAs that a folder brings, by name: the one for few steps, where its file is there."""
    few = few_steps_of(folder)
    lora = few and few.lora
    return {lora.stem: lora} if lora is not None and lora.is_file() else {}


def shipped(kind: str | None = None) -> dict[str, dict[str, Path]]:
    """Return the files that came with the built-in model, by kind and by name: its conditions, and its LoRA."""
    folder = built_in_folder()
    there = {"control": conditions_of(folder), "lora": loras_of(folder)}
    return {each: files for each, files in there.items() if kind in (None, each)}


def shipped_file(name: str, kind: str | None = None) -> Path | None:
    """Return the file of this name that came with the built-in model; None where none did."""
    return next((files[name] for files in shipped(kind).values() if name in files), None)
