"""TensorBoard's files of a training: losses, the looks' figures, their pictures.

tensorboardX's own writer hands its events to a thread that a full disk ends, after which it waits for ever; so its
records are written here, at once, and an error is an error.
"""

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from PIL import Image

from disegno.training.base import Look, TeachEvent, TeachProgress, TeachResult

FLUSH_SECONDS = 30.0


@dataclass
class TensorBoard:
    """Listens to a training (`Events`) and writes event files in `folder`; what an interrupted session wrote stays."""

    folder: Path
    _writer: Any = None
    _flushed: float = field(default_factory=time.monotonic)

    def hear(self, event: TeachEvent) -> None:
        """Write an event's figures. Raises OSError."""
        if isinstance(event, TeachResult):
            self._close()
            return
        try:
            self._write(event)
        except OSError:
            with suppress(OSError):
                self._close()  # a record that was cut off hides what comes after it in its file: a new one begins
            raise

    def _write(self, event: TeachProgress | Look) -> None:
        is_look = isinstance(event, Look)
        figures = _look_figures(event) if is_look else _step_figures(event)
        summary = _summary(figures, event.sheet if is_look else None)
        if not summary.value:
            return
        writer = self._open(event.step)
        writer.write_event(_proto("event_pb2").Event(wall_time=time.time(), step=event.step, summary=summary))
        if is_look or time.monotonic() - self._flushed > FLUSH_SECONDS:
            writer.flush()
            self._flushed = time.monotonic()

    def _open(self, step: int) -> Any:
        """Return the file that is written to; where a new one begins, what older ones say from this step on is void."""
        if self._writer is None:
            from tensorboardX.event_file_writer import EventsWriter

            words = _proto("event_pb2")
            self.folder.mkdir(parents=True, exist_ok=True)
            self._writer = EventsWriter(str(self.folder / "events"), f".{time.time_ns()}")  # its own clock: seconds
            started = words.SessionLog(status=words.SessionLog.START)
            self._writer.write_event(words.Event(wall_time=time.time(), step=step, session_log=started))
        return self._writer

    def _close(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()


def open_tensorboard(folder: Path) -> TensorBoard | None:
    """Return what writes for TensorBoard; None where the package tensorboardX (the extra `train`) is not installed."""
    return TensorBoard(folder) if find_spec("tensorboardX") else None


def _proto(module: str) -> Any:
    """Return a module of protocol buffers, whose names are made when it is imported."""
    return import_module(f"tensorboardX.proto.{module}")


def _step_figures(event: TeachProgress) -> dict[str, float]:
    named = {"train/loss": event.loss, "train/rate": event.rate, "train/gradient": event.gradient}
    return {name: value for name, value in named.items() if value is not None}


def _look_figures(look: Look) -> dict[str, float]:
    figures = {f"look/{name}": value for name, value in look.metrics.items()}
    return figures if look.loss is None else figures | {"look/loss": look.loss}


def _summary(figures: Mapping[str, float], sheet: Path | None) -> Any:
    """Return the figures, and the sheet's own bytes (PNG), as TensorBoard keeps them. Raises OSError."""
    words = _proto("summary_pb2").Summary
    values = [words.Value(tag=name, simple_value=float(value)) for name, value in figures.items()]
    if sheet is not None:
        with Image.open(sheet) as image:
            width, height = image.size
        picture = words.Image(width=width, height=height, colorspace=3, encoded_image_string=sheet.read_bytes())
        values.append(words.Value(tag="look/pictures", image=picture))
    return words(value=values)
