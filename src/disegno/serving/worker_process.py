"""One worker process, seen from the server: started, spoken to, watched, ended. Its crash is an event, not an error."""

import asyncio
import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from disegno.serving import wire
from disegno.serving.kinds import Lane
from disegno.serving.store import Job
from disegno.serving.wire import (
    FROM_WORKER,
    OPENING,
    TO_WORKER,
    Logged,
    Moved,
    Open,
    Order,
    Ready,
)

log = logging.getLogger(__name__)

OPENING_SECONDS = 300.0  # the least patience with a model that is being opened, from a slow disk perhaps

Said = Callable[["WorkerProcess", wire.Ready | wire.Moved | wire.Looked | wire.Ended], None]
Gone = Callable[["WorkerProcess"], None]


@dataclass
class WorkerProcess:
    """A process that holds the model. `jobs`: what it is carrying out; `share`: what those jobs have in common.

    `lane`: whose jobs it takes; those of "draw" are always there, others are started for a job and rest without one.
    """

    number: int
    said: Said
    gone: Gone
    lane: Lane = "draw"
    process: asyncio.subprocess.Process | None = None
    ready: bool = False
    jobs: dict[str, Job] = field(default_factory=dict[str, Job])
    share: str | None = None
    last_word: float = 0.0
    is_opening: bool = True  # the last that was heard is that a model is being opened, which may take its time
    ending: bool = False
    _listener: asyncio.Task[None] | None = None
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def start(self, opening: Open) -> None:
        """Start the process; it says Ready when its models can be used."""
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "disegno.serving.worker",
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
        self.ready, self.ending, self.is_opening, self.last_word = False, False, True, time.monotonic()
        self._listener = asyncio.create_task(self._listen())
        await self.send(opening)

    @property
    def pid(self) -> int | None:
        """The process's number."""
        return self.process.pid if self.process else None

    async def send(self, message: Order) -> bool:
        """Say something to the worker; False where it is gone, which `gone` tells too."""
        stdin = self.process.stdin if self.process is not None else None
        if stdin is None:
            return False
        body = TO_WORKER.dump_json(message)
        async with self._lock:
            try:
                stdin.write(wire.frame(body))
                await stdin.drain()
            except (ConnectionError, RuntimeError):
                return False
        return True

    async def _listen(self) -> None:
        assert self.process is not None and self.process.stdout is not None
        stdout = self.process.stdout
        try:
            while True:
                head = await stdout.readexactly(4)
                self._hear(FROM_WORKER.validate_json(await stdout.readexactly(wire.length_of(head))))
        except asyncio.IncompleteReadError:
            pass
        except ValueError as error:
            log.error("worker %d said what nobody understands (%s); it is replaced", self.number, error)
            self.kill()
        code = await self.process.wait()
        level = logging.INFO if self.ending else logging.ERROR
        log.log(level, "worker %d (pid %s) ended with %s", self.number, self.pid, code)
        self.ready = False
        self.gone(self)

    def _hear(self, message: Ready | Moved | wire.Looked | wire.Ended | Logged) -> None:
        self.last_word = time.monotonic()
        if isinstance(message, Logged):
            logging.getLogger(message.logger).log(message.level, "worker %d: %s", self.number, message.message)
            return
        if isinstance(message, Ready):
            self.ready = True
        if isinstance(message, Moved):
            self.is_opening = message.stage == OPENING
        self.said(self, message)

    def is_stalled(self, seconds: float) -> bool:
        """Return whether it has work, or is starting, and has said nothing for so long."""
        lives = self.process is not None and self.process.returncode is None
        busy = bool(self.jobs) or not self.ready
        patience = max(seconds, OPENING_SECONDS) if self.is_opening else seconds
        return lives and busy and time.monotonic() - self.last_word > patience

    def kill(self) -> None:
        """End the process at once."""
        if self.process is not None and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()

    async def stop(self, seconds: float = 5.0) -> None:
        """End the process: it leaves when its input closes; after `seconds` it is killed."""
        self.ending = True
        if self.process is None:
            return
        if self.process.stdin is not None:
            self.process.stdin.close()
        try:
            await asyncio.wait_for(self.process.wait(), seconds)
        except TimeoutError:
            self.kill()
        if self._listener is not None:
            await self._listener
        self.process = None
