"""What a studio can do, as the doors list it: names and what is known about them, no paths."""

import base64
import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import lru_cache
from io import BytesIO
from pathlib import Path

import torch

from disegno import __version__
from disegno.annotators import ANNOTATORS
from disegno.annotators.base import describe, read
from disegno.backbones import BACKBONES
from disegno.backbones.base import Defaults
from disegno.core.errors import CorruptFile, DisegnoError, RequestError
from disegno.core.request import COLOUR_FIX, FIDELITY, FILELESS, REFERENCE, SHARPNESS, VARIATION, Scalar
from disegno.diffusion.schedules import SCHEDULES
from disegno.engine.studio import BUILT_IN, Studio
from disegno.engine.taught import taught_params
from disegno.samplers.catalogue import all_samplers
from disegno.serving.faults import without_paths
from disegno.serving.pictures import preview_uri
from disegno.serving.words import (
    AnnotatorCard,
    Catalogue,
    FewStepsCard,
    ParamCard,
    SamplerCard,
    ScheduleCard,
    StyleCard,
    WeightsCard,
)
from disegno.text.learnt import read_learnt
from disegno.weights.built_in import built_in_folder, conditions_of, defaults_of, few_steps_of, loras_of, shipped
from disegno.weights.card import FileCard
from disegno.weights.folders import yaml_prediction
from disegno.weights.identify import identify

log = logging.getLogger(__name__)

_HASHED = ("model", "control", "lora", "embedding")
PREVIEW_PX = 192
_PREVIEWS = (".preview.png", ".preview.jpg", ".preview.jpeg", ".preview.webp", ".png", ".jpg", ".jpeg", ".webp")
_MAX_HEADER_PREVIEW = 1 << 20  # characters
_MAX_METADATA = 16 << 10  # characters
_LATENTS_AND_DEPTH = 5  # channels that Stable Diffusion 2's depth model is shown
_TAG_OFFSET, _TAG_BYTES = 0x100000, 0x10000


def _card(card: FileCard, name: str, studio: Studio) -> WeightsCard:
    return WeightsCard(
        name=name,
        kind=card.kind,
        family=card.family or None,
        mechanism=card.mechanism or None,
        annotator=card.annotator or None,
        file=card.file_name,
        place=studio.library.place(card),
        num_bytes=card.num_bytes,
        problem=without_paths(card.problem) if card.problem else None,
        sha256=studio.library.known_sha256(card) if card.kind in _HASHED else None,
        tag=_tag(card.path) if card.kind == "control" else None,
        tasks=card.tasks,
        vectors=_vectors(card.path) if card.kind == "embedding" else None,
        defaults=_defaults(card) if card.kind == "model" else None,
        layout=card.layout or None,
        preview=_preview(card),
        few_steps=_few_steps(card.path) if _is_ours(card) else None,
        sees_depth=card.kind == "model" and card.in_channels == _LATENTS_AND_DEPTH,
        params=taught_params(card) if card.kind == "control" else {},
        metadata=_metadata(card) if card.kind == "lora" else {},
    )


def _told(card: FileCard, name: str, studio: Studio) -> WeightsCard:
    """Return a file's card; of one that cannot be told, that it is broken."""
    try:
        return _card(card, name, studio)
    except Exception as error:  # the border of a file, as in the library: the others are listed
        log.exception("%s is passed over", card.path)
        problem = f"It cannot be told ({type(error).__name__}): it is damaged, or this is a fault of this program."
        return WeightsCard(name, "broken", file=card.file_name, num_bytes=card.num_bytes, problem=problem)


def _metadata(card: FileCard) -> dict[str, str]:
    """Return what a file's header says, in its order, as much of it as a list may hold of one file."""
    kept: dict[str, str] = {}
    left = _MAX_METADATA
    for name, word in card.metadata.items():
        left -= len(name) + len(word)
        if left < 0:
            break
        kept[_sound(name)] = _sound(word)
    return kept


def _sound(text: str) -> str:
    return text.encode("utf-8", "replace").decode()  # a lone half of a surrogate pair is no text of a list


def _preview(card: FileCard) -> str | None:
    """Return a small picture of what a file does: one beside it, as A1111 names them, or the one in its header."""
    beside = (card.path.with_name(card.path.stem + suffix) for suffix in _PREVIEWS)
    found = next((path for path in beside if path.is_file()), None)
    if found is not None:
        with suppress(OSError):  # taken away meanwhile
            return _small(found, found.stat().st_mtime_ns)
    head, _, body = card.metadata.get("modelspec.thumbnail", "").partition(";base64,")
    if not head.startswith("data:image/") or len(body) > _MAX_HEADER_PREVIEW:
        return None
    try:
        return preview_uri(BytesIO(base64.b64decode(body, validate=True)), PREVIEW_PX)
    except ValueError:
        return None


@lru_cache(maxsize=1000)
def _small(path: Path, stamp: int) -> str | None:
    """Return a picture's file, small; made again where the file has changed."""
    return preview_uri(path, PREVIEW_PX)


def _shipped(name: str) -> str | None:
    """Return the example of a condition that the built-in model ships; of the model itself without a name."""
    path = built_in_folder() / "examples" / (f"car_{name}.png" if name else "car.png")
    return _small(path, 0) if path.is_file() else None


def _is_ours(card: FileCard) -> bool:
    """Return whether it is a folder in the built-in model's form."""
    return card.kind == "model" and (card.path / "model.json").is_file()


