"""Where the built-in model's files are, and which conditions a model's folder brings, without opening the model."""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any


def built_in_folder() -> Path:
    """Return the folder of the model that is built in."""
    return Path(str(files("disegno").joinpath("data/diorama")))


def conditions_of(folder: Path, about: Any = None) -> dict[str, Path]:
    """Return the conditions that a folder brings, by name. `about`: its model.json, where it was read already."""
    told = about or json.loads((folder / "model.json").read_text("utf-8"))
    return {str(name): folder / str(file) for name, file in told.get("conditions", {}).items()}


def defaults_of(folder: Path) -> dict[str, int | float | str]:
    """Return what a folder's model.json says a request's open fields become."""
    told = json.loads((folder / "model.json").read_text("utf-8"))
    return dict(told.get("defaults", {}))
