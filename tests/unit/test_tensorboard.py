"""TensorBoard's files: every figure is in them, resumed trainings replace what was void, a failing disk is an error."""

import struct
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from disegno.training.base import Look, TeachProgress, TeachResult
from disegno.training.tensorboard import TensorBoard, open_tensorboard

pytestmark = pytest.mark.unit


def _records(file: Path) -> list[Any]:
    """Return the events of a file: length (8 bytes), its check sum (4), the event, its check sum (4)."""
    event, data, events = import_module("tensorboardX.proto.event_pb2").Event, file.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        events.append(event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    return events


def _values(folder: Path) -> dict[tuple[int, str], Any]:
    events = [event for file in sorted(folder.iterdir()) for event in _records(file)]
    return {(event.step, value.tag): value for event in events for value in event.summary.value}


def _write(board: TensorBoard, steps: range, sheet: Path | None = None) -> None:
    for step in steps:
        board.hear(TeachProgress(step, 10, "teaching", 1 / step, 1e-4, 0.5))
    board.hear(Look(steps[-1], 0.25, {"controllability": 0.5}, sheet))


def test_losses_looks_and_pictures_are_there(tmp_path: Path) -> None:
    sheet, folder = tmp_path / "sheet.png", tmp_path / "tensorboard"
    Image.new("RGB", (30, 20), "red").save(sheet)
    board = open_tensorboard(folder)
    assert board is not None
    _write(board, range(1, 4), sheet)
    board.hear(TeachProgress(4, 10, "paused: the disk is full"))
    board.hear(TeachResult(tmp_path, 3, "steps"))
    values = _values(folder)
    assert values[2, "train/loss"].simple_value == 0.5 and values[3, "train/gradient"].simple_value == 0.5
    assert values[3, "look/loss"].simple_value == 0.25 and values[3, "look/controllability"].simple_value == 0.5
    picture = values[3, "look/pictures"].image
    assert (picture.width, picture.height) == (30, 20) and picture.encoded_image_string == sheet.read_bytes()
    assert {step for step, _ in values} == {1, 2, 3}


def test_a_resumed_training_voids_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    for steps in (range(1, 6), range(3, 8)):
        board = TensorBoard(tmp_path)
        _write(board, steps)
        board.hear(TeachResult(tmp_path, steps[-1], "stopped"))
    starts = [event for file in tmp_path.iterdir() for event in _records(file) if event.session_log.status == 1]
    assert sorted(event.step for event in starts) == [1, 3]


def test_a_failing_disk_is_an_error_and_the_next_event_begins_a_new_file(tmp_path: Path) -> None:
    folder = tmp_path / "tensorboard"
    folder.write_text("a file where the folder should be")
    board = TensorBoard(folder)
    with pytest.raises(OSError):
        board.hear(TeachProgress(1, 10, "teaching", 0.5))
    folder.unlink()
    board.hear(TeachProgress(2, 10, "teaching", 0.5))
    with pytest.raises(OSError):
        board.hear(Look(2, None, {"a": 1.0}, tmp_path / "gone.png"))
    _write(board, range(3, 5))
    board.hear(TeachResult(tmp_path, 4, "steps"))
    assert len(list(folder.iterdir())) == 2 and (4, "look/controllability") in _values(folder)
