"""What the server and its worker processes say to each other: frames of JSON, each a length and one frozen dataclass.

JSON and not pickle: a worker opens strangers' files, so nothing that it says is executed by the server.
"""

import struct
from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter
from pydantic.dataclasses import dataclass

from disegno.serving.words import Catalogue, Failure, LookView, Outcome

OPENING = "opening"  # the stage of a job whose model is being opened
MAX_FRAME_BYTES = 256 * 2**20
_LENGTH = struct.Struct("<I")


# ---- to a worker


@dataclass(frozen=True)
class Open:
    """The first frame: how to open the studio."""

    machine: dict[str, Any]
    limits: dict[str, Any]
    sharing: Literal["exact", "auto", "always"] = "auto"
    data_roots: tuple[str, ...] = ()
    """Folders below which data sets lie."""
    uploads: str = ""
    """The folder of what clients have sent."""
    warm: bool = True
    """Open the built-in model before the first job."""
    tag: Literal["open"] = "open"


@dataclass(frozen=True)
class Start:
    """Carry this job out; its files go into `folder`, which is this attempt's own; `keep` outlives the attempt."""

    job: str
    kind: str
    request: str
    folder: str
    keep: str
    tag: Literal["start"] = "start"


@dataclass(frozen=True)
class Cancel:
    """Stop this job at once; nothing of it is kept."""

    job: str
    tag: Literal["cancel"] = "cancel"


@dataclass(frozen=True)
class Finish:
    """End this job now, with the pictures as they stand."""

    job: str
    tag: Literal["finish"] = "finish"


@dataclass(frozen=True)
class Look:
    """Look at the model folders again and say the catalogue."""

    tag: Literal["look"] = "look"


@dataclass(frozen=True)
class Unload:
    """Let go of all models, and give their memory back; the next job opens what it wants."""

    tag: Literal["unload"] = "unload"


# ---- from a worker


@dataclass(frozen=True)
class Ready:
    """The worker can take jobs, or has looked again."""

    catalogue: Catalogue
    tag: Literal["ready"] = "ready"


@dataclass(frozen=True)
class Moved:
    """A job has made progress."""

    job: str
    step: int
    num_steps: int
    stage: str
    seconds_left: float | None = None
    preview: str | None = None
    """A small picture as a data URI."""
    figures: dict[str, float] = field(default_factory=dict[str, float])
    """Of a training: loss, rate, gradient."""
    tag: Literal["moved"] = "moved"


@dataclass(frozen=True)
class Looked:
    """A training has looked at what was learned."""

    job: str
    look: LookView
    tag: Literal["looked"] = "looked"


@dataclass(frozen=True)
class Ended:
    """A job has ended: with an outcome, with a failure, or, when it was cancelled, with neither."""

    job: str
    outcome: Outcome | None = None
    failure: Failure | None = None
    tag: Literal["ended"] = "ended"


@dataclass(frozen=True)
class Logged:
    """A line for the server's log."""

    level: int
    logger: str
    message: str
    tag: Literal["logged"] = "logged"


Order = Open | Start | Cancel | Finish | Look | Unload
ToWorker = Annotated[Order, Field(discriminator="tag")]
FromWorker = Annotated[Ready | Moved | Looked | Ended | Logged, Field(discriminator="tag")]

TO_WORKER: TypeAdapter[Order] = TypeAdapter(ToWorker)
FROM_WORKER: TypeAdapter[Ready | Moved | Looked | Ended | Logged] = TypeAdapter(FromWorker)


def frame(body: bytes) -> bytes:
    """Return the frame of one message."""
    if len(body) > MAX_FRAME_BYTES:
        raise ValueError(f"a message of {len(body)} bytes is longer than {MAX_FRAME_BYTES}")
    return _LENGTH.pack(len(body)) + body


def length_of(head: bytes) -> int:
    """Return how many bytes follow a frame's head of 4 bytes. Raises ValueError for more than a message may have."""
    (length,) = _LENGTH.unpack(head)
    if length > MAX_FRAME_BYTES:
        raise ValueError(f"a frame announces {length} bytes; at most {MAX_FRAME_BYTES} are read")
    return length
