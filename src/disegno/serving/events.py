"""`/v1/events`: everything that happens to one owner's jobs, in one stream; what a page with many jobs watches.

A browser opens few connections to one server, so a stream for each job would starve the rest of the page.
"""

import asyncio
from collections.abc import AsyncGenerator

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import ConfigDict, TypeAdapter
from pydantic.dataclasses import dataclass

from disegno.serving.app import Door, jobs_of, render_plainly, streamed
from disegno.serving.board import Onlooker
from disegno.serving.guard import owner_of
from disegno.serving.jobs import Jobs
from disegno.serving.native import HEARTBEAT_SECONDS
from disegno.serving.store import Job
from disegno.serving.views import JobView, ProgressView, view
from disegno.serving.wire import Looked, Moved
from disegno.serving.words import LookView

_CONFIG = ConfigDict(use_attribute_docstrings=True, extra="ignore")

router = APIRouter(prefix="/v1")


@dataclass(frozen=True, config=_CONFIG)
class MovedView:
    """A running job has made progress. Its preview is left out where it is the one that was told before."""

    id: str
    progress: ProgressView


@dataclass(frozen=True, config=_CONFIG)
class GoneView:
    """A job was removed with its files."""

    id: str


@dataclass(frozen=True, config=_CONFIG)
class LookedView:
    """A training has looked at what it has learned."""

    id: str
    look: LookView


_JOB: TypeAdapter[JobView] = TypeAdapter(JobView)
_MOVED: TypeAdapter[MovedView] = TypeAdapter(MovedView)
_LOOKED: TypeAdapter[LookedView] = TypeAdapter(LookedView)
_GONE: TypeAdapter[GoneView] = TypeAdapter(GoneView)


@router.get("/events", tags=["jobs"], response_class=StreamingResponse)
async def events(request: Request) -> Response:
    """Watch all of your jobs, in server-sent events.

    `hello`: from here on nothing is missed; `job`: a JobView, at every change; `progress`: a MovedView, at every step;
    `look`: a LookedView, of trainings; `gone`: a GoneView. Who reads too slowly is let go, and reads `GET /v1/jobs`
    again.
    """
    return await streamed(_lines(jobs_of(request), owner_of(request)))


async def _lines(jobs: Jobs, owner: str) -> AsyncGenerator[str]:
    shown: dict[str, str] = {}  # the preview that was last told of each running job
    with jobs.streaming(owner), jobs.board.looking_on(owner) as onlooker:
        yield _event("hello", b"{}")
        while not (jobs.board.closed or onlooker.lost):
            try:
                await asyncio.wait_for(onlooker.changed.wait(), HEARTBEAT_SECONDS)
            except TimeoutError:
                yield ": still here\n\n"
                continue
            for line in _news(onlooker, shown):
                yield line


def _news(onlooker: Onlooker, shown: dict[str, str]) -> list[str]:
    """Return the lines of what has happened; removals come last."""
    news, gone = onlooker.take()
    return [_line(each, shown) for each in news] + [
        _event("gone", _GONE.dump_json(GoneView(job_id))) for job_id in gone
    ]


def _event(name: str, data: bytes) -> str:
    return f"event: {name}\ndata: {data.decode()}\n\n"


def _line(news: Job | Moved | Looked, shown: dict[str, str]) -> str:
    if isinstance(news, Job):
        if news.state != "running":
            shown.pop(news.id, None)
        return _event("job", _JOB.dump_json(view(news)))
    if isinstance(news, Looked):
        return _event("look", _LOOKED.dump_json(LookedView(news.job, news.look)))
    return _event("progress", _MOVED.dump_json(_moved(news, shown)))


def _moved(news: Moved, shown: dict[str, str]) -> MovedView:
    preview = news.preview if news.preview != shown.get(news.job) else None
    if preview is not None:
        shown[news.job] = preview
    told = news.step, news.num_steps, news.stage, news.seconds_left, preview
    return MovedView(news.job, ProgressView(*told, news.figures))


DOOR = Door(router, ("/v1/events",), render_plainly)
