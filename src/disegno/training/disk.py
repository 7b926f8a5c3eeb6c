"""A full disk pauses a training; it neither ends it nor spoils what is there."""

import errno
import shutil
import time
from collections.abc import Callable, Generator
from pathlib import Path

from disegno.core.errors import ResourceError
from disegno.training.stopping import Stop

_FULL = (errno.ENOSPC, errno.EDQUOT)
_SLICE_SECONDS = 0.2  # between two looks at whether it should stop
NUM_CHECKPOINTS = 3  # that must fit before a training begins: two are kept, and one is written before one goes


def is_full(error: BaseException) -> bool:
    """Return whether an error says that the disk, or the share of it that this user may have, is full."""
    cause = error.__cause__ if isinstance(error, ResourceError) else error
    return isinstance(cause, OSError) and cause.errno in _FULL


def require_space(folder: Path, checkpoint_bytes: int) -> None:
    """Raise ResourceError where a training's checkpoints would not fit."""
    needed, free = NUM_CHECKPOINTS * checkpoint_bytes, shutil.disk_usage(folder).free
    if free < needed:
        raise ResourceError(
            f"{folder} has {_mib(free)} free; {NUM_CHECKPOINTS} checkpoints of this training take {_mib(needed)}"
            f" ({needed} bytes needed, {free} free). Free disk space, or choose another folder: --run."
        )


def patiently(
    write: Callable[[], object], folder: Path, num_bytes: int, pause_seconds: float, stop: Stop
) -> Generator[str, None, bool]:
    """Call `write`, again and again while the disk is full, yielding why it waits; return whether it was written.

    It was not where a stop was asked for meanwhile. Raises ResourceError for another fault of the disk.
    """
    while True:
        try:
            write()
            return True
        except ResourceError as error:
            if not is_full(error):
                raise
        except OSError as error:
            if not is_full(error):
                raise ResourceError(f"{folder} cannot be written to: {error}. The last checkpoint is whole.") from error
        free = shutil.disk_usage(folder).free
        yield f"paused: the disk is full; {num_bytes} bytes needed, {free} free in {folder}"
        end = time.monotonic() + pause_seconds
        while time.monotonic() < end and not stop.is_asked:
            time.sleep(min(_SLICE_SECONDS, pause_seconds))
        if stop.is_asked:
            return False


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:.0f} MiB"
