"""A worker process: it holds the models, carries jobs out, and says how far they are.

    python -m disegno.serving.worker

Frames come in on standard input and go out on standard output (`wire.py`). When the input ends, the server is gone and
so is the worker, whatever it was doing.
"""

import logging
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from disegno.core.errors import DisegnoError
from disegno.serving import wire
from disegno.serving.wire import (
    FROM_WORKER,
    TO_WORKER,
    Ended,
    Logged,
    Looked,
    Moved,
    Open,
    Order,
    Ready,
)

IDLE_SECONDS = 30.0  # without a job, before memory is given back: the next one takes it anew, which costs a little

Say = Callable[[Ready | Moved | Looked | Ended | Logged], None]


class _ToServer(logging.Handler):
    """Log records as frames."""

    def __init__(self, say: Say) -> None:
        super().__init__(logging.INFO)
        self.say = say

    def emit(self, record: logging.LogRecord) -> None:
        self.say(Logged(record.levelno, record.name, self.format(record)))


def _read(stream: BinaryIO, inbox: "queue.SimpleQueue[Order]") -> None:
    """Put every message into the inbox; end the process when there are no more."""
    while len(head := stream.read(4)) == 4:
        inbox.put(TO_WORKER.validate_json(stream.read(wire.length_of(head))))
    os._exit(0)


def _streams() -> tuple[BinaryIO, BinaryIO]:
    """Return the two ends of the pipes to the server; whatever prints to standard output from now on goes to stderr."""
    incoming, outgoing = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return incoming, outgoing


def _sayer(stream: BinaryIO) -> Say:
    lock = threading.Lock()

    def say(message: Ready | Moved | Looked | Ended | Logged) -> None:
        body = wire.frame(FROM_WORKER.dump_json(message))
        with lock:
            stream.write(body)
            stream.flush()

    return say


def _open(opening: Open, say: Say) -> Any:
    """Return the desk with an open studio. Where the machine's settings allow none, say why, and end."""
    from pydantic import TypeAdapter

    from disegno.core.settings import Settings
    from disegno.lean import open_nets

    open_nets()
    from disegno.engine import pictures
    from disegno.engine.sharing import Sharing
    from disegno.engine.studio import Studio
    from disegno.serving.desk import Desk
    from disegno.serving.settings import Limits

    machine = TypeAdapter(Settings).validate_python(opening.machine)
    limits = TypeAdapter(Limits).validate_python(opening.limits)
    own = pictures.Limits(limits.picture_bytes, limits.picture_pixels, paths=False)
    roots = tuple(Path(root) for root in opening.data_roots)
    try:
        studio = Studio(machine, own)
    except DisegnoError as error:  # such as a device that is not there
        logging.getLogger(__name__).error("no model can be opened: %s", error)
        sys.exit(1)
    return Desk(studio, limits, say, Sharing(opening.sharing), roots, Path(opening.uploads))


def _next(inbox: "queue.SimpleQueue[Order]", rest: Callable[[], None]) -> Order:
    """Return the next message; where none comes for a while, `rest` first."""
    try:
        return inbox.get(timeout=IDLE_SECONDS)
    except queue.Empty:
        rest()
        return inbox.get()


def main() -> None:
    """Carry jobs out until the server closes the pipe. Ctrl-C and SIGTERM, which a whole group gets, are for it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    incoming, outgoing = _streams()
    say, inbox = _sayer(outgoing), queue.SimpleQueue[Order]()
    logging.getLogger().addHandler(_ToServer(say))
    logging.getLogger().setLevel(logging.INFO)
    threading.Thread(target=_read, args=(incoming, inbox), daemon=True, name="reader").start()
    opening = inbox.get()
    assert isinstance(opening, Open), "the first frame opens the studio"
    desk = _open(opening, say)
    desk.look()
    if opening.warm and inbox.empty():
        desk.warm()
    while True:
        while desk.idle or not inbox.empty():
            desk.hear(_next(inbox, desk.rest))
        desk.step()


if __name__ == "__main__":
    sys.exit(main())
