"""What has been heard of a training so far, over all its interruptions: losses and looks, line by line in a file."""

import json
import math
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

from disegno.training.base import Estimate, Look, TeachEvent, TeachProgress, TeachResult

TEACHING = "teaching"  # the stage of a step


@dataclass
class History:
    """The losses and looks of a training, in the order of their steps. `seconds`: of all sessions together."""

    losses: list[tuple[int, float]] = field(default_factory=list[tuple[int, float]])
    looks: list[Look] = field(default_factory=list[Look])
    rate: float | None = None
    seconds: float = 0.0
    stage: str = ""
    seconds_left: float | None = None
    result: TeachResult | None = None
    estimate: Estimate | None = None

    @property
    def step(self) -> int:
        """Return the last step that was heard of."""
        return max(self.losses[-1][0] if self.losses else 0, self.looks[-1].step if self.looks else 0)

    def hear(self, event: TeachEvent) -> None:
        """Take in an event. A step that was heard of before, in an interrupted session, is replaced."""
        if isinstance(event, TeachResult):
            self.result = event
        elif isinstance(event, Look):
            self.looks = [*(look for look in self.looks if look.step < event.step), event]
        else:
            self._hear_progress(event)

    def _hear_progress(self, event: TeachProgress) -> None:
        self.stage, self.seconds_left = event.stage, event.seconds_left
        self.rate = self.rate if event.rate is None else event.rate
        self.estimate = event.estimate or self.estimate
        if event.stage != TEACHING or event.loss is None:
            return
        while self.losses and self.losses[-1][0] >= event.step:
            self.losses.pop()
        if self.looks and self.looks[-1].step > event.step:
            self.looks = [look for look in self.looks if look.step <= event.step]
        self.losses.append((event.step, event.loss))


def line_of(event: TeachEvent, seconds: float, folder: Path) -> str | None:
    """Return the event as a line of the file in `folder`; None for what need not be kept.

    `seconds`: of all sessions so far.
    """
    if isinstance(event, Look):
        sheet = event.sheet and os.path.relpath(event.sheet, folder)
        metrics = {name: value for name, value in event.metrics.items() if math.isfinite(value)}
        said: dict[str, Any] = {"look": event.step, "loss": event.loss, "metrics": metrics, "sheet": sheet}
    elif isinstance(event, TeachProgress) and event.stage == TEACHING and event.loss is not None:
        said = {"step": event.step, "of": event.num_steps, "loss": event.loss, "rate": event.rate}
    elif isinstance(event, TeachProgress) and event.estimate is not None:
        said = {"expected": asdict(event.estimate), "of": event.num_steps}
    else:
        return None
    return json.dumps(said | {"seconds": round(seconds, 1)})


def read_history(file: Path) -> History:
    """Return what the file says; lines that were cut off, by a crash or a full disk, are passed over."""
    history = History()
    if not file.is_file():
        return history
    for line in file.read_text("utf-8", errors="replace").splitlines():
        for event, seconds in _event(line, file.parent):
            history.hear(event)
            history.seconds = max(history.seconds, seconds)
    return history


def _event(line: str, folder: Path) -> Iterator[tuple[TeachEvent, float]]:
    try:
        said = cast("dict[str, Any]", json.loads(line))
        seconds = float(said["seconds"])
        if "look" in said:
            sheet = said["sheet"] and folder / said["sheet"]
            yield Look(int(said["look"]), said["loss"], dict(said["metrics"]), sheet), seconds
        elif "expected" in said:
            yield TeachProgress(0, int(said["of"]), estimate=Estimate(**said["expected"])), seconds
        else:
            yield (
                TeachProgress(int(said["step"]), int(said["of"]), TEACHING, float(said["loss"]), said["rate"]),
                seconds,
            )
    except (ValueError, KeyError, TypeError, AttributeError):
        return