def _defaults(card: FileCard) -> dict[str, int | float | str] | None:
    """Return what a model fills in: as its folder says, or its family; None where neither says anything."""
    if _is_ours(card):
        try:
            return defaults_of(card.path)
        except CorruptFile as error:
            log.warning("%s", error)
            return None
    if card.family not in BACKBONES:
        return None
    module = BACKBONES.load(card.family)
    own: Defaults | None = getattr(module, "DEFAULTS", None)
    sizes: dict[str, int] = getattr(module, "SIZES", {})  # of 2.x: by what its output means
    side = sizes.get(_prediction(card) or "") if sizes else None
    return asdict(own) | ({"width": side, "height": side} if side else {}) if own else None


def _prediction(card: FileCard) -> str | None:
    try:
        return card.prediction or yaml_prediction(card.path)
    except OSError as error:
        log.warning("%s: what its yaml says cannot be read (%s)", card.path.name, error)
        return None


def _few_steps(folder: Path) -> FewStepsCard | None:
    """Return how a folder's model draws in few steps; what says it in part is said in the log, and is none."""
    try:
        few = few_steps_of(folder)
    except CorruptFile as error:
        log.warning("%s", error)
        return None
    return few and FewStepsCard(few.name, few.steps, few.cfg, few.sampler, few.schedule)


def _vectors(path: Path) -> tuple[int, int] | None:
    """Return how many vectors an embedding has and how wide they are (SDXL's two together); None: it cannot be read."""
    try:
        read = read_learnt(path)
    except DisegnoError:
        return None
    return read.num, read.width


def _tag(path: Path) -> str | None:
    """Return what A1111's ControlNet extension shows of a file's content: of 64 KiB that begin at 1 MiB."""
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            file.seek(_TAG_OFFSET)
            return hashlib.sha256(file.read(_TAG_BYTES)).hexdigest()[:8]
    except OSError as error:  # it may be read no more, or is gone: the lists are needed all the same
        log.warning("%s cannot be read (%s).", path, error.strerror)
        return None


def _built_in() -> WeightsCard:
    """Return the built-in model, which need not be open to be described."""
    folder = built_in_folder()
    own, few = defaults_of(folder), _few_steps(folder)
    return WeightsCard(BUILT_IN, "model", BUILT_IN, defaults=own, preview=_shipped(""), shipped=True, few_steps=few)


def _conditions() -> Iterator[WeightsCard]:
    """Yield the conditions that the built-in model ships."""
    for name, path in conditions_of(built_in_folder()).items():
        card = identify(path)
        yield WeightsCard(
            name,
            "control",
            BUILT_IN,
            card.mechanism or None,
            card.annotator,
            tag=_tag(path),
            layout=card.layout or None,
            preview=_shipped(name),
            shipped=True,
            params=taught_params(card),
        )


_PARAMS: Mapping[str, dict[str, Scalar]] = {
    REFERENCE: {"fidelity": FIDELITY},
    COLOUR_FIX: {"variation": VARIATION, "sharpness": SHARPNESS},
}


def _fileless() -> Iterator[WeightsCard]:
    """Yield the controls that need no file."""
    for name, mechanism in FILELESS.items():
        yield WeightsCard(name, "control", None, mechanism, params=_PARAMS[mechanism])


def _loras() -> Iterator[WeightsCard]:
    """Yield the LoRA that the built-in model ships, where it ships one."""
    for name, path in loras_of(built_in_folder()).items():
        card = identify(path)
        family, mechanism = card.family or BUILT_IN, card.mechanism or None
        yield WeightsCard(name, "lora", family, mechanism, num_bytes=card.num_bytes, sha256=card.sha256(), shipped=True)


def _annotators() -> Iterator[AnnotatorCard]:
    for name in ANNOTATORS:
        module = ANNOTATORS.load(name)
        said = read(module)
        params = tuple(ParamCard(**asdict(spec)) for spec in describe(module))
        yield AnnotatorCard(name, said.title, said.summary, params, said.a1111_names)


def _samplers() -> Iterator[SamplerCard]:
    for spec in all_samplers():
        yield SamplerCard(spec.name, spec.aliases, spec.default_schedule, spec.evals_per_step, spec.stochastic)


def _styles(studio: Studio) -> tuple[StyleCard, ...]:
    """Return the styles; a file of them that cannot be read is said in the log, and is none."""
    try:
        styles = studio.prompt_files().styles.values()
    except RequestError as error:
        log.warning("%s", error)
        return ()
    return tuple(StyleCard(style.name, style.prompt, style.negative) for style in styles)


def _called(cards: Sequence[FileCard], studio: Studio) -> list[str]:
    """Return what requests call each file: one whose name is built in is called by its file's, with the ending."""
    taken = {"model": {BUILT_IN}, **{kind: set(files) for kind, files in shipped().items()}}
    taken["control"] |= FILELESS.keys()
    return [
        card.file_name if name in taken.get(card.kind, ()) else name
        for card, name in zip(cards, studio.library.called(cards), strict=True)
    ]


def catalogue_of(studio: Studio) -> Catalogue:
    """Return the names that requests may use."""
    found = studio.library.cards()
    cards = [_told(card, name, studio) for card, name in zip(found, _called(found, studio), strict=True)]
    policy = studio.memory.policy
    return Catalogue(
        models=(_built_in(), *(card for card in cards if card.kind == "model")),
        controls=(*_conditions(), *(card for card in cards if card.kind == "control"), *_fileless()),
        files=(*_loras(), *(card for card in cards if card.kind not in ("model", "control"))),
        annotators=tuple(_annotators()),
        samplers=tuple(_samplers()),
        schedules=tuple(ScheduleCard(spec.name, spec.label, spec.names) for spec in SCHEDULES.values()),
        styles=_styles(studio),
        environment={
            "disegno": __version__,
            "torch": torch.__version__,
            "device": str(policy.device),
            "dtype": str(policy.dtype).removeprefix("torch."),
        },
    )
