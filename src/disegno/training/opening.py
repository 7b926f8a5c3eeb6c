"""A training, opened: its data as tensors on disk, what trains in memory; VAE and text encoder are gone by then."""

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

from disegno.core.errors import BadData
from disegno.core.teach import TeachRequest
from disegno.engine.studio import Studio
from disegno.training.base import Learner, TeachProgress
from disegno.training.cache import ALONE, Cache, CachedExamples, Canvases, Share
from disegno.training.ground import open_ground, opening_of
from disegno.training.joining import joined
from disegno.training.pairs import Pairs
from disegno.training.recipe import About, Opening, Recipe
from disegno.training.recipes import RECIPES
from disegno.training.run import digest
from disegno.training.store import Store
from disegno.weights.ctrlora_files import MECHANISM
from disegno.weights.identify import identify

STORE = "teach.sqlite"
_SHOWN = 3  # of many pairs


@dataclass(frozen=True)
class Opened:
    """What the loop needs. `held_out` is None where nothing was held out. In plain words, `warnings`: of each row that
    was left out; `doubts`: of the training as a whole.

    `fingerprint`: all of the data and the files that decides the result, by content.
    """

    about: About
    examples: CachedExamples
    held_out: CachedExamples | None
    learner: Learner
    warnings: tuple[str, ...]
    fingerprint: str
    doubts: tuple[str, ...] = ()


def open_training(
    request: TeachRequest,
    train: Mapping[str, Pairs],
    held_out: Mapping[str, Pairs],
    studio: Studio,
    share: Share = ALONE,
) -> Generator[TeachProgress, None, Opened]:
    """Yield progress while caches fill, and return what trains. `train`, `held_out`: task -> pairs; "" where one.

    `share`: this process's part of the caching, of those that train together on one machine. Raises UnknownName,
    RequestError, BadData, ModelFileError, ResourceError.
    """
    recipe: Recipe = RECIPES.load(request.recipe)  # pyright: ignore[reportAssignmentType]
    about = recipe.ABOUT
    ground = open_ground(request, about, studio)
    canvases = Canvases.of(ground.backbone, request.width, request.height, request.buckets)
    store = Store(studio.settings.cache_dir / STORE)
    cache = Cache(store, ground.backbone, about.wants, canvases, share)
    examples = yield from cache.fill(train)
    held = yield from cache.fill(held_out)
    if about.joins:
        examples, held = joined(examples), joined(held)
    if not len(examples):
        raise BadData(f"None of the pairs can be learned from. {' '.join(examples.dropped[:3])}")
    yield TeachProgress(0, request.steps, "opening")
    opening = opening_of(request, ground, about, tuple(train), examples.empty, studio)
    del ground, cache  # they hold the VAE and the text encoder
    warnings = (*examples.dropped, *held.dropped)
    told = _fingerprint(opening, (examples, held))
    learner = recipe.open(opening)
    doubts = (*_of_canvases(canvases), *_of_captions(examples), *_of_base(opening))
    return Opened(about, examples, held if len(held) else None, learner, warnings, told, doubts)


def _of_canvases(canvases: Canvases) -> Iterator[str]:
    """Yield what is said where buckets were asked for, and there are none."""
    if canvases.unmet is not None:
        width, height = canvases.sizes[0]
        yield (
            f"Buckets are off: {width}x{height} are no multiples of {canvases.unmet}, so every picture is cut to it,"
            f" however long or tall. Choose multiples of {canvases.unmet}, or --no-buckets."
        )


def _of_captions(examples: CachedExamples) -> Iterator[str]:
    """Yield what is said where captions are longer than the model reads."""
    if examples.cut:
        num, some = len(examples.cut), ", ".join((*examples.cut[:_SHOWN], *["..."] * (len(examples.cut) > _SHOWN)))
        what = "1 caption is" if num == 1 else f"{num} captions are"
        yield (
            f"{what} longer than the model's text encoder reads, and the rest is not learned: {some}. Say first what"
            " matters most, or shorten it."
        )


def _of_base(opening: Opening) -> Iterator[str]:
    """Yield what is said where a condition is gone on with on another base than its own."""
    if opening.start is None or opening.base is None:
        return
    card = identify(opening.start)
    if card.mechanism == MECHANISM and card.base_sha256 not in (None, digest(opening.base)):
        yield (
            f"{opening.start.name} was taught on another Base ControlNet (sha256 {card.base_sha256}) than"
            f" {opening.base.name}: what it has learned may be lost. Name its own with --base."
        )


def _fingerprint(opening: Opening, parts: Sequence[CachedExamples]) -> str:
    """Return one name for the rows, which are named by content, the model, the base and the file to start from."""
    total = sha256(opening.model.fingerprint.encode())
    for row in (row for part in parts for row in part.rows):
        total.update(repr((row.task, row.shape, sorted(row.tensors.items()))).encode())
    for path in (opening.base, opening.start):
        total.update(b"none" if path is None else digest(path).encode())
    if opening.clip is not None:
        total.update(digest(opening.clip).encode())
    return total.hexdigest()
