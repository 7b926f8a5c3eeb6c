"""A training, opened: its data as tensors on disk, what trains in memory; VAE and text encoder are gone by then."""

from collections.abc import Generator, Mapping, Sequence
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

STORE = "teach.sqlite"


@dataclass(frozen=True)
class Opened:
    """What the loop needs. `held_out` is None where nothing was held out; `warnings`: in plain words.

    `fingerprint`: all of the data and the files that decides the result, by content.
    """

    about: About
    examples: CachedExamples
    held_out: CachedExamples | None
    learner: Learner
    warnings: tuple[str, ...]
    fingerprint: str


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
    return Opened(about, examples, held if len(held) else None, recipe.open(opening), warnings, told)


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
