"""Samplers that go wrong in every way that a process can, as a package of somebody else's: each after its first step.

`install(folder)` makes an installed package of it; the server's process finds it with `folder` on its PYTHONPATH.
"""

import ctypes
import os
import time
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from disegno.core.errors import RequestError
from disegno.samplers.base import Plan, SamplerSpec, Sampling
from disegno.samplers.euler import euler

_ENTRY_POINTS = """[disegno.samplers]
raises = faulty_samplers:RAISES
refuses = faulty_samplers:REFUSES
exhausts = faulty_samplers:EXHAUSTS
hangs = faulty_samplers:HANGS
crashes = faulty_samplers:CRASHES
crashes-once = faulty_samplers:CRASHES_ONCE
"""


def install(folder: Path) -> Path:
    """Return `folder`, which holds this module as an installed package now."""
    info = folder / "faulty_samplers-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / "faulty_samplers.py").write_text(Path(__file__).read_text("utf-8"), "utf-8")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: faulty-samplers\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(_ENTRY_POINTS)
    return folder


def _crash() -> None:
    ctypes.string_at(0)  # a null pointer is read: SIGSEGV


def _crash_once() -> None:
    mark = Path(os.environ["FAULTY_MARK"])
    if not mark.exists():
        mark.touch()
        _crash()


def _raise() -> None:
    raise ZeroDivisionError("/root/secret/weights.py went wrong")


def _refuse() -> None:
    raise RequestError("This sampler refuses.")


def _exhaust() -> None:
    raise MemoryError


def _spec(name: str, act: Callable[[], object]) -> SamplerSpec:
    def sample(x: Tensor, plan: Plan) -> Sampling:
        inner = euler(x, plan)
        question = next(inner)
        answer = yield question
        act()
        try:
            while True:
                answer = yield inner.send(answer)
        except StopIteration as end:
            return end.value

    return SamplerSpec(name, sample)


RAISES = _spec("Raises", _raise)
REFUSES = _spec("Refuses", _refuse)
EXHAUSTS = _spec("Exhausts", _exhaust)
HANGS = _spec("Hangs", lambda: time.sleep(3600))
CRASHES = _spec("Crashes", _crash)
CRASHES_ONCE = _spec("Crashes once", _crash_once)
