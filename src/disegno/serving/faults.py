"""What a client is told when something cannot be done: a code, the field, what is wrong, what to do. Never a path.

A `Refused` is raised anywhere on the way of a request and rendered by the door that it came through.
"""

import errno
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ConfigDict, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass

from disegno.core.errors import BadImage, DisegnoError, ModelFileError, RequestError, ResourceError, UnknownName

MESSAGE_CHARS = 1000
NO_ROOM = "The server's disk is full."
_PATH = re.compile(r"(?<![\w:/.~])(?:~|[A-Za-z]:)?(?:[/\\][\w.@+~ -]*[\w.@+~-])+[/\\]?")


@dataclass
class Refused(DisegnoError):
    """The request is not carried out. `status`: HTTP's; `code`: for programs; `at`: which field of the request."""

    status: int
    code: str
    message: str
    at: str | None = None
    hint: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str])

    def __str__(self) -> str:
        return self.message


@checked_dataclass(frozen=True, config=ConfigDict(use_attribute_docstrings=True))
class ErrorView:
    """Why a request was not carried out."""

    error: str
    """For programs: invalid_request, unknown_name, over_limit, too_many_jobs ..."""
    message: str
    """What was wrong, in words."""
    field: str | None
    """Which field of the request."""
    hint: str | None
    """What to do."""


ANSWERS = {  # what a door's document says of every route
    400: "The request is no HTTP or no JSON.",
    401: "Who are you? See --auth.",
    403: "A web page of another origin may not do this.",
    404: "There is nothing of this name or id, or it is another's.",
    409: "The job's state does not allow it.",
    413: "The body is too large.",
    415: "The body is of another type.",
    422: "The request cannot be carried out as written.",
    429: "Too much waits; see Retry-After.",
    500: "A fault of the server; its log tells more.",
    503: "Starting or stopping; see Retry-After.",
    507: "There is not enough memory or disk.",
}


def is_of_a_full_disk(error: Exception) -> bool:
    """Return whether an error of the system, or of SQLite, says that the disk is full."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return full or "database or disk is full" in str(error)


def documented(model: type[Any]) -> dict[int | str, dict[str, Any]]:
    """Return the answers of a door whose errors look like `model`, for its OpenAPI document."""
    return {status: {"model": model, "description": told} for status, told in ANSWERS.items()}


@dataclass(frozen=True)
class Kind:
    """How an error of the house is told over HTTP."""

    error: type[DisegnoError]
    status: int
    code: str
    hint: str | None = None


KINDS = (  # the first that fits
    Kind(UnknownName, 422, "unknown_name"),
    Kind(BadImage, 422, "bad_image", "Send the whole file of a PNG, JPEG or WebP as data:image/...;base64,..."),
    Kind(RequestError, 422, "invalid_request"),
    Kind(ModelFileError, 422, "bad_model_file"),
    Kind(ResourceError, 507, "out_of_resources", "Ask for fewer or smaller pictures."),
    Kind(DisegnoError, 422, "refused"),
)
STATUS_OF_CODE = {kind.code: kind.status for kind in KINDS} | {"over_limit": 422, "no_room": 507}


def without_paths(text: str) -> str:
    """Return a message in which every path of this machine is only its last name, and no longer than a message is."""
    names = _PATH.sub(lambda found: re.split(r"[/\\]", found[0].rstrip("/\\"))[-1] or found[0], text)
    shown = names if len(names) <= MESSAGE_CHARS else names[:MESSAGE_CHARS] + "..."
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in shown)


def refusal_of(error: DisegnoError) -> Refused:
    """Return how an error of the house is told to a client."""
    if isinstance(error, Refused):
        return error
    kind = next(kind for kind in KINDS if isinstance(error, kind.error))
    return Refused(kind.status, kind.code, without_paths(str(error)), hint=kind.hint)


def refusal_of_fields(faults: "list[Any] | ValidationError", status: int = 422) -> Refused:
    """Return the refusal of a request whose fields are wrong; what was given is not repeated, it may be megabytes."""
    found: list[Any] = faults.errors(include_input=False) if isinstance(faults, ValidationError) else faults
    shown = [(_where(fault["loc"]), str(fault["msg"])) for fault in found[:8]]
    message = "; ".join(f"{where}: {what}" if where else what for where, what in shown)
    more = f" and {len(found) - 8} more" if len(found) > 8 else ""
    first = next((where for where, _ in shown if where), None)
    return Refused(status, "invalid_request", without_paths(message + more), first, "See /openapi.json for the fields.")


def _where(loc: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in loc if part != "body")[:200]
