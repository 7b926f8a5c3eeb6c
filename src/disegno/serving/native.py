"""`/v1`: this program's own door. Jobs are typed by their kind; what a job gives back are files with names."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Path, Query, Request, Response
from fastapi.responses import FileResponse, StreamingResponse
from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass

from disegno.core.evaluate import EvaluateRequest
from disegno.core.request import Request as GenerateRequest
from disegno.core.teach import TeachRequest
from disegno.serving import data_sets
from disegno.serving.app import Door, jobs_of, render_plainly, streamed
from disegno.serving.faults import ErrorView, Refused, documented
from disegno.serving.guard import owner_of
from disegno.serving.jobs import Jobs
from disegno.serving.kinds import AnnotateRequest, CaptionRequest, UpscaleRequest, kind_of
from disegno.serving.lessons import CheckRequest, DatasetRequest, EstimateRequest, UnpackRequest
from disegno.serving.sheets import SheetRequest
from disegno.serving.shelf import DownloadRequest, ExportRequest, VerifyRequest
from disegno.serving.store import Job, State
from disegno.serving.views import JobList, JobView, ProgressView, progress_view, view
from disegno.serving.wire import Looked, Moved
from disegno.serving.words import AnnotatorCard, FewStepsCard, LookView, SamplerCard, ScheduleCard, WeightsCard

_CONFIG = ConfigDict(use_attribute_docstrings=True, extra="ignore")
_STRICT = ConfigDict(use_attribute_docstrings=True, extra="forbid")
HEARTBEAT_SECONDS = 15.0
# Of a report: its own styles and pictures, no scripts, and nothing of this server's within its reach.
PAGE_POLICY = "sandbox; default-src 'none'; img-src data:; style-src 'unsafe-inline'; frame-ancestors 'none'"

FOR_EVER = {"Cache-Control": "private, max-age=31536000, immutable"}  # a result never changes

router = APIRouter(prefix="/v1", responses=documented(ErrorView))


@dataclass(frozen=True, config=_STRICT)
class GenerateJob:
    """Pictures from a sentence and drawings."""

    kind: Literal["generate"]
    request: GenerateRequest


@dataclass(frozen=True, config=_STRICT)
class SheetJob:
    """Many pictures of one request on one labelled sheet: X/Y/Z axes, or a prompt matrix."""

    kind: Literal["sheet"]
    request: SheetRequest


@dataclass(frozen=True, config=_STRICT)
class AnnotateJob:
    """A drawing from a picture."""

    kind: Literal["annotate"]
    request: AnnotateRequest


@dataclass(frozen=True, config=_STRICT)
class UpscaleJob:
    """A picture made larger."""

    kind: Literal["upscale"]
    request: UpscaleRequest


@dataclass(frozen=True, config=_STRICT)
class CaptionJob:
    """What a picture shows, in words: the fact `caption`."""

    kind: Literal["caption"]
    request: CaptionRequest


@dataclass(frozen=True, config=_STRICT)
class TeachJob:
    """A control learned from pairs. `data`: names of data sets. Cancelled, it is saved; resumed, it goes on."""

    kind: Literal["teach"]
    request: TeachRequest


@dataclass(frozen=True, config=_STRICT)
class EvaluateJob:
    """How well pictures follow a control, in figures. `data`: a data set's name; `script`, `clip`: not over HTTP."""

    kind: Literal["evaluate"]
    request: EvaluateRequest


@dataclass(frozen=True, config=_STRICT)
class DatasetJob:
    """Pairs made from a data set's pictures."""

    kind: Literal["dataset"]
    request: DatasetRequest


@dataclass(frozen=True, config=_STRICT)
class UnpackJob:
    """A data set from an uploaded zip (`POST /v1/uploads`)."""

    kind: Literal["unpack"]
    request: UnpackRequest


