"""The server's application: `create_app(settings)` puts the doors around the jobs.

A door is a router and the shape of its errors. It is a module of this package with a `DOOR`:

    router = APIRouter()

    @router.post("/sdapi/v1/txt2img")
    async def txt2img(body: Txt2Img, request: Request) -> Answer:
        jobs, owner = jobs_of(request), owner_of(request)
        job = await jobs.submit("generate", to_request(body), owner=owner)
        job = await finished(request, job)              # cancelled when the client goes away
        ...

    DOOR = Door(router, ("/sdapi", "/controlnet"), render)      # render(Refused) -> Response, for errors below these

Every route is behind the guard (`guard.py`): nothing but /health and /ready answers to strangers.
"""

import logging
import secrets
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from importlib import import_module

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRouter
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from disegno import __version__
from disegno.core.errors import DisegnoError, RequestError
from disegno.serving.auth import Doorkeeper, require_safe
from disegno.serving.faults import (
    NO_ROOM,
    STATUS_OF_CODE,
    Refused,
    is_of_a_full_disk,
    refusal_of,
    refusal_of_fields,
)
from disegno.serving.files import Files
from disegno.serving.guard import SECURITY_HEADERS, Guard, owner_of
from disegno.serving.jobs import Jobs
from disegno.serving.settings import ServerSettings
from disegno.serving.store import Job, Store

log = logging.getLogger(__name__)

DOORS = (  # the first whose prefix fits renders an error
    "disegno.serving.openai",
    "disegno.serving.events",
    "disegno.serving.counting",
    "disegno.serving.uploading",
    "disegno.serving.thumbnails",
    "disegno.serving.native",
    "disegno.serving.a1111.door",
    "disegno.ui.door",
)


@dataclass(frozen=True)
class Door:
    """One family of routes, and how an error looks to its clients. `prefixes`: the paths below which it does."""

    router: APIRouter
    prefixes: tuple[str, ...]
    render: Callable[[Refused], Response]


def render_plainly(refused: Refused) -> Response:
    """Return the error in this server's own shape."""
    told = {"error": refused.code, "message": refused.message, "field": refused.at, "hint": refused.hint}
    return JSONResponse(told, refused.status, dict(refused.headers))


def jobs_of(request: Request) -> Jobs:
    """Return the server's jobs, in a route."""
    jobs: Jobs = request.app.state.jobs
    return jobs


async def streamed(lines: AsyncGenerator[str]) -> StreamingResponse:
    """Return the answer that tells events as they come. Raises what the first line does: no answer has begun then."""
    first = await anext(lines)

    async def all_of_them() -> AsyncGenerator[str]:
        async with aclosing(lines):
            yield first
            async for line in lines:
                yield line

    return StreamingResponse(all_of_them(), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})


async def finished(request: Request, job: Job) -> Job:
    """Return the job when it has ended; it is cancelled when the client that waits for it goes away.

    Raises Refused where the job failed or was cancelled, and where the server stops first (the job is kept).
    """
    waiting = jobs_of(request).wait(job.id, owner=owner_of(request), is_gone=request.is_disconnected)
    return require_done(await waiting)


def require_done(job: Job) -> Job:
    """Return the job, which has ended well. Raises Refused saying why it has not."""
    if job.state == "done":
        return job
    if job.failure is not None:
        raise Refused(STATUS_OF_CODE.get(job.failure.code, 500), job.failure.code, job.failure.message)
    if job.state == "cancelled":
        raise Refused(409, "cancelled", "The job was cancelled.")
    raise Refused(503, "draining", f"The server is stopping. The job {job.id} is kept and goes on at its next start.")


def open_jobs(settings: ServerSettings) -> Jobs:
    """Return the jobs of the settings' folder, not yet running. Raises RequestError where there can be none."""
    files = Files(settings.folder)
    files.prepare()
    try:
        store = Store(settings.db or f"sqlite:///{settings.folder / 'jobs.sqlite'}")
    except ImportError as error:
        raise RequestError(
            f"The jobs' database wants a driver that is not installed: {error.name}. See --db."
        ) from error
    except SQLAlchemyError as error:
        why = str(getattr(error, "orig", None) or type(error).__name__).partition("\n")[0]
        raise RequestError(f"The jobs' database cannot be opened: {why}. See --db.") from error
    return Jobs(settings, store, files)


def create_app(settings: ServerSettings, jobs: Jobs | None = None) -> FastAPI:
    """Return the application. `jobs`: unset, they are opened with it. Raises RequestError where listening is unsafe."""
    require_safe(settings)
    doors: list[Door] = [import_module(name).DOOR for name in DOORS]

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        app.state.jobs = own = jobs or open_jobs(settings)
        await own.open()
        try:
            yield
        finally:
            await own.close()

    app = FastAPI(title="Disegno", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    for door in doors:
        app.include_router(door.router)
    app.include_router(OWN)

    def render(path: str, refused: Refused) -> Response:
        if (jobs := getattr(app.state, "jobs", None)) is not None:
            jobs.metrics.refused.labels(refused.code).inc()
        door = next((door for door in doors if path.startswith(door.prefixes)), None)
        return (door.render if door else render_plainly)(refused)

    _handle_errors(app, render)
    if settings.allow_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=settings.allow_origins, allow_methods=["*"], allow_headers=["*"]
        )
    app.add_middleware(Guard, settings=settings, doorkeeper=Doorkeeper(settings), render=render)
    return app


def _handle_errors(app: FastAPI, render: Callable[[str, Refused], Response]) -> None:
    """Let every error come out as the door's clients expect it, and say nothing that is not theirs to know."""

    async def house(request: Request, error: Exception) -> Response:
        assert isinstance(error, DisegnoError)
        return render(request.scope["path"], refusal_of(error))

    async def fields(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return render(request.scope["path"], refusal_of_fields(list(error.errors())))

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        code = HTTPStatus(error.status_code).name.lower()
        headers = dict(error.headers or {})
        return render(request.scope["path"], Refused(error.status_code, code, str(error.detail), headers=headers))

    async def ours(request: Request, error: Exception) -> Response:
        if is_of_a_full_disk(error):
            log.error("the disk is full: %s", error)
            return render(request.scope["path"], Refused(507, "no_room", NO_ROOM, headers=SECURITY_HEADERS))
        number = secrets.token_hex(4)
        log.error("failure %s on %s", number, request.scope["path"], exc_info=error)
        told = f"This is a fault of the server; its log tells more under {number}."
        return render(request.scope["path"], Refused(500, "internal", told, headers=SECURITY_HEADERS))

    app.add_exception_handler(DisegnoError, house)
    app.add_exception_handler(RequestValidationError, fields)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, ours)


OWN = APIRouter(tags=["server"])


@OWN.get("/health")
async def health() -> dict[str, str]:
    """Whether the server itself is alive."""
    return {"status": "alive"}


@OWN.get("/ready", responses={503: {"description": "Starting, stopping, or without room."}})
async def ready(request: Request) -> Response:
    """Whether jobs are taken and carried out now."""
    now = jobs_of(request).ready
    return JSONResponse({"status": "ready" if now else "not ready"}, 200 if now else 503)


@OWN.get("/metrics", response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    """The server's figures, for Prometheus."""
    return PlainTextResponse(await jobs_of(request).figures(), media_type="text/plain; version=0.0.4; charset=utf-8")
