"""The folder of one training: what was asked, its checkpoints, its controls; one trainer at a time.

RUN/training.json      the request, and what else decides the result; written first
    lock               who is training here now
    checkpoints/       see checkpoint.py
    controls/          what the last and the best look saw, ready to draw with
    NAME.safetensors   the result; of the recipe `base` NAME_TASK.safetensors too, for each condition
    result.json        what it is; written last
"""

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from shlex import quote
from typing import Literal, cast

from pydantic import TypeAdapter, ValidationError

from disegno.core.errors import RequestError, ResourceError
from disegno.core.files import write_atomically
from disegno.core.teach import TeachRequest, teach_from_json, teach_to_json
from disegno.training.base import TeachResult
from disegno.training.checkpoint import path_of, sync
from disegno.training.result import condition_path

log = logging.getLogger(__name__)

_CHUNK_BYTES = 1 << 20
_RESULT: TypeAdapter[TeachResult] = TypeAdapter(TeachResult)
_ASKED, _ENDED = "training.json", "result.json"
_OTHERWISE = (
    "Give the same command to go on with it, or another folder (--run) to begin anew; --start FILE begins from what"
    " was learned."
)


@dataclass(frozen=True)
class Run:
    """A training's folder. `suffix`: of what the recipe saves; "" for a folder.

    `tasks`: conditions of which each has a file of its own beside the result. `makes`: as a recipe's `About` says it.
    """

    folder: Path
    name: str
    suffix: str = ".safetensors"
    tasks: tuple[str, ...] = ()
    makes: Literal["control", "lora"] = "control"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def controls(self) -> Path:
        return self.folder / "controls"

    @property
    def file(self) -> Path:
        """Return where the result lies when the training has ended."""
        return self.folder / f"{self.name}{self.suffix}"

    @property
    def latest(self) -> Path:
        """Return what the last look saw."""
        return self.controls / f"latest{self.suffix}"

    def best(self, step: int) -> Path:
        """Return what the best look saw, at this step."""
        return self.controls / f"best-{step:08}{self.suffix}"

    def files(self, path: Path) -> tuple[Path, ...]:
        """Return all that a recipe writes when it saves to `path`: each task's own file, and `path` last."""
        return (*(condition_path(path, task) for task in self.tasks), path)


def begin(run: Run, request: TeachRequest) -> None:
    """Make the folder for this request, or check that it is this request's. Raises RequestError, ResourceError."""
    file = run.folder / _ASKED
    asked = cast(dict[str, object], json.loads(teach_to_json(request)))
    try:
        for folder in (run.folder, run.checkpoints, run.controls):
            folder.mkdir(parents=True, exist_ok=True)
        is_new = not file.exists()
        for left in (*run.folder.glob(".*.tmp"), *run.controls.glob(".*.tmp")):  # of a process that was killed
            remove(left)
        is_begun = any(run.checkpoints.iterdir())
        if is_new and is_begun:
            raise RequestError(f"{run.folder} holds a training, but not what was asked: training.json is missing.")
        changed = [] if is_new else _changed(file, request)
        if is_new or (changed and not _has_learned(run)):
            _forget(run)
            is_begun = False
    except OSError as error:
        raise ResourceError(f"{run.folder} cannot be used ({error.strerror}). Choose another folder: --run.") from error
    if is_new or not is_begun:  # nothing was learned: another request may take its place
        _write(file, {"request": asked})
        sync(run.folder)
        return
    if changed:
        raise RequestError(f"{run.folder} holds another training: {'; '.join(changed)}. {_OTHERWISE}")


def _changed(file: Path, request: TeachRequest) -> list[str]:
    """Return what is asked for otherwise than in this file, in words."""
    # a field that the program did not have when that was asked has its default there
    usual: dict[str, object] = json.loads(teach_to_json(TeachRequest(name=request.name, data=request.data)))
    old = usual | cast(dict[str, object], _table(file).get("request") or {})
    asked: dict[str, object] = json.loads(teach_to_json(request))
    return [
        f"{key} was {old.get(key)!r} and is {asked.get(key)!r}"
        for key in sorted(old.keys() | asked.keys())
        if old.get(key) != asked.get(key)
    ]