@dataclass(frozen=True, config=_STRICT)
class CheckJob:
    """What is wrong with a data set: facts by kind of problem, report.json in full."""

    kind: Literal["check"]
    request: CheckRequest


@dataclass(frozen=True, config=_STRICT)
class EstimateJob:
    """What a training will take, in facts: memory in bytes, seconds, and words."""

    kind: Literal["estimate"]
    request: EstimateRequest


@dataclass(frozen=True, config=_STRICT)
class VerifyJob:
    """A file of the library, read whole; the job fails where something is wrong with it."""

    kind: Literal["verify"]
    request: VerifyRequest


@dataclass(frozen=True, config=_STRICT)
class ExportJob:
    """A file of the library to download, in this or another form, and its card."""

    kind: Literal["export"]
    request: ExportRequest


@dataclass(frozen=True, config=_STRICT)
class DownloadJob:
    """A model, LoRA or control fetched by address. Cancelled, what has come is kept; resumed, it goes on."""

    kind: Literal["download"]
    request: DownloadRequest


AnyJob = (
    GenerateJob | SheetJob | AnnotateJob | UpscaleJob | CaptionJob | TeachJob | EvaluateJob | DatasetJob
    | UnpackJob | CheckJob | EstimateJob | VerifyJob | ExportJob | DownloadJob
)  # fmt: skip
Submission = Annotated[AnyJob, Field(discriminator="kind")]
Action = Literal["cancel", "finish", "pause", "resume", "first", "last", "earlier", "later"]
JobId = Annotated[str, Path(pattern="^[0-9a-f]{32}$", description="The job's id.")]
Key = Annotated[
    str | None, Header(alias="Idempotency-Key", max_length=200, description="The same key gives back the same job.")
]


@router.post("/jobs", status_code=202, tags=["jobs"])
async def submit(body: Submission, request: Request, response: Response, key: Key = None) -> JobView:
    """Submit a job. When this answers, the job is on the disk and will not be lost."""
    jobs = jobs_of(request)
    job = await jobs.submit(body.kind, body.request, owner=owner_of(request), key=f"v1:{key}" if key else None)
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    return view(job, jobs.board)


@router.get("/jobs", tags=["jobs"])
async def jobs_list(
    request: Request,
    state: Annotated[list[State] | None, Query(description="Only jobs in these states.")] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    before: Annotated[float | None, Query(allow_inf_nan=False, description="Only jobs made before.")] = None,
) -> JobList:
    """List your jobs, the newest first."""
    jobs = jobs_of(request)
    found = await jobs.recent(owner=owner_of(request), states=state or (), limit=limit, before=before)
    last = found[-1].created if len(found) == limit else None
    return JobList([view(job, jobs.board) for job in found], last)


@router.get("/jobs/{job_id}", tags=["jobs"])
async def job_get(job_id: JobId, request: Request) -> JobView:
    """Look at a job."""
    jobs = jobs_of(request)
    job = await jobs.get(job_id, owner=owner_of(request))
    return view(job, jobs.board)


@router.get("/jobs/{job_id}/request", tags=["jobs"])
async def job_request(job_id: JobId, request: Request) -> Submission:
    """See what a job was asked, with all defaults filled in."""
    jobs = jobs_of(request)
    job = await jobs.get(job_id, owner=owner_of(request))
    return SUBMISSIONS[job.kind](kind=job.kind, request=await jobs.request(job))


@router.post("/jobs/{job_id}/{action}", tags=["jobs"])
async def job_act(job_id: JobId, action: Action, request: Request) -> JobView:
    """Cancel a job; let it finish now with what there is (pictures as they stand, a training with what it has learned);
    pause or resume it; make it the first or last of yours, or let it change places with the one before or after it.

    A running training or download can be paused: it is saved, and waits. One that was cancelled, or that failed, can be
    resumed too: it goes on from where it was saved.
    """
    jobs, owner = jobs_of(request), owner_of(request)
    if action == "cancel":
        job = await jobs.cancel(job_id, owner=owner)
    elif action == "finish":
        await jobs.finish(job_id, owner=owner)
        job = await jobs.get(job_id, owner=owner)
    elif action in ("first", "last"):
        job = await jobs.reorder(job_id, action == "first", owner=owner)
    elif action in ("earlier", "later"):
        job = await jobs.swap(job_id, action == "earlier", owner=owner)
    else:
        job = await (jobs.pause if action == "pause" else jobs.resume)(job_id, owner=owner)
    return view(job, jobs.board)


