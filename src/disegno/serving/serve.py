"""Running the application: one process that speaks HTTP, ended by SIGTERM in peace."""

import asyncio
import json
import logging
import signal
import sys
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI

from disegno.serving.app import create_app
from disegno.serving.http import PatientH11
from disegno.serving.settings import ServerSettings

HEADER_BYTES = 32 * 1024
KEEP_ALIVE_SECONDS = 20


class JsonLines(logging.Formatter):
    """One JSON object a line; whatever is not printable is escaped."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line)


def log_to_stderr(level: int = logging.INFO) -> None:
    """Write the log to standard error as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)


async def serve(settings: ServerSettings, started: Callable[[int], None]) -> None:
    """Serve until SIGTERM or SIGINT: then nothing new is begun, what runs may end, and the rest waits on the disk.

    `started` is told the port when requests are answered. A second signal ends at once; nothing is lost either way.
    """
    app = create_app(settings)
    config = uvicorn.Config(
        app, settings.host, settings.port, http=PatientH11, ws="none", log_config=None, access_log=False,
        server_header=False, proxy_headers=False, timeout_keep_alive=KEEP_ALIVE_SECONDS,
        h11_max_incomplete_event_size=HEADER_BYTES, timeout_graceful_shutdown=3,
    )  # fmt: skip
    server = uvicorn.Server(config)
    running = asyncio.create_task(server.serve())
    while not server.started and not running.done():
        await asyncio.sleep(0.02)
    if server.started:
        _end_in_peace(server, app)
        started(server.servers[0].sockets[0].getsockname()[1])
    await running


def _end_in_peace(server: uvicorn.Server, app: FastAPI) -> None:
    """Let the first signal drain the jobs, and the second one end the server."""
    draining: list[asyncio.Task[None]] = []

    async def drain() -> None:
        await app.state.jobs.drain()
        server.should_exit = True

    def on_signal() -> None:
        if draining:
            server.should_exit = server.force_exit = True
        else:
            draining.append(asyncio.create_task(drain()))

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
