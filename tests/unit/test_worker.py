"""How a worker waits for the server's next message."""

import queue
import threading

import pytest

from disegno.serving import worker
from disegno.serving.wire import Cancel, Look, Open

pytestmark = pytest.mark.unit


def test_it_rests_once_when_nothing_comes_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "IDLE_SECONDS", 0.01)
    inbox: queue.SimpleQueue[worker.Message] = queue.SimpleQueue()
    rests: list[str] = []

    def rest() -> None:
        rests.append("rest")
        threading.Timer(0.1, inbox.put, (Look(),)).start()

    assert worker._next(inbox, rest) == Look()
    assert rests == ["rest"]


def test_it_does_not_rest_while_there_is_something_to_hear() -> None:
    inbox: queue.SimpleQueue[worker.Message] = queue.SimpleQueue()
    inbox.put(Cancel("a"))
    assert worker._next(inbox, lambda: pytest.fail("it rested")) == Cancel("a")


def test_settings_with_which_no_model_can_be_opened_are_said(caplog: pytest.LogCaptureFixture) -> None:
    opening = Open({"device": "foo"}, {}, "auto", (), "", False)
    with pytest.raises(SystemExit):
        worker._open(opening, lambda message: None)
    assert "The device 'foo' cannot be used" in caplog.text