def _has_learned(run: Run) -> bool:
    """Return whether there is more than the first checkpoint, which is written before any step."""
    return any(not path.name.startswith(path_of(run.checkpoints, 0).name) for path in run.checkpoints.iterdir())


def _forget(run: Run) -> None:
    """Remove what a training wrote before its first step, and what says that an earlier one has ended."""
    for left in (*run.checkpoints.iterdir(), *run.controls.iterdir(), run.folder / _ENDED):
        remove(left)


def recognise(run: Run, fingerprint: str, num_processes: int = 1) -> None:
    """Note what else decides the result, or check that it is what it was. Raises RequestError.

    `num_processes`: each brings a batch of its own, and a step's whole batch is all of theirs.
    """
    table = _table(run.folder / _ASKED)
    told = {"fingerprint": fingerprint, "processes": num_processes}
    if table.get("fingerprint") is None:
        _write(run.folder / _ASKED, table | told)
    elif table | told != table and not _has_learned(run):
        _forget(run)
        _write(run.folder / _ASKED, table | told)
    elif (begun := table.get("processes", num_processes)) != num_processes:
        raise RequestError(
            f"{run.folder} holds a training whose processes were {begun}, and are {num_processes} here: steps would see"
            f" other rows. Go on as it was begun: {resuming(run.folder, cast(int, begun))}"
        )
    elif table["fingerprint"] != fingerprint:
        raise RequestError(
            f"{run.folder} holds a training on other pairs, on another model, in other numbers (--dtype, or another"
            f" device's own), or by another version of this program: it would not come to the same result. {_OTHERWISE}"
        )


def resuming(folder: Path, num_processes: int = 1) -> str:
    """Return the command that goes on with the training in a folder."""
    words = f"--resume {quote(str(folder))}"
    if num_processes == 1:
        return f"disegno teach {words}"
    return f"accelerate launch --num_processes {num_processes} -m disegno.training {words}"


def asked_in(folder: Path) -> TeachRequest | None:
    """Return the request that a run's folder was made for; None where there is none. Raises RequestError."""
    file = folder / _ASKED
    if not file.exists():
        return None
    return teach_from_json(json.dumps(_table(file).get("request")))


def _table(file: Path) -> dict[str, object]:
    try:
        value = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise RequestError(f"{file} cannot be read ({str(error)[:120]}). Choose another folder: --run.") from None
    return cast(dict[str, object], value) if isinstance(value, dict) else {}


def _write(file: Path, table: Mapping[str, object]) -> None:
    text = json.dumps(table, indent=2) + "\n"
    write_atomically(file, lambda path: path.write_text(text, "utf-8"))


# ---- the result


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def digest(path: Path) -> str:
    """Return the sha256 of a file, or of a folder's files with their names."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    total = sha256()
    for file in files:
        total.update(b"" if file == path else f"{file.relative_to(path).as_posix()}\0".encode())
        with file.open("rb") as opened:
            while piece := opened.read(_CHUNK_BYTES):
                total.update(piece)
    return total.hexdigest()


def digest_of(paths: Sequence[Path]) -> str:
    """Return the sha256 of one path, or of several with their names."""
    if len(paths) == 1:
        return digest(paths[0])
    return sha256("".join(f"{path.name} {digest(path)}\n" for path in paths).encode()).hexdigest()


def write_result(run: Run, result: TeachResult) -> None:
    """Say that the training has ended, and with what."""
    table = _RESULT.dump_python(result, mode="json") | {"path": run.file.name, "sha256": digest_of(run.files(run.file))}
    _write(run.folder / _ENDED, table)


def ended(run: Run) -> TeachResult | None:
    """Return the result, where it is there and is what it was; None where the training goes on."""
    file = run.folder / _ENDED
    if not all(path.exists() for path in (file, *run.files(run.file))):
        return None
    table = _table(file)
    if table.pop("sha256", None) != digest_of(run.files(run.file)):
        return None
    try:
        return replace(_RESULT.validate_python(table), path=run.file)
    except ValidationError:
        return None
