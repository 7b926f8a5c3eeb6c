"""Says what a file of weights is, from its header, names and shapes: never by its file name, reading no tensor."""

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from disegno.core.errors import UnknownKind
from disegno.weights import ctrlora_xl_files, uni_controlnet_files, unicontrol_files, union_files
from disegno.weights.card import FileCard, require_family
from disegno.weights.folders import identify_folder
from disegno.weights.kinds import (
    Kind,
    Shapes,
    family_of,
    in_channels_of,
    kind_of,
    layout_of,
    rank_of,
    stranger_of,
    text_of,
)
from disegno.weights.load import open_file
from disegno.weights.tensor_file import TensorFile

__all__ = ["FileCard", "identify", "require_family"]

_DTYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "float8_e4m3fn": "fp8", "float8_e5m2": "fp8"}
_MAX_WORD = 4096  # longer ones are thumbnails and tables of tags
_TOLD_FAMILY = ("modelspec.architecture", "ss_base_model_version", "general.architecture")
_KINDS = ("model", "control")  # what a header may call a file that only another package's module can open
_PREDICTIONS = {
    "sd1": "epsilon",
    "sd3": "flow",
    "sdxl": "epsilon",
    "diorama": "epsilon",
}  # sd2 has both, with one shape
_ARCHITECTURES = {
    "stable-diffusion-v1": "sd1",
    "stable-diffusion-v2": "sd2",
    "stable-diffusion-xl": "sdxl",
    "stable-diffusion-3": "sd3",
    "sd_v1": "sd1",
    "sd_v2": "sd2",
    "sdxl": "sdxl",
    "diorama": "diorama",
    **{name: name for name in ("sd1", "sdxl", "sd3")},  # general.architecture of a GGUF file
}
# Whose net in a GGUF file is a model: there it is always alone, and its text encoders lie beside it.
_NETS_ALONE = ("sd1", "sdxl", "sd3")


_TASKS: Mapping[str, Callable[[Shapes], tuple[str, ...]]] = {
    uni_controlnet_files.MECHANISM: uni_controlnet_files.tasks_in,
    unicontrol_files.MECHANISM: unicontrol_files.tasks_in,
    union_files.MECHANISM: union_files.tasks_in,
    ctrlora_xl_files.MECHANISM: ctrlora_xl_files.tasks_in,
}


def identify(path: Path) -> FileCard:
    """Return the card of a file or diffusers folder. Raises UnknownKind, and as `open_file`."""
    if path.is_dir():
        return identify_folder(path)
    with open_file(path) as file:
        return card_of(file)


def card_of(file: TensorFile) -> FileCard:
    """Return the card of an open file. Raises UnknownKind."""
    shapes = {key: entry.shape for key, entry in file.contents.entries.items()}
    text, words = text_of(shapes), file.metadata
    found = _told_kind(words) or kind_of(text, shapes)
    if found is None:
        if stranger := stranger_of(text):
            raise UnknownKind(f"{file.path.name} is {stranger}. It is nothing that this program draws with.")
        some = ", ".join(repr(key[:60]) for key in list(shapes)[:3])
        raise UnknownKind(f"{file.path.name} is sound, but holds nothing that this program knows: {some}, ...")
    family = words.get("disegno.family") or family_of(found.kind, text, shapes) or _told_family(words)
    is_model = file.contents.format == "gguf" and found.kind == "unet" and family in _NETS_ALONE
    return FileCard(
        path=file.path,
        kind="model" if is_model else found.kind,
        mechanism=found.mechanism,
        family=family,
        layout=layout_of(text),
        prediction=_prediction(found.kind, family, text, words),
        rank=rank_of(shapes),
        in_channels=in_channels_of(shapes),
        dtype=_main_dtype(file),
        num_tensors=len(shapes),
        num_bytes=file.num_bytes,
        name=words.get("disegno.name") or words.get("modelspec.title") or file.path.stem,
        annotator=words.get("disegno.annotator") or words.get("modelspec.preprocessor") or None,
        base_sha256=words.get("disegno.base_sha256") or None,
        tasks=tuple(words.get("disegno.tasks", "").split()) or _tasks(found.mechanism, shapes),
        metadata={key: word for key, word in words.items() if len(word) <= _MAX_WORD},
    )


def _tasks(mechanism: str, shapes: Shapes) -> tuple[str, ...]:
    """Return the conditions that a control knows, where it knows several."""
    return _TASKS[mechanism](shapes) if mechanism in _TASKS else ()


def _told_kind(words: Mapping[str, str]) -> Kind | None:
    """Return what the header says of itself: a control of a named mechanism, or a model of a named family."""
    mechanism, kind = words.get("disegno.mechanism", ""), words.get("disegno.kind", "")
    if mechanism:
        return Kind("control", mechanism)
    return Kind(kind) if kind in _KINDS else None


def _told_family(words: Mapping[str, str]) -> str:
    """Return the family that the header names, where the shapes do not tell."""
    told = next((word for key in _TOLD_FAMILY if (word := words.get(key))), "")
    return next((family for start, family in _ARCHITECTURES.items() if told.startswith(start)), "")


def _prediction(kind: str, family: str, text: str, words: Mapping[str, str]) -> str | None:
    """Return what a model's output means. The empty tensor `v_pred` marks finetunes that changed it."""
    if kind not in ("model", "unet"):
        return None
    told = words.get("modelspec.prediction_type") or words.get("modelspec.predict_key") or ""
    if "\nv_pred\n" in text or told in ("v", "v_prediction") or words.get("modelspec.architecture", "").endswith("-v"):
        return "v"
    return "epsilon" if told == "epsilon" else _PREDICTIONS.get(family)


def _main_dtype(file: TensorFile) -> str:
    """Return the dtype that most of the bytes have; of packed numbers, ggml's name for how they are packed."""
    sizes: Counter[str] = Counter()
    for entry in file.contents.entries.values():
        sizes[entry.packed.name if entry.packed else str(entry.dtype)] += entry.num_bytes
    name = sizes.most_common(1)[0][0].removeprefix("torch.")
    return _DTYPES.get(name, name)