@router.delete("/jobs/{job_id}", status_code=204, tags=["jobs"])
async def job_forget(job_id: JobId, request: Request) -> None:
    """Remove an ended job with its files."""
    await jobs_of(request).forget(job_id, owner=owner_of(request))


@router.get("/jobs/{job_id}/files/{name}", tags=["jobs"], response_class=FileResponse)
async def job_file(job_id: JobId, name: str, request: Request) -> Response:
    """Get one file of a job's result."""
    jobs = jobs_of(request)
    job = await jobs.get(job_id, owner=owner_of(request))
    file, path = jobs.file(job, name), jobs.path(job, name)
    headers = {"ETag": f'"{file.sha256}"'}
    if file.media_type == "text/html":
        headers |= {"Content-Security-Policy": PAGE_POLICY}
    elif file.media_type.startswith("image/") and not kind_of(job.kind).resumes:  # of a training that goes on it does
        headers |= FOR_EVER
    return FileResponse(path, media_type=file.media_type, headers=headers)


# ---- events


@router.get("/jobs/{job_id}/events", tags=["jobs"], response_class=StreamingResponse)
async def job_events(job_id: JobId, request: Request) -> Response:
    """Watch a job until it ends: server-sent events `job` (a JobView, at every change), `progress` (a ProgressView, at
    every step) and, of a training, `look` (a LookView)."""
    jobs, owner = jobs_of(request), owner_of(request)
    await jobs.get(job_id, owner=owner)
    return await streamed(_events(jobs, job_id, owner))


async def _events(jobs: Jobs, job_id: str, owner: str) -> AsyncGenerator[str]:
    with jobs.streaming(owner):
        news = aiter(jobs.watch(job_id, owner=owner))
        following = asyncio.ensure_future(anext(news))
        try:
            while True:
                done, _ = await asyncio.wait({following}, timeout=HEARTBEAT_SECONDS)
                if not done:
                    yield ": still here\n\n"
                    continue
                try:
                    yield _event(following.result())
                except StopAsyncIteration:
                    return
                following = asyncio.ensure_future(anext(news))
        finally:
            following.cancel()


def _event(news: Job | Moved | Looked) -> str:
    if isinstance(news, Job):
        return f"event: job\ndata: {_JOB.dump_json(view(news)).decode()}\n\n"
    if isinstance(news, Looked):
        return f"event: look\ndata: {_LOOK.dump_json(news.look).decode()}\n\n"
    return f"event: progress\ndata: {_PROGRESS.dump_json(progress_view(news)).decode()}\n\n"


# ---- what there is


@dataclass(frozen=True, config=_CONFIG)
class ModelView:
    """A model, in the shape that OpenAI's clients expect, and what this program knows of it."""

    id: str
    """What `model` in a request may say."""
    family: str | None
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "disegno"
    defaults: dict[str, int | float | str] | None = None
    """What it fills in where a request leaves it open: width, height, steps, cfg, sampler, schedule."""
    file: str | None = None
    """The file's name; null for the built-in model."""
    num_bytes: int = 0
    """How long the file is."""
    sha256: str | None = None
    """Of the file's content, where it is known already."""
    layout: str | None = None
    """Whose names its tensors have: ldm (the original programs'), diffusers ..."""
    preview: str | None = None
    """A small picture of what it draws, as a data URI."""
    few_steps: FewStepsCard | None = None
    """How it draws in few steps, where it was taught to (a request's `few_steps`)."""
    sees_depth: bool = False
    """Whether it draws by a depth map (a request's `depth`)."""


