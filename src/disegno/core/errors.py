"""The errors a person can meet, each saying what was given, what was expected and what to do.

DisegnoError                  everything below; a door turns it into one clear message, never a traceback
├── RequestError              the request cannot be carried out as written
│   ├── UnknownName           no sampler, schedule, annotator, control or model of that name; says the nearest ones
│   ├── BadImage              an image cannot be read, or has a size that nothing can be done with
│   ├── BadData               a data set is none, or nothing in it can be used
│   └── NotInstalled          it needs a package that is not installed; says how to install it
├── ModelFileError            a file of weights is not what it should be
│   ├── UnsafeFile            it asks to run code, or to take unreasonable resources; nothing was executed
│   ├── CorruptFile           truncated, damaged, or not a file of weights at all
│   ├── UnknownKind           a sound file, but of nothing that this program knows
│   ├── KeyMismatch           keys are missing, unexpected or of another shape; carries the list
│   └── WrongFamily           a sound file of another model family than the open one
├── ResourceError             not enough memory or disk; says how much was wanted
└── Diverged                  a training's numbers are no longer finite; the last finite state is kept
"""

from collections.abc import Iterable
from difflib import get_close_matches


class DisegnoError(Exception):
    """What was given, what was expected, what to do."""

    exit_code = 1


class RequestError(DisegnoError):
    """The request cannot be carried out as written."""

    exit_code = 2


class UnknownName(RequestError):
    """No such name; the message lists the nearest known ones."""

    @classmethod
    def of(cls, what: str, given: str, known: Iterable[str], remedy: str = "") -> "UnknownName":
        """Return the error for `given`, naming close matches, or all of the known names where nothing is close.

        `remedy`: what to do where none is known, a sentence.
        """
        names = list(known)
        by_lower = {name.lower(): name for name in names}
        near = [by_lower[name] for name in get_close_matches(given.lower(), by_lower, n=3, cutoff=0.5)] or names
        choice = f"Choose one of: {', '.join(near)}." if near else f"No {what} is known here. {remedy}"
        return cls(f"There is no {what} named {given!r}. {choice}".rstrip())


class BadImage(RequestError):
    """An image cannot be read or used."""


class BadData(RequestError):
    """A data set cannot be opened, or a row of it cannot be used."""


class NotInstalled(RequestError):
    """An optional package is not installed."""


class ModelFileError(DisegnoError):
    """A file of weights is not what it should be."""

    exit_code = 3


class UnsafeFile(ModelFileError):
    """The file asks to run code, or for unreasonable resources. Nothing was executed."""


class CorruptFile(ModelFileError):
    """The file is truncated, damaged, or not a file of weights."""


class UnknownKind(ModelFileError):
    """The file is sound, but holds nothing that this program knows."""


class KeyMismatch(ModelFileError):
    """Keys are missing, unexpected, or have another shape."""


class WrongFamily(ModelFileError):
    """The file belongs to another model family than the open model."""


class ResourceError(DisegnoError):
    """Not enough memory or disk."""

    exit_code = 4


class Diverged(DisegnoError):
    """A training's losses or gradients are not finite."""

    exit_code = 5
