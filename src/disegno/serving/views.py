"""How clients of `/v1` see jobs: their state, how far they are, what came of them."""

from dataclasses import field
from urllib.parse import quote

from pydantic import ConfigDict, JsonValue
from pydantic.dataclasses import dataclass

from disegno.serving.board import Board
from disegno.serving.store import WAITING, Job, State
from disegno.serving.wire import Moved
from disegno.serving.words import Failure, LookView, StoredFile

_CONFIG = ConfigDict(use_attribute_docstrings=True, extra="ignore")


@dataclass(frozen=True, config=_CONFIG)
class FileView:
    """One file of a job's result."""

    name: str
    role: str
    """image, condition, sheet, weights, card, report, data."""
    media_type: str
    num_bytes: int
    sha256: str
    url: str
    """Where its content is, on this server."""
    thumbnail: str | None = None
    """Of a picture: where a small one is."""


@dataclass(frozen=True, config=_CONFIG)
class ResultView:
    """What a job gave back."""

    files: list[FileView]
    warnings: list[str]
    """What was ignored or changed, in plain words."""
    facts: dict[str, JsonValue]
    """What the kind of job tells beside its files: a generation its concrete request, seeds, environment, timing."""


@dataclass(frozen=True, config=_CONFIG)
class ProgressView:
    """How far a running job is."""

    step: int
    num_steps: int
    stage: str
    seconds_left: float | None = None
    preview: str | None = None
    """A small picture as a data URI."""
    figures: dict[str, float] = field(default_factory=dict[str, float])
    """Of a training: loss, rate, gradient."""


@dataclass(frozen=True, config=_CONFIG)
class JobView:
    """One job as it stands."""

    id: str
    kind: str
    state: State
    attempts: int
    """How often it was begun; twice where a process died with it."""
    created: float
    """Seconds since 1970."""
    started: float | None
    ended: float | None
    progress: ProgressView | None = None
    look: LookView | None = None
    """Of a running training: what it had learned when it last looked."""
    failure: Failure | None = None
    result: ResultView | None = None
    position: float | None = None
    """Of a job that waits: yours are carried out in this order."""


@dataclass(frozen=True, config=_CONFIG)
class JobList:
    """Some of the jobs, the newest first."""

    jobs: list[JobView]
    before: float | None
    """Give this as `before` to see older ones; null where there are none."""


def view(job: Job, board: Board | None = None) -> JobView:
    """Return the job as clients see it."""
    progress = look = result = None
    if board is not None and job.state == "running":
        moved, looked = board.progress(job.id), board.looked(job.id)
        progress, look = progress_view(moved) if moved else None, looked.look if looked else None
    if job.outcome is not None:
        files = [_file(job, file) for file in job.outcome.files]
        result = ResultView(files, list(job.outcome.warnings), dict(job.outcome.facts))
    times = job.created, job.started, job.ended
    position = job.position if job.state in WAITING else None
    return JobView(job.id, job.kind, job.state, job.attempts, *times, progress, look, job.failure, result, position)


def progress_view(moved: Moved) -> ProgressView:
    """Return how far a job is as clients see it."""
    told = moved.step, moved.num_steps, moved.stage, moved.seconds_left, moved.preview
    return ProgressView(*told, moved.figures)


def _file(job: Job, file: StoredFile) -> FileView:
    name = quote(file.name)
    url = f"/v1/jobs/{job.id}/files/{name}"
    small = f"/v1/jobs/{job.id}/thumbnails/{name}" if file.media_type.startswith("image/") else None
    return FileView(file.name, file.role, file.media_type, file.num_bytes, file.sha256, url, small)
