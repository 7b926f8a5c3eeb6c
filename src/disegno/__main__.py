"""The program `disegno`, in a process of its own."""

import os
import signal
from types import FrameType


def program() -> None:
    """Run the command line. Ctrl-C while it is imported ends it at once and without a word, as it does later."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # else it is ignored: nohup
        signal.signal(signal.SIGINT, _end)
    from disegno.cli.main import program as run

    signal.signal(signal.SIGINT, before)
    run()


def _end(number: int, frame: FrameType | None) -> None:
    os._exit(128 + number)


if __name__ == "__main__":
    program()
