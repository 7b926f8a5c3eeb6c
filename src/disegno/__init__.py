"""Disegno: pictures from text, under the control of a drawing.

The public names are loaded when they are first used, so that `import disegno` stays instant and loads no torch.
Even `typing` is left for later: what runs before `disegno.__main__` ends on Ctrl-C with a traceback.
"""

from disegno.core.version import VERSION

TYPE_CHECKING = False  # checkers take it for typing's
if TYPE_CHECKING:
    from disegno.core.errors import DisegnoError
    from disegno.core.request import ControlUnit, Region, Request
    from disegno.core.result import Progress, Result
    from disegno.core.settings import Settings
    from disegno.engine.generate import generate
    from disegno.engine.studio import Studio

__version__ = VERSION

_HOMES = {
    "ControlUnit": "disegno.core.request",
    "DisegnoError": "disegno.core.errors",
    "Progress": "disegno.core.result",
    "Region": "disegno.core.request",
    "Request": "disegno.core.request",
    "Result": "disegno.core.result",
    "Settings": "disegno.core.settings",
    "Studio": "disegno.engine.studio",
    "generate": "disegno.engine.generate",
}

__all__ = ["ControlUnit", "DisegnoError", "Progress", "Region", "Request", "Result", "Settings", "Studio", "generate"]


def __getattr__(name: str) -> object:
    """Return the public name, importing its home on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'disegno' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
