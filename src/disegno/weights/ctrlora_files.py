"""CtrLoRA's files: the Base ControlNet, and the condition files that adapt it (Xu et al. 2024, arXiv 2410.09400).

    read_base       published (`control_model.*`, with stale LoRA matrices of its last training task, dropped here),
                    training checkpoints, and diffusers-named files, row-wise int8 or not
    read_condition  published condition files, training checkpoints (of pretraining: one task of several), our own form
    save_condition  our own form, or published names

Our own form is one safetensors file with diffusers' names (`<module>.lora_layer.down.weight`,
`controlnet_down_blocks.*`, `*.attentions.*.norm*`) and a header that says what it is. ComfyUI's CtrLoRA node refuses a
base without stale LoRA matrices: a base for it stays in its published form.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from torch import Tensor

from disegno.core.errors import KeyMismatch, UnknownKind, UnknownName
from disegno.weights.keys import control as keys
from disegno.weights.keys.ldm import CONTROL_PREFIX, unet_originals
from disegno.weights.load import open_file
from disegno.weights.parts import told_of
from disegno.weights.quantised import SCALE_SUFFIX, dequantise_rows
from disegno.weights.save import save_safetensors
from disegno.weights.shapes import sides
from disegno.weights.tensor_file import TensorFile

Layout = Literal["disegno", "published"]
Part = Literal["zero_convs", "norms"]

MECHANISM = "ctrlora"
BASE_MECHANISM = "ctrlora-base"
FULL_MECHANISM = "ctrlora-full"  # a base that was taught one condition as a whole: it needs no other file
_HEADER = "disegno."
_PARTS: tuple[Part, ...] = ("zero_convs", "norms")


@dataclass(frozen=True)
class ConditionInfo:
    """What a condition file says about itself. `from_base`: parts left to the base; `other`: further header words."""

    name: str
    family: str | None = None
    annotator: str | None = None
    base_sha256: str | None = None
    training_pairs: int | None = None
    from_base: tuple[Part, ...] = ()
    other: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True)
class ConditionFile:
    """A condition, read: its tensors by diffusers' names. `is_whole`: all of it is in its base, which is this file."""

    tensors: Mapping[str, Tensor]
    info: ConditionInfo
    sha256: str
    is_whole: bool = False

    @property
    def rank(self) -> int:
        """Return the largest rank of its LoRA matrices; 0 where there are none."""
        return rank_of(self.tensors)


@dataclass(frozen=True)
class BaseFile:
    """A Base ControlNet, read: its tensors by diffusers' names, and the config of its header, if it has one."""

    name: str
    tensors: Mapping[str, Tensor]
    config: Mapping[str, object]
    sha256: str


def rank_of(tensors: Mapping[str, Tensor]) -> int:
    """Return the largest rank of the LoRA matrices among these tensors; 0 where there are none."""
    return max((t.shape[0] for name, t in tensors.items() if name.endswith(f"{keys.LORA_MARK}down.weight")), default=0)


def read_base(path: Path) -> BaseFile:
    """Return the Base ControlNet in this file, without stale LoRA matrices. Raises UnknownKind where it is none."""
    with open_file(path) as file:
        own = keys.control_keys(file.keys())
        tensors = {name: file.tensor(key) for key, name in own.items() if is_base_name(name)}
        if any(name.endswith(SCALE_SUFFIX) for name in tensors):
            tensors = dequantise_rows(tensors)
        names = keys.diffusers_names(tensors)
        if any(name.startswith(keys.HINT_PREFIX) for name in names.values()):
            raise UnknownKind(f"{path.name} has a hint block: it is a ControlNet, no Base ControlNet of CtrLoRA.")
        config: dict[str, object] = told_of(file)
        return BaseFile(path.stem, {names[n]: t for n, t in tensors.items() if n in names}, config, file.sha256())


def is_base_name(name: str) -> bool:
    """Return whether an original or diffusers name is the base's own: no LoRA matrix of any task."""
    return keys.LORA_MARK not in name and not name.startswith("loras_dict.")


