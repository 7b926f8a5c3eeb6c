"""A whole model of which one part was taught: a folder with the taught part in it, and the others as they were.

Stable Diffusion 1.x and XL become a diffusers folder, whatever they were read from; diorama a folder of its own kind.
The folder appears complete, and after that only the taught part's one file is replaced, in one move.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Literal

from torch import Tensor

from disegno.core.errors import RequestError, ResourceError, WrongFamily
from disegno.core.files import write_atomically
from disegno.training.base import Facts
from disegno.training.recipe import Model
from disegno.training.result import told
from disegno.weights.convert import convert
from disegno.weights.finite import require_finite
from disegno.weights.json_table import read_json
from disegno.weights.layouts import MODELS
from disegno.weights.save import save_safetensors

Part = Literal["unet", "vae"]

_MARK = "taught.json"  # what was taught, and of which model: by it a folder of an earlier save is known
_STEM = "diffusion_pytorch_model"


def write_model(folder: Path, model: Model, part: Part, tensors: Mapping[str, Tensor], facts: Facts) -> None:
    """Write the model with these tensors (diffusers' names) for one of its parts.

    Raises CorruptFile where a number is NaN or infinite, RequestError where the folder is something else already,
    ResourceError where the disk is full, WrongFamily where a family's form is not known here.
    """
    check_writable(model)
    require_finite(f"{part} of {folder.name}", tensors)
    words = {"format": "pt", **told(facts, None, model.family)}
    if _is_of(folder, model, part):
        save_safetensors(folder / _file(model, part), tensors, words)
        write_atomically(folder / _MARK, lambda path: path.write_text(_mark(model, part, words), "utf-8"))
        return
    if folder.exists():
        raise RequestError(f"{folder} is there already, and no earlier result of this training. Choose another name.")
    unfinished = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        _COPIES[model.family](model, unfinished, part)
        save_safetensors(unfinished / _file(model, part), tensors, words)
        (unfinished / _MARK).write_text(_mark(model, part, words), "utf-8")
        unfinished.rename(folder)
    except OSError as error:
        raise ResourceError(f"{folder} could not be written ({error}). Free disk space.") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def check_writable(model: Model) -> None:
    """Raise WrongFamily where no whole model of this family can be written; of a file's, none that is not converted."""
    is_file = model.source is not None and model.source.is_file()
    if model.family not in _COPIES:
        raise WrongFamily(f"{model.name} is for {model.family}; whole models can be taught of: {', '.join(_COPIES)}.")
    if is_file and model.family not in MODELS:
        raise WrongFamily(f"{model.name} is a file of {model.family}, which becomes no folder here. Give its folder.")


def _file(model: Model, part: Part) -> str:
    return f"{part}.safetensors" if model.family == "diorama" else f"{part}/{_STEM}.safetensors"


def _mark(model: Model, part: Part, words: Mapping[str, str]) -> str:
    own = {name.removeprefix("disegno."): word for name, word in words.items() if name.startswith("disegno.")}
    return json.dumps({"part": part, "of": model.name, "fingerprint": model.fingerprint, **own}, indent=2) + "\n"


def _is_of(folder: Path, model: Model, part: Part) -> bool:
    """Return whether the folder is an earlier save of this training."""
    try:
        mark = json.loads((folder / _MARK).read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return (mark.get("part"), mark.get("fingerprint")) == (part, model.fingerprint)


def _copy_stable_diffusion(model: Model, folder: Path, part: Part) -> None:
    assert model.source is not None, "Stable Diffusion is in no package"
    if model.source.is_dir():
        old = shutil.ignore_patterns(".*", "safety_checker")
        shutil.copytree(model.source, folder, ignore=old)
        for weights in (folder / part).glob(f"{_STEM}*"):
            weights.unlink()
        _without_checker(folder / "model_index.json")
    else:
        folder.mkdir(parents=True)
        convert(model.source, folder, "diffusers")


def _without_checker(index: Path) -> None:
    """Have a folder's index say that there is no safety checker: diffusers opens none that is named and not there."""
    table = read_json(index)
    if "safety_checker" in table:
        table |= {"safety_checker": [None, None], "requires_safety_checker": False}
        index.write_text(json.dumps(table, indent=2) + "\n", "utf-8")


def _copy_diorama(model: Model, folder: Path, part: Part) -> None:
    source = model.source or Path(str(files("disegno").joinpath("data/diorama")))
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns(".*", "examples", _MARK))


_COPIES: dict[str, Callable[[Model, Path, Part], None]] = {
    "sd1": _copy_stable_diffusion,
    "sdxl": _copy_stable_diffusion,
    "diorama": _copy_diorama,
}