def _model(card: WeightsCard) -> ModelView:
    return ModelView(
        card.name,
        card.family,
        defaults=card.defaults,
        file=card.file,
        num_bytes=card.num_bytes,
        sha256=card.sha256,
        layout=card.layout,
        preview=card.preview,
        few_steps=card.few_steps,
        sees_depth=card.sees_depth,
    )


@dataclass(frozen=True, config=_CONFIG)
class ModelList:
    """The models."""

    data: list[ModelView]
    object: Literal["list"] = "list"


@router.get("/models", tags=["models"])
async def models(request: Request) -> ModelList:
    """List the models."""
    cards = jobs_of(request).catalogue.models
    return ModelList([_model(card) for card in cards])


@router.get("/models/{name:path}", tags=["models"])
async def model(name: str, request: Request) -> ModelView:
    """Look at a model."""
    found = next((card for card in jobs_of(request).catalogue.models if card.name == name), None)
    if found is None:
        raise Refused(404, "not_found", "There is no model of this name.", "name", "GET /v1/models lists them.")
    return _model(found)


@router.get("/controls", tags=["models"])
async def controls(request: Request) -> tuple[WeightsCard, ...]:
    """List the controls: the conditions that models ship, and the files of the library."""
    return jobs_of(request).catalogue.controls


@router.get("/files", tags=["models"])
async def files(request: Request) -> tuple[WeightsCard, ...]:
    """List the library's other files: LoRAs, embeddings, VAEs, upscalers, and what is broken or unknown."""
    return jobs_of(request).catalogue.files


@router.get("/annotators", tags=["models"])
async def annotators(request: Request) -> tuple[AnnotatorCard, ...]:
    """List the annotators and their parameters."""
    return jobs_of(request).catalogue.annotators


@router.get("/samplers", tags=["models"])
async def samplers(request: Request) -> tuple[SamplerCard, ...]:
    """List the samplers."""
    return jobs_of(request).catalogue.samplers


@router.get("/schedules", tags=["models"])
async def schedules(request: Request) -> tuple[ScheduleCard, ...]:
    """List the schedules."""
    return jobs_of(request).catalogue.schedules


@router.post("/models/look", status_code=202, tags=["models"])
async def look(request: Request) -> None:
    """Look at the model folders again: new files appear in the lists a moment later."""
    await jobs_of(request).dispatcher.look()


@router.get("/datasets", tags=["models"])
async def datasets(request: Request) -> list[str]:
    """List the data sets that trainings, evaluations and new data sets may name."""
    return await asyncio.to_thread(data_sets.names, jobs_of(request).settings.data_roots)


@router.get("/downloads", tags=["models"])
async def download_hosts(request: Request) -> tuple[str, ...]:
    """List the hosts from which models may be fetched (jobs of the kind `download`); none where that is not allowed."""
    return jobs_of(request).settings.limits.download_hosts


SUBMISSIONS: dict[str, type[Any]] = {
    "generate": GenerateJob,
    "sheet": SheetJob,
    "annotate": AnnotateJob,
    "upscale": UpscaleJob,
    "caption": CaptionJob,
    "teach": TeachJob,
    "evaluate": EvaluateJob,
    "dataset": DatasetJob,
    "unpack": UnpackJob,
    "check": CheckJob,
    "estimate": EstimateJob,
    "verify": VerifyJob,
    "export": ExportJob,
    "download": DownloadJob,
}
_LOOK: TypeAdapter[LookView] = TypeAdapter(LookView)
_JOB: TypeAdapter[JobView] = TypeAdapter(JobView)
_PROGRESS: TypeAdapter[ProgressView] = TypeAdapter(ProgressView)


DOOR = Door(router, ("/v1",), render_plainly)