def read_condition(path: Path, task: str | None = None) -> ConditionFile:
    """Return the condition in this file. `task`: which one, of a pretraining checkpoint that holds several.

    Raises UnknownName where the task is not one of the file's, UnknownKind where there is no LoRA matrix in it.
    """
    with open_file(path) as file:
        if file.metadata.get(f"{_HEADER}mechanism") == FULL_MECHANISM:
            return ConditionFile({}, _info(file.metadata, path.stem), file.sha256(), is_whole=True)
        own = keys.control_keys(file.keys())
        tasks = keys.tasks_of(own.values())
        if tasks:
            own = _of_task(file, own, _chosen(path.name, task, list(tasks)), tasks)
        names = keys.diffusers_names(own.values())
        tensors = {
            names[name]: file.tensor(key) for key, name in own.items() if name in names and keys.is_adapted(names[name])
        }
        for key in (key for key in tensors if keys.LORA_MARK in key):
            sides(path.name, tensors, key, max(tensors[key].ndim, 2))
        if not rank_of(tensors):
            raise UnknownKind(f"{path.name} holds no LoRA matrices: it is no CtrLoRA condition. Give a condition file.")
        return ConditionFile(tensors, _info(file.metadata, path.stem), file.sha256())


def _chosen(file_name: str, task: str | None, tasks: list[str]) -> str:
    if task is None and len(tasks) == 1:
        return tasks[0]
    if task is None:
        raise UnknownName(f"{file_name} holds {len(tasks)} conditions. Choose one task of: {', '.join(tasks)}.")
    if task not in tasks:
        raise UnknownName.of(f"task in {file_name}", task, tasks)
    return task


def _of_task(
    file: TensorFile, own: dict[str, str], task: str, tasks: Mapping[str, Mapping[tuple[int, str], str]]
) -> dict[str, str]:
    """Return key -> original name, with one task's matrices in place: number i belongs to the i-th linear module."""
    linear = [
        name.removesuffix(".weight")
        for key, name in own.items()
        if is_base_name(name) and name.endswith(".weight") and len(file.shape(key)) == 2
    ]
    modules = keys.registered_order(linear)
    numbered = tasks[task]
    if {i for i, _ in numbered} != set(range(len(modules))):
        raise KeyMismatch(
            f"{file.path.name}: the task {task} has {len(numbered) // 2} pairs of LoRA matrices for {len(modules)} "
            "linear modules. Use a complete checkpoint."
        )
    key_of = {name: key for key, name in own.items()}
    matrices = {
        key_of[name]: f"{modules[i]}{keys.LORA_MARK}{half}.weight" for (i, half), name in sorted(numbered.items())
    }
    return {key: name for key, name in own.items() if is_base_name(name)} | matrices


def _info(metadata: Mapping[str, str], stem: str) -> ConditionInfo:
    words = {key.removeprefix(_HEADER): value for key, value in metadata.items() if key.startswith(_HEADER)}
    pairs = words.pop("training_pairs", "")
    left = words.pop("from_base", "").split()
    return ConditionInfo(
        name=words.pop("name", stem),
        family=words.pop("family", None),
        annotator=words.pop("annotator", None),
        base_sha256=words.pop("base_sha256", None),
        training_pairs=int(pairs) if pairs.isdigit() else None,
        from_base=tuple(part for part in _PARTS if part in left),
        other={key: value for key, value in words.items() if key not in ("mechanism", "rank")},
    )


def header_of(info: ConditionInfo, rank: int) -> dict[str, str]:
    """Return the header of a condition file: text by text, what is not known left out."""
    words = {
        "mechanism": MECHANISM,
        "rank": str(rank),
        "name": info.name,
        "family": info.family,
        "annotator": info.annotator,
        "base_sha256": info.base_sha256,
        "training_pairs": None if info.training_pairs is None else str(info.training_pairs),
        "from_base": " ".join(info.from_base) or None,
        **info.other,
    }
    return {f"{_HEADER}{key}": value for key, value in words.items() if value is not None}


def save_condition(path: Path, tensors: Mapping[str, Tensor], info: ConditionInfo, layout: Layout = "disegno") -> None:
    """Write a condition (diffusers' names) as one safetensors file, atomically; dtypes are kept.

    `layout`: "published" writes the original names, which the original program and ComfyUI read.
    """
    header = header_of(info, rank_of(tensors))
    if layout == "published":
        originals = unet_originals(tensors)
        tensors = {f"{CONTROL_PREFIX}{originals[name]}": tensor for name, tensor in tensors.items()}
    save_safetensors(path, tensors, header)
