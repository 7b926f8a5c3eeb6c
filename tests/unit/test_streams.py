"""Streams of events: one too many is an error answer, and one that has ended is counted no more. Without workers."""

import asyncio
from collections.abc import AsyncGenerator, Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from disegno.core.settings import Settings
from disegno.serving.app import create_app, open_jobs, streamed
from disegno.serving.jobs import Jobs
from disegno.serving.settings import Limits, ServerSettings

pytestmark = pytest.mark.unit


@contextmanager
def _client(folder: Path) -> Generator[tuple[TestClient, Jobs]]:
    settings = ServerSettings(folder=folder, machine=Settings(), limits=replace(Limits(), streams_per_user=1))
    app = create_app(settings)
    app.state.jobs = jobs = open_jobs(settings)
    yield TestClient(app, base_url="http://127.0.0.1"), jobs
    asyncio.run(jobs.close())


def test_one_stream_too_many_is_refused_before_an_answer_begins(tmp_path: Path) -> None:
    with _client(tmp_path) as (client, jobs):
        job = client.post("/v1/jobs", json={"kind": "generate", "request": {"prompt": "a cat"}}).json()["id"]
        with jobs.streaming("local"):
            for path in ("/v1/events", f"/v1/jobs/{job}/events"):
                answer = client.get(path)
                assert (answer.status_code, answer.json()["error"]) == (429, "too_many_streams")
        jobs.board.close()
        for _ in range(2):
            answer = client.get("/v1/events")
            assert answer.status_code == 200 and answer.text == "event: hello\ndata: {}\n\n"
        assert client.get(f"/v1/jobs/{job}/events").text.startswith("event: job\n")


def test_who_goes_away_ends_the_stream() -> None:
    ended: list[bool] = []

    async def lines() -> AsyncGenerator[str]:
        try:
            yield "first"
            yield "second"
        finally:
            ended.append(True)

    async def work() -> None:
        body = aiter((await streamed(lines())).body_iterator)
        assert await anext(body) == "first" and not ended
        await body.aclose()  # pyright: ignore[reportAttributeAccessIssue]

    asyncio.run(work())
    assert ended == [True]
