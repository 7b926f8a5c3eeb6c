"""Running the application: one process that speaks HTTP, ended by SIGTERM in peace."""

import asyncio
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from disegno.core.errors import RequestError
from disegno.core.hold import held
from disegno.serving.app import create_app, open_jobs
from disegno.serving.http import PatientH11
from disegno.serving.settings import ServerSettings

HEADER_BYTES = 32 * 1024
BACKLOG = 2048  # uvicorn's own
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
    Raises RequestError where the folder is another server's, the port is taken, or the database cannot be opened; then
    nothing has been touched.
    """
    with held(settings.folder, "serves from it", "--folder") as say, _bound(settings.host, settings.port) as listener:
        port = listener.getsockname()[1]
        say(f" at port {port}")
        await _serve(settings, listener, lambda: started(port))


@contextmanager
def _bound(host: str, port: int) -> Generator[socket.socket]:
    """Hold an address, before anything is taken up. Raises RequestError where it is another's, or none of ours."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener:
        if os.name != "nt":  # else the port of a server that has just ended would be taken for a minute
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
            listener.listen(BACKLOG)
        except OSError as error:
            why = error.strerror or str(error)
            other = "address: --host" if isinstance(error, socket.gaierror) else "port: --port; 0 takes a free one"
            raise RequestError(
                f"Nothing can listen at port {port} of {host} ({why}). Choose another {other}."
            ) from error
        yield listener


async def _serve(settings: ServerSettings, listener: socket.socket, started: Callable[[], None]) -> None:
    app = create_app(settings, open_jobs(settings))  # here, and not in the application: its failure has words
    server = uvicorn.Server(config_of(settings, app))
    running = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started and not running.done():
        await asyncio.sleep(0.02)
    if server.started:
        _end_in_peace(server, app)
        started()
    await running


def config_of(settings: ServerSettings, app: FastAPI) -> uvicorn.Config:
    """Return how the application is served."""
    return uvicorn.Config(
        app, http=PatientH11, ws="none", log_config=None, access_log=False, server_header=False,
        proxy_headers=bool(settings.proxies), forwarded_allow_ips=list(settings.proxies),
        timeout_keep_alive=KEEP_ALIVE_SECONDS, h11_max_incomplete_event_size=HEADER_BYTES, timeout_graceful_shutdown=3,
    )  # fmt: skip


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
